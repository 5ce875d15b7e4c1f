package spiffe_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/identity/spiffe"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// domain is a trust domain with one X.509 and one JWT authority.
type domain struct {
	t    testing.TB
	td   spiffeid.TrustDomain
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	jwt  *ecdsa.PrivateKey
	kid  string
	hint time.Duration
}

func newDomain(t testing.TB, name string) *domain {
	t.Helper()
	d := &domain{t: t, td: spiffeid.RequireTrustDomainFromString(name), kid: "k-" + name}
	var err error
	d.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	d.jwt, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{d.td.ID().URL()}}
	d.ca = d.sign(tmpl, tmpl, &d.key.PublicKey)
	return d
}

func (d *domain) sign(tmpl, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	d.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, public, d.key)
	must(d.t, err)
	c, err := x509.ParseCertificate(der)
	must(d.t, err)
	return c
}

// svid signs a certificate for whatever it is told.
func (d *domain) svid(ids ...string) []*x509.Certificate {
	chain, _ := d.svidKey(ids...)
	return chain
}

func (d *domain) svidKey(ids ...string) ([]*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(d.t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), KeyUsage: x509.KeyUsageDigitalSignature, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(30 * time.Minute),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	for _, id := range ids {
		u, err := url.Parse(id)
		must(d.t, err)
		tmpl.URIs = append(tmpl.URIs, u)
	}
	return []*x509.Certificate{d.sign(tmpl, d.ca, &key.PublicKey)}, key
}

func (d *domain) bundle() *spiffebundle.Bundle {
	b := spiffebundle.New(d.td)
	b.AddX509Authority(d.ca)
	must(d.t, b.AddJWTAuthority(d.kid, &d.jwt.PublicKey))
	if d.hint > 0 {
		b.SetRefreshHint(d.hint)
	}
	return b
}

func (d *domain) file(name string) string {
	raw, err := d.bundle().Marshal()
	must(d.t, err)
	must(d.t, os.WriteFile(name+".new", raw, 0o600))
	must(d.t, os.Rename(name+".new", name))
	return name
}

func (d *domain) token(kid string, key any, alg jose.SignatureAlgorithm, claims jwt.Claims) string {
	d.t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", kid))
	must(d.t, err)
	text, err := jwt.Signed(s).Claims(claims).Serialize()
	must(d.t, err)
	return text
}

