package git

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/storer"
)

// Verifier checks who signed a commit. It gives the name of the trusted key;
// the error says why the signature is not believed: by an unknown, expired or
// revoked key, or over something else.
type Verifier func(signed, armored []byte) (key string, err error)

// commit is a commit as far as anything depends on it, read from the very bytes
// that its signature covers.
type commit struct {
	id        plumbing.Hash
	tree      plumbing.Hash
	parents   []plumbing.Hash
	signed    []byte // all but the signature
	signature []byte // armored; nil for none
}

// raw gives an object's bytes. Objects were measured before they were unpacked.
func raw(objects storer.EncodedObjectStorer, kind plumbing.ObjectType, id plumbing.Hash) ([]byte, error) {
	o, err := objects.EncodedObject(kind, id)
	if err != nil {
		return nil, err
	}
	r, err := o.Reader()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func readCommit(objects storer.EncodedObjectStorer, id plumbing.Hash) (*commit, error) {
	b, err := raw(objects, plumbing.CommitObject, id)
	if err != nil {
		return nil, err
	}
	c := &commit{id: id}
	return c, c.parse(b)
}

const signatureHeader = "gpgsig "

// parse takes the signature out of the headers, as git does to sign and to
// verify, and reads the others.
func (c *commit) parse(b []byte) error {
	for inSignature := false; ; {
		line, rest, ok := bytes.Cut(b, []byte{'\n'})
		if !ok {
			return errors.New("the commit is damaged: its headers do not end")
		}
		switch {
		case len(line) == 0:
			c.signed = append(c.signed, b...) // the empty line and the message
			if c.tree.IsZero() {
				return errors.New("the commit is damaged: it has no tree")
			}
			return nil
		case inSignature && line[0] == ' ':
			c.signature = append(append(c.signature, line[1:]...), '\n')
		case bytes.HasPrefix(line, []byte(signatureHeader)):
			if c.signature != nil {
				return errors.New("the commit has two signatures; which one counts cannot be told")
			}
			inSignature = true
			c.signature = append(append([]byte{}, line[len(signatureHeader):]...), '\n')
		default:
			inSignature = false
			if err := c.header(string(line)); err != nil {
				return err
			}
			c.signed = append(append(c.signed, line...), '\n')
		}
		b = rest
	}
}

func (c *commit) header(line string) error {
	name, value, _ := strings.Cut(line, " ")
	if name != "tree" && name != "parent" {
		return nil
	}
	id := plumbing.NewHash(value)
	if id.String() != value {
		return fmt.Errorf("the commit is damaged: its %s is no object id", name)
	}
	if name == "parent" {
		c.parents = append(c.parents, id)
		return nil
	}
	if !c.tree.IsZero() {
		return errors.New("the commit is damaged: it has two trees")
	}
	c.tree = id
	return nil
}

// errTooShallow says that the answer lies further back than was fetched.
var errTooShallow = errors.New("the history that was fetched does not reach back far enough")

// descends says whether old is the head of the history or among its ancestors.
func (h *history) descends(old plumbing.Hash) (bool, error) {
	seen := map[plumbing.Hash]bool{h.head: true}
	missing := false
	for queue := []plumbing.Hash{h.head}; len(queue) > 0; {
		id := queue[0]
		queue = queue[1:]
		if id == old {
			return true, nil
		}
		c, err := readCommit(h.objects, id)
		if errors.Is(err, plumbing.ErrObjectNotFound) {
			missing = true
			continue
		}
		if err != nil {
			return false, err
		}
		for _, p := range c.parents {
			if !seen[p] {
				seen[p] = true
				queue = append(queue, p)
			}
		}
	}
	if missing {
		return false, errTooShallow
	}
	return false, nil
}

// verify gives the name of the key that signed the commit.
func (c *commit) verify(v Verifier) (key string, err error) {
	if c.signature == nil {
		return "", errors.New("it is not signed; sign commits with git commit -S")
	}
	return v(c.signed, c.signature)
}
