package node_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/api/rpc/musterv1"
	"github.com/muster-registry/muster/audit"
)

// spanSeen is what a collector was told of one step.
type spanSeen struct{ node, name, id, parent, trace string }

// spans is a collector of OTLP, over HTTP and over gRPC.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu   sync.Mutex
	seen []spanSeen
	raw  bytes.Buffer // all that was sent, attributes too
	keys []string     // the header x-collector-key of each call
}

func (s *spans) Export(ctx context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.take(req, strings.Join(md.Get("x-collector-key"), ","))
	return &collector.ExportTraceServiceResponse{}, nil
}

// unzipped is the body of a request as it was before it was packed.
func unzipped(r *http.Request) io.Reader {
	if r.Header.Get("Content-Encoding") == "gzip" {
		if z, err := gzip.NewReader(r.Body); err == nil {
			return z
		}
	}
	return r.Body
}

func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(unzipped(r))
	req := new(collector.ExportTraceServiceRequest)
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(b, req) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.take(req, r.Header.Get("X-Collector-Key"))
}

func (s *spans) take(req *collector.ExportTraceServiceRequest, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = append(s.keys, key)
	fmt.Fprintln(&s.raw, req)
	for _, rs := range req.ResourceSpans {
		node := ""
		for _, a := range rs.Resource.Attributes {
			if a.Key == "service.instance.id" {
				node = a.Value.GetStringValue()
			}
		}
		for _, ss := range rs.ScopeSpans {
			for _, sp := range ss.Spans {
				s.seen = append(s.seen, spanSeen{node, sp.Name, hex.EncodeToString(sp.SpanId), hex.EncodeToString(sp.ParentSpanId), hex.EncodeToString(sp.TraceId)})
			}
		}
	}
}

// await waits until the trace has a step of that name, and gives it.
func (s *spans) await(t *testing.T, trace, node, name string) spanSeen {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		s.mu.Lock()
		for _, sp := range s.seen {
			if sp.trace == trace && sp.name == name && (node == "" || sp.node == node) {
				s.mu.Unlock()
				return sp
			}
		}
		seen := fmt.Sprint(s.seen)
		s.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatalf("no step %q of node %q in trace %s; there are %s", name, node, trace, seen)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// TestOneTraceOfAForwardedWrite: a change that one node takes and another
// decides is one trace with the steps of both, in their order, to the webhook
// and back; log, audit trail and decision name it. Over both forms of OTLP.
func TestOneTraceOfAForwardedWrite(t *testing.T) {
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			got := &spans{}
			endpoint := ""
			if protocol == "grpc" {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				must(t, err)
				g := grpc.NewServer()
				collector.RegisterTraceServiceServer(g, got)
				go func() { _ = g.Serve(l) }()
				t.Cleanup(g.Stop)
				endpoint = "http://" + l.Addr().String()
			} else {
				s := httptest.NewServer(got)
				t.Cleanup(s.Close)
				endpoint = s.URL
			}
			forwardedWrite(t, got, fmt.Sprintf("tracing: {enabled: true, endpoint: %q, protocol: %q, headers_file: collector.key}\n", endpoint, protocol))
		})
	}
}

// steady keeps the leader where it is on a busy machine, in tests that are about
// who does what.
const steady = "raft: {heartbeat_timeout: 3s, election_timeout: 3s, leader_lease: 3s, disk_stall: 6s}\n"

