package identity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

var now = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

const staticText = "an operator's token, from a file"

func authenticator(t testing.TB) *identity.Authenticator {
	t.Helper()
	a, err := identity.New(identity.Config{
		TrustDomain: "example.org",
		Static:      []identity.Static{{Name: "operator", Role: "operator", Hash: identity.Hash(staticText)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mint(t testing.TB, tbl *identity.Table, role string, ns []string, ttl time.Duration) (*identity.Table, *identity.Minted) {
	t.Helper()
	m, err := identity.Mint(role, ns, ttl, now)
	if err != nil {
		t.Fatal(err)
	}
	x := tbl.Txn(nil)
	if _, err := x.Put(identity.Stamp{Revision: 7, Time: now, By: "root"}, m.ID, m.Spec); err != nil {
		t.Fatal(err)
	}
	return x.Commit(), m
}

func TestBearer(t *testing.T) {
	a := authenticator(t)
	tbl, good := mint(t, identity.NewTable(), "publisher", []string{"shop"}, time.Hour)
	publisher := &identity.Principal{ID: "token:" + good.ID, Kind: identity.KindToken, Roles: []string{"publisher"}, Namespaces: []string{"shop"}, Claims: map[string]any{}}
	operator := &identity.Principal{ID: "token:operator", Kind: identity.KindToken, Roles: []string{"operator"}, Namespaces: []string{}, Claims: map[string]any{}}
	other := good.Text[:len(good.Text)-1] + "A"
	if other == good.Text {
		other = good.Text[:len(good.Text)-1] + "B"
	}
	for name, tc := range map[string]struct {
		header string
		at     time.Time
		want   *identity.Principal
	}{
		"good":                {"Bearer " + good.Text, now, publisher},
		"scheme in any case":  {"bEARER " + good.Text, now, publisher},
		"last moment":         {"Bearer " + good.Text, now.Add(time.Hour - 1), publisher},
		"expired":             {"Bearer " + good.Text, now.Add(time.Hour), nil},
		"static":              {"Bearer " + staticText, now.AddDate(50, 0, 0), operator},
		"static, cut short":   {"Bearer " + staticText[:5], now, nil},
		"wrong secret":        {"Bearer " + other, now, nil},
		"unknown id":          {"Bearer muster_0123456789abcdef_" + good.Text[24:], now, nil},
		"id alone":            {"Bearer " + good.ID, now, nil},
		"the hash":            {"Bearer " + identity.Hash(good.Text), now, nil},
		"another scheme":      {"Basic " + good.Text, now, nil},
		"no scheme":           {good.Text, now, nil},
		"scheme alone":        {"Bearer", now, nil},
		"scheme and space":    {"Bearer ", now, nil},
		"only spaces":         {"Bearer     ", now, nil},
		"a JWT":               {"Bearer e30.e30.", now, nil},
		"a megabyte of dots":  {"Bearer " + strings.Repeat(".", 1<<20), now, nil},
		"good with more text": {"Bearer " + good.Text + "x", now, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := a.Authenticate(context.Background(), tbl, tc.header, nil, tc.at)
			if tc.want == nil {
				if !fault.Is(err, fault.Unauthenticated) || got != nil {
					t.Fatalf("got %v, %v; want unauthenticated", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got, cmpopts.IgnoreFields(identity.Principal{}, "Credential")); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestNobody(t *testing.T) {
	if _, err := authenticator(t).Authenticate(context.Background(), identity.NewTable(), "", &tls.ConnectionState{}, now); !fault.Is(err, fault.Unauthenticated) {
		t.Fatalf("got %v, want unauthenticated", err)
	}
}

func TestRevokedTokenIsUnknown(t *testing.T) {
	a := authenticator(t)
	tbl, m := mint(t, identity.NewTable(), "viewer", nil, 0)
	x := tbl.Txn(nil)
	if err := x.Delete(m.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Authenticate(context.Background(), tbl, "Bearer "+m.Text, nil, now); err != nil {
		t.Errorf("the table from before changed: %v", err)
	}
	if _, err := a.Authenticate(context.Background(), x.Commit(), "Bearer "+m.Text, nil, now); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("got %v, want unauthenticated", err)
	}
}

func certificate(t testing.TB, cn string, ids ...string) *tls.ConnectionState {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	for _, id := range ids {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	chain := []*x509.Certificate{cert}
	return &tls.ConnectionState{PeerCertificates: chain, VerifiedChains: [][]*x509.Certificate{chain}}
}

func TestCertificate(t *testing.T) {
	a := authenticator(t)
	for _, tc := range []struct {
		cn, id     string
		want       string // kind:role:namespaces, "" for a refusal
		wantedName string
	}{
		{"", "spiffe://example.org/muster/role/operator", "spiffe:operator:", ""},
		{"", "spiffe://example.org/muster/role/viewer/alice", "spiffe:viewer:", ""},
		{"", "spiffe://example.org/muster/role/publisher/ns/shop", "spiffe:publisher:shop", ""},
		{"", "spiffe://example.org/muster/role/publisher/ns/shop/ci", "spiffe:publisher:shop", ""},
		{"", "spiffe://example.org/muster/role/publisher/ns/shop/ci/more", "", ""},
		{"", "spiffe://example.org/muster/role/publisher/ns", "", ""},
		{"", "spiffe://example.org/muster/role", "", ""},
		{"", "spiffe://example.org/muster/node/n1", "node::", ""},
		{"", "spiffe://example.org/muster/node", "", ""},
		{"", "spiffe://example.org/muster/other", "", ""},
		{"", "spiffe://example.org/billing/api", "spiffe::", ""},
		{"", "spiffe://elsewhere.org/muster/role/operator", "spiffe::", ""},
		{"", "spiffe://example.org.evil.org/muster/role/operator", "spiffe::", ""},
		{"", "spiffe://example.org/x/../muster/role/operator", "", ""},
		{"", "spiffe://example.org//muster/role/operator", "", ""},
		{"", "spiffe://example.org/muster%2frole%2foperator", "", ""},
		{"", "spiffe://user@example.org/muster/role/operator", "", ""},
		{"", "spiffe://example.org:443/muster/role/operator", "", ""},
		{"", "spiffe://example.org/muster/role/operator?x=1", "", ""},
		{"bob", "https://example.org/muster/role/operator", "spiffe::", "CN=bob"},
		{"bob", "", "spiffe::", "CN=bob"},
		{"", "", "", ""},
	} {
		t.Run(tc.id+tc.cn, func(t *testing.T) {
			var ids []string
			if tc.id != "" {
				ids = []string{tc.id}
			}
			p, err := a.Authenticate(context.Background(), identity.NewTable(), "", certificate(t, tc.cn, ids...), now)
			if tc.want == "" {
				if !fault.Is(err, fault.Unauthenticated) {
					t.Fatalf("got %+v, %v; want unauthenticated", p, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Kind + ":" + strings.Join(p.Roles, ",") + ":" + strings.Join(p.Namespaces, ","); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			if name := tc.wantedName; name == "" && p.ID != tc.id || name != "" && p.ID != name {
				t.Errorf("the principal is %q", p.ID)
			}
		})
	}
}

func TestCertificateAroundIt(t *testing.T) {
	a := authenticator(t)
	const id = "spiffe://example.org/muster/role/operator"
	good := certificate(t, "", id)
	unverified := &tls.ConnectionState{PeerCertificates: good.PeerCertificates}
	for name, tc := range map[string]struct {
		conn   *tls.ConnectionState
		header string
		at     time.Time
		id     string // "" for a refusal
	}{
		"good":                  {good, "", now, id},
		"expired since":         {good, "", now.Add(2 * time.Hour), ""},
		"not yet valid":         {good, "", now.Add(-2 * time.Hour), ""},
		"not verified":          {unverified, "", now, ""},
		"two ids":               {certificate(t, "", id, "spiffe://example.org/muster/node/n1"), "", now, ""},
		"token wins":            {certificate(t, "", "spiffe://example.org/muster/role/viewer"), "Bearer " + staticText, now, "token:operator"},
		"bad token is not both": {good, "Bearer nonsense", now, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := a.Authenticate(context.Background(), identity.NewTable(), tc.header, tc.conn, tc.at)
			if tc.id == "" {
				if !fault.Is(err, fault.Unauthenticated) {
					t.Fatalf("got %+v, %v; want unauthenticated", p, err)
				}
				return
			}
			if err != nil || p.ID != tc.id {
				t.Fatalf("got %+v, %v; want %s", p, err, tc.id)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	good := identity.Static{Name: "op", Role: "operator", Hash: identity.Hash("x")}
	for name, static := range map[string][]identity.Static{
		"no hash":   {{Name: "op", Role: "operator"}},
		"the text":  {{Name: "op", Role: "operator", Hash: "x"}},
		"no role":   {{Name: "op", Hash: identity.Hash("x")}},
		"no name":   {{Role: "operator", Hash: identity.Hash("x")}},
		"same text": {good, {Name: "second", Role: "viewer", Hash: good.Hash}},
	} {
		if _, err := identity.New(identity.Config{Static: static}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func BenchmarkBearer(b *testing.B) {
	a := authenticator(b)
	tbl := identity.NewTable()
	var m *identity.Minted
	for range 1000 {
		tbl, m = mint(b, tbl, "viewer", nil, time.Hour)
	}
	header := "Bearer " + m.Text
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Authenticate(context.Background(), tbl, header, nil, now); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCertificate(b *testing.B) {
	a := authenticator(b)
	conn := certificate(b, "", "spiffe://example.org/muster/role/publisher/ns/shop/ci")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Authenticate(context.Background(), nil, "", conn, now); err != nil {
			b.Fatal(err)
		}
	}
}
