// Package pki owns certificate authorities and certificates for development,
// tests and small installations: making a CA, issuing node and client
// certificates from it, and telling in words what a listener presents. It
// refuses to overwrite a key and to write one that others could read.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// How long certificates last unless said otherwise.
const (
	CAValidity   = 10 * 365 * 24 * time.Hour
	LeafValidity = 365 * 24 * time.Hour
)

// backdate allows for clocks that are a little behind.
const backdate = 5 * time.Minute

// Algorithm is the kind of key to make.
type Algorithm string

// The algorithms.
const (
	ECDSA   Algorithm = "ecdsa" // P-256
	Ed25519 Algorithm = "ed25519"
)

// Pair is a certificate and its key.
type Pair struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// Roles that a client certificate can carry in its SPIFFE id.
var Roles = []string{"viewer", "publisher", "operator", "policy-admin", "break-glass"}

// Request says what a certificate is for. Exactly one of Node and Role is set.
type Request struct {
	Node      string        // a node's id
	Role      string        // one of [Roles]
	Namespace string        // limits a role; empty: everywhere
	Name      string        // tells holders of the same role apart; optional
	Hosts     []string      // further DNS names and IP addresses of a node
	Algorithm Algorithm     // empty: ECDSA
	Validity  time.Duration // 0: LeafValidity; cut to the CA's own end
}

var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// NewCA makes an authority for a trust domain, which stands in its own
// certificate as spiffe://<trust domain>.
func NewCA(trustDomain string, algorithm Algorithm, validity time.Duration, now time.Time) (*Pair, error) {
	id, err := url.Parse("spiffe://" + trustDomain)
	if err != nil || id.Host != trustDomain || trustDomain == "" || strings.ContainsAny(trustDomain, ":/@") {
		return nil, fmt.Errorf("%q is not a trust domain; use a name such as muster or example.org", trustDomain)
	}
	if validity == 0 {
		validity = CAValidity
	}
	key, err := newKey(algorithm)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"muster"}, CommonName: "muster CA for " + trustDomain},
		URIs:                  []*url.URL{id},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return sign(t, t, key, key)
}

// TrustDomain returns the trust domain that an authority made by [NewCA] is for.
func (p *Pair) TrustDomain() (string, error) {
	for _, u := range p.Certificate.URIs {
		if u.Scheme == "spiffe" && u.Path == "" {
			return u.Host, nil
		}
	}
	return "", errors.New("the CA's certificate names no trust domain (a URI such as spiffe://muster); say which one to use")
}

// Issue signs a new certificate with a new key for what the request says.
func (p *Pair) Issue(trustDomain string, r Request, now time.Time) (*Pair, error) {
	t, err := r.template(trustDomain)
	if err != nil {
		return nil, err
	}
	validity := r.Validity
	if validity == 0 {
		validity = LeafValidity
	}
	t.NotBefore, t.NotAfter = now.Add(-backdate), now.Add(validity)
	if t.NotAfter.After(p.Certificate.NotAfter) {
		t.NotAfter = p.Certificate.NotAfter
	}
	if !t.NotAfter.After(now) {
		return nil, fmt.Errorf("the CA's certificate ended on %s; make a new one with: muster tls ca", p.Certificate.NotAfter.Format(time.DateOnly))
	}
	key, err := newKey(r.Algorithm)
	if err != nil {
		return nil, err
	}
	return sign(t, p.Certificate, key, p.Key)
}

func (r Request) template(trustDomain string) (*x509.Certificate, error) {
	t := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"muster"}},
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
	}
	id := &url.URL{Scheme: "spiffe", Host: trustDomain}
	switch {
	case (r.Node == "") == (r.Role == ""):
		return nil, errors.New("a certificate is for either a node or a role; say which")
	case r.Node != "":
		if !label.MatchString(r.Node) {
			return nil, fmt.Errorf("%q is not a node id; use lower-case letters, digits and dashes", r.Node)
		}
		if r.Namespace != "" || r.Name != "" {
			return nil, errors.New("namespace and name go with a role, not with a node")
		}
		id.Path = "/muster/node/" + r.Node
		t.Subject.CommonName = r.Node
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		hosts := append([]string{r.Node, "localhost", "127.0.0.1", "::1"}, r.Hosts...)
		for _, h := range hosts {
			if ip := net.ParseIP(h); ip != nil {
				if !slices.ContainsFunc(t.IPAddresses, ip.Equal) {
					t.IPAddresses = append(t.IPAddresses, ip)
				}
			} else if !slices.Contains(t.DNSNames, h) {
				t.DNSNames = append(t.DNSNames, h)
			}
		}
	default:
		if !slices.Contains(Roles, r.Role) {
			return nil, fmt.Errorf("%q is not a role; the roles are %s", r.Role, strings.Join(Roles, ", "))
		}
		if len(r.Hosts) > 0 {
			return nil, errors.New("host names and addresses go with a node, not with a role")
		}
		id.Path = "/muster/role/" + r.Role
		for _, part := range []struct{ prefix, value string }{{"/ns/", r.Namespace}, {"/", r.Name}} {
			if part.value == "" {
				continue
			}
			if !label.MatchString(part.value) {
				return nil, fmt.Errorf("%q is not a name; use lower-case letters, digits and dashes", part.value)
			}
			id.Path += part.prefix + part.value
		}
		t.Subject.CommonName = strings.TrimPrefix(id.Path, "/muster/role/")
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	t.URIs = []*url.URL{id}
	return t, nil
}

func newKey(a Algorithm) (crypto.Signer, error) {
	switch a {
	case ECDSA, "":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, fmt.Errorf("%q is not a key algorithm; use ecdsa or ed25519", a)
}

func sign(t, parent *x509.Certificate, key, parentKey crypto.Signer) (*Pair, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), parentKey)
	if err != nil {
		return nil, fmt.Errorf("the certificate cannot be signed: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Pair{Certificate: c, Key: key}, nil
}
