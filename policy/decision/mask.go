package decision

import (
	"fmt"
	"slices"
	"strings"
)

// Masked stands where a value has been taken out.
const Masked = "***"

// DefaultMasks are the pointers that hold credentials in the input document of
// the public contract.
func DefaultMasks() []string {
	masks := []string{"/input/token"}
	for _, name := range []string{"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "api-key", "x-auth-token", "x-access-token",
		"x-consul-token", "x-vault-token", "x-gitlab-token", "x-amz-security-token", "x-csrf-token", "x-forwarded-client-cert"} {
		masks = append(masks, plainHeaders+name)
	}
	return masks
}

// requestPath is where the contract's input has the path of a request with its
// query, which may hold a credential, too.
const requestPath = "/input/attributes/request/http/path"

// secretParams are the parameters of a query whose values are masked there.
var secretParams = map[string]bool{
	"token": true, "access_token": true, "id_token": true, "refresh_token": true, "auth_token": true, "private_token": true, "jwt": true,
	"api_key": true, "apikey": true, "api-key": true, "key": true, "secret": true, "client_secret": true, "password": true, "passwd": true,
	"code": true, "sig": true, "signature": true, "x-amz-signature": true, "x-amz-security-token": true, "client_assertion": true,
}

// Masker takes values out of inputs and results before anybody sees them. It
// is immutable.
type Masker struct{ root *mask }

// mask is a place in a document: below are the names that lead on.
type mask struct {
	all   bool
	query bool             // it is a path, and its query may hold credentials
	below map[string]*mask // by name in lower case; "*": every name
}

// NewMasker makes a masker of JSON pointers that begin with /input or
// /result. A segment * stands for every name and every index. Names are
// compared without regard to case, since headers are. A header is masked in
// both places that hold it. The error names the
// pointer that is not one.
func NewMasker(pointers []string) (*Masker, error) {
	m := &Masker{root: &mask{}}
	for _, p := range slices.Concat(pointers, twins(pointers)) {
		at := m.root
		segments := strings.Split(p, "/")
		if len(segments) < 2 || segments[0] != "" || (segments[1] != "input" && segments[1] != "result") {
			return nil, fmt.Errorf("%q is not a JSON pointer that begins with /input or /result, such as /input/token", p)
		}
		for _, s := range segments[1:] {
			s = strings.ToLower(strings.NewReplacer("~1", "/", "~0", "~").Replace(s))
			if at.below == nil {
				at.below = map[string]*mask{}
			}
			if at.below[s] == nil {
				at.below[s] = &mask{}
			}
			at = at.below[s]
		}
		at.all = true
	}
	at := m.root
	for _, s := range strings.Split(requestPath, "/")[1:] {
		if at.below == nil {
			at.below = map[string]*mask{}
		}
		if at.below[s] == nil {
			at.below[s] = &mask{}
		}
		at = at.below[s]
	}
	at.query = true
	return m, nil
}

// The two places that hold the headers of a request.
const (
	plainHeaders = "/input/headers/"
	envoyHeaders = "/input/attributes/request/http/headers/"
)

// twins gives the other places of the headers that are masked: whoever masks
// one means both.
func twins(pointers []string) (more []string) {
	for _, p := range pointers {
		if name, ok := strings.CutPrefix(p, plainHeaders); ok {
			more = append(more, envoyHeaders+name)
		} else if name, ok := strings.CutPrefix(p, envoyHeaders); ok {
			more = append(more, plainHeaders+name)
		}
	}
	return more
}

var defaults = func() *Masker {
	m, err := NewMasker(DefaultMasks())
	if err != nil {
		panic(err)
	}
	return m
}()

// Mask gives the input document without credentials, by the default masks.
func Mask(input []byte) []byte {
	out, _ := defaults.Mask("input", input)
	return out
}

// Mask gives the document, which is the input or the result, with Masked in
// place of what is masked, and the pointers where something was. What is null
// or empty stays as it is. A document that is not JSON is masked as a whole.
func (m *Masker) Mask(name string, document []byte) (out []byte, masked []string) {
	var c cuts
	m.cut(&c, name, document)
	return c.append(nil), c.pointers()
}

// masks reports whether there is anything to mask in such a document.
func (m *Masker) masks(name string) bool {
	var room [2]*mask
	return len(m.root.next(room[:0], []byte(name))) > 0
}

// Secrets lists the texts that Mask takes out of the document.
func (m *Masker) Secrets(name string, document []byte) []string {
	var c cuts
	m.cut(&c, name, document)
	return c.texts()
}

// next appends the places that the name, in lower case, leads to.
func (p *mask) next(to []*mask, name []byte) []*mask {
	if n := p.below[string(name)]; n != nil {
		to = append(to, n)
	}
	if n := p.below["*"]; n != nil && string(name) != "*" {
		to = append(to, n)
	}
	return to
}
