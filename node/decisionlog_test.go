package node_test

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
)

const ownersOnly = `package api.registry.authz

default allow := false

allow if {
	input.principal.kind == "token"
	input.resource.payload.owner == "shop"
}

filtered := object.union(input.resource.payload, {"owner": "the shop"}) if input.headers["X-Filter"]
`

const lookupsAtNight = `package api.security.authz

default allow := false

allow if not input.headers["X-Day"]

filtered := {"only": "this"} if input.headers["X-Filter"]
`

type told struct {
	ID          string                 `json:"decision_id"`
	Node        string                 `json:"node"`
	Policy      int                    `json:"policy_revision"`
	Revision    int                    `json:"revision"`
	EntryPoint  string                 `json:"entrypoint"`
	Engine      string                 `json:"engine"`
	Time        time.Time              `json:"time"`
	Input       struct{ Token string } `json:"input"`
	Masked      []string               `json:"masked"`
	Result      struct{ Allow bool }   `json:"result"`
	Principal   string                 `json:"principal"`
	RequestedBy string                 `json:"requested_by"`
	RequestID   string                 `json:"request_id"`
	Trace       string                 `json:"trace_id"`
	Explanation struct {
		Same  bool
		Rules []struct {
			Name, Outcome, Value string
			Definitions          []struct {
				Row     int
				Outcome string
				Failed  *struct {
					File, Text string
					Row        int
					Values     map[string]string
				}
			}
		}
	}
}

func (e *edge) decision(t *testing.T, node int, id, query string) *told {
	t.Helper()
	a := e.send(t, node, "HTTP/2.0", call{method: "GET", path: "/v1/decisions/" + id + query})
	if a.status != 200 {
		t.Fatalf("node %d, decision %s: %d %s", node+1, id, a.status, a.body)
	}
	if strings.Contains(string(a.body), e.tr.token) {
		t.Errorf("the token is shown: %s", a.body)
	}
	d := new(told)
	must(t, json.Unmarshal(a.body, d))
	if d.ID != id {
		t.Errorf("asked for %s: %s", id, a.body)
	}
	return d
}

