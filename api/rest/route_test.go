package rest_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// filled gives a path of the route.
func filled(r rest.Route) string {
	return strings.NewReplacer("{namespace}", "shop", "{service}", "cart", "{version}", "1.0.0", "{instance}", "a", "{check}", "alive",
		"{revision}", "1", "{token}", "0123456789abcdef", "{member}", "n1",
		"{name}", "one", "{decision}", "d-1", "{scope}", "shop").Replace(r.Path)
}

// What each role may do, written out again: the table must not be its own proof.
var allowed = map[string][]string{
	"viewer": {"listAllServices", "listServices", "getService", "listVersions", "getVersion", "getDocument", "listInstances", "getInstance",
		"discover", "listDiscovery", "prometheusTargets", "watch", "authorize", "clusterStatus", "listMembers", "listAuditHeads", "livez", "readyz", "openapi", "getBuiltinPolicy", "issueCertificate", "getPolicyLibrary"},
	"publisher": {"putService", "deleteService", "putVersion", "deleteVersion", "putInstance", "deleteInstance", "heartbeat", "putCheck", "putStatus", "checkQuota"},
	"admin": {"pushPolicy", "listPolicies", "getPolicy", "activatePolicy", "rollbackPolicy", "shadowPolicy",
		"getShadow", "stopShadow", "shadowReport", "replayPolicy", "diffPolicies", "getDecision",
		"syncPolicy", "getSync", "listSchemas", "getSchema", "putSchema", "deleteSchema", "listBreakGlass"},
	"operator": {"createToken", "listTokens", "revokeToken", "transferLeader", "removeMember", "forgetAuditHead", "saveSnapshot", "restoreSnapshot",
		"listPolicyKeys", "getPolicyKey", "putPolicyKey", "deletePolicyKey",
		"listPolicyRequirements", "getPolicyRequirement", "putPolicyRequirement", "deletePolicyRequirement",
		"listWebhooks", "getWebhook", "putWebhook", "deleteWebhook", "getQuotas", "putQuotas", "deleteQuotas",
		"listRoles", "getRole", "putRole", "deleteRole", "listRevocations", "revoke", "getRevocation", "deleteRevocation"},
}

func TestEveryRouteAsksWhoAndWhether(t *testing.T) {
	e := newEdge(t, rest.Options{})
	e.snapshot = func(io.Writer) error { return nil }
	e.feed.Close() // nothing is followed: a watch that is permitted ends at once
	viewer := allowed["viewer"]
	may := map[string][]string{
		"viewer": viewer, "publisher": slices.Concat(viewer, allowed["publisher"]), "admin": slices.Concat(viewer, allowed["admin"]),
		"operator": slices.Concat(viewer, allowed["publisher"], allowed["admin"], allowed["operator"]),
	}
	// Only the role break-glass may, and none of these callers has it.
	known := append(slices.Clone(may["operator"]), "openBreakGlass", "endBreakGlass")
	for _, r := range e.api.Routes() {
		if !slices.Contains(known, r.ID) {
			t.Errorf("this test does not know %s: say above who may call it", r.ID)
		}
		if r.ID != "livez" && r.ID != "readyz" {
			w := e.do(ask{method: r.Method, path: filled(r)})
			refused(t, w, 401, fault.Unauthenticated)
			if w.Header().Get("WWW-Authenticate") == "" {
				t.Errorf("%s: 401 without WWW-Authenticate", r.ID)
			}
			refused(t, e.do(ask{caller: "stranger", method: r.Method, path: filled(r)}), 401, fault.Unauthenticated)
		}
		for caller, ids := range may {
			w := e.do(ask{caller: caller, method: r.Method, path: filled(r)})
			if forbidden := w.Code == 403; forbidden == slices.Contains(ids, r.ID) {
				t.Errorf("%s as %s: %d %s", r.ID, caller, w.Code, w.Body)
			} else if forbidden {
				refused(t, w, 403, fault.Forbidden)
			}
		}
	}
}

