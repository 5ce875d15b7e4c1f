package provider_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/identity/provider"
	"github.com/muster-registry/muster/tools/ports"
)

// issuer is an OpenID provider reduced to what its relying parties see, so
// that tests can have it misbehave. The real ones are in peers/oidc.
type issuer struct {
	t   testing.TB
	srv *http.Server
	url string

	mu     sync.Mutex
	keys   []jose.JSONWebKey // private
	tokens map[string]map[string]any
	answer func(w http.ResponseWriter, r *http.Request) bool // true: that was all

	fetches atomic.Int64 // of the key set
	asked   atomic.Int64 // introspections
}

var rsaKey, ecKey, edKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
}), sync.OnceValue(func() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}), sync.OnceValue(func() ed25519.PrivateKey {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
})

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{t: t, tokens: map[string]map[string]any{}}
	i.keys = []jose.JSONWebKey{
		{Key: rsaKey(), KeyID: "rsa", Use: "sig"}, {Key: ecKey(), KeyID: "ec", Use: "sig"}, {Key: edKey(), KeyID: "ed"},
	}
	i.start(ports.Free(t)) // it may go, and come back
	return i
}

func (i *issuer) start(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		i.t.Fatal(err)
	}
	i.url = "http://" + l.Addr().String()
	i.srv = &http.Server{Handler: i}
	srv := i.srv
	go func() { _ = srv.Serve(l) }()
	i.t.Cleanup(func() { _ = srv.Close() })
}

// stop takes it off the network; start brings it back at the same address.
func (i *issuer) stop() (addr string) {
	_ = i.srv.Close()
	return i.url[len("http://"):]
}

func (i *issuer) change(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	answer := i.answer
	i.mu.Unlock()
	if answer != nil && answer(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.url, "jwks_uri": i.url + "/keys", "authorization_endpoint": i.url + "/a", "token_endpoint": i.url + "/t"})
	case "/keys":
		i.fetches.Add(1)
		i.mu.Lock()
		var set jose.JSONWebKeySet
		for _, k := range i.keys {
			set.Keys = append(set.Keys, k.Public())
		}
		i.mu.Unlock()
		_ = json.NewEncoder(w).Encode(set)
	case "/introspect":
		i.asked.Add(1)
		if id, secret, _ := r.BasicAuth(); id != "muster" || secret != "s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		i.mu.Lock()
		claims := i.tokens[r.FormValue("token")]
		i.mu.Unlock()
		out := map[string]any{"active": claims != nil}
		maps.Copy(out, claims)
		_ = json.NewEncoder(w).Encode(out)
	default:
		http.NotFound(w, r)
	}
}

// claims are good ones; changes overwrite, nil removes.
func (i *issuer) claims(changes map[string]any) map[string]any {
	c := map[string]any{
		"iss": i.url, "sub": "alice", "aud": "muster", "jti": "id-1",
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "groups": []string{"api_admin"},
	}
	for k, v := range changes {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

func (i *issuer) sign(kid string, changes map[string]any) string {
	i.t.Helper()
	payload, err := json.Marshal(i.claims(changes))
	if err != nil {
		i.t.Fatal(err)
	}
	return i.signRaw(kid, string(payload), "JWT")
}

func (i *issuer) signRaw(kid, payload, typ string) string {
	i.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, k := range i.keys {
		if k.KeyID == kid {
			return sign(i.t, k, algorithm(k.Key), payload, typ)
		}
	}
	i.t.Fatalf("no key %q", kid)
	return ""
}

func algorithm(key any) jose.SignatureAlgorithm {
	switch key.(type) {
	case *rsa.PrivateKey:
		return jose.RS256
	case *ecdsa.PrivateKey:
		return jose.ES256
	}
	return jose.EdDSA
}

func sign(t testing.TB, key any, a jose.SignatureAlgorithm, payload, typ string) string {
	t.Helper()
	opt := &jose.SignerOptions{}
	if typ != "" {
		opt.WithType(jose.ContentType(typ))
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: a, Key: key}, opt)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (i *issuer) oidc() provider.Config {
	return provider.Config{Name: "corp", Kind: provider.OIDC, Issuer: i.url, Audiences: []string{"muster", "other"}, Insecure: true}
}

func (i *issuer) introspection() provider.Config {
	return provider.Config{Name: "opaque", Kind: provider.Introspection, IntrospectionURL: i.url + "/introspect",
		ClientID: "muster", ClientSecret: "s3cret", Insecure: true}
}

// set runs providers for the length of a test.
func set(t testing.TB, configs ...provider.Config) (*provider.Set, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	s, err := provider.New(configs, provider.Options{Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return s, reg
}

func verify(s *provider.Set, text string, at time.Time) (*identity.Principal, error) {
	return s.Verify(context.Background(), text, sha256.Sum256([]byte(text)), at)
}

// eventually waits for a condition that others bring about.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); {
		if time.Now().After(end) {
			t.Fatalf("after a minute still not: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// gauge gives the only sample of a metric.
func gauge(t testing.TB, reg *prometheus.Registry, name string) prometheus.Collector {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name})
			g.Set(f.GetMetric()[0].GetGauge().GetValue())
			return g
		}
	}
	t.Fatalf("no metric %s", name)
	return nil
}
