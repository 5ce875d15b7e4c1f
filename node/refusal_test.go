package node_test

import (
	"strings"
	"testing"

	"github.com/muster-registry/muster/audit"
)

// TestEveryRefusedChangeIsOnRecord: whatever a change is refused for, it stands
// in the trail of the node that answered, once; and look-ups do where they are
// wanted.
func TestEveryRefusedChangeIsOnRecord(t *testing.T) {
	tr := newTrial(t, 1)
	tr.configure(t, "audit: {lookups: all}\n")
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", cartPath, `{"owner":"shop"}`)
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
	}{
		{"bad-json", "PUT", cartPath, `{`, nil, 400},
		{"bad-field", "PUT", cartPath, `{"colour":"red"}`, nil, 400},
		{"bad-path", "PUT", "/v1//services", `{}`, nil, 400},
		{"nowhere", "POST", "/v1/nowhere", `{}`, nil, 404},
		{"no-service", "DELETE", "/v1/namespaces/default/services/none", ``, nil, 404},
		{"no-method", "PUT", "/v1/cluster/status", ``, nil, 405},
		{"no-rollback", "POST", "/v1/policy/rollback", ``, nil, 404},
		{"stale", "PUT", cartPath, `{"owner":"shop"}`, []string{"If-Match", `"1"`}, 412},
		{"large", "PUT", cartPath, strings.Repeat(" ", 5<<20), nil, 413},
		{"no-policy", "POST", "/v1/policy/revisions", `{"modules":{"a.rego":"nonsense"}}`, nil, 422},
	} {
		header := append([]string{"X-Request-Id", c.name, "Traceparent", trace}, c.header...)
		res := e.send(t, 0, "HTTP/1.1", call{method: c.method, path: c.path, body: strings.NewReader(c.body), header: header})
		if res.status != c.status {
			t.Errorf("%s: answered %d: %s", c.name, res.status, res.body)
		}
		got := tr.awaitLine(0, c.name, func(e *audit.Entry) bool { return e.RequestID == c.name })
		if got.Type != audit.Refusal || got.Status != res.status || got.Code == "" || got.Outcome != audit.Refused || got.TraceID != trace[3:35] || got.Source != "127.0.0.1" {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	e.send(t, 0, "HTTP/1.1", call{method: "GET", path: "/v1/discovery/default/cart", header: []string{"X-Request-Id", "look"}})
	if got := tr.awaitLine(0, "a look-up", func(e *audit.Entry) bool { return e.RequestID == "look" }); got.Type != audit.Lookup || got.Outcome != audit.Allowed || got.Principal != "token:operator" || got.Action != "discover" {
		t.Errorf("%+v", got)
	}
	// A look-up of what is not there is neither.
	e.send(t, 0, "HTTP/1.1", call{method: "GET", path: "/v1/namespaces/default/services/none", header: []string{"X-Request-Id", "nothing"}})
	e.mustDo(t, "DELETE", cartPath, "")
	if found := tr.lines(0, func(e *audit.Entry) bool { return e.RequestID == "nothing" }); len(found) > 0 {
		t.Errorf("%+v", found)
	}
}