func TestCredentialsLimitedToNamespaces(t *testing.T) {
	e := newEdge(t, rest.Options{})
	for _, path := range []string{"/v1/namespaces/shop/services/cart", "/v1/namespaces/bank/services/account"} {
		e.call("publisher", "PUT", path+"/instances/a?create_service=true", instance, 201)
	}
	for _, path := range []string{"/v1/services", "/v1/discovery"} {
		w := e.call("shopper", "GET", path, "", 200)
		if s := w.Body.String(); !strings.Contains(s, "cart") || strings.Contains(s, "account") {
			t.Errorf("%s shows %s", path, s)
		}
	}
	e.call("shopper", "GET", "/v1/discovery/shop/cart", "", 200)
	// What exists elsewhere and what does not look the same.
	for _, path := range []string{"/v1/discovery/bank/account", "/v1/discovery/bank/nothing", "/v1/discovery?namespace=bank&service=account",
		"/v1/discovery?namespace=bank", "/v1/discovery?service=web", "/v1/namespaces/bank/services", "/v1/namespaces/bank/services/account", "/v1/namespaces/bank/services/account/instances/a"} {
		refused(t, e.do(ask{caller: "shopper", method: "GET", path: path}), 403, fault.Forbidden)
	}
	e.call("shopkeeper", "PUT", "/v1/namespaces/shop/services/new", `{}`, 201)
	for _, a := range []ask{{method: "PUT", path: "/v1/namespaces/bank/services/new", body: `{}`}, {method: "POST", path: "/v1/tokens", body: `{"role":"operator"}`},
		{method: "GET", path: "/v1/snapshot"}, {method: "GET", path: "/v1/policy/revisions"}} {
		a.caller = "shopkeeper"
		refused(t, e.do(a), 403, fault.Forbidden)
	}
}

func TestOpenAPI(t *testing.T) {
	e := newEdge(t, rest.Options{Version: "1.2.3"})
	w := e.call("viewer", "GET", "/openapi.json", "", 200)
	doc, err := openapi3.NewLoader().LoadFromData(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if doc.Info.Version != "1.2.3" {
		t.Errorf("version %s", doc.Info.Version)
	}
	operations := 0
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			operations++
			i := slices.IndexFunc(e.api.Routes(), func(r rest.Route) bool { return r.Method == method && r.Path == path })
			if i < 0 || e.api.Routes()[i].ID != op.OperationID {
				t.Errorf("%s %s is described as %s and is not a route", method, path, op.OperationID)
			}
		}
	}
	if operations != len(e.api.Routes()) {
		t.Errorf("%d operations are described, there are %d routes", operations, len(e.api.Routes()))
	}
	ttl := doc.Components.Schemas["Instance"].Value.Properties["ttl"].Value
	if !ttl.Type.Is("string") {
		t.Errorf("a duration is described as %v", ttl.Type)
	}
}

// What the table says can be waited for can be, and nothing else.
func TestTheTableSaysWhatCanBeWaitedFor(t *testing.T) {
	e := newEdge(t, rest.Options{})
	names := strings.NewReplacer("{version}", "1.0.0", "{revision}", "1", "{kind}", "service", "{", "", "}", "")
	waited := 0
	for _, r := range rest.Table() {
		if !r.Reads || r.Method != "GET" || r.Media == "text/event-stream" {
			continue
		}
		w := e.do(ask{caller: "operator", method: "GET", path: names.Replace(r.Path) + "?index=1&wait=1ms"})
		if blocks := !strings.Contains(w.Body.String(), "cannot be waited for"); blocks != r.Blocks {
			t.Errorf("%s: the table says %t, and the answer is %d %s", r.ID, r.Blocks, w.Code, w.Body)
		}
		if r.Blocks {
			waited++
		}
	}
	if waited < 8 {
		t.Errorf("only %d calls can be waited for", waited)
	}
}