// Any decision is found on any node, with every rule's outcome, also after a
// restart of the node that made it, and in its log.
func TestDecisionsAreExplainedAnywhere(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	content, err := json.Marshal(map[string]any{"modules": map[string]string{"authz.rego": ownersOnly, "lookup.rego": lookupsAtNight}})
	must(t, err)
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(content))

	traced := []string{"Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "X-Request-Id", "my-request"}
	no := e.send(t, 1, "HTTP/2.0", call{"PUT", cartPath, strings.NewReader(`{"owner":"bank"}`), traced}).want(t, 403, fault.PolicyDenied)
	if no.DecisionID == "" || no.header.Get("Muster-Decision-Id") != no.DecisionID {
		t.Fatalf("%v %s", no.header, no.body)
	}
	leader := e.leader(t)
	for node := range tr.nodes {
		d := e.decision(t, node, no.DecisionID, "?explain=rules")
		x := d.Explanation
		if d.Node != tr.nodes[leader].id || d.Policy != 1 || d.Revision == 0 || d.EntryPoint != "api/registry/authz" || !strings.HasPrefix(d.Engine, "opa ") || d.Time.IsZero() ||
			d.Input.Token != "***" || len(d.Masked) < 3 || d.Result.Allow || d.RequestID != "my-request" || d.Trace != "0af7651916cd43dd8448eb211c80319c" || d.Principal == "" || d.RequestedBy != "127.0.0.1" {
			t.Errorf("%+v", d)
		}
		if !x.Same || len(x.Rules) != 2 || x.Rules[0].Name != "allow" || x.Rules[0].Outcome != "false" || len(x.Rules[0].Definitions) != 2 {
			t.Fatalf("%+v", x)
		}
		f := x.Rules[0].Definitions[1].Failed
		if f == nil || f.File != "authz.rego" || f.Row != 7 || f.Text != `input.resource.payload.owner == "shop"` || fmt.Sprint(f.Values) != `map[input.resource.payload.owner:"bank"]` {
			t.Errorf("%+v", f)
		}
	}

	yes := e.send(t, 2, "HTTP/2.0", call{"PUT", cartPath, strings.NewReader(`{"owner":"shop"}`), []string{"X-Filter", "yes"}})
	if yes.status != 201 || yes.header.Get("Muster-Filtered") != "true" || !strings.Contains(string(yes.body), `"the shop"`) {
		t.Errorf("%d %v %s", yes.status, yes.header, yes.body)
	}
	if d := e.decision(t, 0, yes.header.Get("Muster-Decision-Id"), ""); !d.Result.Allow {
		t.Errorf("%+v", d)
	}
	for _, tc := range []struct {
		header   []string
		status   int
		filtered string
	}{{nil, 200, ""}, {[]string{"X-Day", "yes"}, 403, ""}, {[]string{"X-Filter", "yes"}, 200, "true"}} {
		a := e.send(t, 1, "HTTP/2.0", call{"GET", cartPath + "?consistency=linearizable", nil, tc.header})
		if a.status != tc.status || a.header.Get("Muster-Filtered") != tc.filtered {
			t.Errorf("%v: %d %v", tc.header, a.status, a.header)
		}
		if d := e.decision(t, 0, a.header.Get("Muster-Decision-Id"), ""); d.Node != "n2" || d.Result.Allow != (tc.status == 200) || d.EntryPoint != "api/security/authz" {
			t.Errorf("%+v", d)
		}
	}
	e.authorized(t)
	e.documented(t)

	// The node's log has it, in the words that the documents search for.
	b, err := os.ReadFile(tr.file(tr.nodes[leader].id + ".log"))
	must(t, err)
	line := regexp.MustCompile(`(?m)^.* msg="policy_evaluation" opa_eval_result="deny" decision_id="` + no.DecisionID + `" .* trace_id="0af7651916cd43dd8448eb211c80319c" .*$`)
	if !line.Match(b) {
		t.Errorf("the log says nothing of %s: %s", no.DecisionID, b)
	}

	// Another policy decides by now; this one is still explained by its own.
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", `{"modules":{"a.rego":"package api.registry.authz\nallow := true\n"}}`)
	tr.stop(leader)
	other := (leader + 1) % 3
	if a := e.once(t, other, "HTTP/2.0", call{method: "GET", path: "/v1/decisions/" + no.DecisionID}); a.status != 503 || !strings.Contains(a.Detail, tr.nodes[leader].id) {
		t.Errorf("without the node that has it: %d %s", a.status, a.body)
	}
	tr.start(leader)
	tr.awaitReady(leader)
	if d := e.decision(t, leader, no.DecisionID, "?explain=rules"); !d.Explanation.Same || d.Policy != 1 {
		t.Errorf("after a restart: %+v", d)
	}
	e.send(t, other, "HTTP/2.0", call{method: "GET", path: "/v1/decisions/01a206f8-fefb-70ff-b5b3-526bbdbeae57"}).want(t, 404, fault.NotFound)
}

// authorized asks about an input, with and without a filter.
func (e *edge) authorized(t *testing.T) {
	t.Helper()
	a := e.send(t, 1, "HTTP/2.0", call{"POST", "/v1/authorize", strings.NewReader(`{"input":{"action":"lookup","headers":{"X-Filter":"yes"}}}`), []string{"X-Request-Id", "asked"}})
	var v struct {
		Allow    bool
		ID       string `json:"decision_id"`
		Filtered struct{ Only string }
	}
	must(t, json.Unmarshal(a.body, &v))
	if !v.Allow || v.Filtered.Only != "this" || a.header.Get("Muster-Decision-Id") != v.ID {
		t.Errorf("%v %s", a.header, a.body)
	}
	if d := e.decision(t, 2, v.ID, "?explain=rules"); d.RequestID != "asked" || d.Principal == "" || !d.Explanation.Same {
		t.Errorf("%+v", d)
	}
}

