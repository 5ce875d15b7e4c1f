package provider_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/identity/provider"
)

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func TestGoodTokens(t *testing.T) {
	i := newIssuer(t)
	s, _ := set(t, i.oidc())
	for name, text := range map[string]string{
		"RS256":          i.sign("rsa", nil),
		"ES256":          i.sign("ec", nil),
		"EdDSA":          i.sign("ed", nil),
		"two audiences":  i.sign("ec", map[string]any{"aud": []string{"x", "other"}}),
		"access token":   i.signRaw("ec", mustJSON(t, i.claims(nil)), "at+jwt"),
		"no type":        i.signRaw("ec", mustJSON(t, i.claims(nil)), ""),
		"no key id":      sign(t, rsaKey(), jose.RS256, mustJSON(t, i.claims(nil)), "JWT"),
		"clock is ahead": i.sign("ec", map[string]any{"nbf": time.Now().Add(20 * time.Second).Unix()}),
		"half a second":  i.sign("ec", map[string]any{"exp": float64(time.Now().Unix()) + 3600.5}),
	} {
		t.Run(name, func(t *testing.T) {
			p, err := verify(s, text, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if p.ID != "oidc:corp/alice" || p.Kind != identity.KindOIDC || len(p.Roles) != 0 {
				t.Errorf("got %+v", p)
			}
			c := p.Credential
			if c.Provider != "corp" || c.Issuer != i.url || c.Subject != "alice" || c.JTI != "id-1" || time.Until(c.ExpiresAt) < 50*time.Minute {
				t.Errorf("the credential is %+v", c)
			}
			if d := cmp.Diff([]any{"api_admin"}, p.Claims["groups"]); d != "" {
				t.Error(d)
			}
		})
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestBadTokens has what rows 16 and 17 of the list of bad input ask for, and
// the published mistakes of others: CVE-2015-9235 (none, RS as HS),
// CVE-2018-0114 (a key in the header), CVE-2024-28180 (JWE that inflates),
// CVE-2025-27144 and -30204 (dots).
func TestBadTokens(t *testing.T) {
	i := newIssuer(t)
	other := newIssuer(t)
	s, _ := set(t, i.oidc())
	good := i.sign("rsa", nil)
	parts := strings.Split(good, ".")
	claims := mustJSON(t, i.claims(nil))
	der, err := x509.MarshalPKIXPublicKey(&rsaKey().PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	foreign := newForeign(t)
	embedded, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: foreign}, &jose.SignerOptions{EmbedJWK: true})
	if err != nil {
		t.Fatal(err)
	}
	jws, err := embedded.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	withKey, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	past, future := time.Now().Add(-time.Hour).Unix(), time.Now().Add(time.Hour).Unix()
	for name, text := range map[string]string{
		"alg none":               b64(`{"alg":"none"}`) + "." + b64(claims) + ".",
		"alg None":               b64(`{"alg":"None"}`) + "." + b64(claims) + ".",
		"no alg":                 b64(`{"typ":"JWT"}`) + "." + b64(claims) + "." + parts[2],
		"HS256 by the PEM":       sign(t, public, jose.HS256, claims, "JWT"),
		"HS256 by the DER":       sign(t, der, jose.HS256, claims, "JWT"),
		"HS256 by the modulus":   sign(t, rsaKey().N.Bytes(), jose.HS256, claims, "JWT"),
		"RS512, not pinned":      sign(t, jose.JSONWebKey{Key: rsaKey(), KeyID: "rsa"}, jose.RS512, claims, "JWT"),
		"key in the header":      withKey,
		"another's key, our kid": sign(t, jose.JSONWebKey{Key: foreign, KeyID: "ec"}, jose.ES256, claims, "JWT"),
		"another's key, no kid":  sign(t, foreign, jose.ES256, claims, "JWT"),
		"unknown kid":            sign(t, jose.JSONWebKey{Key: foreign, KeyID: "nobody"}, jose.ES256, claims, "JWT"),
		"RSA kid, EC signature":  sign(t, jose.JSONWebKey{Key: ecKey(), KeyID: "rsa"}, jose.ES256, claims, "JWT"),
		"signature cut":          good[:len(good)-4],
		"no signature":           parts[0] + "." + parts[1] + ".",
		"claims changed":         parts[0] + "." + b64(strings.Replace(claims, "alice", "mallory", 1)) + "." + parts[2],
		"wrong issuer":           other.sign("rsa", nil),
		"issuer with a slash":    i.sign("rsa", map[string]any{"iss": i.url + "/"}),
		"no issuer":              i.sign("rsa", map[string]any{"iss": nil}),
		"issuer is a list":       i.sign("rsa", map[string]any{"iss": []string{i.url}}),
		"wrong audience":         i.sign("rsa", map[string]any{"aud": "somebody"}),
		"no audience":            i.sign("rsa", map[string]any{"aud": nil}),
		"audience is a number":   i.sign("rsa", map[string]any{"aud": 7}),
		"expired":                i.sign("rsa", map[string]any{"exp": past}),
		"expired this moment":    i.sign("rsa", map[string]any{"exp": time.Now().Unix()}),
		"no expiry":              i.sign("rsa", map[string]any{"exp": nil}),
		"expiry is text":         i.sign("rsa", map[string]any{"exp": fmt.Sprint(future)}),
		"expiry beyond time":     i.sign("rsa", map[string]any{"exp": 1e300}),
		"expiry is negative":     i.sign("rsa", map[string]any{"exp": -1}),
		"not yet valid":          i.sign("rsa", map[string]any{"nbf": future}),
		"nbf is text":            i.sign("rsa", map[string]any{"nbf": "now"}),
		"issued in the future":   i.sign("rsa", map[string]any{"iat": future}),
		"no subject":             i.sign("rsa", map[string]any{"sub": nil}),
		"empty subject":          i.sign("rsa", map[string]any{"sub": ""}),
		"subject is a number":    i.sign("rsa", map[string]any{"sub": 1}),
		"line break in subject":  i.sign("rsa", map[string]any{"sub": "a\nb"}),
		"long subject":           i.sign("rsa", map[string]any{"sub": strings.Repeat("a", 256)}),
		"bound to a key":         i.sign("rsa", map[string]any{"cnf": map[string]any{"jkt": "x"}}),
		"a logout token":         i.signRaw("rsa", claims, "logout+jwt"),
		"claims twice":           i.signRaw("rsa", strings.Replace(claims, `"sub"`, `"sub":"root","sub"`, 1), "JWT"),
		"issuer twice":           i.signRaw("rsa", strings.Replace(claims, `"iss"`, `"iss":"x","iss"`, 1), "JWT"),
		"claims and more":        i.signRaw("rsa", claims+"{}", "JWT"),
		"claims are a list":      i.signRaw("rsa", "[]", "JWT"),
		"claims are null":        i.signRaw("rsa", "null", "JWT"),
		"claims nested deeply":   i.sign("rsa", map[string]any{"deep": json.RawMessage(strings.Repeat("[", 500) + strings.Repeat("]", 500))}),
		"header twice":           b64(`{"alg":"none","alg":"RS256","kid":"rsa"}`) + "." + parts[1] + "." + parts[2],
		"critical header":        critical(t, claims),
		"dots":                   "....",
		"three dots in dots":     strings.Repeat(".", 15000),
		"five parts":             strings.Repeat("eyJhbGciOiJSU0EifQ.", 4) + "x",
		"JWE":                    b64(`{"alg":"dir","enc":"A128GCM","zip":"DEF"}`) + ".." + b64("iv") + "." + b64(strings.Repeat("x", 9000)) + "." + b64("tag"),
		"opaque":                 "sUfj3ks9d8f7s6d5f4s3d2f1",
		"JSON form":              `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"two tokens":             good + "," + good,
		"spaces in it":           parts[0] + ". " + parts[1] + "." + parts[2],
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 { // the second time out of the memory of refusals
				p, err := verify(s, text, time.Now())
				if !fault.Is(err, fault.Unauthenticated) || p != nil {
					t.Fatalf("got %v, %v; want unauthenticated", p, err)
				}
				if strings.Contains(fault.From(err).Detail, "alice") {
					t.Errorf("the answer tells what is in the token: %v", err)
				}
			}
		})
	}
	if _, err := verify(s, good, time.Now()); err != nil {
		t.Errorf("the good one, after all that: %v", err)
	}
}

func critical(t *testing.T, claims string) string {
	t.Helper()
	opt := (&jose.SignerOptions{}).WithHeader("crit", []string{"exp"}).WithHeader("exp", 1)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: rsaKey()}, opt)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A session ends with its token, and a token that becomes valid later is not
// held to have been refused.
func TestSessionsEndWithTheToken(t *testing.T) {
	i := newIssuer(t)
	c := i.oidc()
	c.SessionTTL = time.Hour
	s, _ := set(t, c)
	exp := time.Now().Add(10 * time.Minute).Truncate(time.Second)
	text := i.sign("ec", map[string]any{"exp": exp.Unix()})
	for _, at := range []time.Time{time.Now(), exp.Add(-1)} {
		if _, err := verify(s, text, at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := verify(s, text, exp); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("at its expiry: %v", err)
	}
	early := i.sign("ec", map[string]any{"nbf": time.Now().Add(time.Minute).Unix()})
	if _, err := verify(s, early, time.Now()); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("before its time: %v", err)
	}
	if _, err := verify(s, early, time.Now().Add(2*time.Minute)); err != nil {
		t.Errorf("at its time: %v", err)
	}
}

// TestUnknownKeysDoNotFetch sends many tokens with made-up kids: fetches follow
// the clock, not the callers.
func TestUnknownKeysDoNotFetch(t *testing.T) {
	i := newIssuer(t)
	c := i.oidc()
	c.KeyMaxAge = time.Hour
	s, _ := set(t, c)
	if _, err := verify(s, i.sign("ec", nil), time.Now()); err != nil {
		t.Fatal(err)
	}
	began, before := time.Now(), i.fetches.Load()
	done := make(chan error, 300)
	for n := range cap(done) {
		text := sign(t, jose.JSONWebKey{Key: newForeign(t), KeyID: fmt.Sprint("made up ", n)}, jose.ES256, mustJSON(t, i.claims(nil)), "JWT")
		go func() { _, err := verify(s, text, time.Now()); done <- err }()
	}
	for range cap(done) {
		if err := <-done; !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("got %v, want unauthenticated", err)
		}
	}
	if got, most := i.fetches.Load()-before, int64(time.Since(began)/time.Second)+2; got > most {
		t.Errorf("%d fetches in %v for %d tokens", got, time.Since(began), cap(done))
	}
}

func TestRotation(t *testing.T) {
	i := newIssuer(t)
	c := i.oidc()
	c.KeyMaxAge = time.Hour // only the new kid can be the reason to look
	s, _ := set(t, c)
	old := i.sign("ec", nil)
	if _, err := verify(s, old, time.Now()); err != nil {
		t.Fatal(err)
	}
	oldToo := i.sign("ec", map[string]any{"jti": "another"})
	next := newForeign(t)
	i.change(func() { i.keys = append(i.keys[:1:1], jose.JSONWebKey{Key: next, KeyID: "next"}) })
	if _, err := verify(s, i.sign("next", nil), time.Now()); err != nil {
		t.Errorf("signed by the new key: %v", err)
	}
	if _, err := verify(s, old, time.Now()); err != nil {
		t.Errorf("a session under the old key: %v", err)
	}
	if _, err := verify(s, oldToo, time.Now()); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("new under the old key: %v", err)
	}
}

func TestOutage(t *testing.T) {
	i := newIssuer(t)
	addr := i.stop()
	c := i.oidc()
	c.KeyMaxAge = 2 * time.Second
	s, reg := set(t, c) // the node starts without its provider
	known, stranger := i.sign("ec", nil), i.sign("ed", map[string]any{"sub": "bob"})
	_, err := verify(s, known, time.Now())
	if f := fault.From(err); !fault.Is(err, fault.IdentityProviderUnavailable) || f.RetryAfter <= 0 {
		t.Fatalf("before it was there: %v, retry after %v", err, f.RetryAfter)
	}
	i.start(addr)
	eventually(t, "let in once the provider is there", func() bool { _, err := verify(s, known, time.Now()); return err == nil })
	if err := testutil.GatherAndCompare(reg, strings.NewReader("# HELP muster_identity_provider_up 1 while the last call to the identity provider succeeded; of a key set in a file, while it could be read.\n# TYPE muster_identity_provider_up gauge\nmuster_identity_provider_up{provider=\"corp\"} 1\n"), "muster_identity_provider_up"); err != nil {
		t.Error(err)
	}
	i.stop()
	n := 0
	eventually(t, "nobody new is let in", func() bool {
		n++
		_, err := verify(s, i.sign("ec", map[string]any{"sub": fmt.Sprint("new ", n)}), time.Now())
		return fault.Is(err, fault.IdentityProviderUnavailable)
	})
	for range 100 {
		if _, err := verify(s, known, time.Now()); err != nil {
			t.Fatalf("a session while the provider is away: %v", err)
		}
	}
	if _, err := verify(s, stranger, time.Now()); !fault.Is(err, fault.IdentityProviderUnavailable) {
		t.Errorf("a stranger while the provider is away: %v", err)
	}
	i.start(addr)
	eventually(t, "the stranger is let in", func() bool { _, err := verify(s, stranger, time.Now()); return err == nil })
}

// TestHostileKeySets: whatever a provider publishes, tokens are refused or
// wait for better keys, and nothing follows it elsewhere.
func TestHostileKeySets(t *testing.T) {
	elsewhere := newIssuer(t)
	for name, answer := range map[string]func(i *issuer, w http.ResponseWriter, r *http.Request) bool{
		"endless": func(_ *issuer, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				_, _ = w.Write([]byte(`{"keys":[`))
				for range 1 << 10 {
					if _, err := w.Write([]byte(strings.Repeat(`{"kty":"x"},`, 1000))); err != nil {
						break
					}
				}
			}
			return r.URL.Path == "/keys"
		},
		"too many": func(_ *issuer, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				_, _ = w.Write([]byte(`{"keys":[` + strings.Repeat(`{"kty":"x"},`, 200) + `{}]}`))
			}
			return r.URL.Path == "/keys"
		},
		"redirect to another host": func(_ *issuer, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				http.Redirect(w, r, elsewhere.url+"/keys", http.StatusFound)
			}
			return r.URL.Path == "/keys"
		},
		"keys over http elsewhere": func(i *issuer, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				return false
			}
			_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"http://keys.example.org/keys"}`, i.url)
			return true
		},
		"another issuer": func(_ *issuer, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				return false
			}
			_, _ = fmt.Fprintf(w, `{"issuer":"https://example.org","jwks_uri":"%s/keys"}`, elsewhere.url)
			return true
		},
		"a shared secret": func(_ *issuer, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				_, _ = w.Write([]byte(`{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"ec","alg":"HS256"}]}`))
			}
			return r.URL.Path == "/keys"
		},
		"500": func(_ *issuer, w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newIssuer(t)
			i.change(func() { i.answer = func(w http.ResponseWriter, r *http.Request) bool { return answer(i, w, r) } })
			s, _ := set(t, i.oidc())
			if _, err := verify(s, i.sign("ec", nil), time.Now()); !fault.Is(err, fault.IdentityProviderUnavailable) {
				t.Fatalf("got %v, want identity_provider_unavailable", err)
			}
			i.change(func() { i.answer = nil })
			eventually(t, "let in once the keys are good", func() bool { _, err := verify(s, i.sign("ec", nil), time.Now()); return err == nil })
		})
	}
	if n := elsewhere.fetches.Load(); n != 0 {
		t.Errorf("the other host was asked %d times", n)
	}
}

