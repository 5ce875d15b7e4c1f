package issuer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/muster-registry/muster/pki"
)

// paired follows the authority's files: what they hold counts for the next
// certificate.
type paired struct {
	cert, key string // key "": it is elsewhere

	mu   sync.Mutex // guards what follows
	seen [sha256.Size]byte
	pair *pki.Pair
}

// load gives the authority as the files have it now.
func (p *paired) load() (*pki.Pair, error) {
	crt, err := os.ReadFile(p.cert)
	if err != nil {
		return nil, fmt.Errorf("certificates.cert: %w", err)
	}
	var key []byte
	if p.key != "" {
		if key, err = readKey(p.key); err != nil {
			return nil, fmt.Errorf("certificates.key: %w", err)
		}
		defer clear(key)
	}
	sum := sha256.Sum256(bytes.Join([][]byte{crt, key}, []byte{0}))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pair != nil && p.seen == sum {
		return p.pair, nil
	}
	certs, err := pki.DecodeCertificates(crt)
	if err != nil {
		return nil, fmt.Errorf("certificates.cert: %s: %w", p.cert, err)
	}
	if !certs[0].IsCA {
		return nil, fmt.Errorf("certificates.cert: %s is not a CA's; make an intermediate with: muster tls ca --parent ca.crt --out issuing", p.cert)
	}
	pair := &pki.Pair{Certificate: certs[0], Chain: certs[1:]}
	if p.key != "" {
		t, err := tls.X509KeyPair(crt, key)
		if err != nil {
			return nil, fmt.Errorf("certificates.cert, certificates.key: %w", err)
		}
		pair.Key = t.PrivateKey.(crypto.Signer) // each of the kinds that are read is one
	}
	p.seen, p.pair = sum, pair
	return pair, nil
}

// readKey reads the key of a CA, which nobody but the node may have.
func readKey(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		return nil, fmt.Errorf("%s is a CA's key, and others than its owner may have it (its mode is %04o): run chmod 0600, or 0640 with a group of the node's own", file, mode)
	}
	return os.ReadFile(file)
}

// inFile signs with a key in a file.
type inFile struct {
	pair   paired
	domain string
}

func (f *inFile) chain() ([]*x509.Certificate, error) { return own(f.pair.load()) }

func own(p *pki.Pair, err error) ([]*x509.Certificate, error) {
	if err != nil {
		return nil, err
	}
	return append([]*x509.Certificate{p.Certificate}, p.Chain...), nil
}

func (f *inFile) sign(_ context.Context, o *Order, now time.Time) ([]*x509.Certificate, error) {
	ca, err := f.pair.load()
	if err != nil {
		return nil, err
	}
	return signed(ca, f.domain, o, now)
}

func signed(ca *pki.Pair, domain string, o *Order, now time.Time) ([]*x509.Certificate, error) {
	p, err := ca.Issue(domain, o.request, now)
	if err != nil {
		return nil, err
	}
	return append([]*x509.Certificate{p.Certificate}, p.Chain...), nil
}
