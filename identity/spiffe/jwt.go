package spiffe

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

// Outside is what proves bearer tokens that are not muster's own: JWT-SVIDs of
// the trust domains here, everything else by next, which may be nil.
func (t *Trust) Outside(next identity.Verifier) identity.Verifier {
	if len(t.sources) == 0 || len(t.opt.Audiences) == 0 {
		return next
	}
	return outside{t, next}
}

type outside struct {
	trust *Trust
	next  identity.Verifier
}

// Verify implements identity.Verifier.
func (o outside) Verify(ctx context.Context, text string, sum [sha256.Size]byte, now time.Time) (*identity.Principal, error) {
	if td, ok := subject(text); ok {
		for _, s := range o.trust.sources {
			if s.td == td {
				return o.trust.token(td, text, sum, now)
			}
		}
	}
	if o.next != nil {
		return o.next.Verify(ctx, text, sum, now)
	}
	return nil, fault.New(fault.Unauthenticated, "the token is not known; it may have been revoked")
}

// subject reads, unproven, of which trust domain a token says it is: which
// authorities it must then be proven by.
func subject(text string) (td spiffeid.TrustDomain, ok bool) {
	if strings.Count(text, ".") != 2 {
		return td, false
	}
	_, rest, _ := strings.Cut(text, ".")
	payload, _, _ := strings.Cut(rest, ".")
	raw, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return td, false
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	if json.Unmarshal(raw, &claims) != nil {
		return td, false
	}
	id, err := spiffeid.FromString(claims.Subject)
	return id.TrustDomain(), err == nil
}

// token proves a JWT-SVID: signature by the domain's authorities, audience, time.
func (t *Trust) token(td spiffeid.TrustDomain, text string, key [sha256.Size]byte, now time.Time) (*identity.Principal, error) {
	v := t.current.Load()
	b, ok := v.bundles[td]
	if !ok || t.opt.Now().Sub(time.Unix(b.at.Load(), 0)) > MaxAge {
		f := fault.New(fault.IdentityProviderUnavailable, "the authorities of the trust domain %s are not known at this time", td)
		f.RetryAfter = 5 * time.Second
		return nil, f
	}
	if p, ok := v.tokens.get(key); ok {
		if now.Before(p.Credential.ExpiresAt) {
			return p, nil
		}
		return nil, fault.New(fault.Unauthenticated, "the JWT-SVID has expired")
	}
	svid, err := jwtsvid.ParseAndValidate(text, b.JWTBundle(), t.opt.Audiences)
	if err != nil {
		return nil, fault.Wrap(fault.Unauthenticated, err, "the JWT-SVID is not good for this cluster")
	}
	if !now.Before(svid.Expiry) {
		return nil, fault.New(fault.Unauthenticated, "the JWT-SVID has expired")
	}
	p := &identity.Principal{ID: svid.ID.String(), Kind: identity.KindSPIFFE, Roles: []string{}, Namespaces: []string{}, Claims: svid.Claims}
	// The domain vouches for its ids, not for what stands in iss.
	p.Credential = identity.Credential{Provider: identity.ProviderSPIFFE, Subject: svid.ID.String(), ExpiresAt: svid.Expiry}
	if s, ok := svid.Claims["jti"].(string); ok {
		p.Credential.JTI = s
	}
	v.tokens.put(key, p)
	return p, nil
}