func trust(t testing.TB, domains ...spiffe.Domain) *spiffe.Trust {
	t.Helper()
	tr, err := spiffe.New(spiffe.Options{Own: "muster", Domains: domains, Audiences: []string{"muster", "registry"}, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	return tr
}

// Each certificate is proven by the authorities of the domain that it names,
// and by no others.
func TestEachDomainByItsOwnAuthorities(t *testing.T) {
	own, a, b, work, stranger := newDomain(t, "muster"), newDomain(t, "a.example"), newDomain(t, "b.example"), newDomain(t, "muster"), newDomain(t, "c.example")
	dir := t.TempDir()
	tr := trust(t, spiffe.Domain{Name: "a.example", BundleFile: a.file(filepath.Join(dir, "a"))}, spiffe.Domain{Name: "b.example", BundleFile: b.file(filepath.Join(dir, "b"))})
	tr.SetOwn([]*x509.Certificate{own.ca}, []*x509.Certificate{work.ca})
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		good  bool
	}{
		"own":                {own.svid("spiffe://muster/muster/role/operator"), true},
		"own, by name alone": {own.svid(), true},
		"of an unknown domain, signed by our own": {own.svid("spiffe://c.example/x"), true}, // somebody without a role, as ever
		"a":                                {a.svid("spiffe://a.example/ns/x/sa/y"), true},
		"b":                                {b.svid("spiffe://b.example/ns/x/sa/y"), true},
		"a says it is b":                   {a.svid("spiffe://b.example/ns/x/sa/y"), false},
		"a says it is an operator of ours": {a.svid("spiffe://muster/muster/role/operator"), false},
		"a says it is a workload of ours":  {a.svid("spiffe://muster/ns/shop/svc/cart"), false},
		"we say it is a":                   {own.svid("spiffe://a.example/ns/x/sa/y"), false},
		"a without a name":                 {a.svid(), false},
		"a with two names":                 {a.svid("spiffe://a.example/x", "spiffe://muster/muster/role/operator"), false},
		"a with its name in capitals":      {a.svid("SPIFFE://muster/muster/role/operator"), false},
		"a as an unknown domain":           {a.svid("spiffe://c.example/x"), false},
		"a stranger":                       {stranger.svid("spiffe://c.example/x"), false},
		"a's authority itself":             {[]*x509.Certificate{a.ca}, false},
		"a workload of ours":               {work.svid("spiffe://muster/ns/shop/svc/cart"), true},
		"an operator by the workloads' CA": {work.svid("spiffe://muster/muster/role/operator"), false},
		"a node by the workloads' CA":      {work.svid("spiffe://muster/muster/node/n1"), false},
		"nobody by the workloads' CA":      {work.svid(), false},
		"of a by the workloads' CA":        {work.svid("spiffe://a.example/ns/x/sa/y"), false},
		"nothing":                          {nil, false},
	} {
		for range 2 { // the second time out of memory
			if err := tr.VerifyChain(c.chain); (err == nil) != c.good || err != nil && !fault.Is(err, fault.Unauthenticated) {
				t.Errorf("%s: %v, want it to be good: %t", name, err, c.good)
			}
		}
	}
	// What an authority has signed is worth nothing when the authority is gone.
	good := own.svid("spiffe://muster/muster/role/viewer")
	must(t, tr.VerifyChain(good))
	tr.SetOwn([]*x509.Certificate{newDomain(t, "muster").ca}, nil)
	if tr.VerifyChain(good) == nil {
		t.Error("a certificate of an authority that is gone is believed")
	}
}

func verify(v identity.Verifier, text string, now time.Time) (*identity.Principal, error) {
	return v.Verify(context.Background(), text, sha256.Sum256([]byte(text)), now)
}

type refuser struct{}

func (refuser) Verify(context.Context, string, [32]byte, time.Time) (*identity.Principal, error) {
	return nil, fault.New(fault.IdentityProviderUnavailable, "somebody else's")
}

func TestJWTSVIDs(t *testing.T) {
	a, b := newDomain(t, "a.example"), newDomain(t, "b.example")
	dir := t.TempDir()
	tr := trust(t, spiffe.Domain{Name: "a.example", BundleFile: a.file(filepath.Join(dir, "a"))}, spiffe.Domain{Name: "b.example", BundleFile: b.file(filepath.Join(dir, "b"))})
	v := tr.Outside(refuser{})
	now := time.Now()
	claims := func(change func(*jwt.Claims)) jwt.Claims {
		c := jwt.Claims{Subject: "spiffe://a.example/ns/x/sa/y", Audience: jwt.Audience{"other", "registry"}, Expiry: jwt.NewNumericDate(now.Add(time.Hour)), ID: "j1"}
		if change != nil {
			change(&c)
		}
		return c
	}
	good := a.token(a.kid, a.jwt, jose.ES256, claims(nil))
	p, err := verify(v, good, now)
	must(t, err)
	if p.ID != "spiffe://a.example/ns/x/sa/y" || p.Kind != identity.KindSPIFFE || len(p.Roles) != 0 || p.Credential.JTI != "j1" || p.Claims["sub"] != p.ID {
		t.Errorf("%+v", p)
	}
	if _, err := verify(v, good, now.Add(time.Hour)); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("out of memory past its end: %v", err)
	}
	// A domain says who its members are, and nothing about somebody else's issuer.
	foreign := a.token(a.kid, a.jwt, jose.ES256, claims(func(c *jwt.Claims) { c.Issuer = "https://login.example.org" }))
	if p, err := verify(v, foreign, now); err != nil || p.Credential.Issuer != "" {
		t.Errorf("%+v, %v", p, err)
	}
	secret := []byte("0123456789abcdef0123456789abcdef")
	for name, text := range map[string]string{
		"another audience":       a.token(a.kid, a.jwt, jose.ES256, claims(func(c *jwt.Claims) { c.Audience = jwt.Audience{"other"} })),
		"no audience":            a.token(a.kid, a.jwt, jose.ES256, claims(func(c *jwt.Claims) { c.Audience = nil })),
		"expired":                a.token(a.kid, a.jwt, jose.ES256, claims(func(c *jwt.Claims) { c.Expiry = jwt.NewNumericDate(now.Add(-time.Second)) })),
		"no end":                 a.token(a.kid, a.jwt, jose.ES256, claims(func(c *jwt.Claims) { c.Expiry = nil })),
		"not yet":                a.token(a.kid, a.jwt, jose.ES256, claims(func(c *jwt.Claims) { c.NotBefore = jwt.NewNumericDate(now.Add(time.Hour)) })),
		"b signs for a":          b.token(b.kid, b.jwt, jose.ES256, claims(nil)),
		"b signs with a's kid":   b.token(a.kid, b.jwt, jose.ES256, claims(nil)),
		"a signs for b":          a.token(a.kid, a.jwt, jose.ES256, claims(func(c *jwt.Claims) { c.Subject = "spiffe://b.example/x" })),
		"no kid":                 a.token("", a.jwt, jose.ES256, claims(nil)),
		"a shared secret":        a.token(a.kid, secret, jose.HS256, claims(nil)),
		"the end of it is other": good[:len(good)-6] + "AAAAAA",
		"alg none":               "eyJhbGciOiJub25lIn0." + strings.Split(good, ".")[1] + ".",
	} {
		if p, err := verify(v, text, now); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	for name, text := range map[string]string{
		"of an unknown domain": a.token(a.kid, a.jwt, jose.ES256, claims(func(c *jwt.Claims) { c.Subject = "spiffe://c.example/x" })),
		"of an OIDC provider":  a.token(a.kid, a.jwt, jose.ES256, claims(func(c *jwt.Claims) { c.Subject = "ann" })),
		"opaque":               "abc", "dots": strings.Repeat(".", 16000),
	} {
		if _, err := verify(v, text, now); !fault.Is(err, fault.IdentityProviderUnavailable) {
			t.Errorf("%s is not left to others: %v", name, err)
		}
	}
}

// A bundle endpoint of either profile; what it says wrongly changes nothing.
func TestBundlesAreFetched(t *testing.T) {
	for _, profile := range []string{spiffe.ProfileWeb, spiffe.ProfileSPIFFE} {
		t.Run(profile, func(t *testing.T) {
			d := newDomain(t, "a.example")
			d.hint = time.Second // less than the least: 10 s, so later fetches are asked for by new Trusts
			var answer atomic.Pointer[func(http.ResponseWriter, *http.Request)]
			serve := func(f func(w http.ResponseWriter, r *http.Request)) { answer.Store(&f) }
			good := func(w http.ResponseWriter, _ *http.Request) {
				raw, err := d.bundle().Marshal()
				must(t, err)
				_, _ = w.Write(raw)
			}
			serve(good)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*answer.Load())(w, r) }))
			server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
			dir := t.TempDir()
			cfg := spiffe.Domain{Name: "a.example", Profile: profile}
			if profile == spiffe.ProfileSPIFFE {
				chain, key := d.svidKey("spiffe://a.example/spire/server")
				server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{chain[0].Raw}, PrivateKey: key}}}
				cfg.BundleFile, cfg.EndpointID = d.file(filepath.Join(dir, "a")), "spiffe://a.example/spire/server"
			}
			server.StartTLS()
			defer server.Close()
			cfg.BundleURL = server.URL
			if profile == spiffe.ProfileWeb {
				cfg.CAFile = filepath.Join(dir, "web.crt")
				must(t, os.WriteFile(cfg.CAFile, pemOf(server.Certificate()), 0o600))
			}
			fetched := func(cfg spiffe.Domain) (*spiffe.Trust, func(result string) float64) {
				tr := trust(t, cfg)
				ctx, stop := context.WithCancel(context.Background())
				done := make(chan struct{})
				go func() { defer close(done); tr.Run(ctx) }()
				t.Cleanup(func() { stop(); <-done })
				reg := prometheus.NewPedanticRegistry()
				must(t, reg.Register(tr))
				return tr, func(result string) float64 {
					all, err := reg.Gather()
					must(t, err)
					for _, f := range all {
						if f.GetName() != "muster_spiffe_bundle_refreshes_total" {
							continue
						}
						for _, m := range f.Metric {
							if m.Label[0].GetValue() == result {
								return m.Counter.GetValue()
							}
						}
					}
					return 0
				}
			}
			await := func(count func(string) float64, result string) {
				t.Helper()
				for end := time.Now().Add(time.Minute); count(result) == 0; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("nothing was %s in a minute", result)
					}
				}
			}
			member := d.svid("spiffe://a.example/x")
			tr, count := fetched(cfg)
			await(count, "ok")
			must(t, tr.VerifyChain(member))
			if p := tr.Health(); len(p) != 1 || !strings.Contains(p[0], "1 X.509 and 1 JWT authorities") {
				t.Errorf("health: %q", p)
			}

			for name, f := range map[string]func(http.ResponseWriter, *http.Request){
				"an error":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
				"garbage":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
				"nothing":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[]}`)) },
				"a redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
				"a flood": func(w http.ResponseWriter, _ *http.Request) {
					_, _ = w.Write([]byte(`{"keys":["` + strings.Repeat("x", 2<<20) + `"]}`))
				},
				"a cut answer": func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Length", "100")
					_, _ = w.Write([]byte(`{"keys":`))
				},
			} {
				serve(f)
				tr, count := fetched(cfg)
				await(count, "failed")
				if believed := tr.VerifyChain(member) == nil; believed != (cfg.BundleFile != "") {
					t.Errorf("%s: members are believed: %t", name, believed)
				}
			}
			serve(good)
			// The endpoint must prove itself.
			wrong := cfg
			if profile == spiffe.ProfileSPIFFE {
				wrong.EndpointID = "spiffe://a.example/other"
			} else {
				wrong.CAFile = filepath.Join(dir, "other.crt")
				must(t, os.WriteFile(wrong.CAFile, pemOf(newDomain(t, "x.example").ca), 0o600))
			}
			_, count = fetched(wrong)
			await(count, "failed")
			if count("ok") > 0 {
				t.Error("an endpoint that proves nothing was believed")
			}
			if problems, err := testutil.GatherAndLint(registered(t, tr)); err != nil || len(problems) > 0 {
				t.Errorf("%v, %v", problems, err)
			}
		})
	}
}

func registered(t *testing.T, c prometheus.Collector) prometheus.Gatherer {
	reg := prometheus.NewRegistry()
	must(t, reg.Register(c))
	return reg
}

func pemOf(c *x509.Certificate) []byte {
	b := spiffebundle.New(spiffeid.RequireTrustDomainFromString("x.example"))
	b.AddX509Authority(c)
	raw, err := b.X509Bundle().Marshal()
	if err != nil {
		panic(err)
	}
	return raw
}

// A file is looked at again; one that is broken leaves what was there.
func TestBundleFilesAreFollowed(t *testing.T) {
	a, next := newDomain(t, "a.example"), newDomain(t, "a.example")
	file := a.file(filepath.Join(t.TempDir(), "a"))
	tr := trust(t, spiffe.Domain{Name: "a.example", BundleFile: file})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go tr.Run(ctx)
	old, other := a.svid("spiffe://a.example/x"), next.svid("spiffe://a.example/x")
	must(t, tr.VerifyChain(old))
	must(t, os.WriteFile(file, []byte("{"), 0o600))
	next.file(file)
	for end := time.Now().Add(time.Minute); tr.VerifyChain(other) != nil || tr.VerifyChain(old) == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new bundle is not in use")
		}
	}
}

func TestSettingsAreRefusedWithAdvice(t *testing.T) {
	for name, c := range map[string]struct {
		d    spiffe.Domain
		want string
	}{
		"own":               {spiffe.Domain{Name: "muster", BundleFile: "x"}, "tls.ca"},
		"no name":           {spiffe.Domain{BundleFile: "x"}, "is not the name of a trust domain"},
		"an id as the name": {spiffe.Domain{Name: "spiffe://a.example", BundleFile: "x"}, "is not the name of a trust domain"},
		"no bundle":         {spiffe.Domain{Name: "a.example"}, "has no bundle"},
		"plain http":        {spiffe.Domain{Name: "a.example", BundleURL: "http://a.example"}, "not an https URL"},
		"profile":           {spiffe.Domain{Name: "a.example", BundleFile: "x", Profile: "http"}, "neither https_web nor https_spiffe"},
		"no endpoint id":    {spiffe.Domain{Name: "a.example", BundleFile: "x", BundleURL: "https://a.example", Profile: "https_spiffe"}, "endpoint_id"},
		"foreign endpoint":  {spiffe.Domain{Name: "a.example", BundleFile: "x", BundleURL: "https://a.example", Profile: "https_spiffe", EndpointID: "spiffe://b.example/x"}, "another trust domain"},
	} {
		if err := spiffe.Validate("muster", []spiffe.Domain{c.d}, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if err := spiffe.Validate("muster", []spiffe.Domain{{Name: "a.example", BundleFile: "x"}, {Name: "a.example", BundleFile: "y"}}, nil); err == nil {
		t.Error("a domain twice")
	}
}

// BenchmarkVerifyChain is the cost of a proof out of memory, once a request.
func BenchmarkVerifyChain(b *testing.B) {
	own := newDomain(b, "muster")
	tr := trust(b)
	tr.SetOwn([]*x509.Certificate{own.ca}, nil)
	chain := own.svid("spiffe://muster/muster/role/operator")
	for b.Loop() {
		must(b, tr.VerifyChain(chain))
	}
}
