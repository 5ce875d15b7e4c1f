package rest_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// zipped packs b.
func zipped(t testing.TB, b []byte) string {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestBadBodies(t *testing.T) {
	e := newEdge(t, rest.Options{MaxBody: 1 << 20})
	gz := header("Content-Encoding", "gzip")
	deep := strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)
	for name, tc := range map[string]struct {
		body    string
		header  http.Header
		status  int
		code    fault.Code
		pointer string
		says    string
	}{
		"over the limit":           {`{"owner":"` + strings.Repeat("x", 1<<20) + `"}`, nil, 413, fault.TooLarge, "", ""},
		"10 000 levels":            {`{"metadata":` + deep + `}`, nil, 400, fault.BadRequest, "", ""},
		"the same key twice":       {`{"owner":"a","owner":"b"}`, nil, 400, fault.BadRequest, "", "owner"},
		"the same key, deep":       {`{"metadata":{"tier":1,"tier":2}}`, nil, 400, fault.BadRequest, "", "tier"},
		"unknown field":            {`{"ownr":"a"}`, nil, 400, fault.InvalidField, "/ownr", ""},
		"wrong case":               {`{"Owner":"a"}`, nil, 400, fault.InvalidField, "/Owner", ""},
		"wrong type":               {`{"owner":7}`, nil, 400, fault.InvalidField, "/owner", ""},
		"trailing data":            {`{} {}`, nil, 400, fault.BadRequest, "", ""},
		"trailing comma":           {`{"owner":"a",}`, nil, 400, fault.BadRequest, "", ""},
		"no body":                  {"", nil, 400, fault.BadRequest, "", ""},
		"no object":                {`[]`, nil, 400, fault.InvalidField, "", ""},
		"half a body":              {`{"owner":"a`, nil, 400, fault.BadRequest, "", ""},
		"invalid UTF-8":            {"{\"owner\":\"\xff\"}", nil, 400, fault.BadRequest, "", ""},
		"NUL in a name":            {`{"name":"ca\u0000rt"}`, nil, 400, fault.InvalidField, "/name", ""},
		"another name":             {`{"name":"other"}`, nil, 400, fault.InvalidField, "/name", ""},
		"a gzip bomb":              {zipped(t, bytes.Repeat([]byte(" "), 1<<20+1)), gz, 413, fault.TooLarge, "", ""},
		"says gzip and is not":     {`{}`, gz, 400, fault.BadRequest, "", ""},
		"gzip cut off":             {zipped(t, []byte(`{"owner":"a"}`))[:20], gz, 400, fault.BadRequest, "", ""},
		"gzip with a wrong sum":    {damaged(zipped(t, []byte(`{"owner":"a"}`))), gz, 400, fault.BadRequest, "", ""},
		"an unknown encoding":      {`{}`, header("Content-Encoding", "br"), 415, fault.UnsupportedMediaType, "", ""},
		"twice encoded":            {`{}`, header("Content-Encoding", "gzip, gzip"), 415, fault.UnsupportedMediaType, "", ""},
		"a form":                   {`a=b`, header("Content-Type", "application/x-www-form-urlencoded"), 415, fault.UnsupportedMediaType, "", ""},
		"text":                     {`{}`, header("Content-Type", "text/plain"), 415, fault.UnsupportedMediaType, "", ""},
		"another charset":          {`{}`, header("Content-Type", "application/json; charset=utf-16"), 415, fault.UnsupportedMediaType, "", ""},
		"a type that is not one":   {`{}`, header("Content-Type", "application/"), 415, fault.UnsupportedMediaType, "", ""},
		"a type that is two types": {`{}`, header("Content-Type", "application/json", "Content-Type", "text/plain"), 415, fault.UnsupportedMediaType, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := refused(t, e.do(ask{caller: "publisher", method: "PUT", path: cart, body: tc.body, header: tc.header}), tc.status, tc.code)
			if tc.pointer != "" && (len(p.Errors) != 1 || p.Errors[0].Pointer != tc.pointer) {
				t.Errorf("errors %v, want one at %s", p.Errors, tc.pointer)
			}
			if !strings.Contains(p.Detail, tc.says) {
				t.Errorf("%q does not name %s", p.Detail, tc.says)
			}
		})
	}
	if e.State().Revision != 0 || len(e.intents) != 0 {
		t.Errorf("refused bodies led to %d intents", len(e.intents))
	}
}