func forwardedWrite(t *testing.T, got *spans, config string) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	tr := newTrial(t, 2)
	tr.write(t, "collector.key", "X-Collector-Key: for-the-collector\n")
	tr.configure(t, config+steady+"webhook: {allow: [127.0.0.0/8]}\n")
	tr.startAll()
	e := newEdge(t, tr)
	leader := e.leader(t)
	follower := 1 - leader
	lead, follow := tr.nodes[leader].id, tr.nodes[follower].id

	var told atomic.Value
	hook := policyEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		told.Store(r.Header.Get("Traceparent"))
		_, _ = io.WriteString(w, `{"result":true}`)
	})
	send := func(node int, method, path, body string, header ...string) *answer {
		return e.send(t, node, "HTTP/2.0", call{method: method, path: path, body: strings.NewReader(body), header: header})
	}
	if a := send(leader, "PUT", "/v1/webhooks/opa", hook("")); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	const policy = `{"modules":{"w.rego":"package api.registry.authz\n\nimport rego.v1\n\ndefault allow := true\n"}}`
	if a := send(leader, "POST", "/v1/policy/revisions?activate=true", policy); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}

	const trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	a := send(follower, "PUT", "/v1/namespaces/default/services/cart", `{"owner":"shop"}`,
		"Traceparent", "00-"+trace+"-"+caller+"-01", "X-Request-Id", "my-request", "Baggage", "user=alice")
	if a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	parent := caller
	for _, step := range []struct{ node, name string }{
		{follow, "putService"}, {follow, "call submit"}, {lead, "serve submit"}, {lead, "admit"}, {lead, "propose"}, {lead, "apply"},
	} {
		s := got.await(t, trace, step.node, step.name)
		if s.parent != parent {
			t.Errorf("%s of %s belongs to step %s, not to %s", step.name, step.node, s.parent, parent)
		}
		parent = s.id
	}
	admit := got.await(t, trace, lead, "admit")
	asked := got.await(t, trace, lead, "webhook opa")
	if asked.parent != admit.id || got.await(t, trace, lead, "decide").parent != admit.id {
		t.Error("decision and webhook are not steps of the admission")
	}
	if want := "00-" + trace + "-" + asked.id + "-01"; told.Load() != want {
		t.Errorf("the webhook was told %v, not %s", told.Load(), want)
	}
	for i := range tr.nodes {
		line := tr.awaitLine(i, "the change", func(e *audit.Entry) bool { return e.RequestID == "my-request" })
		if line.TraceID != trace {
			t.Errorf("the trail of node %d names trace %q", i+1, line.TraceID)
		}
	}
	d := send(follower, "GET", "/v1/decisions/"+a.header.Get("Muster-Decision-Id"), "")
	if d.status != 200 || !strings.Contains(string(d.body), trace) || !strings.Contains(string(d.body), "my-request") {
		t.Errorf("the decision: %d %s", d.status, d.body)
	}

	// Without a trace of the caller's the node begins one, and all name it.
	a = send(follower, "PUT", "/v1/namespaces/default/services/desk", `{"owner":"shop"}`, "X-Request-Id", "another")
	line := tr.awaitLine(leader, "the change", func(e *audit.Entry) bool { return e.RequestID == "another" })
	if a.status != 201 || line.TraceID == "" {
		t.Fatalf("%d, trace %q in the trail", a.status, line.TraceID)
	}
	got.await(t, line.TraceID, follow, "putService")
	got.await(t, line.TraceID, lead, "apply")

	// Over gRPC it is no different.
	const called = "22222222222222222222222222222222"
	_, err := musterv1.NewRegistryClient(e.dialRPC(t, follower, &tls.Config{})).Register(
		e.context(t, "traceparent", "00-"+called+"-"+caller+"-01", "x-request-id", "by-grpc"),
		&musterv1.RegisterRequest{Instance: &musterv1.Instance{Namespace: "default", Service: "cart", Id: "i1", Address: "10.0.0.1", Port: 80}})
	must(t, err)
	if s := got.await(t, called, follow, "grpc:muster.v1.Registry/Register"); s.parent != caller {
		t.Errorf("the gRPC call belongs to step %s", s.parent)
	}
	got.await(t, called, lead, "apply")
	if line := tr.awaitLine(follower, "the change", func(e *audit.Entry) bool { return e.RequestID == "by-grpc" }); line.TraceID != called {
		t.Errorf("the trail names trace %q of a gRPC call", line.TraceID)
	}

	// What a caller does not want recorded is not.
	const quiet = "11111111111111111111111111111111"
	send(follower, "PUT", "/v1/namespaces/default/services/lamp", `{}`, "Traceparent", "00-"+quiet+"-"+caller+"-00")
	send(follower, "GET", "/livez", "")
	send(follower, "PUT", "/v1/namespaces/default/services/last", `{}`, "X-Request-Id", "last")
	got.await(t, tr.awaitLine(leader, "the change", func(e *audit.Entry) bool { return e.RequestID == "last" }).TraceID, follow, "putService")
	got.mu.Lock()
	defer got.mu.Unlock()
	for _, s := range got.seen {
		if s.trace == quiet || strings.Contains(s.name, "livez") {
			t.Errorf("recorded: %+v", s)
		}
	}
	if raw := got.raw.String(); strings.Contains(raw, operatorToken) || strings.Contains(raw, "alice") {
		t.Error("a span holds the caller's token or baggage")
	}
	for _, k := range got.keys {
		if k != "for-the-collector" {
			t.Errorf("the collector was called with the key %q", k)
		}
	}
}

// TestACollectorThatIsAwayHoldsNobodyUp: requests go on, and the node stops in
// time.
func TestACollectorThatIsAwayHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.configure(t, `tracing: {enabled: true, endpoint: "http://127.0.0.1:1"}`+"\n")
	tr.startAll()
	e := newEdge(t, tr)
	for i := range 20 {
		a := e.send(t, 0, "HTTP/2.0", call{method: "PUT", path: fmt.Sprintf("/v1/namespaces/default/services/s%d", i), body: strings.NewReader(`{}`)})
		if a.status != 201 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	tr.stop(0)
}

// TestLogLinesNameTheirRequest: what a node logs about a request names it, also
// on the node it was forwarded to.
func TestLogLinesNameTheirRequest(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 2)
	tr.configure(t, steady)
	tr.startAll()
	e := newEdge(t, tr)
	leader := e.leader(t)
	send := func(node int, method, path, body string, header ...string) *answer {
		return e.send(t, node, "HTTP/2.0", call{method: method, path: path, body: strings.NewReader(body), header: header})
	}
	slow := `{"modules":{"w.rego":` + quoted(`package api.registry.authz

import rego.v1

default allow := false

allow if {
	some a in numbers.range(1, 1000)
	some b in numbers.range(1, 1000)
	some c in numbers.range(1, 1000)
	a + b + c < 0
}
`) + `}}`
	if a := send(leader, "POST", "/v1/policy/revisions?activate=true", slow); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	a := send(1-leader, "PUT", "/v1/namespaces/default/services/cart", `{}`, "X-Request-Id", "forwarded-and-slow")
	if a.status != 403 || a.RequestID != "forwarded-and-slow" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	tr.awaitLog(t, leader, "cost too much", "request_id=forwarded-and-slow")
}

func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// write puts a file beside the configurations.
func (tr *trial) write(t *testing.T, name, text string) {
	t.Helper()
	must(t, os.WriteFile(tr.file(name), []byte(text), 0o600))
}

// awaitLog waits for a line of a node's log that has all of the words.
func (tr *trial) awaitLog(t *testing.T, node int, words ...string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		b, err := os.ReadFile(tr.file(tr.nodes[node].id + ".log"))
		must(t, err)
	lines:
		for line := range strings.Lines(string(b)) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no line with %q in the log:\n%s", words, b)
		}
		<-time.After(20 * time.Millisecond)
	}
}
