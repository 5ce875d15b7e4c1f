package client

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/fault"
)

var cart = Ref{Kind: Service, Namespace: "default", Name: "cart"}

// node is a TLS server on loopback that answers as a node would.
func node(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return s
}

// dial makes a client of the given nodes; all share httptest's authority.
func dial(t *testing.T, cfg Config, nodes ...*httptest.Server) *Client {
	t.Helper()
	for _, n := range nodes {
		cfg.Addresses = append(cfg.Addresses, n.URL)
	}
	if len(nodes) > 0 && cfg.CACert == "" {
		cfg.CACert = filepath.Join(t.TempDir(), "ca.crt")
		b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: nodes[0].Certificate().Raw})
		if err := os.WriteFile(cfg.CACert, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func fail(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprint(w, body)
}

// dead is the address of a node that does not run.
func dead(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "https://" + l.Addr().String()
}

func TestRequestsAsTheContractHasThem(t *testing.T) {
	var got string
	n := node(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Method + " " + r.RequestURI
		for _, h := range []string{"If-Match", "If-None-Match", "Authorization"} {
			if v := r.Header.Get(h); v != "" {
				got += " " + h + "=" + v
			}
		}
		if r.Method != http.MethodGet && r.Header.Get("Idempotency-Key") != "" {
			got += " keyed"
		}
		fmt.Fprint(w, `{"revision":7,"instances":[]}`)
	})
	c := dial(t, Config{Token: "secret"}, n)
	i := Ref{Kind: Instance, Namespace: "shop", Service: "cart", Name: "i1"}
	ctx := t.Context()
	for _, k := range []struct {
		do   func() error
		want string
	}{
		{func() error { _, err := c.Get(ctx, cart, Read{}); return err }, "GET /v1/namespaces/default/services/cart"},
		{func() error { _, err := c.Get(ctx, i, Read{Linearizable: true}); return err }, "GET /v1/namespaces/shop/services/cart/instances/i1?consistency=linearizable"},
		{func() error { _, err := c.Get(ctx, Ref{Service, "a/b", "", "x?y"}, Read{}); return err }, "GET /v1/namespaces/a%2Fb/services/x%3Fy"},
		{func() error {
			_, err := c.Put(ctx, i, []byte("{}"), Write{CreateService: true, CreateOnly: true})
			return err
		},
			"PUT /v1/namespaces/shop/services/cart/instances/i1?create_service=true If-None-Match=* keyed"},
		{func() error { return c.Delete(ctx, cart, Write{IfRevision: 12}) }, `DELETE /v1/namespaces/default/services/cart If-Match="12" keyed`},
		{func() error { return c.Heartbeat(ctx, i) }, "POST /v1/namespaces/shop/services/cart/instances/i1/heartbeat"},
		{func() error { _, err := c.SetStatus(ctx, i, "maintenance"); return err }, "PUT /v1/namespaces/shop/services/cart/instances/i1/status keyed"},
		{func() error {
			_, err := c.Discover(ctx, "shop", "cart", Filter{AnyStatus: true, Tags: []string{"a", "b"}, Zone: "z", Version: "1.0", Read: Read{MinRevision: 4}})
			return err
		}, "GET /v1/discovery/shop/cart?min_revision=4&status=any&tag=a&tag=b&version=1.0&zone=z"},
		{func() error { _, err := c.List(ctx, Version, "shop", "cart", Read{}); return err }, "GET /v1/namespaces/shop/services/cart/versions"},
		{func() error { _, err := c.List(ctx, Service, "", "", Read{}); return err }, "GET /v1/services"},
		{func() error { _, err := c.Push(ctx, []byte("{}"), true); return err }, "POST /v1/policy/revisions?activate=true"},
		{func() error { _, err := c.Activate(ctx, 3); return err }, "POST /v1/policy/revisions/3/activate"},
		{func() error { _, err := c.ActivateIf(ctx, 3, 2); return err }, `POST /v1/policy/revisions/3/activate If-Match="2"`},
		{func() error { _, err := c.PushShadow(ctx, []byte("{}"), 0.1); return err }, "POST /v1/policy/revisions?shadow=true&share=0.1"},
		{func() error { _, err := c.Shadow(ctx, 3, 1); return err }, "POST /v1/policy/revisions/3/shadow"},
		{func() error { _, err := c.StopShadow(ctx); return err }, "DELETE /v1/policy/shadow"},
		{func() error { _, err := c.ShadowReport(ctx); return err }, "GET /v1/policy/shadow/report"},
		{func() error { _, err := c.ReplayPolicy(ctx, 3, time.Hour, 10); return err }, "POST /v1/policy/revisions/3/replay"},
		{func() error { _, err := c.DiffPolicies(ctx, 3, 4); return err }, "GET /v1/policy/revisions/3/diff?to=4"},
		{func() error { _, err := c.DiffPolicies(ctx, 3, 0); return err }, "GET /v1/policy/revisions/3/diff"},
		{func() error { return c.RemoveMember(ctx, "n3") }, "DELETE /v1/cluster/members/n3"},
		{func() error { _, err := c.RevokeToken(ctx, "abc", 0); return err }, "DELETE /v1/tokens/abc"},
		{func() error { _, err := c.RestoreSnapshot(ctx, strings.NewReader("x"), true, true); return err }, "PUT /v1/snapshot?dry_run=true&force=true"},
	} {
		got = ""
		if err := k.do(); err != nil {
			t.Errorf("%s: %v", k.want, err)
		}
		want := k.want
		if at := strings.Index(want+" ", " If-"); at >= 0 && strings.Contains(want, " keyed") {
			want = strings.Replace(want, " keyed", " Authorization=Bearer secret keyed", 1)
		} else if strings.HasSuffix(want, " keyed") {
			want = strings.TrimSuffix(want, " keyed") + " Authorization=Bearer secret keyed"
		} else {
			want += " Authorization=Bearer secret"
		}
		if got != want {
			t.Errorf("sent %q, want %q", got, want)
		}
	}
	for _, name := range []string{"", ".", ".."} {
		got = ""
		if err := c.Delete(ctx, Ref{Kind: Service, Namespace: "default", Name: name}, Write{}); !fault.Is(err, fault.BadPath) || got != "" {
			t.Errorf("the name %q: %v, sent %q", name, err, got)
		}
	}
}

