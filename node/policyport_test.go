package node_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/muster-registry/muster/policy"
)

// port is the policy port of a cluster, as a program written for OPA uses it.
type port struct {
	*trial
	client *http.Client
}

type reply struct {
	status int
	header http.Header
	body   string

	Code   string `json:"code"`
	Result any    `json:"result"`
	Errors []struct {
		Code     string `json:"code"`
		Message  string `json:"message"`
		Location struct {
			File     string `json:"file"`
			Row, Col int
		} `json:"location"`
	} `json:"errors"`
	Decision string `json:"decision_id"`
	Warning  any    `json:"warning"`
}

func newPort(t *testing.T, nodes int) *port {
	t.Helper()
	tr := newTrial(t, nodes)
	tr.startAll()
	return portOf(t, tr)
}

// portOf speaks to the policy ports of nodes that run.
func portOf(t *testing.T, tr *trial) *port {
	t.Helper()
	pem, err := os.ReadFile(tr.file("ca.crt"))
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &port{tr, &http.Client{Transport: transport}}
}

// ask sends one request as the operator; headers follow as name, value.
func (p *port) ask(node int, method, path, body string, headers ...string) *reply {
	return p.as(p.token, node, method, path, strings.NewReader(body), headers...)
}

func (p *port) as(token string, node int, method, path string, body io.Reader, headers ...string) *reply {
	p.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, p.nodes[node].policy+path, body)
	must(p.t, err)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	res, err := p.client.Do(r)
	must(p.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(p.t, err)
	out := &reply{status: res.StatusCode, header: res.Header, body: string(b)}
	_ = json.Unmarshal(b, out) // not every answer is JSON
	return out
}

func (a *reply) want(t *testing.T, status int, code string) *reply {
	t.Helper()
	if a.status != status || a.Code != code {
		t.Errorf("answered %d %q, want %d %q: %s", a.status, a.Code, status, code, a.body)
	}
	return a
}

const gate = "package gate\n\ndefault allow := false\n\nallow if input.who in data.members\n\nhalf := input.a / input.b\n"

func TestPolicyPort(t *testing.T) {
	p := newPort(t, 3)
	t.Run("who may do what", p.roles)
	t.Run("a change is everywhere when it is answered", p.everywhere)
	t.Run("queries are on record", p.recorded)
	t.Run("the shadow is asked too", p.shadowed)
	t.Run("changes on all nodes at once", p.together)
	t.Run("bad input", p.badInput)
	t.Run("the engine's own", p.system)
	t.Run("an empty revision", p.empty)
	t.Run("no way to another host", func(t *testing.T) {
		for _, path := range []string{"//other.example/", "//other.example//", "/\\other.example/"} {
			r, err := http.NewRequestWithContext(t.Context(), "GET", p.nodes[0].policy, nil)
			must(t, err)
			r.URL.Opaque = "//" + r.URL.Host + path
			r.Header.Set("Authorization", "Bearer "+p.token)
			res, err := p.client.Transport.RoundTrip(r)
			must(t, err)
			res.Body.Close()
			if to, err := url.Parse(res.Header.Get("Location")); err != nil || to.Host != "" {
				t.Errorf("%s leads to %s", path, res.Header.Get("Location"))
			}
		}
	})
}

