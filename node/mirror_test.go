package node_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
)

// siem takes arrays of events over TLS; it can be away.
type siem struct {
	tr   *trial
	addr string

	mu     sync.Mutex
	events []mirroredLine
	server *http.Server
}

type mirroredLine struct {
	audit.Entry
	Request struct {
		Method  string            `json:"method"`
		Path    string            `json:"path"`
		Headers map[string]string `json:"headers"`
	} `json:"request"`
}

func newSIEM(t *testing.T, tr *trial) *siem {
	t.Helper()
	cert, err := tr.ca.Issue("muster", pki.Request{ID: "spiffe://muster/ns/ops/sa/siem", Hosts: []string{"127.0.0.1"}}, time.Now())
	must(t, err)
	must(t, cert.Write(tr.file("siem.crt"), tr.file("siem.key")))
	s := &siem{tr: tr, addr: freePorts(t, 1)[0]}
	t.Cleanup(s.leave)
	return s
}

func (s *siem) come() {
	s.tr.t.Helper()
	l, err := net.Listen("tcp", s.addr)
	must(s.tr.t, err)
	s.server = &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(unzipped(r))
		var all []mirroredLine
		if err == nil {
			err = json.Unmarshal(b, &all)
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			s.tr.t.Errorf("the sink got %v: %s", err, b)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.events = append(s.events, all...)
	})}
	go func(h *http.Server) { _ = h.ServeTLS(l, s.tr.file("siem.crt"), s.tr.file("siem.key")) }(s.server)
}

func (s *siem) leave() {
	if s.server != nil {
		_ = s.server.Close()
		s.server = nil
	}
}

func (s *siem) await(what string, match func(*mirroredLine) bool) mirroredLine {
	s.tr.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		s.mu.Lock()
		i := slices.IndexFunc(s.events, func(e mirroredLine) bool { return match(&e) })
		if i >= 0 {
			defer s.mu.Unlock()
			return s.events[i]
		}
		count := len(s.events)
		s.mu.Unlock()
		if time.Now().After(deadline) {
			s.tr.t.Fatalf("%s is not among the %d lines that the sink has", what, count)
		}
	}
}

const mirroring = "audit: {lookups: all, mirror: {type: http, url: %q, ca: ca.crt, allow: [127.0.0.1], %s}}\n"

