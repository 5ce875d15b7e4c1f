package snapshot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"

	"github.com/muster-registry/muster/fault"
)

// Recipient is whom a snapshot is encrypted for; Identity opens it again.
type (
	Recipient = age.Recipient
	Identity  = age.Identity
)

// ageMagic begins every file that age has encrypted.
const ageMagic = "age-encryption.org/"

// ParseRecipients reads age's public keys, as age-keygen prints them.
func ParseRecipients(keys []string) ([]Recipient, error) {
	var all []Recipient
	for _, k := range keys {
		r, err := age.ParseRecipients(strings.NewReader(k))
		if err != nil || len(r) != 1 {
			return nil, fmt.Errorf("%q is no public key of age; age-keygen makes one, which begins with age1", k)
		}
		all = append(all, r[0])
	}
	return all, nil
}

// ReadIdentities reads the secret keys in a file that age-keygen wrote.
func ReadIdentities(file string) ([]Identity, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ids, err := age.ParseIdentities(f)
	if err != nil {
		return nil, fmt.Errorf("%s holds no secret key of age", file) // what it holds instead must not be shown
	}
	return ids, nil
}

// Encrypt gives a writer that encrypts for the recipients, with age, what
// goes on into w. Without recipients it passes everything on as it is. The file
// is whole when Close has returned nil; w is not closed.
func Encrypt(w io.Writer, to []Recipient) (io.WriteCloser, error) {
	if len(to) == 0 {
		return open{w}, nil
	}
	return age.Encrypt(w, to...)
}

type open struct{ io.Writer }

func (open) Close() error { return nil }

// Decrypt gives the snapshot in r as Read takes it: as it is, or decrypted by
// one of the identities. Errors, also of the reader: invalid_snapshot where it
// is encrypted for others or damaged, the errors of r as they are.
func Decrypt(r io.Reader, with []Identity) (io.Reader, error) {
	src := &source{r: bufio.NewReaderSize(r, 64<<10)}
	start, err := src.r.Peek(len(ageMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if !bytes.Equal(start, []byte(ageMagic)) {
		return src.r, nil
	}
	if len(with) == 0 {
		return nil, encrypted()
	}
	plain, err := age.Decrypt(src, with...)
	switch {
	case err == nil:
		return &decrypted{plain: plain, src: src}, nil
	case src.err != nil:
		return nil, src.err
	case errors.As(err, new(*age.NoIdentityMatchError)):
		return nil, fault.Wrap(fault.InvalidSnapshot, err, "the snapshot is encrypted for others than the identity that was given")
	}
	return nil, fault.Wrap(fault.InvalidSnapshot, err, "the snapshot is encrypted and damaged at its beginning; take another copy")
}

func encrypted() error {
	return invalid("the snapshot is encrypted with age: give the file with the secret key that opens it (muster snapshot … --identity FILE)")
}

// source notes an error of the file, which is none of its content.
type source struct {
	r   *bufio.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// decrypted words age's errors.
type decrypted struct {
	plain io.Reader
	src   *source
}

func (d *decrypted) Read(p []byte) (int, error) {
	n, err := d.plain.Read(p)
	if err == nil || err == io.EOF {
		return n, err
	}
	if d.src.err != nil {
		return n, d.src.err
	}
	return n, fault.Wrap(fault.InvalidSnapshot, err, "the snapshot is encrypted and damaged, or cut off; take another copy")
}