func (p *port) roles(t *testing.T) {
	for _, path := range []string{"/v1/data", "/v1/data/a/b", "/v1/query?q=x=1", "/v1/policies", "/v1/config", "/nothing"} {
		p.as("", 0, "GET", path, nil).want(t, 401, "unauthorized")
	}
	p.as("", 0, "POST", "/v1/data/a/b", strings.NewReader("{}")).want(t, 401, "unauthorized")
	p.as("wrong", 0, "POST", "/v1/data/a/b", strings.NewReader("{}")).want(t, 401, "unauthorized")
	if a := p.as("", 0, "GET", "/health", nil).want(t, 200, ""); a.body != "{}\n" {
		t.Errorf("health: %s", a.body)
	}
	viewer := p.tokenOf(t, "viewer")
	p.as(viewer, 1, "GET", "/v1/data", nil).want(t, 200, "")
	p.as(viewer, 1, "POST", "/v1/data/x/y", strings.NewReader("{}")).want(t, 200, "")
	p.as(viewer, 1, "PUT", "/v1/data/x", strings.NewReader("{}")).want(t, 403, "unauthorized")
	p.as(viewer, 1, "PUT", "/v1/policies/x", strings.NewReader(gate)).want(t, 403, "unauthorized")
	p.as(viewer, 1, "DELETE", "/v1/policies/x", nil).want(t, 403, "unauthorized")
	p.as(viewer, 1, "PATCH", "/v1/data", strings.NewReader("[]")).want(t, 403, "unauthorized")
	p.as(viewer, 1, "GET", "/v1/policies", nil).want(t, 403, "unauthorized")
	p.as(p.tokenOf(t, "policy-admin"), 1, "PUT", "/v1/data/members", strings.NewReader("[]")).want(t, 204, "")
}

// tokenOf makes a token of a role.
func (p *port) tokenOf(t *testing.T, role string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", p.nodes[0].control+"/v1/tokens", strings.NewReader(`{"role":"`+role+`"}`))
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+p.token)
	res, err := p.client.Do(r)
	must(t, err)
	defer res.Body.Close()
	var made struct{ Token string }
	must(t, json.NewDecoder(res.Body).Decode(&made))
	// Every node knows it once each has the state of the leader.
	for i := range p.nodes {
		p.ask(i, "PUT", "/v1/data/round", fmt.Sprintf("%q", role+p.nodes[i].id)).want(t, 204, "")
	}
	return made.Token
}

func (p *port) everywhere(t *testing.T) {
	for i := range p.nodes {
		p.ask(i, "PUT", "/v1/policies/gate", fmt.Sprintf("%s\nmade := %d\n", gate, i)).want(t, 200, "")
		for k := range p.nodes {
			if a := p.ask(k, "GET", "/v1/data/gate/made", ""); a.Result != float64(i) {
				t.Errorf("changed through node %d, node %d says %s", i+1, k+1, a.body)
			}
		}
	}
	before := p.ask(0, "GET", "/v1/data", "").header.Get("Muster-Policy-Revision")
	a := p.ask(2, "PUT", "/v1/data/members", `["ann"]`).want(t, 204, "")
	if now := a.header.Get("Muster-Policy-Revision"); now == before || now == "" {
		t.Errorf("revision %s after %s", now, before)
	}
	for k := range p.nodes {
		a := p.ask(k, "POST", "/v1/data/gate/allow", `{"input":{"who":"ann"}}`).want(t, 200, "")
		if a.Result != true || a.Decision == "" || a.Warning != nil {
			t.Errorf("node %d: %s", k+1, a.body)
		}
	}
	refused := p.ask(1, "POST", "/v1/data/gate/allow", `{"input":{"who":"eve","token":"secret"}}`, "X-Request-Id", "r-1").want(t, 200, "")
	p.kept(t, refused.Decision, `"gate/allow"`, `"r-1"`, `"eve"`, `data.gate.allow is not true`)
	if a := p.ask(1, "PUT", "/v1/data/members", `["ann"]`).want(t, 204, ""); a.header.Get("Muster-Policy-Revision") != p.ask(0, "GET", "/v1/data", "").header.Get("Muster-Policy-Revision") {
		t.Error("the same again made a revision")
	}
}

