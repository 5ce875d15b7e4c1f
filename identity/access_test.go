package identity_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

// provider is an identity provider whose tokens are their own claims.
type provider map[string]*identity.Principal

func (p provider) Verify(_ context.Context, text string, _ [32]byte, _ time.Time) (*identity.Principal, error) {
	if who, ok := p[text]; ok {
		return who, nil
	}
	return nil, fault.New(fault.Unauthenticated, "the token is not known")
}

func outside(subject, jti string, claims string) *identity.Principal {
	p := &identity.Principal{ID: "corp:" + subject, Kind: identity.KindOIDC, Roles: []string{}, Namespaces: []string{},
		Credential: identity.Credential{Provider: "corp", Issuer: "https://id.example.org", Subject: subject, JTI: jti}}
	if err := json.Unmarshal([]byte(claims), &p.Claims); err != nil {
		panic(err)
	}
	return p
}

func rule(t testing.TB, text string) *identity.Rule {
	t.Helper()
	r := new(identity.Rule)
	if err := json.Unmarshal([]byte(text), r, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	if err := r.Check([]string{"viewer", "publisher", "operator"}, func(string) error { return nil }); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return r
}

func revocation(t testing.TB, kind, value string) *identity.Revocation {
	t.Helper()
	r := &identity.Revocation{Kind: kind, Value: value, Reason: "lost"}
	if err := r.Canonical(); err != nil {
		t.Fatalf("%s %s: %v", kind, value, err)
	}
	return r
}

// shown is what a principal may do where.
func shown(p *identity.Principal) string {
	if len(p.Grants) == 0 {
		return fmt.Sprint(p.Roles, p.Namespaces)
	}
	var all []string
	for _, g := range p.Grants {
		all = append(all, fmt.Sprint(g.Roles, g.Namespaces))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestRulesGiveRoles(t *testing.T) {
	people := provider{
		"ann": outside("ann", "", `{"groups":["api_admin","staff"],"realm_access":{"roles":["deploy"]},"teams":["shop","web"]}`),
		"bob": outside("bob", "", `{"groups":"staff","scope":"read write","teams":[],"level":3,"https://example.org/vip":true,"none":["",""]}`),
		"svc": outside("spiffe://example.org/ns/shop/sa/web", "", `{}`),
	}
	a, err := identity.New(identity.Config{TrustDomain: "example.org", Outside: people})
	if err != nil {
		t.Fatal(err)
	}
	header := func(h string) func(*identity.Table) (*identity.Principal, error) {
		return func(tbl *identity.Table) (*identity.Principal, error) {
			return a.Authenticate(context.Background(), tbl, "Bearer "+h, nil, now)
		}
	}
	cert := func(conn *tls.ConnectionState) func(*identity.Table) (*identity.Principal, error) {
		return func(tbl *identity.Table) (*identity.Principal, error) {
			return a.Authenticate(context.Background(), tbl, "", conn, now)
		}
	}
	ann, bob, likeID := header("ann"), header("bob"), header("svc")
	pod := cert(certificate(t, "", "spiffe://example.org/ns/shop/sa/web"))
	named := cert(certificate(t, "builder"))
	own := cert(certificate(t, "", "spiffe://example.org/muster/role/viewer/ns/shop"))
	member := cert(certificate(t, "n1", "spiffe://example.org/muster/node/n1"))
	for name, tc := range map[string]struct {
		who   func(*identity.Table) (*identity.Principal, error)
		rules []string
		want  string
	}{
		"no rule":            {ann, nil, "[] []"},
		"a claim's member":   {ann, []string{`{"role":"operator","match":{"provider":"corp","claims":{"groups":"api_admin"}}}`}, "[operator] []"},
		"not in the list":    {bob, []string{`{"role":"operator","match":{"provider":"corp","claims":{"groups":"api_admin"}}}`}, "[] []"},
		"any of several":     {bob, []string{`{"role":"viewer","match":{"provider":"corp","claims":{"groups":["api_admin","staff"]}}}`}, "[viewer] []"},
		"a nested claim":     {ann, []string{`{"role":"publisher","namespaces":["shop"],"match":{"issuer":"https://id.example.org","claims":{"realm_access.roles":"deploy"}}}`}, "[publisher] [shop]"},
		"all must hold":      {ann, []string{`{"role":"operator","match":{"provider":"corp","claims":{"groups":"api_admin","realm_access.roles":"none"}}}`}, "[] []"},
		"another provider":   {ann, []string{`{"role":"operator","match":{"provider":"other","claims":{"groups":"api_admin"}}}`}, "[] []"},
		"another issuer":     {ann, []string{`{"role":"operator","match":{"issuer":"https://id.example.org/","claims":{"groups":"api_admin"}}}`}, "[] []"},
		"subject":            {ann, []string{`{"role":"viewer","match":{"provider":"corp","subject":"ann"}}`, `{"role":"operator","match":{"provider":"corp","subject":"bob"}}`}, "[viewer] []"},
		"words of a scope":   {bob, []string{`{"role":"publisher","match":{"provider":"corp","claims":{"scope":"write"}}}`}, "[publisher] []"},
		"a number, a URL":    {bob, []string{`{"role":"viewer","match":{"provider":"corp","claims":{"level":"3","https://example.org/vip":"true"}}}`}, "[viewer] []"},
		"claimed namespaces": {ann, []string{`{"role":"publisher","namespaces_claim":"teams","match":{"provider":"corp","claims":{"groups":"staff"}}}`}, "[publisher] [shop web]"},
		"none claimed":       {bob, []string{`{"role":"publisher","namespaces_claim":"teams","match":{"provider":"corp","claims":{"groups":"staff"}}}`}, "[] []"},
		"claim missing":      {ann, []string{`{"role":"publisher","namespaces_claim":"areas","match":{"provider":"corp","claims":{"groups":"staff"}}}`}, "[] []"},
		"rules add up": {ann, []string{`{"role":"viewer","match":{"provider":"corp","claims":{"groups":"staff"}}}`, `{"role":"publisher","namespaces":["shop"],"match":{"provider":"corp","subject":"ann"}}`},
			"[publisher] [shop] [viewer] []"},
		"SPIFFE segment":        {pod, []string{`{"role":"publisher","namespaces":["shop"],"match":{"spiffe_id":"spiffe://example.org/ns/shop/sa/*"}}`}, "[publisher] [shop]"},
		"SPIFFE rest":           {pod, []string{`{"role":"viewer","match":{"spiffe_id":"spiffe://example.org/ns/**"}}`}, "[viewer] []"},
		"SPIFFE shorter":        {pod, []string{`{"role":"viewer","match":{"spiffe_id":"spiffe://example.org/ns/*"}}`}, "[] []"},
		"other domain":          {pod, []string{`{"role":"viewer","match":{"spiffe_id":"spiffe://example.com/ns/**"}}`}, "[] []"},
		"common name":           {named, []string{`{"role":"viewer","match":{"cn":"builder"}}`}, "[viewer] []"},
		"not its name":          {named, []string{`{"role":"viewer","match":{"cn":"build"}}`}, "[] []"},
		"URI as SAN":            {pod, []string{`{"role":"viewer","match":{"san":"spiffe://example.org/ns/shop/sa/web"}}`}, "[viewer] []"},
		"with its own role":     {own, []string{`{"role":"publisher","namespaces":["web"],"match":{"spiffe_id":"spiffe://example.org/muster/role/**"}}`}, "[publisher] [web] [viewer] [shop]"},
		"a name beside an id":   {cert(certificate(t, "builder", "spiffe://example.org/ns/shop/sa/web")), []string{`{"role":"operator","match":{"cn":"builder"}}`, `{"role":"operator","match":{"san":"https://builder.example"}}`}, "[] []"},
		"and of another domain": {cert(certificate(t, "builder", "spiffe://a.example/x", "https://builder.example")), []string{`{"role":"operator","match":{"cn":"builder"}}`, `{"role":"operator","match":{"san":"https://builder.example"}}`}, "[] []"},
		"a URI without an id":   {cert(certificate(t, "builder", "https://builder.example")), []string{`{"role":"viewer","match":{"san":"https://builder.example"}}`}, "[viewer] []"},
		"a sub like an id":      {likeID, []string{`{"role":"operator","match":{"spiffe_id":"spiffe://example.org/ns/**"}}`}, "[] []"},
		"vouched for by name":   {likeID, []string{`{"role":"viewer","match":{"provider":"corp","spiffe_id":"spiffe://example.org/ns/**"}}`}, "[viewer] []"},
		"an empty claim":        {bob, []string{`{"role":"publisher","namespaces_claim":"none","match":{"provider":"corp","claims":{"groups":"staff"}}}`}, "[] []"},
		"a member never":        {member, []string{`{"role":"operator","match":{"cn":"n1"}}`, `{"role":"operator","match":{"spiffe_id":"spiffe://example.org/**"}}`}, "[] []"},
	} {
		t.Run(name, func(t *testing.T) {
			var rules []*identity.Rule
			for _, text := range tc.rules {
				rules = append(rules, rule(t, text))
			}
			tbl := identity.NewTable().With(identity.NewAccess(rules, nil))
			for range 2 { // found out, and remembered
				p, err := tc.who(tbl)
				if err != nil {
					t.Fatal(err)
				}
				if got := shown(p); got != tc.want {
					t.Errorf("got %s, want %s", got, tc.want)
				}
			}
		})
	}
}

func TestRulesThatAreRefused(t *testing.T) {
	for text, pointer := range map[string]string{
		`{"role":"root","match":{"cn":"a"}}`:                                           "/role",
		`{"role":"viewer","match":{}}`:                                                 "/match",
		`{"role":"viewer","match":{"provider":"corp"}}`:                                "/match",
		`{"role":"viewer","match":{"claims":{"groups":"a"}}}`:                          "/match",
		`{"role":"viewer","match":{"subject":"a"}}`:                                    "/match",
		`{"role":"viewer","namespaces_claim":"teams","match":{"cn":"a"}}`:              "/match",
		`{"role":"viewer","match":{"provider":"c","claims":{"groups":[]}}}`:            "/match/claims",
		`{"role":"viewer","match":{"provider":"c","claims":{"groups":""}}}`:            "/match/claims",
		`{"role":"viewer","match":{"spiffe_id":"spiffe://*/ns/a"}}`:                    "/match/spiffe_id",
		`{"role":"viewer","match":{"spiffe_id":"spiffe://example.org/ns/sh*"}}`:        "/match/spiffe_id",
		`{"role":"viewer","match":{"spiffe_id":"spiffe://example.org/**/admin"}}`:      "/match/spiffe_id",
		`{"role":"viewer","match":{"spiffe_id":"example.org/ns"}}`:                     "/match/spiffe_id",
		`{"role":"viewer","match":{"spiffe_id":"spiffe://example.org"}}`:               "/match/spiffe_id",
		`{"role":"viewer","namespaces":["*"],"match":{"cn":"a"}}`:                      "/namespaces/0",
		`{"role":"viewer","match":{"spiffe_id":"spiffe://example.org/ns//sa"}}`:        "/match/spiffe_id",
		`{"role":"operator","match":{"spiffe_id":"spiffe://example.org/ns/a/sa/**x"}}`: "/match/spiffe_id",
	} {
		r := new(identity.Rule)
		if err := json.Unmarshal([]byte(text), r); err != nil {
			t.Fatal(err)
		}
		err := r.Check([]string{"viewer", "operator"}, func(ns string) error {
			if ns == "*" {
				return fault.New(fault.BadRequest, "no")
			}
			return nil
		})
		if f := fault.From(err); err == nil || f.Code != fault.InvalidField || f.Fields[0].Pointer != pointer {
			t.Errorf("%s: %v, want invalid_field at %s", text, err, pointer)
		}
	}
}

// An id that a pattern without wildcards matches is the pattern; * never
// matches more than one segment.
func TestPatternsMatchBySegment(t *testing.T) {
	segment := rapid.StringMatching(`[a-z]{1,3}`)
	rapid.Check(t, func(rt *rapid.T) {
		path := rapid.SliceOfN(segment, 1, 4).Draw(rt, "path")
		pattern := slices.Clone(path)
		for i := range pattern {
			if rapid.Bool().Draw(rt, "wild") {
				pattern[i] = "*"
			}
		}
		const domain = "spiffe://example.org/"
		if !identity.MatchSPIFFE(domain+strings.Join(pattern, "/"), domain+strings.Join(path, "/")) {
			rt.Fatalf("%v does not match %v", pattern, path)
		}
		longer := append(slices.Clone(path), segment.Draw(rt, "more"))
		if identity.MatchSPIFFE(domain+strings.Join(pattern, "/"), domain+strings.Join(longer, "/")) {
			rt.Fatalf("%v matches %v", pattern, longer)
		}
		if !identity.MatchSPIFFE(domain+strings.Join(pattern, "/")+"/**", domain+strings.Join(longer, "/")) || identity.MatchSPIFFE(domain+strings.Join(pattern, "/")+"/**", domain+strings.Join(path, "/")) {
			rt.Fatalf("%v/** and %v", pattern, longer)
		}
	})
}

func TestRevokedCredentialsAreRefused(t *testing.T) {
	people := provider{"jwt-of-ann": outside("ann", "j-1", `{}`), "jwt-of-bob": outside("s-4711", "", `{}`), "svid": outside("spiffe://example.org/ns/shop/sa/web", "", `{}`)}
	people["jwt-of-bob"].ID = "oidc:corp/bob@example.org" // by another claim than sub
	a, err := identity.New(identity.Config{TrustDomain: "example.org", Outside: people,
		Static: []identity.Static{{Name: "operator", Role: "operator", Hash: identity.Hash(staticText)}}})
	if err != nil {
		t.Fatal(err)
	}
	tbl, m := mint(t, identity.NewTable(), "viewer", nil, time.Hour)
	conn := certificate(t, "builder", "spiffe://example.org/ns/shop/sa/web")
	leaf := conn.PeerCertificates[0]
	serial := leaf.SerialNumber.Text(16)
	for name, tc := range map[string]struct {
		header string
		conn   *tls.ConnectionState
		kind   string
		value  string
	}{
		"own token":            {m.Text, nil, identity.RevokeToken, m.ID},
		"own token by hash":    {m.Text, nil, identity.RevokeToken, "sha256:" + strings.ToUpper(identity.Hash(m.Text))},
		"own token by id":      {m.Text, nil, identity.RevokeSubject, "token:" + m.ID},
		"static by name":       {staticText, nil, identity.RevokeToken, "operator"},
		"static by hash":       {staticText, nil, identity.RevokeToken, "sha256:" + identity.Hash(staticText)},
		"jti":                  {"jwt-of-ann", nil, identity.RevokeJTI, "j-1"},
		"sub":                  {"jwt-of-ann", nil, identity.RevokeSubject, "ann"},
		"principal":            {"jwt-of-ann", nil, identity.RevokeSubject, "corp:ann"},
		"sub of another claim": {"jwt-of-bob", nil, identity.RevokeSubject, "s-4711"},
		"the claim's name":     {"jwt-of-bob", nil, identity.RevokeSubject, "bob@example.org"},
		"JWT by hash":          {"jwt-of-ann", nil, identity.RevokeToken, "sha256:" + identity.Hash("jwt-of-ann")},
		"JWT-SVID":             {"svid", nil, identity.RevokeSPIFFE, "spiffe://example.org/ns/shop/sa/web"},
		"serial":               {"", conn, identity.RevokeSerial, "00:" + strings.ToUpper(serial)},
		"SPIFFE":               {"", conn, identity.RevokeSPIFFE, "spiffe://example.org/ns/shop/sa/web"},
		"common name":          {"", conn, identity.RevokeSubject, "builder"},
		"key":                  {"", conn, identity.RevokeKey, identity.Fingerprint(leaf)},
	} {
		t.Run(name, func(t *testing.T) {
			header := tc.header
			if header != "" {
				header = "Bearer " + header
			}
			before := tbl.With(identity.NewAccess(nil, []*identity.Revocation{revocation(t, identity.RevokeJTI, "another"), revocation(t, identity.RevokeSerial, "ffffffffff")}))
			p, err := a.Authenticate(context.Background(), before, header, tc.conn, now)
			if err != nil {
				t.Fatalf("before: %v", err)
			}
			if _, err := a.Recheck(before, p, now); err != nil {
				t.Fatalf("asked again before: %v", err)
			}
			after := tbl.With(identity.NewAccess(nil, []*identity.Revocation{revocation(t, tc.kind, tc.value)}))
			for range 2 {
				if _, err := a.Authenticate(context.Background(), after, header, tc.conn, now); !fault.Is(err, fault.Unauthenticated) {
					t.Errorf("after: %v, want unauthenticated", err)
				}
			}
			if _, err := a.Recheck(after, p, now); !fault.Is(err, fault.Unauthenticated) {
				t.Errorf("asked again: %v, want unauthenticated", err)
			}
		})
	}
}

// What lasts is asked again: its credential may have ended or gone, and its
// roles may be others.
func TestRecheck(t *testing.T) {
	people := provider{"ann": outside("ann", "", `{"groups":["staff"]}`)}
	people["ann"].Credential.ExpiresAt = now.Add(time.Minute)
	a, err := identity.New(identity.Config{TrustDomain: "example.org", Outside: people})
	if err != nil {
		t.Fatal(err)
	}
	viewer := rule(t, `{"role":"viewer","match":{"provider":"corp","claims":{"groups":"staff"}}}`)
	publisher := rule(t, `{"role":"publisher","namespaces":["shop"],"match":{"provider":"corp","claims":{"groups":"staff"}}}`)
	first := identity.NewAccess([]*identity.Rule{viewer}, nil)
	tbl, m := mint(t, identity.NewTable(), "viewer", nil, time.Hour)
	p, err := a.Authenticate(context.Background(), tbl.With(first), "Bearer ann", nil, now)
	if err != nil || shown(p) != "[viewer] []" {
		t.Fatal(p, err)
	}
	select {
	case <-first.Superseded():
		t.Error("superseded before there is another")
	default:
	}
	first.Supersede()
	<-first.Superseded()
	if p, err = a.Recheck(tbl.With(identity.NewAccess([]*identity.Rule{publisher}, nil)), p, now); err != nil || shown(p) != "[publisher] [shop]" {
		t.Errorf("after the rules changed: %v, %v", p, err)
	}
	if p, err = a.Recheck(tbl, p, now); err != nil || len(p.Roles) != 0 {
		t.Errorf("without rules: %v, %v", p, err)
	}
	if _, err := a.Recheck(tbl, p, now.Add(time.Minute)); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("after its end: %v", err)
	}
	own, err := a.Authenticate(context.Background(), tbl, "Bearer "+m.Text, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	x := tbl.Txn(nil)
	if err := x.Delete(m.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Recheck(x.Commit(), own, now); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("without its token: %v", err)
	}
}

func TestRevocationsThatAreRefused(t *testing.T) {
	for _, r := range []identity.Revocation{
		{Kind: "cookie", Value: "a", Reason: "r"}, {Kind: "jti", Reason: "r"}, {Kind: "jti", Value: "a"}, {Kind: "jti", Value: "a\nb", Reason: "r"},
		{Kind: "jti", Value: strings.Repeat("a", 1025), Reason: "r"}, {Kind: "serial", Value: "xyz", Reason: "r"}, {Kind: "serial", Value: "0", Reason: "r"},
		{Kind: "key", Value: "abcd", Reason: "r"}, {Kind: "spiffe", Value: "example.org", Reason: "r"}, {Kind: "token", Value: "sha256:12", Reason: "r"},
		{Kind: "token", Value: "muster_0123456789abcdef_x", Reason: "r"},
	} {
		if err := r.Canonical(); !fault.Is(err, fault.InvalidField) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	a, b := revocation(t, "serial", "00:AB:CD"), revocation(t, "serial", "abcd")
	if a.ID() != b.ID() {
		t.Errorf("one serial has two names: %s and %s", a.ID(), b.ID())
	}
}

func TestUnmappedIsTold(t *testing.T) {
	var told []bool
	a, err := identity.New(identity.Config{Outside: provider{"ann": outside("ann", "", `{"grps":["staff"]}`)},
		Unmapped: func(p *identity.Principal, first bool) { told = append(told, first) }})
	if err != nil {
		t.Fatal(err)
	}
	tbl := identity.NewTable().With(identity.NewAccess([]*identity.Rule{rule(t, `{"role":"viewer","match":{"provider":"corp","claims":{"groups":"staff"}}}`)}, nil))
	for range 3 {
		if p, err := a.Authenticate(context.Background(), tbl, "Bearer ann", nil, now); err != nil || len(p.Roles) > 0 {
			t.Fatal(p, err)
		}
	}
	if !slices.Equal(told, []bool{true, false, false}) {
		t.Errorf("told %v", told)
	}
}

// With rules and revocations there, for a caller met before.
func BenchmarkCompleted(b *testing.B) {
	var rules []*identity.Rule
	for i := range 200 {
		rules = append(rules, rule(b, fmt.Sprintf(`{"role":"viewer","match":{"provider":"corp","claims":{"groups":"g%d"}}}`, i)))
	}
	var revocations []*identity.Revocation
	for i := range 10_000 {
		revocations = append(revocations, revocation(b, "jti", fmt.Sprint(i)))
	}
	a, err := identity.New(identity.Config{Outside: provider{"ann": outside("ann", "j", `{"groups":["g7"]}`)}})
	if err != nil {
		b.Fatal(err)
	}
	tbl := identity.NewTable().With(identity.NewAccess(rules, revocations))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Authenticate(context.Background(), tbl, "Bearer ann", nil, now); err != nil {
			b.Fatal(err)
		}
	}
}
