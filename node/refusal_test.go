package node_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/muster-registry/muster/audit"
)

// TestEveryRefusedChangeIsOnRecord: whatever a change is refused for, it stands
// in the trail of the node that answered, once, under the names that the change
// would have had; and look-ups and decisions do where they are wanted.
func TestEveryRefusedChangeIsOnRecord(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.configure(t, "audit: {lookups: all, decisions: refusals}\n")
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", cartPath, `{"owner":"shop"}`)
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		action, record           string
	}{
		{"bad-json", "PUT", cartPath, `{`, nil, 400, "update", "service default/cart"},
		{"bad-field", "PUT", cartPath, `{"colour":"red"}`, nil, 400, "update", "service default/cart"},
		{"bad-path", "PUT", "/v1//services", `{}`, nil, 400, "", ""},
		{"nowhere", "POST", "/v1/nowhere", `{}`, nil, 404, "", ""},
		{"no-service", "DELETE", "/v1/namespaces/default/services/none", ``, nil, 404, "delete", "service default/none"},
		{"no-method", "PUT", "/v1/cluster/status", ``, nil, 405, "", ""},
		{"no-rollback", "POST", "/v1/policy/rollback", ``, nil, 404, "roll back", "policy"},
		{"stale", "PUT", cartPath, `{"owner":"shop"}`, []string{"If-Match", `"1"`}, 412, "update", "service default/cart"},
		{"large", "PUT", cartPath, strings.Repeat(" ", 5<<20), nil, 413, "update", "service default/cart"},
		{"no-policy", "POST", "/v1/policy/revisions", `{"modules":{"a.rego":"nonsense"}}`, nil, 422, "stage", "policy"},
		{"new-instance", "PUT", cartPath + "/instances/i1", `{"address":""}`, nil, 400, "register", "instance default/cart/i1"},
		{"no-instance", "PUT", cartPath + "/instances/i1/status", `{"status":"critical"}`, nil, 404, "status", "instance default/cart/i1"},
		{"no-token", "DELETE", "/v1/tokens/0123456789abcdef", ``, nil, 404, "delete", "token 0123456789abcdef"},
	} {
		header := append([]string{"X-Request-Id", c.name, "Traceparent", trace}, c.header...)
		res := e.send(t, 0, "HTTP/1.1", call{method: c.method, path: c.path, body: strings.NewReader(c.body), header: header})
		if res.status != c.status {
			t.Errorf("%s: answered %d: %s", c.name, res.status, res.body)
		}
		got := tr.awaitLine(0, c.name, func(e *audit.Entry) bool { return e.RequestID == c.name })
		if got.Type != audit.Refusal || got.Status != res.status || got.Code == "" || got.Outcome != audit.Refused || got.TraceID != trace[3:35] || got.Source != "127.0.0.1" ||
			got.Action != c.action || got.Record != c.record || got.Call != c.method+" "+c.path {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	e.send(t, 0, "HTTP/1.1", call{method: "GET", path: "/v1/discovery/default/cart", header: []string{"X-Request-Id", "look"}})
	if got := tr.awaitLine(0, "a look-up", func(e *audit.Entry) bool { return e.RequestID == "look" }); got.Type != audit.Lookup || got.Outcome != audit.Allowed || got.Principal != "token:operator" || got.Action != "lookup" || got.Record != "service default/cart" || got.Operation != "discover" {
		t.Errorf("%+v", got)
	}
	// A look-up of what is not there is neither.
	e.send(t, 0, "HTTP/1.1", call{method: "GET", path: "/v1/namespaces/default/services/none", header: []string{"X-Request-Id", "nothing"}})
	e.mustDo(t, "DELETE", cartPath, "")
	if found := tr.lines(0, func(e *audit.Entry) bool { return e.RequestID == "nothing" }); len(found) > 0 {
		t.Errorf("%+v", found)
	}

	// A policy's no is on record where it refuses no call, too.
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", `{"modules":{"a.rego":"package door\n\nimport rego.v1\n\ndefault allow := false\n\nallow if input.key == \"right\"\n"}}`)
	for _, c := range []struct{ name, port, path, body, entrypoint string }{
		{"asked", tr.nodes[0].control, "/v1/authorize", `{"entrypoint":"door","input":{"key":%q}}`, "door"},
		{"data", tr.nodes[0].policy, "/v1/data/door/allow", `{"input":{"key":%q}}`, "door/allow"},
	} {
		for _, key := range []string{"right", "wrong"} {
			req, err := http.NewRequestWithContext(t.Context(), "POST", c.port+c.path, strings.NewReader(fmt.Sprintf(c.body, key)))
			must(t, err)
			req.Header.Set("Authorization", "Bearer "+tr.token)
			req.Header.Set("X-Request-Id", c.name+"-"+key)
			res, err := e.http["HTTP/2.0"].Do(req)
			must(t, err)
			if a := read(t, res); a.status != 200 {
				t.Errorf("%s: %d %s", c.name, a.status, a.body)
			}
		}
		got := tr.awaitLine(0, c.name, func(e *audit.Entry) bool { return e.RequestID == c.name+"-wrong" })
		if got.Type != audit.Decision || got.Outcome != audit.Refused || got.Principal != "token:operator" || got.Action != "authorize" || got.Record != "entrypoint "+c.entrypoint ||
			got.DecisionID == "" || got.PolicyRevision != 1 || got.Event != audit.Evaluated {
			t.Errorf("%s: %+v", c.name, got)
		}
		if found := tr.lines(0, func(e *audit.Entry) bool { return e.RequestID == c.name+"-right" }); len(found) > 0 {
			t.Errorf("%s was allowed: %+v", c.name, found)
		}
	}
}