func damaged(gz string) string {
	b := []byte(gz)
	b[len(b)-6] ^= 1
	return string(b)
}

// A node may allow less depth than the decoders do.
func TestDepthIsASetting(t *testing.T) {
	e := newEdge(t, rest.Options{MaxDepth: 3})
	put := ask{caller: "publisher", method: "PUT", path: cart}
	put.body = `{"metadata":{"a":{"b":{}}}}`
	refused(t, e.do(put), 400, fault.BadRequest)
	put.body = `{"metadata":{"a":{"b":1}}}`
	if w := e.do(put); w.Code != 201 {
		t.Errorf("three levels: %d %s", w.Code, w.Body)
	}
}

func TestGoodBodies(t *testing.T) {
	e := newEdge(t, rest.Options{})
	for name, tc := range map[string]ask{
		"no word on the type": {body: `{}`},
		"JSON":                {body: `{}`, header: header("Content-Type", "application/json")},
		"with its charset":    {body: `{}`, header: header("Content-Type", "application/json; charset=UTF-8")},
		"a kind of JSON":      {body: `{}`, header: header("Content-Type", "application/vnd.muster+json")},
		"gzip":                {body: zipped(t, []byte(`{}`)), header: header("Content-Encoding", "gzip")},
		"gzip, shouted":       {body: zipped(t, []byte(`{}`)), header: header("Content-Encoding", "GZIP")},
	} {
		tc.caller, tc.method, tc.path = "publisher", "PUT", cart
		if w := e.do(tc); w.Code >= 300 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

// counter counts what is read of an endless body.
type counter struct{ n int64 }

func (c *counter) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	c.n += int64(len(p))
	return len(p), nil
}

func TestAnEndlessBodyIsCutOff(t *testing.T) {
	const limit, surplus = 1 << 20, 32 << 20
	e := newEdge(t, rest.Options{MaxBody: limit})
	for name, announced := range map[string]int64{"chunked": -1, "with a length": limit + 1} {
		body := &counter{}
		r := ask{caller: "publisher", method: "PUT", path: cart}.request()
		r.Body, r.ContentLength = io.NopCloser(body), announced
		w := httptest.NewRecorder()
		e.api.ServeHTTP(w, r)
		refused(t, w, 413, fault.TooLarge)
		if body.n > limit+surplus+64<<10 {
			t.Errorf("%s: %d bytes were read", name, body.n)
		}
	}
	// A definition may be larger than other bodies.
	r := ask{caller: "publisher", method: "PUT", path: cartV1, body: strings.Repeat(" ", limit+1) + `{"x":1}`}
	refused(t, e.do(r), 400, fault.InvalidField)
}

// Many clients send everything before they look at the answer.
func TestABodyTooLongIsAnsweredToWhoSendsItWhole(t *testing.T) {
	e := newEdge(t, rest.Options{MaxBody: 1 << 20})
	srv := httptest.NewServer(e.api)
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := ask{caller: "publisher", method: "PUT", path: cart, body: strings.Repeat("x", 8<<20)}.request()
	if err := r.Write(conn); err != nil {
		t.Fatalf("the connection broke while the body was sent: %v", err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 413 {
		t.Errorf("answered %s", res.Status)
	}
}

func TestBadPaths(t *testing.T) {
	e := newEdge(t, rest.Options{})
	e.call("publisher", "PUT", cart, `{}`, 201)
	for path, code := range map[string]fault.Code{
		"/v1/namespaces/shop/../shop/services/cart":      fault.BadPath,
		"/v1/namespaces/shop/./services/cart":            fault.BadPath,
		"/v1/namespaces/shop/services/cart/..":           fault.BadPath,
		"/..":                                            fault.BadPath,
		"/a/../admin":                                    fault.BadPath,
		"/v1/namespaces/shop/%2e%2e/shop/services/cart":  fault.BadPath,
		"/v1/namespaces/shop/%2E%2e/shop/services/cart":  fault.BadPath,
		"/v1/namespaces/shop/services/ca%2ert":           fault.BadPath,
		"//v1/namespaces/shop/services/cart":             fault.BadPath,
		"/v1//namespaces/shop/services/cart":             fault.BadPath,
		"/v1/discovery//cart":                            fault.BadPath,
		"/v1/discovery/shop//":                           fault.BadPath,
		"/v1/namespaces/shop%2fservices/cart":            fault.BadPath,
		"/v1/namespaces/shop%2Fservices/cart":            fault.BadPath,
		"/v1/discovery/shop%2Fcart/x":                    fault.BadPath,
		`/v1/namespaces/shop\services/cart`:              fault.BadPath,
		"/v1/namespaces/shop/services/ca%5crt":           fault.BadPath,
		"/v1/namespaces/shop/services/ca%5Crt":           fault.BadPath,
		"/v1/namespaces/shop/services/cart;x=1":          fault.BadPath,
		"/v1/namespaces/shop/services/cart%3bx":          fault.BadPath,
		"/v1/names%00paces":                              fault.BadPath,
		"/v1/names%ffpaces":                              fault.BadPath,
		"/v1/namespaces/shop/services/ca%00rt":           fault.InvalidField,
		"/v1/namespaces/shop/services/ca%0art":           fault.InvalidField,
		"/v1/namespaces/shop/services/ca%ffrt":           fault.InvalidField,
		"/v1/namespaces/sh%00op/services/cart":           fault.InvalidField,
		"/v1/namespaces/Shop/services/cart":              fault.InvalidField,
		"/v1/namespaces/shop/services/cart%252e":         fault.InvalidField,
		"/v1/namespaces/shop/services/cart/versions/a_b": fault.InvalidField,
		"/v1/discovery/shop/ca%00rt":                     fault.InvalidField,
		"/v1/discovery/shop/" + strings.Repeat("a", 64):  fault.InvalidField,
	} {
		for _, caller := range []string{"viewer", "operator"} {
			refused(t, e.do(ask{caller: caller, method: "GET", path: path}), 400, code)
		}
	}
	// A form that is only written otherwise is served as what it is.
	e.call("viewer", "GET", "/v1/namespaces/shop/services/%63art", "", 200)
}

// However a path is escaped, policies see it as it is served, so that no rule
// about it can be got around.
func TestPoliciesSeeThePathThatIsServed(t *testing.T) {
	e := newEdge(t, rest.Options{})
	var seen []string
	e.policed(func(in *policy.Input) policy.Decision {
		seen = append(seen, in.RawPath, "/"+strings.Join(in.Path, "/"))
		return policy.Decision{Allow: true}
	})
	e.call("publisher", "PUT", "/v1/namespaces/%73hop/services/%63art", `{}`, 201)
	seen = append(seen, e.intents[len(e.intents)-1].Request.Path)
	e.call("viewer", "GET", "/v1/n%61mespaces/shop/services/c%61rt", "", 200)
	if len(seen) != 3 {
		t.Fatalf("%d paths were seen, want 3: %q", len(seen), seen)
	}
	for _, path := range seen {
		if path != cart {
			t.Errorf("a policy sees %s, served is %s", path, cart)
		}
	}
}

func TestPathsThatAreNotThere(t *testing.T) {
	e := newEdge(t, rest.Options{})
	for _, path := range []string{"/", "/v1", "/v1/", "/v1/services/", "/v1/nothing", "/v1/discovery/shop", "/v1/discovery/shop/cart/", "/v1/discovery/shop/cart/x", "/v1/namespaces/shop/services/cart/", "/metrics"} {
		if path == "/v1/discovery/shop" {
			continue // a namespace alone is not a path
		}
		refused(t, e.do(ask{caller: "operator", method: "GET", path: path}), 404, fault.NotFound)
	}
	w := e.do(ask{caller: "operator", method: "PATCH", path: cart})
	refused(t, w, 405, fault.MethodNotAllowed)
	if got := w.Header().Get("Allow"); got != "GET, PUT, DELETE" {
		t.Errorf("Allow: %s", got)
	}
	refused(t, e.do(ask{caller: "operator", method: "POST", path: "/v1/discovery/shop/cart"}), 405, fault.MethodNotAllowed)
}

func TestBadQueries(t *testing.T) {
	e := newEdge(t, rest.Options{})
	e.call("publisher", "PUT", cart, `{}`, 201)
	for _, query := range []string{
		"consistency=strong", "consistency=local&consistency=linearizable", "consistency=local&consistency=local", "min_revision=x", "min_revision=-1",
		"min_revision=99999999999999999999", "max_staleness=5", "max_staleness=-5s", "max_staleness=x", "wait=x", "wait=-1s", "index=x", "a=%zz", "a;b=1",
		"consistency=%00", "zone=%ff", "status=any&status=passing",
	} {
		for _, path := range []string{"/v1/discovery/shop/cart?", "/v1/discovery?service=cart&namespace=shop&"} {
			refused(t, e.do(ask{caller: "viewer", method: "GET", path: path + query}), 400, fault.BadRequest)
		}
	}
	// A list of many services cannot wait for one of them.
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: cart + "/versions?index=1"}), 400, fault.BadRequest)
}