// TestMirroredTrail: the sink has the lines of each node's trail; the node that
// took a call adds its method, path and headers, and nobody else does.
func TestMirroredTrail(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	s := newSIEM(t, tr)
	s.come()
	tr.configure(t, fmt.Sprintf(mirroring, "https://"+s.addr, "spool: 1MiB"))
	tr.startAll()
	e := newEdge(t, tr)
	for i := range tr.nodes {
		name := fmt.Sprintf("through%d", i+1)
		for _, method := range []string{"PUT", "GET"} {
			body := map[string]string{"PUT": `{"owner":"planted-payload"}`}[method]
			req, err := http.NewRequestWithContext(t.Context(), method, tr.nodes[i].control+"/v1/namespaces/default/services/"+name+"?consistency=linearizable", strings.NewReader(body))
			must(t, err)
			if method == "PUT" {
				req.URL.RawQuery = ""
			}
			req.Header.Set("Authorization", "Bearer "+tr.token)
			req.Header.Set("X-Department", "sales")
			res, err := e.http["HTTP/2.0"].Do(req)
			must(t, err)
			_ = res.Body.Close()
		}
		for k, n := range tr.nodes {
			got := s.await(fmt.Sprintf("the change through node %d, of node %d", i+1, k+1), func(l *mirroredLine) bool {
				return l.Node == n.id && l.Type == audit.Change && l.Record == "service default/"+name
			})
			if i == k && (got.Request.Method != "PUT" || got.Request.Path != "/v1/namespaces/default/services/"+name || got.Request.Headers["X-Department"] != "sales" || got.Request.Headers["Authorization"] != "***") ||
				i != k && got.Request.Method != "" {
				t.Errorf("through node %d, of node %d: %+v", i+1, k+1, got.Request)
			}
		}
		if got := s.await("the look-up", func(l *mirroredLine) bool {
			return l.Type == audit.Lookup && strings.HasSuffix(l.Record, name)
		}); got.Request.Headers["X-Department"] != "sales" || strings.Contains(got.Request.Path, "?") {
			t.Errorf("%+v", got)
		}
	}
	// One call, two changes.
	if a := e.send(t, 1, "HTTP/2.0", call{"POST", "/v1/policy/revisions?activate=true", strings.NewReader(`{"modules":{"a.rego":"package a\n\nimport rego.v1\n\nx := 1\n"}}`), []string{"X-Department", "law"}}); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	for _, action := range []string{"stage", "activate"} {
		s.await("the line with the call, of "+action, func(l *mirroredLine) bool {
			return l.Action == action && l.Node == "n2" && l.Request.Headers["X-Department"] == "law"
		})
	}
	if _, err := tr.client("muster_0000000000000000_wrong", 1).Get(context.Background(), cart, client.Read{}); client.Code(err) != fault.Unauthenticated {
		t.Errorf("a wrong token: %v", err)
	}
	if got := s.await("the refusal", func(l *mirroredLine) bool { return l.Type == audit.Refusal }); got.Node != "n2" || got.Request.Headers["Authorization"] != "***" || got.Request.Headers["User-Agent"] == "" {
		t.Errorf("%+v", got)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", tr.nodes[0].policy+"/v1/data", nil)
	must(t, err)
	req.Header.Set("X-Department", "buying")
	if res, err := e.http["HTTP/1.1"].Do(req); err == nil {
		_ = res.Body.Close()
	}
	s.await("the refusal on the policy port", func(l *mirroredLine) bool { return l.Request.Headers["X-Department"] == "buying" })
}

// TestMirrorAway: while the sink is away beyond the bounds, a node refuses changes
// or goes on, as it is told; it takes them again when the sink is back, and what
// waited arrives, over a restart too.
func TestMirrorAway(t *testing.T) {
	t.Parallel()
	for _, onFailure := range []string{"refuse_writes", "continue"} {
		t.Run(onFailure, func(t *testing.T) {
			tr := newTrial(t, 1)
			s := newSIEM(t, tr)
			tr.configure(t, fmt.Sprintf(mirroring, "https://"+s.addr, "spool: 64KiB, on_failure: "+onFailure))
			tr.startAll()
			ctx := context.Background()
			c := tr.client(tr.token, 0)
			put := func(name string) error {
				_, err := c.Put(ctx, client.Ref{Kind: client.Service, Namespace: "default", Name: name}, []byte(`{"owner":"shop"}`), client.Write{})
				return err
			}
			must(t, put("first"))
			var refusal error
			for i := 0; i < 400 && refusal == nil; i++ {
				refusal = put(fmt.Sprintf("s%d", i))
			}
			if onFailure == "continue" {
				must(t, refusal)
				if line, err := tr.metric(0, `muster_audit_mirror_dropped_total{reason="spool"}`); err != nil || line == "" || strings.HasSuffix(line, " 0") {
					t.Errorf("%q, %v", line, err)
				}
			} else if client.Code(refusal) != fault.NotReady || !strings.Contains(refusal.Error(), "audit mirror") {
				t.Fatalf("with a full spool: %v", refusal)
			}
			if _, err := c.Get(ctx, cart, client.Read{}); client.Code(err) != fault.ServiceNotFound {
				t.Errorf("look-ups go on: %v", err)
			}
			if health := tr.health(0); !strings.Contains(health, "[!] the sink of the audit mirror") {
				t.Errorf("the node says %q", health)
			}
			tr.stop(0)
			tr.start(0)
			tr.awaitReady(0)
			s.come()
			s.await("the first change", func(l *mirroredLine) bool { return l.Record == "service default/first" })
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
				err := put("last")
				if err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal(err)
				}
			}
			s.await("the last change", func(l *mirroredLine) bool { return l.Record == "service default/last" })
			if _, err := os.Stat(tr.file("n1/audit/mirror")); err != nil {
				t.Error(err)
			}
		})
	}
}