func TestErrorsKeepTheirCodes(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		want   *fault.Error
	}{
		{403, `{"code":"policy_denied","detail":"no","reasons":["a","b"],"decision_id":"d1","policy_revision":7}`,
			&fault.Error{Code: fault.PolicyDenied, Detail: "no", Reasons: []string{"a", "b"}, DecisionID: "d1", PolicyRevision: 7}},
		{412, `{"code":"revision_mismatch","detail":"changed","current":9}`, &fault.Error{Code: fault.RevisionMismatch, Detail: "changed", Current: 9}},
		{400, `{"code":"invalid_field","detail":"bad","errors":[{"pointer":"/port","message":"too high"}]}`,
			&fault.Error{Code: fault.InvalidField, Detail: "bad", Fields: []fault.Field{{Pointer: "/port", Message: "too high"}}}},
		{422, `{"code":"invalid_policy","detail":"bad","errors":[{"file":"a.rego","row":3,"col":2,"message":"unsafe"}]}`,
			&fault.Error{Code: fault.InvalidPolicy, Detail: "bad", Places: []fault.Place{{File: "a.rego", Row: 3, Col: 2, Message: "unsafe"}}}},
		{404, `<html>proxy</html>`, &fault.Error{Code: fault.NotFound, Detail: "answered 404 Not Found without saying why"}},
		{400, "Client sent an HTTP request to an HTTPS server.\n", &fault.Error{Code: fault.BadRequest, Detail: "answered 400 Bad Request: Client sent an HTTP request to an HTTPS server."}},
		{302, ``, &fault.Error{Code: fault.BadRequest, Detail: "answered 302 Found without saying why"}},
	} {
		n := node(t, func(w http.ResponseWriter, _ *http.Request) { fail(w, c.status, c.body) })
		_, err := dial(t, Config{}, n).Get(t.Context(), cart, Read{})
		got, ok := errors.AsType[*fault.Error](err)
		if !ok {
			t.Fatalf("%d: not a fault: %v", c.status, err)
		}
		if d := cmp.Diff(*c.want, *got, cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".cause" }, cmp.Ignore())); d != "" {
			t.Errorf("%d: %s", c.status, d)
		}
	}
}

