package provider_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity/provider"
)

const fuzzIssuer = "https://issuer.example"

func fromFile(file string) provider.Config {
	return provider.Config{Name: "plain", Kind: provider.JWT, Issuer: fuzzIssuer, Audiences: []string{"muster"}, JWKSFile: file, Algorithms: []string{"ES256"}}
}

// FuzzPayload: of what is signed by a key of the provider only claims that say so
// in every respect are somebody, whoever reads them.
func FuzzPayload(f *testing.F) {
	file := filepath.Join(f.TempDir(), "keys.json")
	key := jose.JSONWebKey{Key: ecKey(), KeyID: "ec", Use: "sig"}
	if err := os.WriteFile(file, []byte(mustJSON(f, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})), 0o600); err != nil {
		f.Fatal(err)
	}
	s, err := provider.New([]provider.Config{fromFile(file)}, provider.Options{Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	if err != nil {
		f.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	for _, payload := range []string{
		`{"iss":"https://issuer.example","sub":"alice","aud":"muster","exp":1700003600,"iat":1700000000,"jti":"1","groups":["a"]}`,
		`{"iss":"https://issuer.example","sub":"alice","aud":["x","muster"],"exp":1.7000036e9,"nbf":1699999999.5}`,
		`{"iss":"https://issuer.example","sub":"alice","aud":"muster","exp":1699999999}`, `{"iss":"https://issuer.example","sub":"","aud":"muster","exp":1700003600}`,
		`{"iss":"https://issuer.example","sub":"a","sub":"b","aud":"muster","exp":1700003600}`, `{"iss":"https://issuer.example","aud":{"muster":1},"exp":"1700003600"}`,
		`{"iss":"https://issuer.example","sub":"alice","aud":"muster","exp":1e400}`, `{}`, `[]`, `null`, `{"iss":`, "\x00", `{"iss":"https://issuer.example","a":[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]}`,
	} {
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		p, err := verify(s, sign(t, key, jose.ES256, payload, "JWT"), now)
		if err != nil {
			if !fault.Is(err, fault.Unauthenticated) {
				t.Fatalf("%q: %v", payload, err)
			}
			return
		}
		var c map[string]any // names count as they are written
		if err := json.Unmarshal([]byte(payload), &c); err != nil {
			t.Fatalf("%q is %+v, and no JSON: %v", payload, p, err)
		}
		exp, dated := c["exp"].(float64)
		nbf, later := c["nbf"].(float64)
		audience := c["aud"] == any("muster")
		if all, ok := c["aud"].([]any); ok {
			audience = slices.Contains(all, any("muster"))
		}
		const skew = 5 * 60
		if c["iss"] != any(fuzzIssuer) || c["sub"] == any("") || !audience || !dated || exp < float64(now.Unix())-skew || later && nbf > float64(now.Unix())+skew {
			t.Fatalf("%q is %+v", payload, p)
		}
		if p.Credential.ExpiresAt.IsZero() || len(p.Roles) > 0 || any(p.Credential.Subject) != c["sub"] {
			t.Fatalf("%q is %+v", payload, p)
		}
	})
}

// FuzzKeySet: whatever a provider says its keys are, no token by a key that is not
// among them is good, and there are keys or an error.
func FuzzKeySet(f *testing.F) {
	foreign := newForeign(f)
	token := sign(f, foreign, jose.ES256, `{"iss":"https://issuer.example","sub":"alice","aud":"muster","exp":1700003600}`, "JWT")
	now := time.Unix(1_700_000_000, 0)
	for _, k := range []any{rsaKey(), ecKey(), edKey()} {
		key := jose.JSONWebKey{Key: k, KeyID: "k", Use: "sig"}
		f.Add([]byte(mustJSON(f, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})))
	}
	for _, text := range []string{`{`, `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"AAAA"}]}`, `{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`, `{"keys":[{"kty":"RSA","n":"AQAB","e":"AA"}]}`,
		`{"keys":[null,1,{}]}`, `{"keys":[{"kty":"EC","crv":"P-256","x5c":["AA"]}]}`, weakSet} {
		f.Add([]byte(text))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, set []byte) {
		file := filepath.Join(dir, "keys.json")
		if err := os.WriteFile(file, set, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := provider.New([]provider.Config{fromFile(file)}, provider.Options{Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
		if err != nil {
			return
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		defer s.Run(ended) // gives back what it holds
		// Nobody waits for a key that might be new.
		if p, err := s.Verify(ended, token, sha256.Sum256([]byte(token)), now); err == nil {
			t.Fatalf("by %q somebody is %+v", set, p)
		}
	})
}
