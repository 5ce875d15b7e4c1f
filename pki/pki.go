// Package pki owns certificate authorities and certificates: making a CA and
// intermediates, issuing certificates of nodes, clients and workloads from it,
// for keys of its own or for signing requests, and telling in words what a
// listener presents or a file holds. It refuses to overwrite a key, to write one
// that others could read, and to sign a key that is too weak.
package pki

import (
	"bytes"
	"crypto"
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

// Pair is a certificate and its key.
type Pair struct {
	Certificate *x509.Certificate
	Key         crypto.Signer       // nil: somebody else's, who sent a signing request
	Chain       []*x509.Certificate // intermediates between it and its root, its issuer first
}

// Authority is a CA's certificate and what signs in its name, such as a key in
// a file or one that stays in a hardware module.
type Authority = Pair

// Roles that a client certificate can carry in its SPIFFE id.
var Roles = []string{"viewer", "publisher", "operator", "policy-admin", "break-glass"}

// Request says what a certificate is for. Exactly one of Node, Role and ID is
// set.
type Request struct {
	Node      string        // a node's id
	Role      string        // one of [Roles]
	Namespace string        // limits a role; empty: everywhere
	Name      string        // tells holders of the same role apart; optional
	ID        string        // a SPIFFE id of a workload, such as spiffe://muster/ns/shop/svc/cart
	Hosts     []string      // further DNS names and IP addresses of a node or a workload
	CSR       *CSR          // signed instead of a new key; its names of hosts count as Hosts
	Algorithm Algorithm     // of the new key; empty: ECDSA
	Validity  time.Duration // 0: LeafValidity; cut to the CA's own end
}

var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// NewCA makes an authority for a trust domain, which stands in its own
// certificate as spiffe://<trust domain>.
func NewCA(trustDomain string, algorithm Algorithm, validity time.Duration, now time.Time) (*Pair, error) {
	t, err := template(trustDomain, validity, now)
	if err != nil {
		return nil, err
	}
	key, err := newKey(algorithm)
	if err != nil {
		return nil, err
	}
	c, err := sign(t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &Pair{Certificate: c, Key: key}, nil
}

// template is that of an authority.
func template(trustDomain string, validity time.Duration, now time.Time) (*x509.Certificate, error) {
	id, err := url.Parse("spiffe://" + trustDomain)
	if err != nil || id.Host != trustDomain || trustDomain == "" || strings.ContainsAny(trustDomain, ":/@") {
		return nil, fmt.Errorf("%q is not a trust domain; use a name such as muster or example.org", trustDomain)
	}
	if validity == 0 {
		validity = CAValidity
	}
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"muster"}, CommonName: "muster CA for " + trustDomain},
		URIs:                  []*url.URL{id},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil
}

// NewIntermediate makes an authority below this one, for the same trust domain.
// It signs no further authorities.
func (p *Pair) NewIntermediate(trustDomain string, algorithm Algorithm, validity time.Duration, now time.Time) (*Pair, error) {
	key, err := newKey(algorithm)
	if err != nil {
		return nil, err
	}
	below, err := p.NewIntermediateFor(trustDomain, key.Public(), validity, now)
	if err != nil {
		return nil, err
	}
	below.Key = key
	return below, nil
}

// NewIntermediateFor is likewise, for a key that stays where it is, such as in a
// hardware module.
func (p *Pair) NewIntermediateFor(trustDomain string, public crypto.PublicKey, validity time.Duration, now time.Time) (*Pair, error) {
	if err := p.authority(now); err != nil {
		return nil, err
	}
	if err := strong(public); err != nil {
		return nil, err
	}
	t, err := template(trustDomain, validity, now)
	if err != nil {
		return nil, err
	}
	t.Subject.CommonName = "muster intermediate CA for " + trustDomain
	t.MaxPathLen, t.MaxPathLenZero = 0, true
	if t.NotAfter.After(p.Certificate.NotAfter) {
		t.NotAfter = p.Certificate.NotAfter
	}
	c, err := sign(t, p.Certificate, public, p.Key)
	if err != nil {
		return nil, err
	}
	return &Pair{Certificate: c, Chain: p.below()}, nil
}

// authority refuses to sign with what is no CA, or one no more.
func (p *Pair) authority(now time.Time) error {
	switch c := p.Certificate; {
	case !c.IsCA:
		return fmt.Errorf("%s is not a CA's: name the CA's certificate and its key", name(c))
	case !now.Before(c.NotAfter):
		return fmt.Errorf("the CA's certificate ended on %s; make a new one with: muster tls ca", c.NotAfter.Format(time.DateOnly))
	}
	return nil
}

