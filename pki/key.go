package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// Algorithm is the kind of key to make.
type Algorithm string

// The algorithms.
const (
	ECDSA     Algorithm = "ecdsa" // P-256
	ECDSAP384 Algorithm = "ecdsa-p384"
	Ed25519   Algorithm = "ed25519"
	RSA2048   Algorithm = "rsa-2048"
	RSA3072   Algorithm = "rsa-3072"
	RSA4096   Algorithm = "rsa-4096"
)

// Algorithms lists the algorithms, the default first.
func Algorithms() []Algorithm {
	return []Algorithm{ECDSA, ECDSAP384, Ed25519, RSA2048, RSA3072, RSA4096}
}

func newKey(a Algorithm) (crypto.Signer, error) {
	switch a {
	case ECDSA, "":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECDSAP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	names := make([]string, 0, 6)
	for _, known := range Algorithms() {
		names = append(names, string(known))
	}
	return nil, fmt.Errorf("%q is not a key algorithm; use one of %s", a, strings.Join(names, ", "))
}

// strong refuses keys that nobody should trust, and those that cost a verifier
// too much.
func strong(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 4096 {
			return fmt.Errorf("the RSA key has %d bits; it takes 2048 to 4096", bits)
		}
		return nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return fmt.Errorf("the ECDSA key is on the curve %s; use P-256 or P-384", k.Curve.Params().Name)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return errors.New("the key is none of RSA, ECDSA and Ed25519")
}

// CSR is a certificate signing request (PKCS #10) whose signature is good: who
// sent it holds the key.
type CSR struct{ request *x509.CertificateRequest }

// ParseCSR reads a signing request in PEM.
func ParseCSR(text []byte) (*CSR, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, errors.New("there is no certificate signing request in PEM; make one with: openssl req -new")
	}
	if len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("something stands behind the signing request; send one alone")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the signing request cannot be read: %w", err)
	}
	// The key first: checking a signature by a huge one takes long.
	if err := strong(r.PublicKey); err != nil {
		return nil, fmt.Errorf("the signing request is refused: %w", err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the signing request is not signed by its own key: %w", err)
	}
	return &CSR{r}, nil
}

// NewCSR makes a signing request for a SPIFFE id and hosts. Without a key it
// makes one.
func NewCSR(key crypto.Signer, algorithm Algorithm, id string, hosts []string) (*CSR, crypto.Signer, error) {
	t := &x509.Certificate{}
	addHosts(t, hosts)
	r := &x509.CertificateRequest{DNSNames: t.DNSNames, IPAddresses: t.IPAddresses}
	if id != "" {
		u, err := WorkloadID(id)
		if err != nil {
			return nil, nil, err
		}
		r.URIs = []*url.URL{u}
	}
	if key == nil {
		var err error
		if key, err = newKey(algorithm); err != nil {
			return nil, nil, err
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, r, key)
	if err != nil {
		return nil, nil, err
	}
	made, err := x509.ParseCertificateRequest(der)
	return &CSR{made}, key, err
}

// ReadPublicKey reads a public key (PEM, as openssl pkey -pubout writes it).
func ReadPublicKey(file string) (crypto.PublicKey, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, fmt.Errorf("%s: there is no public key in PEM, alone; openssl pkey -pubout and ssh-keygen -e -m PKCS8 write one", file)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: the public key cannot be read: %w", file, err)
	}
	return key, nil
}

// ReadCSR reads a signing request from a file.
func ReadCSR(file string) (*CSR, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c, err := ParseCSR(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// Hosts gives the DNS names and IP addresses that the request asks for.
func (c *CSR) Hosts() []string {
	hosts := append([]string(nil), c.request.DNSNames...)
	for _, ip := range c.request.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// IDs gives the URIs that the request asks for.
func (c *CSR) IDs() []*url.URL { return c.request.URIs }

// RawPublicKey is the key that the request is about, in DER (SubjectPublicKeyInfo).
func (c *CSR) RawPublicKey() []byte { return c.request.RawSubjectPublicKeyInfo }

// KeyAlgorithm names the kind of key, such as ECDSA.
func (c *CSR) KeyAlgorithm() string { return c.request.PublicKeyAlgorithm.String() }

// Raw is the request in DER.
func (c *CSR) Raw() []byte { return c.request.Raw }

// PEM is the request as text.
func (c *CSR) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: c.request.Raw})
}

// asks refuses a request that asks for another id than it would get. A nil
// request asks for nothing.
func (c *CSR) asks(id *url.URL) error {
	if c == nil {
		return nil
	}
	for _, u := range c.request.URIs {
		if u.String() != id.String() {
			return fmt.Errorf("the signing request asks for %s, and the certificate is for %s", u, id)
		}
	}
	if len(c.request.EmailAddresses) > 0 {
		return errors.New("the signing request asks for an e-mail address, which no certificate of muster carries")
	}
	for _, e := range c.request.Extensions {
		if err := harmless(e); err != nil {
			return err
		}
	}
	return nil
}

// Extensions that a signing request can have (RFC 5280).
var (
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidAlternativeNames = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidConstraints      = asn1.ObjectIdentifier{2, 5, 29, 19}
)

// harmless refuses what would make a certificate more than its holder's own.
// Nothing of it would get into the certificate: it is told, rather than left out.
func harmless(e pkix.Extension) error {
	switch {
	case e.Id.Equal(oidConstraints):
		var c struct {
			CA     bool `asn1:"optional"`
			MaxLen int  `asn1:"optional,default:-1"`
		}
		if rest, err := asn1.Unmarshal(e.Value, &c); err != nil || len(rest) > 0 {
			return errors.New("the basic constraints in the signing request cannot be read")
		}
		if c.CA {
			return errors.New("the signing request asks for a CA's certificate (CA:TRUE); leave that out")
		}
	case e.Id.Equal(oidKeyUsage):
		var use asn1.BitString
		if rest, err := asn1.Unmarshal(e.Value, &use); err != nil || len(rest) > 0 {
			return errors.New("the key usage in the signing request cannot be read")
		}
		if use.At(5) == 1 || use.At(6) == 1 {
			return errors.New("the signing request asks to sign certificates or revocation lists; leave those key usages out")
		}
	case e.Id.Equal(oidAlternativeNames):
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return errors.New("the names in the signing request cannot be read")
		}
		for _, n := range names {
			if n.Class != asn1.ClassContextSpecific || n.Tag != 2 && n.Tag != 6 && n.Tag != 7 {
				return errors.New("the signing request asks for a name that is none of DNS, IP and URI")
			}
		}
	}
	return nil
}

// hosts are those asked for and those of the signing request.
func (r Request) hosts() []string {
	if r.CSR == nil {
		return r.Hosts
	}
	return append(append([]string(nil), r.Hosts...), r.CSR.Hosts()...)
}