// kept waits until the decision is on record with these parts, and without secrets.
func (p *port) kept(t *testing.T, id string, parts ...string) {
	t.Helper()
	until(t, "the decision is kept", func() error {
		r, err := http.NewRequestWithContext(t.Context(), "GET", p.nodes[1].control+"/v1/decisions/"+id+"?explain=rules", nil)
		must(t, err)
		r.Header.Set("Authorization", "Bearer "+p.token)
		res, err := p.client.Do(r)
		must(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		for _, part := range parts {
			if !bytes.Contains(b, []byte(part)) {
				return fmt.Errorf("%d: no %s in %s", res.StatusCode, part, b)
			}
		}
		if bytes.Contains(b, []byte("secret")) {
			return fmt.Errorf("it shows the token: %s", b)
		}
		return nil
	})
}

// recorded asks in Rego: each answer is a decision that can be found again.
func (p *port) recorded(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range []struct {
		method, path, body string
		status             int
		code               string
		parts              []string
	}{
		{"GET", "/v1/query?q=x%20=%20data.members", "", 200, "", []string{`"entrypoint":"query"`, `"query":"x = data.members"`, `"allow":true`, `"value":[{"x":["ann"]}]`}},
		{"POST", "/v1/query", `{"query":"input.who == \"bob\"","input":{"who":"eve","token":"secret"}}`, 200, "",
			[]string{`"query":"input.who == \"bob\""`, `"input":{"who":"eve","token":"***"}`, `"masked":["/input/token"]`, `"allow":false`, `the query is not true`}},
		{"POST", "/v1/query", `{"query":"input.token == \"secret\"","input":{"token":"secret"}}`, 200, "", []string{`"query":"input.token == `, `"allow":true`}},
		{"POST", "/v1/query", `{"query":"x = input.a / input.b; y = sum([i | some i in numbers.range(1, 100000000)])","input":{"a":1,"b":1}}`, 500, "internal_error", []string{`"allow":false`, `"reasons":["`}},
		{"POST", "/v1/compile", `{"query":"data.gate.allow","input":{"a":1},"unknowns":["data.members","input.who"]}`, 200, "",
			[]string{`"entrypoint":"compile"`, `"query":"data.gate.allow"`, `"allow":true`, `"queries":`}},
		{"POST", "/v1/compile", `{"query":"input.who == \"bob\"","input":{"who":"eve"},"unknowns":["data.x"]}`, 200, "", []string{`"allow":false`}},
	} {
		a := p.ask(1, c.method, c.path, c.body).want(t, c.status, c.code)
		id := a.header.Get("Muster-Decision-Id")
		if id == "" || seen[id] {
			t.Errorf("%s %s: decision %q", c.path, c.body, id)
			continue
		}
		seen[id] = true
		p.kept(t, id, append(c.parts, `"rules":[]`)...)
	}
	// What cannot be asked is no decision.
	if a := p.ask(1, "POST", "/v1/query", `{"query":"data.system.x"}`).want(t, 403, "unauthorized"); a.header.Get("Muster-Decision-Id") != "" {
		t.Errorf("%v", a.header)
	}
}

// shadowed tries a revision out beside what is asked here.
func (p *port) shadowed(t *testing.T) {
	c := p.trial.client(p.token, 0)
	_, err := c.PushShadow(t.Context(), []byte(`{"modules":{"gate.rego":"package gate\n\nallow := false\n"},"data":{"members":[]}}`), 1)
	must(t, err)
	until(t, "every node has asked the shadow about the same", func() error {
		for i := range p.nodes {
			p.ask(i, "POST", "/v1/data/gate/allow", `{"input":{"who":"ann"}}`).want(t, 200, "")
		}
		answer, err := c.ShadowReport(t.Context())
		if err != nil {
			return err
		}
		var report policy.Impact
		must(t, json.Unmarshal(answer, &report))
		for _, n := range report.Nodes {
			if n.Evaluated == 0 || n.Problem != "" {
				return fmt.Errorf("%s", answer)
			}
		}
		if len(report.Nodes) != len(p.nodes) || len(report.Differences) != 1 || report.Differences[0].Kind != policy.WouldDeny || report.Differences[0].EntryPoint != "gate/allow" {
			return fmt.Errorf("%s", answer)
		}
		return nil
	})
	_, err = c.StopShadow(t.Context())
	must(t, err)
}

func (p *port) together(t *testing.T) {
	var wg sync.WaitGroup
	for i := range p.nodes {
		for k := range 3 {
			wg.Go(func() {
				p.ask(i, "PUT", fmt.Sprintf("/v1/data/crowd/n%d-%d", i, k), "true").want(t, 204, "")
			})
		}
	}
	wg.Wait()
	a := p.ask(0, "GET", "/v1/data/crowd", "")
	if all, _ := a.Result.(map[string]any); len(all) != 3*len(p.nodes) {
		t.Errorf("some changes are lost: %s", a.body)
	}
}

func (p *port) badInput(t *testing.T) {
	revision := p.ask(0, "GET", "/v1/data", "").header.Get("Muster-Policy-Revision")
	deep := strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, err := io.CopyN(z, blanks{}, 12<<20) // three times what a body may have
	must(t, err)
	must(t, z.Close())
	for node := range p.nodes {
		for _, path := range []string{`/v1/data/x%22%5D;%20data.y%5B%22`, `/v0/data/x%22%5D`} {
			p.ask(node, "POST", path, `{"input":{}}`).want(t, 400, "invalid_parameter")
		}
		for _, body := range []string{`{"input":`, `[1]`, `{"input":{"a":1,"a":2}}`, `{"input":{}} {}`, `{"input":` + deep + `}`, deep, "\x00"} {
			p.ask(node, "POST", "/v1/data/gate/allow", body).want(t, 400, "invalid_parameter")
		}
		p.ask(node, "POST", "/v1/data/gate/allow", "a: [", "Content-Type", "application/yaml").want(t, 400, "invalid_parameter")
		p.ask(node, "POST", "/v1/data/gate/allow", "a: &x [1]\ninput: *x", "Content-Type", "application/yaml").want(t, 400, "invalid_parameter")
		p.ask(node, "POST", "/v1/data/gate/allow", "input: ["+strings.Repeat("a,", 300_000)+"a]", "Content-Type", "application/yaml").want(t, 413, "invalid_parameter")
		p.ask(node, "POST", "/v1/query", `{"query":"`+strings.Repeat("true; ", 20_000)+`true"}`).want(t, 400, "invalid_parameter")
		p.ask(node, "POST", "/v1/compile", `{"query":"true","unknowns":["`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000)+`"]}`).want(t, 400, "invalid_parameter")
		p.ask(node, "PATCH", "/v1/data", `[`+strings.Repeat(`{"op":"add","path":"/x","value":1},`, 10_000)+`{"op":"add","path":"/x","value":1}]`).want(t, 413, "invalid_parameter")
		p.ask(node, "POST", "/v1/data/gate/allow", "no gzip", "Content-Encoding", "gzip").want(t, 400, "invalid_parameter")
		p.ask(node, "POST", "/v1/data/gate/allow", bomb.String(), "Content-Encoding", "gzip").want(t, 413, "invalid_parameter")
		p.ask(node, "POST", "/v1/data/gate/allow", strings.Repeat(" ", 5<<20)).want(t, 413, "invalid_parameter")
		p.ask(node, "GET", "/v1/data/gate/allow?input=%7B", "").want(t, 400, "invalid_parameter")
		p.ask(node, "PUT", "/v1/policies/bad", "package").want(t, 400, "invalid_parameter")
		if a := p.ask(node, "PUT", "/v1/policies/bad", "package bad\n\nx := http.send({})\n").want(t, 400, "invalid_parameter"); len(a.Errors) != 1 || a.Errors[0].Location.File != "bad" || a.Errors[0].Location.Row != 3 {
			t.Errorf("the place of the mistake: %s", a.body)
		}
		p.ask(node, "PUT", "/v1/policies/bad_test.rego", "package bad\n\ntest_it if false\n").want(t, 400, "invalid_parameter")
		p.ask(node, "PUT", "/v1/data/gate/allow", "1").want(t, 400, "invalid_parameter")
		p.ask(node, "POST", "/v1/query", `{"query":"http.send({},x)"}`).want(t, 400, "invalid_parameter")
		if a := p.ask(node, "POST", "/v1/data/gate/half?strict-builtin-errors", `{"input":{"a":1,"b":0}}`).want(t, 500, "internal_error"); len(a.Errors) != 1 || a.Errors[0].Code != "eval_builtin_error" {
			t.Errorf("strict: %s", a.body)
		}
	}
	if now := p.ask(0, "GET", "/v1/data", "").header.Get("Muster-Policy-Revision"); now != revision {
		t.Errorf("refused requests made revision %s of %s", now, revision)
	}
}