// documented asks for a document on the policy port.
func (e *edge) documented(t *testing.T) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", e.tr.nodes[0].policy+"/v1/data/api/registry/authz/allow",
		strings.NewReader(`{"input":{"principal":{"kind":"token"},"token":"`+e.tr.token+`","resource":{"payload":{"owner":"bank"}}}}`))
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+e.tr.token)
	res, err := e.http["HTTP/2.0"].Do(req)
	must(t, err)
	var v struct {
		ID     string `json:"decision_id"`
		Result bool
	}
	a := read(t, res)
	must(t, json.Unmarshal(a.body, &v))
	if a.header.Get("Muster-Decision-Id") != v.ID {
		t.Errorf("%v, and %s in the body", a.header, v.ID)
	}
	d := e.decision(t, 1, v.ID, "?explain=rules")
	if x := d.Explanation; v.Result || d.Node != "n1" || d.EntryPoint != "api/registry/authz/allow" || !x.Same || len(x.Rules) != 2 || x.Rules[0].Outcome != "false" || x.Rules[0].Definitions[1].Failed == nil {
		t.Errorf("%+v", d)
	}
}

// The log goes where the configuration says, masked, in lines that the
// documents search for.
func TestDecisionsAreLogged(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	got := make(chan string, 100)
	service := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		b, err := io.ReadAll(z)
		if err != nil || r.Header.Get("Authorization") != "Bearer of-the-log" {
			t.Errorf("%v %v", r.Header, err)
		}
		got <- string(b)
	}))
	t.Cleanup(service.Close)
	must(t, os.WriteFile(tr.file("log.token"), []byte("of-the-log\n"), 0o600))
	f, err := os.OpenFile(tr.nodes[0].config, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = fmt.Fprintf(f, "log: {format: json}\npolicy: {decision_log: {file: logs/api-audit.log, mask: [/input/headers/x-pin], http: {url: %q, token_file: log.token, insecure: true}}}\n", service.URL+"/logs")
	must(t, err)
	must(t, f.Close())
	tr.startAll()
	e := newEdge(t, tr)
	content, err := json.Marshal(map[string]any{"modules": map[string]string{"authz.rego": ownersOnly}})
	must(t, err)
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(content))
	no := e.send(t, 0, "HTTP/2.0", call{"PUT", cartPath, strings.NewReader(`{"owner":"bank"}`), []string{"X-Pin", "4711-0815"}}).want(t, 403, fault.PolicyDenied)

	var sent string
	for deadline := time.After(time.Minute); !strings.Contains(sent, no.DecisionID); {
		select {
		case events := <-got:
			sent += events
		case <-deadline:
			t.Fatalf("the log service did not get %s: %s", no.DecisionID, sent)
		}
	}
	tr.stop(0) // so that all is written
	audit, err := os.ReadFile(tr.file("logs/api-audit.log"))
	must(t, err)
	console, err := os.ReadFile(tr.file("n1.log"))
	must(t, err)
	if !strings.Contains(string(console), `"msg":"policy_evaluation","opa_eval_result":"deny","decision_id":"`+no.DecisionID+`"`) {
		t.Errorf("standard error: %s", console)
	}
	for name, text := range map[string]string{"the file": string(audit), "the service": sent} {
		if !strings.Contains(text, `"msg":"policy_evaluation"`) || !strings.Contains(text, `"opa_eval_result":"deny"`) || !strings.Contains(text, no.DecisionID) {
			t.Errorf("%s: %s", name, text)
		}
		if strings.Contains(text, tr.token) || strings.Contains(text, "4711-0815") {
			t.Errorf("%s is not masked: %s", name, text)
		}
	}
}