func TestAnyLivingNodeWillDo(t *testing.T) {
	n := node(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"revision":1}`) })
	c := dial(t, Config{Addresses: []string{dead(t), dead(t)}}, n)
	// A change that cannot be repeated is still safe here: nothing was sent.
	if err := c.RemoveMember(t.Context(), "n3"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), cart, Read{}); err != nil {
		t.Fatal(err)
	}
}

func TestAnElectionIsWaitedFor(t *testing.T) {
	var calls atomic.Int32
	n := node(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) < 4 {
			fail(w, 503, `{"code":"no_leader","detail":"election"}`)
			return
		}
		fmt.Fprint(w, `{"revision":1}`)
	})
	// Not keyed, but no_leader says that nothing happened.
	if _, err := dial(t, Config{}, n).Activate(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if calls.Load() != 4 {
		t.Errorf("%d calls", calls.Load())
	}
}

func TestWhatMayHaveHappenedIsOnlyRepeatedUnderAKey(t *testing.T) {
	var mu sync.Mutex
	keys := map[string]int{}
	calls := 0
	n := node(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		keys[r.Header.Get("Idempotency-Key")]++
		if calls++; calls%2 == 1 {
			fail(w, 503, `{"code":"no_leader","detail":"lost it","outcome":"unknown"}`)
			return
		}
		fmt.Fprint(w, `{"revision":1}`)
	})
	c := dial(t, Config{}, n)
	if _, err := c.Put(t.Context(), cart, []byte("{}"), Write{}); err != nil {
		t.Fatal(err)
	}
	if len(keys) != 1 || calls != 2 {
		t.Errorf("%d calls under %d keys, want 2 under 1", calls, len(keys))
	}
	for k := range keys {
		if k == "" {
			t.Error("a change was repeated without a key")
		}
	}
	_, err := c.Activate(t.Context(), 1)
	if e := fault.From(err); e.Code != fault.NoLeader || e.Outcome != fault.Unknown || calls != 3 {
		t.Errorf("after %d calls: %v, outcome %v", calls, err, e.Outcome)
	}
}

func TestABrokenConnectionLeavesTheOutcomeUnknown(t *testing.T) {
	var calls atomic.Int32
	n := node(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		panic(http.ErrAbortHandler)
	})
	err := dial(t, Config{}, n).RemoveMember(t.Context(), "n3")
	if e := fault.From(err); e.Code != fault.NotReady || e.Outcome != fault.Unknown || calls.Load() != 1 {
		t.Errorf("after %d calls: %v, outcome %v", calls.Load(), err, e.Outcome)
	}
}

func TestAHangingNodeDoesNotHoldARead(t *testing.T) {
	release := make(chan struct{})
	hangs := node(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	lives := node(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"revision":1}`) })
	c := dial(t, Config{Timeout: 6 * time.Second}, hangs, lives)
	if _, err := c.Get(t.Context(), cart, Read{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), cart, Read{}); err != nil { // goes to the living one at once
		t.Fatal(err)
	}
}

func TestNobodyAnswersEndsInTime(t *testing.T) {
	begin := time.Now()
	c := dial(t, Config{Addresses: []string{dead(t)}, Timeout: 300 * time.Millisecond})
	if _, err := c.Get(t.Context(), cart, Read{}); !fault.Is(err, fault.NotReady) {
		t.Errorf("got %v", err)
	}
	if _, _, err := c.SaveSnapshot(context.Background()); !fault.Is(err, fault.NotReady) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("took %s", d)
	}
}

func TestSessionsReadWhatTheyWrote(t *testing.T) {
	var asked []string
	n := node(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			asked = append(asked, r.URL.Query().Get("min_revision"))
		}
		w.Header().Set("Muster-Revision", "41")
		fmt.Fprint(w, `{"revision":41}`)
	})
	c := dial(t, Config{Session: true}, n)
	for range 2 {
		if _, err := c.Get(t.Context(), cart, Read{}); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff([]string{"", "41"}, asked); d != "" || c.Revision() != 41 {
		t.Errorf("revision %d: %s", c.Revision(), d)
	}
}

func TestAllPagesAreRead(t *testing.T) {
	n := node(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("page_token") {
		case "":
			fmt.Fprint(w, `{"items":[{"name":"a"},{"name":"b"}],"next_page_token":"b","revision":3}`)
		case "b":
			fmt.Fprint(w, `{"items":[{"name":"c"}],"next_page_token":"","revision":3}`)
		}
	})
	items, err := dial(t, Config{}, n).List(t.Context(), Service, "default", "", Read{})
	if err != nil || len(items) != 3 || string(items[2]) != `{"name":"c"}` {
		t.Errorf("%s, %v", items, err)
	}
}

func TestAStrangerIsNotTrusted(t *testing.T) {
	n := node(t, func(w http.ResponseWriter, _ *http.Request) { t.Error("the token was sent to a stranger") })
	c := dial(t, Config{Addresses: []string{n.URL}, Token: "secret"})
	_, err := c.Get(t.Context(), cart, Read{})
	if err == nil || !strings.Contains(err.Error(), "muster tls verify") {
		t.Errorf("got %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no address":  {},
		"path":        {Addresses: []string{"https://localhost:8443/v1"}},
		"scheme":      {Addresses: []string{"ftp://localhost"}},
		"half a pair": {Addresses: []string{"localhost"}, ClientCert: "x"},
		"no CA file":  {Addresses: []string{"localhost"}, CACert: "/nowhere"},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