func TestPolicies(t *testing.T) {
	bundle := func(b []byte) (*policy.Push, error) {
		if string(b) != "bundle" {
			return nil, fault.New(fault.InvalidPolicy, "this is no bundle")
		}
		return policy.ParsePush([]byte(`{"modules":{"b.rego":"package b"}}`))
	}
	e := newEdge(t, rest.Options{ParseBundle: bundle})
	const base = "/v1/policy/revisions"
	w := e.call("admin", "POST", base, `{"modules":{"a.rego":"package a"},"note":"first"}`, 201)
	if s := w.Body.String(); w.Header().Get("Location") != base+"/1" || w.Header().Get("ETag") != `"1"` || !strings.Contains(s, `"state":"staged"`) || strings.Contains(s, "package a") {
		t.Errorf("%s, %v", s, w.Header())
	}
	complete(t, w)
	w = e.do(ask{caller: "admin", method: "POST", path: base + "?activate=true", body: "bundle", header: header("Content-Type", "application/gzip")})
	if w.Code != 201 || !strings.Contains(w.Body.String(), `"state":"active"`) {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	refused(t, e.do(ask{caller: "admin", method: "POST", path: base, body: "x", header: header("Content-Type", "application/gzip")}), 422, fault.InvalidPolicy)
	refused(t, e.do(ask{caller: "admin", method: "POST", path: base, body: `{"modules":{}}`}), 400, fault.InvalidField)
	e.call("admin", "POST", base+"/1/activate", "", 200)
	if w = e.call("admin", "POST", "/v1/policy/rollback", "", 200); !strings.Contains(w.Body.String(), `"revision":2`) {
		t.Errorf("rolled back to %s", w.Body)
	}
	if w = e.call("admin", "GET", base+"/1", "", 200); !strings.Contains(w.Body.String(), "package a") {
		t.Errorf("the revision is %s", w.Body)
	}
	if w = e.call("admin", "GET", base+"?limit=1", "", 200); strings.Contains(w.Body.String(), "package") || strings.Contains(w.Body.String(), `"next_page_token":""`) {
		t.Errorf("the list is %s", w.Body)
	}
	refused(t, e.do(ask{caller: "admin", method: "GET", path: base + "/9"}), 404, fault.NotFound)
	refused(t, e.do(ask{caller: "admin", method: "POST", path: base + "/9/activate"}), 404, fault.NotFound)
	for _, n := range []string{"0", "-1", "x", "99999999999999999999"} {
		refused(t, e.do(ask{caller: "admin", method: "GET", path: base + "/" + n}), 400, fault.InvalidField)
	}
	without := newEdge(t, rest.Options{})
	refused(t, without.do(ask{caller: "admin", method: "POST", path: base, body: "x", header: header("Content-Type", "application/gzip")}), 415, fault.UnsupportedMediaType)
}

func TestShadowAndDiff(t *testing.T) {
	e := newEdge(t, rest.Options{})
	const base = "/v1/policy/revisions"
	push := func(query, module string) string {
		t.Helper()
		w := e.call("admin", "POST", base+query, `{"modules":{"a.rego":"package a\n\nx := `+module+`"},"data":{"n":`+module+`}}`, 201)
		complete(t, w)
		return w.Body.String()
	}
	push("?activate=true", "1")
	for _, path := range []string{"/v1/policy/shadow", "/v1/policy/shadow/report", base + "/9/diff?to=1", base + "/1/diff?to=9"} {
		refused(t, e.do(ask{caller: "admin", method: "GET", path: path}), 404, fault.NotFound)
	}
	refused(t, e.do(ask{caller: "admin", method: "DELETE", path: "/v1/policy/shadow"}), 404, fault.NotFound)
	if s := push("?shadow=true&share=0.25", "2"); !strings.Contains(s, `"state":"shadow"`) || !strings.Contains(s, `"share":0.25`) {
		t.Errorf("pushed as the shadow: %s", s)
	}
	if s := push("?shadow=true", "3"); !strings.Contains(s, `"share":1,`) {
		t.Errorf("pushed as the shadow: %s", s)
	}
	if w := e.call("admin", "POST", base+"/2/shadow", `{"share":0.5}`, 200); !strings.Contains(w.Body.String(), `"share":0.5`) || strings.Contains(w.Body.String(), "package") {
		t.Errorf("%s", w.Body)
	}
	e.call("admin", "POST", base+"/2/shadow", "", 200)
	if w := e.call("admin", "GET", "/v1/policy/shadow", "", 200); !strings.Contains(w.Body.String(), `"revision":2,`) || w.Header().Get("ETag") == "" {
		t.Errorf("%s", w.Body)
	}
	if w := e.call("admin", "GET", "/v1/policy/shadow/report", "", 200); !strings.HasPrefix(w.Body.String(), `{"revision":2,"active":0,"share":1,"evaluated":0,"dropped":0,"differences":[],"nodes":[{"node":"n1"`) {
		t.Errorf("%s", w.Body)
	}
	for _, body := range []string{`{"share":0}`, `{"share":1.01}`, `{"share":-1}`, `{"share":"1"}`, `{"part":1}`} {
		refused(t, e.do(ask{caller: "admin", method: "POST", path: base + "/2/shadow", body: body}), 400, fault.InvalidField)
	}
	refused(t, e.do(ask{caller: "admin", method: "POST", path: base + "/1/shadow"}), 409, fault.Conflict) // it is active
	refused(t, e.do(ask{caller: "admin", method: "POST", path: base + "/9/shadow"}), 404, fault.NotFound)
	for _, query := range []string{"?shadow=maybe", "?shadow=true&activate=true", "?share=0.5", "?shadow=true&share=x"} {
		refused(t, e.do(ask{caller: "admin", method: "POST", path: base + query, body: `{"modules":{"a.rego":"package a"}}`}), 400, fault.BadRequest)
	}
	if w := e.call("admin", "DELETE", "/v1/policy/shadow", "", 200); !strings.Contains(w.Body.String(), `"state":"staged"`) {
		t.Errorf("%s", w.Body)
	}

	for body, want := range map[string]string{
		"": `"evaluated":1000,"dropped":0`, `{"limit":7,"since":"1m"}`: `"evaluated":7,"dropped":60`,
	} {
		if w := e.call("admin", "POST", base+"/2/replay", body, 200); !strings.Contains(w.Body.String(), want) {
			t.Errorf("replay %s: %s", body, w.Body)
		}
	}
	for _, body := range []string{`{"limit":0}`, `{"limit":10001}`, `{"since":"x"}`, `{"since":"-1h"}`, `{"until":"1h"}`} {
		refused(t, e.do(ask{caller: "admin", method: "POST", path: base + "/2/replay", body: body}), 400, fault.InvalidField)
	}
	refused(t, e.do(ask{caller: "admin", method: "POST", path: base + "/9/replay"}), 404, fault.NotFound)

	want := `{"from":2,"to":1,"same":false,"modules":[{"name":"a.rego","change":"changed"}],"rules":[],"tests":[],"data":[{"pointer":"/n","change":"changed","before":2,"after":1}],"entry_points":[]}`
	for _, path := range []string{"/2/diff?to=1", "/2/diff"} { // 1 is active
		if w := e.call("admin", "GET", base+path, "", 200); w.Body.String() != want {
			t.Errorf("%s", w.Body)
		}
	}
	if w := e.call("admin", "GET", base+"/1/diff?to=1", "", 200); !strings.Contains(w.Body.String(), `"same":true`) {
		t.Errorf("%s", w.Body)
	}
	refused(t, e.do(ask{caller: "admin", method: "GET", path: base + "/1/diff?to=x"}), 400, fault.BadRequest)
}

func TestClusterCalls(t *testing.T) {
	e := newEdge(t, rest.Options{})
	w := e.call("viewer", "GET", "/v1/cluster/status", "", 200)
	if !strings.HasPrefix(w.Body.String(), `{"cluster_id":"c1","leader":"n1","term":2,"nodes":[{"id":"n1",`) {
		t.Errorf("the status is %s", w.Body)
	}
	e.call("viewer", "GET", "/v1/cluster/members", "", 200)
	e.call("operator", "POST", "/v1/cluster/leader/transfer", "", 204)
	e.call("operator", "POST", "/v1/cluster/leader/transfer", `{"to":"n1"}`, 204)
	refused(t, e.do(ask{caller: "operator", method: "POST", path: "/v1/cluster/leader/transfer", body: `{"to":"n9"}`}), 404, fault.NotFound)
	refused(t, e.do(ask{caller: "operator", method: "POST", path: "/v1/cluster/leader/transfer", body: `{"too":"n1"}`}), 400, fault.InvalidField)
	e.call("operator", "DELETE", "/v1/cluster/members/n1", "", 204)
	refused(t, e.do(ask{caller: "operator", method: "DELETE", path: "/v1/cluster/members/n%009"}), 400, fault.InvalidField)
}

func TestHealthAlone(t *testing.T) {
	e := newEdge(t, rest.Options{})
	h := e.api.Health()
	for path, status := range map[string]int{"/livez": 200, "/readyz": 200, "/readyz?verbose": 200, "/v1/services": 404, "/": 404} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, ask{caller: "operator", method: http.MethodGet, path: path}.request())
		if w.Code != status {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}
