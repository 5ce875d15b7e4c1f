package node_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
)

// shower sends requests with a client certificate.
type shower struct {
	cert *pki.Pair
	pair tls.Certificate
	http *http.Client
}

func (e *edge) certified(t *testing.T, r pki.Request) *shower {
	t.Helper()
	cert, err := e.tr.ca.Issue("muster", r, time.Now())
	must(t, err)
	file := e.tr.file(fmt.Sprintf("client-%x", cert.Certificate.SerialNumber))
	must(t, cert.Write(file+".crt", file+".key"))
	pair, err := tls.LoadX509KeyPair(file+".crt", file+".key")
	must(t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: e.pool, Certificates: []tls.Certificate{pair}}}
	t.Cleanup(transport.CloseIdleConnections)
	return &shower{cert: cert, pair: pair, http: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

func (s *shower) do(t *testing.T, base, method, path, body string) *answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
	must(t, err)
	res, err := s.http.Do(req)
	must(t, err)
	return read(t, res)
}

// with sends a request with a header Authorization beside the certificate.
func (s *shower) with(t *testing.T, base, method, path, authorization string) *answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, base+path, nil)
	must(t, err)
	req.Header.Set("Authorization", authorization)
	res, err := s.http.Do(req)
	must(t, err)
	return read(t, res)
}

// revoked is the answer to a revocation.
type revoked struct {
	Name    string
	Pending []string
}

func (e *edge) revoke(t *testing.T, kind, value string) revoked {
	t.Helper()
	body, err := json.Marshal(map[string]string{"kind": kind, "value": value, "reason": "a test"})
	must(t, err)
	a := e.mustDo(t, "POST", "/v1/revocations", string(body))
	var r revoked
	must(t, json.Unmarshal(a.body, &r))
	if a.status != 200 || r.Name == "" || len(r.Pending) > 0 {
		t.Fatalf("revoked: %d %s", a.status, a.body)
	}
	return r
}

// Rules give roles to certificates, each in its namespaces, on every node, and
// take them away again.
func TestRoleRules(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", "/v1/namespaces/bank/services/account", `{}`)
	pod := e.certified(t, pki.Request{ID: "spiffe://muster/ns/shop/sa/web"})
	member := e.certified(t, pki.Request{Node: "n9"})

	for i, n := range tr.nodes {
		a := pod.do(t, n.control, "GET", "/v1/services", "").want(t, 403, fault.Forbidden)
		if !strings.Contains(a.Detail, "no role rule is about its credential") {
			t.Errorf("the refusal does not say that no rule is about it: %s", a.Detail)
		}
		if m := e.metricsOf(t, i); !strings.Contains(m, `muster_identity_unmapped_total{provider="certificate"} 1`) {
			t.Errorf("node %d does not count it", i+1)
		}
	}
	e.mustDo(t, "PUT", "/v1/roles/readers", `{"role":"viewer","match":{"spiffe_id":"spiffe://muster/ns/**"}}`)
	e.mustDo(t, "PUT", "/v1/roles/web", `{"role":"publisher","namespaces":["shop"],"match":{"spiffe_id":"spiffe://muster/ns/shop/sa/*"}}`)
	e.mustDo(t, "PUT", "/v1/roles/nodes", `{"role":"operator","match":{"spiffe_id":"spiffe://muster/node/**"}}`)
	e.states(t)
	for _, n := range tr.nodes {
		if a := pod.do(t, n.control, "PUT", "/v1/namespaces/shop/services/cart", `{"owner":"`+n.id+`"}`); a.status >= 300 {
			t.Errorf("through %s: %d %s", n.id, a.status, a.body)
		}
		// The viewer sees all namespaces; that does not make the publisher one of all.
		if a := pod.do(t, n.control, "GET", "/v1/namespaces/bank/services/account", ""); a.status != 200 {
			t.Errorf("through %s: %d %s", n.id, a.status, a.body)
		}
		pod.do(t, n.control, "PUT", "/v1/namespaces/bank/services/account", `{}`).want(t, 403, fault.Forbidden)
		pod.do(t, n.control, "GET", "/v1/roles", "").want(t, 403, fault.Forbidden)
		if a := pod.do(t, n.policy, "POST", "/v1/data/anything", `{"input":{}}`); a.status != 200 {
			t.Errorf("on the policy port of %s: %d %s", n.id, a.status, a.body)
		}
		// Whatever a rule says, a node is no client.
		member.do(t, n.control, "GET", "/v1/tokens", "").want(t, 403, fault.Forbidden)
	}
	// A call that waits has to have its role when it is answered, too.
	index := pod.do(t, tr.nodes[0].control, "GET", "/v1/services", "").header.Get("Muster-Revision")
	waited := make(chan int, len(tr.nodes))
	for _, n := range tr.nodes {
		go func() {
			res, err := pod.http.Get(n.control + "/v1/services?wait=20s&index=" + index)
			if err != nil {
				waited <- 0
				return
			}
			res.Body.Close()
			waited <- res.StatusCode
		}()
	}
	until(t, "the calls wait", func() error {
		for i := range tr.nodes {
			if m := e.metricsOf(t, i); !strings.Contains(m, `muster_flow_requests{limit="blocked"} 1`) {
				return errors.New("not on every node")
			}
		}
		return nil
	})
	e.mustDo(t, "DELETE", "/v1/roles/readers", "")
	e.mustDo(t, "DELETE", "/v1/roles/web", "")
	for range tr.nodes {
		if status := <-waited; status != 403 {
			t.Errorf("a call that waited, and whose caller has no role any more: %d", status)
		}
	}
	e.states(t)
	for _, n := range tr.nodes {
		pod.do(t, n.control, "GET", "/v1/services", "").want(t, 403, fault.Forbidden)
	}
	for body, code := range map[string]fault.Code{
		`{"role":"root","match":{"cn":"a"}}`: fault.InvalidField, `{"role":"viewer"}`: fault.InvalidField, `{"role":"viewer","match":{"cn":"a"},"all":true}`: fault.InvalidField,
	} {
		e.send(t, 1, "HTTP/2.0", call{"PUT", "/v1/roles/bad", strings.NewReader(body), nil}).want(t, 400, code)
	}
}

