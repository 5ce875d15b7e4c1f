package provider

import (
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

// errTransient marks refusals that may not hold the next time.
var errTransient = errors.New("may change")

// errUnknownKey: no key that is known could have signed the token.
var errUnknownKey = errors.New("unknown key")

// issuerOf reads iss out of a token that has the form of a signed JWT, before
// anything of it is believed. A token that has not that form is opaque.
func issuerOf(text string) (iss string, isJWT bool) {
	head, rest, ok := strings.Cut(text, ".")
	body, sig, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || strings.Contains(sig, ".") {
		// Five parts would be an encrypted JWT: nobody here holds a key for one,
		// and nothing of it is unpacked.
		return "", strings.Count(text, ".") > 2
	}
	var header struct {
		Algorithm string `json:"alg"`
	}
	if b, err := base64.RawURLEncoding.DecodeString(head); err != nil || json.Unmarshal(b, &header) != nil {
		return "", false
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if b, err := base64.RawURLEncoding.DecodeString(body); err != nil || json.Unmarshal(b, &claims) != nil {
		return "", true
	}
	return claims.Issuer, true
}

// types of the header typ that a token for a resource may have (RFC 9068,
// RFC 8725): others, such as logout tokens, are signed by the same keys.
var types = map[string]bool{"": true, "jwt": true, "at+jwt": true, "application/at+jwt": true, "application/jwt": true}

// verify proves a signed JWT of this provider.
func (p *provider) verify(text string, now time.Time) (*identity.Principal, error) {
	jws, err := jose.ParseSignedCompact(text, p.algorithms())
	if err != nil {
		return nil, fault.Wrap(fault.Unauthenticated, err, "the token is not a JWT signed by one of the algorithms that this cluster takes from its issuer")
	}
	header := jws.Signatures[0].Protected
	typ, _ := header.ExtraHeaders[jose.HeaderType].(string)
	if !types[strings.ToLower(typ)] {
		return nil, refused("the token is of the type %.40q, which is no access token", typ)
	}
	keys, err := p.keys.candidates(header.KeyID, jose.SignatureAlgorithm(header.Algorithm), time.Now())
	if err != nil {
		return nil, err
	}
	var payload []byte
	for _, k := range keys {
		if payload, err = jws.Verify(k); err == nil {
			break
		}
	}
	if err != nil {
		return nil, refused("the token's signature is not its issuer's")
	}
	claims, err := decodeClaims(payload)
	if err != nil {
		return nil, err
	}
	if claims.text("iss") != p.Issuer {
		return nil, refused("the token is not from the issuer it was taken for")
	}
	exp, ok := claims.time("exp")
	if !ok {
		return nil, refused("the token does not say when it expires")
	}
	return p.principal(claims, exp, now)
}

// principal checks what holds for claims however they were proven. A zero exp
// means that the issuer has not said when the token ends.
func (p *Config) principal(claims claims, exp, now time.Time) (*identity.Principal, error) {
	if !exp.IsZero() && !now.Before(exp) {
		return nil, refused("the token has expired; get a new one from its issuer")
	}
	for _, name := range []string{"nbf", "iat"} {
		if t, ok := claims.time(name); ok && t.After(now.Add(p.ClockSkew)) {
			return nil, fault.Wrap(fault.Unauthenticated, errTransient, "the token is not valid yet, by its claim %s", name)
		}
		if _, there := claims[name]; there {
			if _, ok := claims.time(name); !ok {
				return nil, refused("the token's claim %s is not a time", name)
			}
		}
	}
	if len(p.Audiences) > 0 && !claims.contains("aud", p.Audiences) {
		return nil, refused("the token is for somebody else: its aud does not name this cluster")
	}
	if _, bound := claims["cnf"]; bound {
		return nil, refused("the token is bound to a key of its owner's (cnf), which cannot be proven here; ask for a plain bearer token")
	}
	subject := claims.text(p.Subject)
	if !printable(subject) {
		return nil, refused("the token's claim %s, which names the caller, is missing, or longer than %d bytes, or has characters that do not print", p.Subject, maxSubject)
	}
	return &identity.Principal{
		ID: identity.KindOIDC + ":" + p.Name + "/" + subject, Kind: identity.KindOIDC,
		Roles: []string{}, Namespaces: []string{}, Claims: claims,
		Credential: identity.Credential{
			Provider: p.Name, Issuer: claims.text("iss"), Subject: claims.text("sub"), JTI: claims.text("jti"), ExpiresAt: exp,
		},
	}, nil
}
