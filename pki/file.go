package pki

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write stores the certificate with its intermediates (0644) and the key (0600)
// as PEM, making the folders (0700). It refuses to replace a file that exists.
// Without a key it writes the certificate alone.
func (p *Pair) Write(certFile, keyFile string) error {
	if p.Key == nil {
		return create(certFile, 0o644, p.PEM())
	}
	der, err := x509.MarshalPKCS8PrivateKey(p.Key)
	if err != nil {
		return err
	}
	if err := create(keyFile, 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return err
	}
	if err := create(certFile, 0o644, p.PEM()); err != nil {
		return errors.Join(err, os.Remove(keyFile))
	}
	return nil
}

// PEM is the certificate followed by its intermediates.
func (p *Pair) PEM() []byte {
	return EncodeCertificates(append([]*x509.Certificate{p.Certificate}, p.Chain...)...)
}

// EncodeCertificates writes certificates as PEM.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// DecodeCertificates reads all certificates in PEM; other blocks are passed over.
func DecodeCertificates(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for len(text) > 0 {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read: %w", len(all)+1, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("there is no certificate in PEM")
	}
	return all, nil
}

// ReadCertificates reads all certificates of a PEM file.
func ReadCertificates(file string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	all, err := DecodeCertificates(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return all, nil
}

// create writes a whole new file, or nothing.
func create(file string, mode fs.FileMode, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists and is not replaced; move it away, or choose another place: %w", file, fs.ErrExist)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}

// Replace puts the certificate and its intermediates in the place of a file, in
// one step.
func (p *Pair) Replace(certFile string) error {
	f, err := os.CreateTemp(filepath.Dir(certFile), "."+filepath.Base(certFile)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(p.PEM())
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), certFile)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Read loads a certificate with its intermediates and its key from PEM files.
func Read(certFile, keyFile string) (*Pair, error) {
	t, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("%s and %s are not a certificate and its key: %w", certFile, keyFile, err)
	}
	key, ok := t.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s holds a key that cannot sign", keyFile)
	}
	p := &Pair{Certificate: t.Leaf, Key: key}
	for _, der := range t.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", certFile, err)
		}
		p.Chain = append(p.Chain, c)
	}
	return p, nil
}

// Roots reads the certificates of a PEM file as authorities to trust.
func Roots(file string) (*x509.CertPool, error) {
	all, err := ReadCertificates(file)
	if err != nil {
		return nil, fmt.Errorf("the CA's certificate cannot be used: %w", err)
	}
	return Pool(all), nil
}

// Pool is a set of authorities.
func Pool(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}
