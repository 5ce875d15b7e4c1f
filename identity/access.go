package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/muster-registry/muster/fault"
)

// maxMemory bounds the answers an Access keeps.
const maxMemory = 4096

// Access is what the cluster has laid down about credentials at one revision:
// which are revoked, and to whom the rules give which roles. It never changes;
// the next one supersedes it.
type Access struct {
	rules   []*Rule
	revoked map[revoked]struct{}
	over    chan struct{}
	once    sync.Once

	memory atomic.Pointer[memory]
}

// memory keeps, by the principal that was proven or by its certificate, what
// came of it.
type memory struct {
	answers sync.Map // any → *answer
	size    atomic.Int64
}

// answer is a completed principal, or nil for a revoked one.
type answer struct{ who *Principal }

// NewAccess makes the Access of these rules and revocations, which have been
// checked and are not to be modified.
func NewAccess(rules []*Rule, revocations []*Revocation) *Access {
	a := &Access{rules: rules, revoked: make(map[revoked]struct{}, len(revocations)), over: make(chan struct{})}
	for _, r := range revocations {
		a.revoked[revoked{r.Kind, r.Value}] = struct{}{}
	}
	a.memory.Store(new(memory))
	return a
}

// Superseded is closed when a newer Access has taken the place of this one:
// whoever has let somebody in by it must then ask again ([Authenticator.Recheck]).
func (a *Access) Superseded() <-chan struct{} { return a.over }

// Supersede closes Superseded.
func (a *Access) Supersede() { a.once.Do(func() { close(a.over) }) }

// RevokedCertificate says whether a certificate has been revoked.
func (a *Access) RevokedCertificate(cert *x509.Certificate) bool {
	return len(a.revoked) > 0 && a.any(certificateNames(cert))
}

// Foretell gives the grants that rules make to whoever shows a certificate that
// is not signed yet, by the names and the public key in it; ok is false where
// one of those has been revoked.
func (a *Access) Foretell(cert *x509.Certificate) (grants []Grant, ok bool) {
	p := newPrincipal("CN="+cert.Subject.CommonName, KindSPIFFE, "", []string{})
	if len(cert.URIs) > 0 {
		p.ID = cert.URIs[0].String()
	}
	p.Credential = Credential{Certificate: cert, foretold: true}
	who := a.answer(p, [sha256.Size]byte{})
	if who == nil {
		return nil, false
	}
	return who.Grants, true
}

func (a *Access) any(names []revoked) bool {
	return slices.ContainsFunc(names, func(n revoked) bool { _, is := a.revoked[n]; return is })
}

// complete answers for a proven principal: nil when it is revoked, else with
// its roles. first is false when the answer came out of memory.
func (a *Access) complete(p *Principal, sum [sha256.Size]byte) (who *Principal, first bool) {
	if len(a.rules) == 0 && len(a.revoked) == 0 && len(p.Roles) > 0 {
		return p, false
	}
	var key any = p
	if p.Credential.Certificate != nil {
		key = p.Credential.Certificate // the principal is a new one each time
	}
	m := a.memory.Load()
	if known, ok := m.answers.Load(key); ok {
		return known.(*answer).who, false
	}
	who = a.answer(p, sum)
	if m.size.Add(1) > maxMemory {
		fresh := new(memory)
		if a.memory.CompareAndSwap(m, fresh) {
			m = fresh
		}
	}
	m.answers.Store(key, &answer{who})
	return who, true
}

func (a *Access) answer(p *Principal, sum [sha256.Size]byte) *Principal {
	if sum != p.Credential.TextHash {
		c := *p
		c.Credential.base, c.Credential.TextHash = p, sum
		p = &c
	}
	if len(a.revoked) > 0 && a.any(names(p)) {
		return nil
	}
	var grants []Grant
	for _, r := range a.rules {
		if g, ok := r.grant(p); ok {
			grants = append(grants, g)
		}
	}
	if len(grants) == 0 {
		return p
	}
	if len(p.Roles) > 0 {
		grants = append(grants, Grant{Roles: p.Roles, Namespaces: p.Namespaces})
	}
	c := *p
	if c.Credential.base == nil {
		c.Credential.base = p
	}
	c.Grants = grants
	c.Roles, c.Namespaces = sums(grants)
	return &c
}

// sums gives all roles, and all namespaces; none when one grant has no limit.
func sums(grants []Grant) (roles, namespaces []string) {
	r, n, unlimited := map[string]bool{}, map[string]bool{}, false
	for _, g := range grants {
		for _, role := range g.Roles {
			r[role] = true
		}
		for _, ns := range g.Namespaces {
			n[ns] = true
		}
		unlimited = unlimited || len(g.Namespaces) == 0
	}
	namespaces = []string{}
	if !unlimited {
		namespaces = slices.Sorted(maps.Keys(n))
	}
	return slices.Sorted(maps.Keys(r)), namespaces
}

var errRevoked = fault.New(fault.Unauthenticated, "this credential has been revoked; ask an operator for a new one")

// complete is the last step for every credential, whatever its method: first
// whether it has been revoked, then which roles the rules give it. p is shared
// and may come out of a cache: what changes is a copy. sum is the hash of a
// bearer token's text; zero for a certificate.
func (a *Authenticator) complete(tbl *Table, p *Principal, sum [sha256.Size]byte) (*Principal, error) {
	access := none
	if tbl != nil && tbl.access != nil {
		access = tbl.access
	}
	who, first := access.complete(p, sum)
	if who == nil {
		return nil, errRevoked
	}
	if len(who.Roles) == 0 && a.unmapped != nil {
		a.unmapped(who, first)
	}
	return who, nil
}

var none = NewAccess(nil, nil)

// Recheck asks again about a principal that [Authenticator.Authenticate] gave,
// for calls that last: it is refused when its credential has ended or been
// revoked since, its token is gone, or its certificate's authority. Its roles may be others than before. No
// provider is asked. tbl is the table of the newest state.
func (a *Authenticator) Recheck(tbl *Table, p *Principal, now time.Time) (*Principal, error) {
	if a.clock != nil {
		now = a.clock.Now()
	}
	c := &p.Credential
	if !c.ExpiresAt.IsZero() && !now.Before(c.ExpiresAt) {
		return nil, errEnded
	}
	if c.chain != nil {
		if err := a.believed(c.chain); err != nil {
			return nil, err
		}
	}
	sum := c.TextHash
	if c.base != nil {
		p = c.base
	}
	if ValidID(c.TokenID) && tbl != nil {
		t, ok := tbl.Get(c.TokenID)
		if !ok {
			return nil, errUnknown
		}
		p = t.principal
	}
	return a.complete(tbl, p, sum)
}

var errEnded = fault.New(fault.Unauthenticated, "the credential that this call began with has ended; come back with a new one")
