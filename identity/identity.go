// Package identity owns the question who is calling: bearer tokens kept in the
// replicated state, tokens given to one node by its configuration, and client
// certificates with a SPIFFE id. It answers with a [Principal] or refuses with
// unauthenticated. What a principal may do is not its business: roles and
// namespaces are names here, and policy gives them a meaning.
package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"time"
)

// The kinds of principal.
const (
	KindSPIFFE = "spiffe" // a client certificate
	KindToken  = "token"  // a bearer token of muster's own
	KindNode   = "node"   // the certificate of a member; it has no role as a client
	KindOIDC   = "oidc"   // a bearer token of an identity provider's

	KindAnonymous = "anonymous" // whoever asks a listener whose protocol has no credentials
)

// ProviderSPIFFE stands for the trust domains in the place of a provider's name.
const ProviderSPIFFE = "spiffe"

// Principal is who calls. It is shared between requests and never modified.
type Principal struct {
	ID         string         `json:"id"`
	Kind       string         `json:"kind"`
	Roles      []string       `json:"roles"`
	Namespaces []string       `json:"namespaces"` // empty: all
	Claims     map[string]any `json:"claims"`

	// Grants say which of the roles hold in which namespaces, where they do not
	// all hold in all of Namespaces. Nil: they do.
	Grants []Grant `json:"-"`

	// Credential is what proved it. It never leaves the node.
	Credential Credential `json:"-"`
}

// Credential is what a principal proved itself by: what a revocation can name,
// and how long it holds. Which fields are set depends on the method.
type Credential struct {
	Provider string // by name in the configuration; "": muster's own tokens, and certificates
	Issuer   string // iss
	Subject  string // sub; of a certificate "" (see Principal.ID)
	JTI      string // jti

	TextHash    [sha256.Size]byte // of the bearer token's text, once it is complete; zero: a certificate
	TokenID     string            // of one of muster's tokens, or the name of a static one
	Certificate *x509.Certificate // the client's; nil: it was a bearer token

	chain []*x509.Certificate // the client's, its own first, as the connection has it

	// ExpiresAt is when the credential ends; zero: never. A stream that it
	// opened ends then, too.
	ExpiresAt time.Time

	base *Principal // as it was proven, where this is a completed copy

	// foretold says that the certificate is not signed yet. Then every name in it
	// counts: nobody gets one that some node might take for more than its id.
	foretold bool
}

// Anonymous is everybody who asks a listener whose protocol has no credentials.
// No namespaces means all of them.
func Anonymous(role string, namespaces []string) *Principal {
	if namespaces == nil {
		namespaces = []string{}
	}
	return newPrincipal(KindAnonymous, KindAnonymous, role, namespaces)
}

// Grant is some roles in some namespaces.
type Grant struct {
	Roles      []string
	Namespaces []string // empty: all
}
