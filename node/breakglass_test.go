package node_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/muster-registry/muster/fault"
)

// as sends one request with another credential than the operator's.
func (e *edge) as(t *testing.T, token string, node int, method, path, body string) *answer {
	t.Helper()
	return e.send(t, node, "HTTP/2.0", call{method: method, path: path, body: strings.NewReader(body), header: []string{"Authorization", "Bearer " + token}})
}

// credential makes a token of the role, for the namespaces only where some are named.
func (e *edge) credential(t *testing.T, role string, namespaces ...string) string {
	t.Helper()
	body, err := json.Marshal(map[string]any{"role": role, "namespaces": namespaces})
	must(t, err)
	var token struct{ Token string }
	must(t, json.Unmarshal(e.mustDo(t, "POST", "/v1/tokens", string(body)).body, &token))
	// Every node knows it once it has what the first has.
	e.states(t)
	return token.Token
}

func (e *edge) metricsOf(t *testing.T, node int) string {
	t.Helper()
	res, err := http.Get(e.tr.nodes[node].metrics + "/metrics")
	must(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(t, err)
	return string(b)
}

func TestBreakGlass(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.configure(t, "webhook: {allow: [127.0.0.0/8]}\n")
	tr.startAll()
	e := newEdge(t, tr)
	leader := e.leader(t)
	follower := (leader + 1) % 3
	breaker, limited := e.credential(t, "break-glass"), e.credential(t, "break-glass", "shop")
	publisher, viewer := e.credential(t, "publisher"), e.credential(t, "viewer")

	for _, ns := range []string{"shop", "bank"} {
		e.mustDo(t, "PUT", "/v1/namespaces/"+ns+"/services/cart", `{"owner":"team"}`)
	}
	hook := policyEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"result":false}`)
	})
	e.mustDo(t, "PUT", "/v1/webhooks/opa", hook(`,"namespaces":["shop","till"]`))
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", `{"modules":{
		"w.rego":"package api.registry.authz\nimport rego.v1\ndefault allow := false\ndeny contains \"frozen\" if input.resource.namespace != \"till\"\nallow if input.resource.namespace == \"till\"\n",
		"l.rego":"package api.security.authz\nimport rego.v1\ndefault allow := false\n"}}`)

	const open = `{"namespace":"shop","ttl":"30m","reason":"payments are down"}`
	cart := func(ns string) string { return "/v1/namespaces/" + ns + "/services/cart" }
	e.as(t, publisher, follower, "PUT", cart("shop"), `{}`).want(t, 403, fault.PolicyDenied)
	e.as(t, viewer, follower, "GET", cart("shop"), ``).want(t, 403, fault.PolicyDenied)

	// Who may, and what.
	for _, token := range []string{publisher, viewer, operatorToken} {
		e.as(t, token, follower, "POST", "/v1/break-glass", open).want(t, 403, fault.Forbidden)
	}
	for _, body := range []string{`{"namespace":"*","ttl":"30m","reason":"x"}`, `{"ttl":"30m","reason":"x"}`, `{"namespace":"shop","reason":"x"}`,
		`{"namespace":"shop","ttl":"25h","reason":"x"}`, `{"namespace":"shop","ttl":"30m"}`} {
		e.as(t, breaker, follower, "POST", "/v1/break-glass", body).want(t, 400, fault.InvalidField)
	}
	e.as(t, limited, follower, "POST", "/v1/break-glass", `{"namespace":"bank","ttl":"30m","reason":"x"}`).want(t, 403, fault.Forbidden)
	if a := e.as(t, limited, follower, "POST", "/v1/break-glass", open); a.status != 201 || !strings.Contains(string(a.body), `"until":"`) {
		t.Fatalf("%d %s", a.status, a.body)
	}
	e.states(t)

	// Open in the one namespace, on every node, for changes and look-ups; the
	// webhook's refusal goes the same way.
	for node := range tr.nodes {
		if a := e.as(t, publisher, node, "PUT", cart("shop"), `{"owner":"emergency"}`); a.status != 200 {
			t.Errorf("node %d: %d %s", node+1, a.status, a.body)
		}
		if a := e.as(t, viewer, node, "GET", cart("shop"), ``); a.status != 200 {
			t.Errorf("node %d: %d %s", node+1, a.status, a.body)
		}
		e.as(t, publisher, node, "PUT", cart("bank"), `{}`).want(t, 403, fault.PolicyDenied)
		e.as(t, publisher, node, "PUT", cart("till"), `{}`).want(t, 403, fault.PolicyDenied) // by the webhook
		e.as(t, viewer, node, "GET", cart("bank"), ``).want(t, 403, fault.PolicyDenied)
		if a := e.as(t, viewer, node, "GET", "/v1/services", ``); !strings.Contains(string(a.body), `"namespace":"shop"`) || strings.Contains(string(a.body), `"namespace":"bank"`) {
			t.Errorf("the list across namespaces: %s", a.body)
		}
		a := e.as(t, viewer, node, "POST", "/v1/authorize", `{"input":{"action":"update","resource":{"namespace":"shop"}}}`)
		if s := string(a.body); !strings.Contains(s, `"allow":true`) || !strings.Contains(s, `"break_glass":true`) || !strings.Contains(s, `"frozen"`) {
			t.Errorf("%s", s)
		}
		// Roles hold, and policies are out of reach.
		e.as(t, viewer, node, "PUT", cart("shop"), `{}`).want(t, 403, fault.Forbidden)
		e.as(t, breaker, node, "POST", "/v1/policy/rollback", ``).want(t, 403, fault.Forbidden)

		if a := e.send(t, node, "HTTP/2.0", call{method: "GET", path: "/readyz?verbose"}); !strings.Contains(string(a.body), "[!] break-glass is open in namespace shop until ") || !strings.HasSuffix(string(a.body), "ok\n") {
			t.Errorf("/readyz?verbose: %s", a.body)
		}
		if m := e.metricsOf(t, node); !strings.Contains(m, `muster_break_glass_active{namespace="shop"} 1`) || !strings.Contains(m, `muster_break_glass_decisions_total{namespace="shop"}`) {
			t.Errorf("node %d's metrics say nothing of break-glass", node+1)
		}
		if a := e.send(t, node, "HTTP/2.0", call{method: "GET", path: "/v1/cluster/status"}); !strings.Contains(string(a.body), "break-glass is open in namespace shop") {
			t.Errorf("/v1/cluster/status: %s", a.body)
		}
	}
	if a := e.as(t, limited, follower, "GET", "/v1/break-glass", ``); a.status != 200 || !strings.Contains(string(a.body), "payments are down") {
		t.Errorf("%d %s", a.status, a.body)
	}

	// Ended by hand, on every node.
	e.as(t, operatorToken, follower, "DELETE", "/v1/break-glass/shop", ``).want(t, 403, fault.Forbidden)
	if a := e.as(t, limited, follower, "DELETE", "/v1/break-glass/shop", ``); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	e.as(t, limited, follower, "DELETE", "/v1/break-glass/shop", ``).want(t, 404, fault.NotFound)
	e.states(t)
	for node := range tr.nodes {
		e.as(t, publisher, node, "PUT", cart("shop"), `{}`).want(t, 403, fault.PolicyDenied)
		e.as(t, viewer, node, "GET", cart("shop"), ``).want(t, 403, fault.PolicyDenied)
	}

	// Ends by itself, also under another leader than the one that opened it.
	if a := e.as(t, breaker, follower, "POST", "/v1/break-glass", `{"namespace":"shop","ttl":"2s","reason":"again"}`); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	e.mustDo(t, "POST", "/v1/cluster/leader/transfer", `{}`)
	until(t, "break-glass is removed", func() error {
		for node := range tr.nodes {
			if a := e.as(t, breaker, node, "GET", "/v1/break-glass", ``); a.status != 200 || !strings.Contains(string(a.body), `"items":[]`) {
				return fault.New(fault.NotReady, "%d %s", a.status, a.body)
			}
		}
		// The list leaves out what is over; the log tells who removed it.
		ended := ""
		for _, n := range tr.nodes {
			log, err := os.ReadFile(tr.file(n.id + ".log"))
			must(t, err)
			if strings.Contains(string(log), "break-glass has ended") {
				ended += n.id
			}
		}
		if len(ended) != 2 {
			return fault.New(fault.NotReady, "removed by the nodes %q, want one", ended)
		}
		return nil
	})
	e.as(t, viewer, follower, "GET", cart("shop"), ``).want(t, 403, fault.PolicyDenied)
}