func TestForwardingLoop(t *testing.T) {
	e := newEdge(t, rest.Options{})
	forwarded := ask{caller: "publisher", method: "PUT", path: cart, body: `{}`, header: header("Muster-Hops", "1")}
	if w := e.do(forwarded); w.Code != 201 {
		t.Fatalf("the leader refused a forwarded call: %d %s", w.Code, w.Body)
	}
	e.follower = true
	refused(t, e.do(forwarded), 508, fault.LoopDetected)
	if w := e.do(ask{caller: "publisher", method: "PUT", path: cart, body: `{}`, header: header("Muster-Hops", "0")}); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
}

func TestAuthorizeIsStrict(t *testing.T) {
	e := newEdge(t, rest.Options{})
	e.raw = func(entrypoint string, input []byte) (policy.Decision, error) {
		if _, err := policy.EntryPoint(entrypoint); entrypoint != "" && err != nil {
			return policy.Decision{}, err
		}
		return policy.Decision{Allow: string(input) == `{"action":"lookup"}`, Reasons: nil, ID: "d-9"}, nil
	}
	w := e.call("viewer", "POST", "/v1/authorize", `{"input":{"action":"lookup"}}`, 200)
	if got := w.Body.String(); got != `{"allow":true,"reasons":[],"decision_id":"d-9","policy_revision":0,"revision":0}` {
		t.Errorf("the verdict is %s", got)
	}
	for body, code := range map[string]fault.Code{
		`{"input":{},"entrypoint":"x\"]; true"}`: fault.BadRequest,
		`{"input":{},"entrypoint":"a//b"}`:       fault.BadRequest,
		`{}`:                                     fault.InvalidField,
		`{"input":{},"extra":1}`:                 fault.InvalidField,
		`{"input":{"a":1,"a":2}}`:                fault.BadRequest,
		`{"input":{}}x`:                          fault.BadRequest,
		`{"input":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`: fault.BadRequest,
	} {
		refused(t, e.do(ask{caller: "viewer", method: "POST", path: "/v1/authorize", body: body}), 400, code)
	}
}