// below is the chain of what this authority signs: itself and what is above it,
// without a root.
func (p *Pair) below() []*x509.Certificate {
	var chain []*x509.Certificate
	for _, c := range append([]*x509.Certificate{p.Certificate}, p.Chain...) {
		if !selfSigned(c) {
			chain = append(chain, c)
		}
	}
	return chain
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
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

// Issue signs a new certificate for what the request says, for a new key or for
// that of a signing request.
func (p *Pair) Issue(trustDomain string, r Request, now time.Time) (*Pair, error) {
	if err := p.authority(now); err != nil {
		return nil, err
	}
	t, err := r.Template(trustDomain)
	if err != nil {
		return nil, err
	}
	validity := r.Validity
	if validity == 0 {
		validity = LeafValidity
	}
	t.NotBefore, t.NotAfter = now.Add(-backdate), now.Add(validity)
	for _, above := range append([]*x509.Certificate{p.Certificate}, p.Chain...) {
		if t.NotAfter.After(above.NotAfter) {
			t.NotAfter = above.NotAfter
		}
	}
	issued := &Pair{Chain: p.below()}
	var public crypto.PublicKey
	if r.CSR != nil {
		public = r.CSR.request.PublicKey
	} else {
		if issued.Key, err = newKey(r.Algorithm); err != nil {
			return nil, err
		}
		public = issued.Key.Public()
	}
	issued.Certificate, err = sign(t, p.Certificate, public, p.Key)
	return issued, err
}

// Template is what [Pair.Issue] signs, but for serial number, dates and key. The
// error says what of the request cannot be had.
func (r Request) Template(trustDomain string) (*x509.Certificate, error) {
	t := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"muster"}},
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
	}
	id := &url.URL{Scheme: "spiffe", Host: trustDomain}
	switch {
	case one(r.Node, r.Role, r.ID) != 1:
		return nil, errors.New("a certificate is for a node, a role or a workload; say which one")
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
		addHosts(t, append([]string{r.Node, "localhost", "127.0.0.1", "::1"}, r.hosts()...))
	case r.ID != "":
		if id, err := WorkloadID(r.ID); err != nil {
			return nil, err
		} else if id.Host != trustDomain {
			return nil, fmt.Errorf("%s is not of the trust domain %s", r.ID, trustDomain)
		} else {
			t.URIs = []*url.URL{id}
		}
		if r.Namespace != "" || r.Name != "" {
			return nil, errors.New("namespace and name go with a role, not with a SPIFFE id")
		}
		t.Subject.CommonName = t.URIs[0].Path[strings.LastIndexByte(t.URIs[0].Path, '/')+1:]
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		addHosts(t, r.hosts())
		return t, r.CSR.asks(t.URIs[0])
	default:
		if !slices.Contains(Roles, r.Role) {
			return nil, fmt.Errorf("%q is not a role; the roles are %s", r.Role, strings.Join(Roles, ", "))
		}
		if len(r.hosts()) > 0 {
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
	return t, r.CSR.asks(id)
}

func one(of ...string) (n int) {
	for _, s := range of {
		if s != "" {
			n++
		}
	}
	return n
}

func addHosts(t *x509.Certificate, hosts []string) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			if !slices.ContainsFunc(t.IPAddresses, ip.Equal) {
				t.IPAddresses = append(t.IPAddresses, ip)
			}
		} else if !slices.Contains(t.DNSNames, h) {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
}

// WorkloadID reads the SPIFFE id of a workload. Those below /muster/ are for
// nodes and roles, and no workload's.
func WorkloadID(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || !spiffeForm.MatchString(text) || strings.Contains(text, "/./") || strings.Contains(text, "/../") ||
		strings.HasSuffix(text, "/.") || strings.HasSuffix(text, "/..") {
		return nil, fmt.Errorf("%q is not a SPIFFE id; write spiffe://TRUST-DOMAIN/PATH, such as spiffe://muster/ns/shop/svc/cart", text)
	}
	if strings.HasPrefix(u.Path+"/", "/muster/") {
		return nil, fmt.Errorf("%s stands for a node or a role of muster, not for a workload", text)
	}
	return u, nil
}

var spiffeForm = regexp.MustCompile(`^spiffe://[a-z0-9._-]{1,255}(/[a-zA-Z0-9._-]+)+$`)

func sign(t, parent *x509.Certificate, public crypto.PublicKey, parentKey crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, t, parent, public, parentKey)
	if err != nil {
		return nil, fmt.Errorf("the certificate cannot be signed: %w", err)
	}
	return x509.ParseCertificate(der)
}