// After the answer no node accepts the credential, on either port and over
// connections that were open before; calls that wait are ended; and a restore
// brings none of it back.
func TestRevocation(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/cart/instances/a?create_service=true", `{"address":"10.0.0.1","port":80}`)
	const path = "/v1/discovery/shop/cart"
	ops := e.certified(t, pki.Request{Role: "viewer", Name: "laptop"})
	byKey := e.certified(t, pki.Request{Role: "viewer", Name: "phone"})
	token := e.credential(t, "viewer")
	early := e.mustDo(t, "GET", "/v1/snapshot", "").body
	for i, n := range tr.nodes {
		if a := ops.do(t, n.control, "GET", path, ""); a.status != 200 {
			t.Fatalf("before: %d %s", a.status, a.body)
		}
		if a := e.as(t, token, i, "GET", path, ""); a.status != 200 {
			t.Fatalf("before: %d %s", a.status, a.body)
		}
	}

	waits := make([]chan int, len(tr.nodes))
	for i, n := range tr.nodes {
		waits[i] = make(chan int, 1)
		a := e.as(t, token, i, "GET", path, "")
		req, err := http.NewRequestWithContext(context.Background(), "GET", n.control+path+"?wait=5m&index="+a.header.Get("Muster-Revision"), nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		client := &http.Client{Transport: e.http["HTTP/1.1"].Transport}
		go func() {
			res, err := client.Do(req)
			if err != nil {
				waits[i] <- 0
				return
			}
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			waits[i] <- res.StatusCode
		}()
	}
	streams := make([]chan string, len(tr.nodes))
	for i, n := range tr.nodes {
		streams[i] = make(chan string, 1)
		req, err := http.NewRequestWithContext(t.Context(), "GET", n.control+"/v1/watch?namespace=shop&service=cart", nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := (&http.Client{Transport: e.http["HTTP/1.1"].Transport}).Do(req)
		must(t, err)
		if res.StatusCode != 200 {
			t.Fatalf("watch: %d", res.StatusCode)
		}
		go func() {
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			streams[i] <- string(b)
		}()
	}
	id := strings.Split(token, "_")[1]
	if a := e.mustDo(t, "DELETE", "/v1/tokens/"+id, ""); a.status != 204 {
		t.Errorf("not in force everywhere: %d %s", a.status, a.body)
	}
	serial := e.revoke(t, "serial", fmt.Sprintf("%X", ops.cert.Certificate.SerialNumber))
	e.revoke(t, "spiffe", "spiffe://muster/muster/role/viewer/phone")
	refused := func(when string) {
		t.Helper()
		for i, n := range tr.nodes {
			for _, base := range []string{n.control + path, n.policy + "/v1/data/a"} {
				for name, s := range map[string]*shower{"laptop": ops, "phone": byKey} {
					if a := s.do(t, base, "GET", "", ""); a.status != 401 {
						t.Errorf("%s, the %s at %s: %d %s", when, name, base, a.status, a.body)
					}
				}
			}
			if a := e.as(t, token, i, "GET", path, ""); a.status != 401 {
				t.Errorf("%s, the token at %s: %d %s", when, n.id, a.status, a.body)
			}
		}
	}
	refused("after the answer")
	for i := range waits {
		select {
		case status := <-waits[i]:
			if status != 401 {
				t.Errorf("a call that waited at node %d ended with %d", i+1, status)
			}
		case <-time.After(time.Minute):
			t.Fatalf("a call that waits at node %d goes on with a revoked token", i+1)
		}
	}
	for i := range streams {
		select {
		case told := <-streams[i]:
			if !strings.Contains(told, string(fault.Unauthenticated)) {
				t.Errorf("an event stream of node %d ended with %s", i+1, told)
			}
		case <-time.After(time.Minute):
			t.Fatalf("an event stream of node %d goes on with a revoked token", i+1)
		}
	}
	tr.awaitLine(0, "the revocation", func(l *audit.Entry) bool { return l.Record == "revocation "+serial.Name && l.Outcome == audit.Applied })

	if a := e.restore(t, 1, "?force=true", early); a.status != 200 {
		t.Fatalf("restore: %d %s", a.status, a.body)
	}
	e.states(t)
	refused("after a restore of a snapshot from before")

	// An operator can take it back.
	e.mustDo(t, "DELETE", "/v1/revocations/"+serial.Name, "")
	e.states(t)
	for _, n := range tr.nodes {
		if a := ops.do(t, n.control, "GET", path, ""); a.status != 200 {
			t.Errorf("after it was taken back: %d %s", a.status, a.body)
		}
	}
	for body, code := range map[string]fault.Code{
		`{"kind":"cookie","value":"a","reason":"b"}`: fault.InvalidField, `{"kind":"jti","value":"a"}`: fault.InvalidField,
		`{"kind":"jti","value":"a","reason":"b","expires_at":"2001-01-01T00:00:00Z"}`: fault.InvalidField, `{"kind":"jti","value":"a","reason":"b","x":1}`: fault.InvalidField,
	} {
		e.send(t, 2, "HTTP/2.0", call{"POST", "/v1/revocations", strings.NewReader(body), nil}).want(t, 400, code)
	}
}

// A node whose certificate is revoked is cut off: it is not dialled, not let in,
// and what was open is closed.
func TestARevokedNodeIsCutOff(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	lead := e.leader(t)
	out := (lead + 1) % 3
	// The leader would cut itself off, and nobody would hear of it.
	e.send(t, out, "HTTP/2.0", call{"POST", "/v1/revocations", strings.NewReader(`{"kind":"spiffe","value":"spiffe://muster/muster/node/` + tr.nodes[lead].id + `","reason":"x"}`), nil}).want(t, 409, fault.Conflict)
	a := e.send(t, lead, "HTTP/2.0", call{"POST", "/v1/revocations", strings.NewReader(`{"kind":"spiffe","value":"spiffe://muster/muster/node/` + tr.nodes[out].id + `","reason":"stolen"}`), nil})
	var told struct {
		Pending   []string
		InForceAt time.Time `json:"in_force_at"`
	}
	must(t, json.Unmarshal(a.body, &told))
	// Nobody can tell it, so it may go on for as long as one that is cut off.
	if a.status != 202 || !slices.Equal(told.Pending, []string{tr.nodes[out].id}) || !told.InForceAt.After(time.Now()) || a.header.Get("Retry-After") == "" {
		t.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	until(t, "the leader no longer reaches the node", func() error {
		a := e.send(t, lead, "HTTP/2.0", call{method: "GET", path: "/v1/cluster/status"})
		var status struct {
			Nodes []struct {
				ID    string
				Alive bool
			}
		}
		must(t, json.Unmarshal(a.body, &status))
		if slices.ContainsFunc(status.Nodes, func(n struct {
			ID    string
			Alive bool
		}) bool {
			return n.ID == tr.nodes[out].id && n.Alive
		}) {
			return fmt.Errorf("%s answers the leader", tr.nodes[out].id)
		}
		return nil
	})
	until(t, "the node cannot write", func() error {
		a := e.once(t, out, "HTTP/2.0", call{"PUT", "/v1/namespaces/shop/services/cart", strings.NewReader(`{}`), nil})
		if a.status != 503 {
			return fmt.Errorf("%d %s", a.status, a.body)
		}
		return nil
	})
	if a := e.send(t, lead, "HTTP/2.0", call{"PUT", "/v1/namespaces/shop/services/cart", strings.NewReader(`{}`), nil}); a.status >= 300 {
		t.Errorf("the others cannot write: %d %s", a.status, a.body)
	}
	until(t, "the refused connections are on record", func() error {
		if len(tr.lines(lead, func(l *audit.Entry) bool {
			return l.Type == audit.Connection && strings.HasSuffix(l.Principal, "/node/"+tr.nodes[out].id) && strings.Contains(l.Reason, "revoked")
		})) == 0 {
			return errors.New("no line in the leader's trail")
		}
		return nil
	})
}