func TestKeysFromAFile(t *testing.T) {
	i := newIssuer(t)
	file := filepath.Join(t.TempDir(), "keys.json")
	write := func(keys ...jose.JSONWebKey) {
		var set jose.JSONWebKeySet
		for _, k := range keys {
			set.Keys = append(set.Keys, k.Public())
		}
		if err := os.WriteFile(file, []byte(mustJSON(t, set)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(i.keys[1])
	c := provider.Config{Name: "plain", Kind: provider.JWT, Issuer: i.url, Audiences: []string{"muster"}, JWKSFile: file, Subject: "email", Algorithms: []string{"ES256"}}
	s, _ := set(t, c)
	p, err := verify(s, i.sign("ec", map[string]any{"email": "ann@example.org"}), time.Now())
	if err != nil || p.ID != "oidc:plain/ann@example.org" || p.Credential.Subject != "alice" {
		t.Errorf("got %+v, %v", p, err)
	}
	if _, err := verify(s, i.sign("rsa", map[string]any{"email": "ann@example.org"}), time.Now()); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a key that is not in the file: %v", err)
	}
	for name, text := range map[string]string{"no JSON": "{", "no keys": `{"keys":[]}`, "private only by name": `{"keys":[{"kty":"oct","k":"AAAA"}]}`, "weak": weakSet} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := provider.New([]provider.Config{c}, provider.Options{Logger: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "jwks_file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// weakSet is an RSA key of 512 bits.
const weakSet = `{"keys":[{"kty":"RSA","n":"vGeJ6XfIcbA9jIYvwNe7xW_5ukn6BKvxGb4Iiq2KdHsMyiCKCJQm2YDbQQPAmYRRa8CEM3S25wAjqzLT4bQQ1w","e":"AQAB"}]}`

func TestConfigIsRefusedWithAdvice(t *testing.T) {
	good := provider.Config{Name: "corp", Kind: provider.OIDC, Issuer: "https://login.example.org", Audiences: []string{"muster"}}
	ask := provider.Config{Name: "ask", Kind: provider.Introspection, IntrospectionURL: "https://login.example.org/i", ClientID: "m", ClientSecret: "s"}
	if err := provider.Validate([]provider.Config{good, ask}); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(c, a *provider.Config){
		"[0].name: \"A\"":             func(c, _ *provider.Config) { c.Name = "A" },
		"[1].name: \"corp\" is taken": func(_, a *provider.Config) { a.Name = "corp" },
		"[1].name: \"spiffe\" stands": func(_, a *provider.Config) { a.Name = "spiffe" },
		"[corp].kind":                 func(c, _ *provider.Config) { c.Kind = "saml" },
		"[corp].issuer: is needed":    func(c, _ *provider.Config) { c.Issuer = "" },
		"[corp].issuer: is http":      func(c, _ *provider.Config) { c.Issuer = "http://127.0.0.1:1" },
		"not a loopback address":      func(c, _ *provider.Config) { c.Issuer, c.Insecure = "http://example.org", true },
		"not a plain URL":             func(c, _ *provider.Config) { c.Issuer = "https://a:b@example.org" },
		"[corp].audiences":            func(c, _ *provider.Config) { c.Audiences = nil },
		"\"none\" is none of":         func(c, _ *provider.Config) { c.Algorithms = []string{"none"} },
		"\"HS256\" is none of":        func(c, _ *provider.Config) { c.Algorithms = []string{"RS256", "HS256"} },
		"[corp].jwks_file: is for":    func(c, _ *provider.Config) { c.JWKSFile = "x" },
		"[corp].jwks_file: give":      func(c, _ *provider.Config) { c.Kind = provider.JWT },
		"clock_skew":                  func(c, _ *provider.Config) { c.ClockSkew = time.Hour },
		"session_ttl":                 func(c, _ *provider.Config) { c.SessionTTL = -1 },
		"key_max_age":                 func(c, _ *provider.Config) { c.KeyMaxAge = 1 },
		"[ask].client_secret_file":    func(_, a *provider.Config) { a.ClientSecret = "" },
		"[ask].introspection_url":     func(_, a *provider.Config) { a.IntrospectionURL = "ftp://example.org" },
		"has the same":                func(c, a *provider.Config) { a.Issuer = c.Issuer },
		"takes the opaque tokens":     func(c, a *provider.Config) { *c = *a; c.Name = "first" },
	} {
		c, a := good, ask
		change(&c, &a)
		if err := provider.Validate([]provider.Config{c, a}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got: %v", want, err)
		}
	}
}
