package identity

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/muster-registry/muster/fault"
)

// maxBearer bounds what is hashed for one call; anything longer is nobody's.
// It leaves room for a JWT with the groups of a large directory.
const maxBearer = 16 << 10

// Static is a token that a node's configuration brings, such as the first
// operator's. It never expires and is known by its hash alone.
type Static struct {
	Name       string // becomes part of the principal's id: token:NAME
	Role       string
	Namespaces []string // empty: all
	Hash       string   // as [Hash] gives it
}

// Config says whom an Authenticator believes.
type Config struct {
	// TrustDomain of the SPIFFE ids that carry muster's roles; others of the
	// same CA are known by name and have no role.
	TrustDomain string
	Static      []Static

	// Chain says whether a client's certificates, its own first, are good for
	// whom they name. The handshake has proven that they are signed by some
	// authority; which ones count for whom may have changed since. nil: all do.
	Chain func(chain []*x509.Certificate) error

	// Clock is the time by which credentials end, in the place of the time that
	// callers give; nil: theirs.
	Clock *Clock

	// Outside proves the bearer tokens that are not muster's own; nil: there
	// are none.
	Outside Verifier

	// Unmapped is told of each call by somebody who has proved who it is and
	// has no role; first is false where this credential was met before. Nil:
	// nobody is told.
	Unmapped func(p *Principal, first bool)
}

// Verifier proves bearer tokens that others have issued. It answers with a
// principal that has a Credential and no roles, or refuses with
// unauthenticated, or with identity_provider_unavailable where it cannot tell.
// The text has no more than 16 KiB and is not one of muster's own tokens; sum is
// its SHA-256.
type Verifier interface {
	Verify(ctx context.Context, text string, sum [sha256.Size]byte, now time.Time) (*Principal, error)
}

// Authenticator answers who is calling. It holds no state that changes and
// may be used from many goroutines.
type Authenticator struct {
	trustDomain string
	clock       *Clock
	outside     Verifier
	unmapped    func(p *Principal, first bool)
	chain       func([]*x509.Certificate) error
	static      map[[sha256.Size]byte]*Principal
}

// New makes an Authenticator; a static token without a usable hash or role is
// an error.
func New(cfg Config) (*Authenticator, error) {
	a := &Authenticator{trustDomain: cfg.TrustDomain, clock: cfg.Clock, outside: cfg.Outside, chain: cfg.Chain, unmapped: cfg.Unmapped, static: make(map[[sha256.Size]byte]*Principal, len(cfg.Static))}
	for _, s := range cfg.Static {
		var sum [sha256.Size]byte
		raw, err := hex.DecodeString(s.Hash)
		if err != nil || len(raw) != len(sum) {
			return nil, fmt.Errorf("identity: the static token %q needs the hex SHA-256 of its text", s.Name)
		}
		if s.Name == "" || s.Role == "" {
			return nil, fmt.Errorf("identity: a static token needs a name and a role (name %q, role %q)", s.Name, s.Role)
		}
		copy(sum[:], raw)
		if _, ok := a.static[sum]; ok {
			return nil, fmt.Errorf("identity: the static token %q has the same text as another", s.Name)
		}
		namespaces := s.Namespaces
		if namespaces == nil {
			namespaces = []string{}
		}
		a.static[sum] = newPrincipal("token:"+s.Name, KindToken, s.Role, namespaces)
		a.static[sum].Credential = Credential{TokenID: s.Name, TextHash: sum}
	}
	return a, nil
}

// Authenticate says who calls, or refuses with unauthenticated. The order of
// the methods is fixed:
//
//  1. a static token, known by its hash;
//  2. a token of muster's own, known by its form;
//  3. any other bearer token: the providers of Config.Outside;
//  4. the client certificate, where there is no Authorization at all.
//
// A bearer token in header (the value of Authorization, "" when absent) wins
// over the client certificate, which may belong to a proxy in between; a token
// that is not good is a refusal even where the certificate would be. tbl is
// the table of the state the call is answered from; conn may be nil; now is
// compared with expiries.
func (a *Authenticator) Authenticate(ctx context.Context, tbl *Table, header string, conn *tls.ConnectionState, now time.Time) (*Principal, error) {
	if a.clock != nil {
		now = a.clock.Now()
	}
	if header != "" {
		p, sum, err := a.bearer(ctx, tbl, header, now, a.outside)
		if err != nil {
			return nil, err
		}
		return a.complete(tbl, p, sum)
	}
	if conn != nil && len(conn.VerifiedChains) > 0 && len(conn.PeerCertificates) > 0 {
		p, err := a.certificate(conn.PeerCertificates, now)
		if err != nil {
			return nil, err
		}
		return a.complete(tbl, p, p.Credential.TextHash)
	}
	return nil, errMissing
}

// Stranger says whether Authenticate would refuse, as far as that can be told
// without asking anybody, and without a signature to verify: there is no
// credential, or none that anybody here could have issued.
func (a *Authenticator) Stranger(tbl *Table, header string, conn *tls.ConnectionState, now time.Time) bool {
	if header == "" {
		return conn == nil || len(conn.VerifiedChains) == 0
	}
	if a.clock != nil {
		now = a.clock.Now()
	}
	var outside Verifier
	if a.outside != nil {
		outside = perhaps{}
	}
	_, _, err := a.bearer(context.Background(), tbl, header, now, outside)
	return err != nil
}

// perhaps takes every token for one of somebody's.
type perhaps struct{}

// Verify implements Verifier.
func (perhaps) Verify(context.Context, string, [sha256.Size]byte, time.Time) (*Principal, error) {
	return nil, nil
}

var (
	errMissing = fault.New(fault.Unauthenticated, "say who you are: send Authorization: Bearer TOKEN or use a client certificate")
	errScheme  = fault.New(fault.Unauthenticated, "the Authorization header must be: Bearer TOKEN")
	errUnknown = fault.New(fault.Unauthenticated, "the token is not known; it may have been revoked")
	errExpired = fault.New(fault.Unauthenticated, "the token has expired; ask an operator for a new one")
)

// Bearer takes the token out of an Authorization header; false when it is not
// of that scheme.
func Bearer(header string) (string, bool) {
	const scheme = "Bearer "
	if len(header) <= len(scheme) || !strings.EqualFold(header[:len(scheme)], scheme) {
		return "", false
	}
	return strings.Trim(header[len(scheme):], " "), true
}

// bearer finds out whose token it is, and gives the hash of its text.
func (a *Authenticator) bearer(ctx context.Context, tbl *Table, header string, now time.Time, outside Verifier) (p *Principal, sum [sha256.Size]byte, err error) {
	text, ok := Bearer(header)
	if !ok || text == "" {
		return nil, sum, errScheme
	}
	if len(text) > maxBearer {
		return nil, sum, errUnknown
	}
	var buf [1 << 10]byte // on the stack: most tokens fit
	sum = sha256.Sum256(append(buf[:0], text...))
	if p, ok := a.static[sum]; ok {
		return p, sum, nil
	}
	if !strings.HasPrefix(text, tokenPrefix) && outside != nil {
		p, err := outside.Verify(ctx, text, sum, now)
		return p, sum, err
	}
	id, ok := idOf(text)
	if !ok || tbl == nil {
		return nil, sum, errUnknown
	}
	t, ok := tbl.Get(id)
	if !ok || subtle.ConstantTimeCompare(t.digest[:], sum[:]) != 1 {
		return nil, sum, errUnknown
	}
	if !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt) {
		return nil, sum, errExpired
	}
	return t.principal, sum, nil
}
