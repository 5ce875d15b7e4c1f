package identity

import (
	"crypto/x509"
	"net/url"
	"strings"
	"time"

	"github.com/muster-registry/muster/fault"
)

// certificate reads the principal out of a client certificate whose chain has
// been verified by the TLS handshake.
//
//	spiffe://TRUST-DOMAIN/muster/role/ROLE[/ns/NAMESPACE][/NAME]  that role
//	spiffe://TRUST-DOMAIN/muster/node/ID                          a member: no role
//
// Any other certificate of the CA is somebody without a role.
func (a *Authenticator) certificate(chain []*x509.Certificate, now time.Time) (*Principal, error) {
	if err := a.believed(chain); err != nil {
		return nil, err
	}
	cert := chain[0]
	p, err := a.named(cert, now)
	if err != nil {
		return nil, err
	}
	p.Credential = Credential{Certificate: cert, chain: chain, ExpiresAt: cert.NotAfter}
	return p, nil
}

// believed says whether the authorities that count for the client now are those
// that signed its certificates.
func (a *Authenticator) believed(chain []*x509.Certificate) error {
	if a.chain == nil {
		return nil
	}
	return a.chain(chain)
}

// named gives a new principal.
func (a *Authenticator) named(cert *x509.Certificate, now time.Time) (*Principal, error) {
	// A connection may outlive the certificate that opened it.
	if now.After(cert.NotAfter) || now.Before(cert.NotBefore) {
		return nil, fault.New(fault.Unauthenticated, "the client certificate is not valid at this time")
	}
	id, err := spiffeID(cert)
	if err != nil {
		return nil, err
	}
	if id == nil {
		if cert.Subject.CommonName == "" {
			return nil, fault.New(fault.Unauthenticated, "the client certificate names nobody: it has no SPIFFE id and no common name")
		}
		return newPrincipal("CN="+cert.Subject.CommonName, KindSPIFFE, "", []string{}), nil
	}
	name := id.String()
	path, ours := strings.CutPrefix(id.Path, "/muster/")
	if !ours || a.trustDomain == "" || id.Host != a.trustDomain {
		return newPrincipal(name, KindSPIFFE, "", []string{}), nil
	}
	parts := strings.Split(path, "/")
	switch {
	case parts[0] == "node" && len(parts) == 2:
		return newPrincipal(name, KindNode, "", []string{}), nil
	case parts[0] == "role":
		if role, namespaces, ok := rolePath(parts[1:]); ok {
			return newPrincipal(name, KindSPIFFE, role, namespaces), nil
		}
	}
	return nil, fault.New(fault.Unauthenticated, "the client certificate's id does not have the form spiffe://%s/muster/role/ROLE[/ns/NAMESPACE][/NAME]", a.trustDomain)
}

// rolePath reads ROLE[/ns/NAMESPACE][/NAME].
func rolePath(parts []string) (role string, namespaces []string, ok bool) {
	if len(parts) == 0 {
		return "", nil, false
	}
	role, rest := parts[0], parts[1:]
	namespaces = []string{}
	if len(rest) > 0 && rest[0] == "ns" {
		if len(rest) < 2 {
			return "", nil, false
		}
		namespaces, rest = []string{rest[1]}, rest[2:]
	}
	return role, namespaces, len(rest) <= 1
}

// spiffeID gives the certificate's SPIFFE id, nil when it has none. A
// certificate with two, or with one that does not have the standard's form,
// is refused: what it stands for would depend on who reads it.
func spiffeID(cert *x509.Certificate) (*url.URL, error) {
	var id *url.URL
	for _, u := range cert.URIs {
		if !strings.EqualFold(u.Scheme, "spiffe") {
			continue
		}
		if id != nil {
			return nil, fault.New(fault.Unauthenticated, "the client certificate has more than one SPIFFE id")
		}
		id = u
	}
	if id == nil {
		return nil, nil
	}
	plain := id.Scheme == "spiffe" && id.Host != "" && id.Port() == "" && id.User == nil && id.RawQuery == "" && !id.ForceQuery &&
		id.Fragment == "" && id.Opaque == "" && id.RawPath == "" && !strings.ContainsAny(id.Path, "%\\")
	for _, part := range strings.Split(strings.TrimPrefix(id.Path, "/"), "/") {
		plain = plain && part != "" && part != "." && part != ".."
	}
	if !plain {
		return nil, fault.New(fault.Unauthenticated, "the client certificate's SPIFFE id is malformed")
	}
	return id, nil
}
