// Package identity owns the question who is calling: bearer tokens kept in the
// replicated state, tokens given to one node by its configuration, and client
// certificates with a SPIFFE id. It answers with a [Principal] or refuses with
// unauthenticated. What a principal may do is not its business: roles and
// namespaces are names here, and policy gives them a meaning.
package identity

// The kinds of principal.
const (
	KindSPIFFE = "spiffe" // a client certificate
	KindToken  = "token"  // a bearer token of muster's own
	KindNode   = "node"   // the certificate of a member; it has no role as a client
)

// Principal is who calls. It is shared between requests and never modified.
type Principal struct {
	ID         string         `json:"id"`
	Kind       string         `json:"kind"`
	Roles      []string       `json:"roles"`
	Namespaces []string       `json:"namespaces"` // empty: all
	Claims     map[string]any `json:"claims"`
}