func (p *port) system(t *testing.T) {
	for _, path := range []string{"/v1/data/system", "/v1/data/system/authz/allow", "/v1/data/%73ystem/x"} {
		p.ask(0, "GET", path, "").want(t, 403, "unauthorized")
		p.ask(0, "PUT", path, "{}").want(t, 403, "unauthorized")
	}
	p.ask(0, "PUT", "/v1/data", `{"system":{"a":1}}`).want(t, 403, "unauthorized")
	p.ask(0, "PATCH", "/v1/data", `[{"op":"add","path":"system","value":1}]`).want(t, 403, "unauthorized")
	p.ask(0, "PUT", "/v1/policies/x", "package system.authz\n\nallow := true\n").want(t, 403, "unauthorized")
	p.ask(0, "GET", "/v1/query?q=data.system.x", "").want(t, 403, "unauthorized")
	p.ask(0, "POST", "/", `{}`).want(t, 404, "undefined_document")

	// A revision that is pushed may define what POST / answers, and nothing
	// else of the engine's.
	c := p.trial.client(p.token, 0)
	_, err := c.Push(t.Context(), []byte(`{"modules":{"main.rego":"package system\n\nmain := {\"for\": input.who}\n\nlog.mask contains \"/input\"\n\nauthz.allow := false\n"}}`), true)
	must(t, err)
	for node := range p.nodes {
		if a := p.ask(node, "POST", "/", `{"who":"ann"}`).want(t, 200, ""); a.body != `{"for":"ann"}`+"\n" {
			t.Errorf("node %d: %s", node+1, a.body)
		}
		p.ask(node, "GET", "/v1/data/system/main", "").want(t, 403, "unauthorized")
	}
	p.ask(0, "DELETE", "/v1/policies/main.rego", "").want(t, 403, "unauthorized")
	if a := p.ask(0, "GET", "/v1/data", "").want(t, 200, ""); strings.Contains(a.body, "main") {
		t.Errorf("data shows %s", a.body)
	}
	_, err = c.Rollback(t.Context())
	must(t, err)
}

// Whoever tries a policy out puts it there and takes it away again.
func (p *port) empty(t *testing.T) {
	p.ask(0, "PUT", "/v1/data", `{}`).want(t, 204, "")
	var list struct{ Result []struct{ ID string } }
	must(t, json.Unmarshal([]byte(p.ask(0, "GET", "/v1/policies", "").body), &list))
	if len(list.Result) == 0 {
		t.Fatal("no policies")
	}
	for _, m := range list.Result {
		p.ask(1, "DELETE", "/v1/policies/"+m.ID, "").want(t, 200, "")
		p.ask(2, "DELETE", "/v1/policies/"+m.ID, "").want(t, 404, "resource_not_found")
	}
	if a := p.ask(2, "POST", "/v1/data/gate/allow", "{}").want(t, 200, ""); a.Result != nil || a.Warning == nil {
		t.Errorf("nothing is left, but: %s", a.body)
	}
	p.ask(2, "PUT", "/v1/policies/gate", gate).want(t, 200, "")
}
