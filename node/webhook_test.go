package node_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/muster-registry/muster/fault"
)

// configure adds to the configuration of every node that is not running yet.
func (tr *trial) configure(t *testing.T, text string) {
	t.Helper()
	for _, n := range tr.nodes {
		f, err := os.OpenFile(n.config, os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString(text)
		must(t, err)
		must(t, f.Close())
	}
}

// policyEndpoint is an outside policy endpoint over TLS, and the JSON of a webhook
// that leads there.
func policyEndpoint(t *testing.T, h http.HandlerFunc) func(more string) string {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	ca, err := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	must(t, err)
	return func(more string) string {
		return fmt.Sprintf(`{"webhook_url":"%s/v1/data/api/registry/authz/allow","events":["on_register","on_update","on_delete"],"timeout":"30s","tls":{"ca":%s}%s}`, s.URL, ca, more)
	}
}

func TestWebhooks(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.configure(t, "webhook: {allow: [127.0.0.0/8]}\n")
	tr.startAll()
	e := newEdge(t, tr)
	leader := e.leader(t)
	follower := (leader + 1) % 3

	var calls atomic.Int64
	var says atomic.Value
	says.Store(`{"result":true}`)
	hook := policyEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		calls.Add(1)
		_, _ = io.WriteString(w, says.Load().(string))
	})
	do := func(node int, method, path, body string) *answer {
		return e.send(t, node, "HTTP/2.0", call{method: method, path: path, body: strings.NewReader(body)})
	}

	secret := "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	body := hook(`,"secret":"` + secret + `","headers":{"X-Key":"hunter2"}`)
	put := do(follower, "PUT", "/v1/webhooks/opa", body)
	if put.status != 201 || put.header.Get("ETag") == "" {
		t.Fatalf("%d %s", put.status, put.body)
	}
	for _, a := range []*answer{put, do(leader, "GET", "/v1/webhooks/opa?consistency=linearizable", ""), do(follower, "GET", "/v1/webhooks?consistency=linearizable", "")} {
		if s := string(a.body); strings.Contains(s, secret) || strings.Contains(s, "hunter2") || !strings.Contains(s, `"secret":"(hidden)"`) {
			t.Errorf("a secret is shown, or not that there is one: %s", s)
		}
	}

	// Registering through a follower asks once, wherever the leader is.
	if a := do(follower, "PUT", "/v1/namespaces/default/services/cart", `{"owner":"shop"}`); a.status != 201 || calls.Load() != 1 {
		t.Fatalf("%d %s after %d calls", a.status, a.body, calls.Load())
	}
	says.Store(`{"result":{"allow":false,"reasons":["not on a Friday"]}}`)
	e.each(t, func(t *testing.T, node int) {
		a := e.send(t, node, "HTTP/2.0", call{method: "PUT", path: "/v1/namespaces/default/services/cart", body: strings.NewReader(`{"owner":"bank"}`)})
		a.want(t, 403, fault.PolicyDenied)
		if !strings.Contains(string(a.body), `"webhook opa: not on a Friday"`) {
			t.Errorf("%s", a.body)
		}
		// The id is that of the webhook's refusal, not of the policy's consent.
		told := e.send(t, node, "HTTP/2.0", call{method: "GET", path: "/v1/decisions/" + a.header.Get("Muster-Decision-Id") + "?explain=rules"})
		if told.status != 200 || !strings.Contains(string(told.body), `"cause":"webhook"`) || !strings.Contains(string(told.body), "not on a Friday") ||
			!strings.Contains(string(told.body), `"allow":false`) {
			t.Errorf("explained as %d %s", told.status, told.body)
		}
	})
	if n := calls.Load(); n != 4 {
		t.Errorf("asked %d times about 4 changes", n)
	}
	res, err := http.Get(tr.nodes[leader].metrics + "/metrics")
	must(t, err)
	metrics, err := io.ReadAll(res.Body)
	must(t, err)
	_ = res.Body.Close()
	for _, want := range []string{`muster_webhook_requests_total{outcome="allowed",webhook="opa"} 1`, `muster_webhook_requests_total{outcome="denied",webhook="opa"} 3`,
		`muster_webhook_duration_seconds_count{webhook="opa"} 4`, `muster_webhook_breaker_state{webhook="opa"} 0`} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("the leader's metrics lack %s", want)
		}
	}

	// Where webhooks may not lead.
	e.each(t, func(t *testing.T, node int) {
		for _, url := range []string{"https://169.254.169.254/latest", "https://[::1]/", "https://10.0.0.1/", "http://169.254.169.254/latest", "https://[fd00:ec2::254]/"} {
			a := e.send(t, node, "HTTP/2.0", call{method: "PUT", path: "/v1/webhooks/bad", body: strings.NewReader(`{"webhook_url":"` + url + `","events":["on_update"]}`)})
			a.want(t, 422, fault.ForbiddenAddress)
		}
	})
	for _, id := range []string{"n1", "n2", "n3"} {
		log, err := os.ReadFile(tr.file(id + ".log"))
		must(t, err)
		if strings.Contains(string(log), secret) || strings.Contains(string(log), "hunter2") {
			t.Errorf("a secret is in the log of %s", id)
		}
	}
	if a := do(follower, "DELETE", "/v1/webhooks/opa", ""); a.status != 204 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := do(follower, "PUT", "/v1/namespaces/default/services/cart", `{"owner":"bank"}`); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
}
