package node_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/muster-registry/muster/api/rpc/musterv1"
	"github.com/muster-registry/muster/fault"
)

// dialRPC connects a gRPC client to a node. A proxied one looks to the node like
// one behind a proxy, whose calls net/http serves.
func (e *edge) dialRPC(t *testing.T, node int, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	cfg.RootCAs = e.pool
	conn, err := grpc.NewClient(strings.TrimPrefix(e.tr.nodes[node].control, "https://"), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (e *edge) context(t *testing.T, pairs ...string) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, append([]string{"authorization", "Bearer " + e.tr.token}, pairs...)...)
}

// problemOf is the stable code that a refused call carries.
func problemOf(t *testing.T, err error) *musterv1.Problem {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if p, ok := d.(*musterv1.Problem); ok {
			return p
		}
	}
	t.Fatalf("%v carries no problem", err)
	return nil
}

// TestRPCAnswersAsREST makes the same mistakes over both, natively, and by the
// way over net/http that a proxy's calls take.
func TestRPCAnswersAsREST(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	for way, extra := range map[string][]string{"native": nil, "proxied": {"x-forwarded-proto", "https"}} {
		t.Run(way, func(t *testing.T) {
			c := musterv1.NewRegistryClient(e.dialRPC(t, 0, &tls.Config{}))
			ctx := e.context(t, extra...)
			in := func(id string) *musterv1.Instance {
				return &musterv1.Instance{Namespace: "shop", Service: way, Id: id, Address: "10.0.0.1", Port: 8080, Zone: "a", Tags: []string{"x"}}
			}
			made, err := c.Register(ctx, &musterv1.RegisterRequest{Instance: in("one"), CreateService: true})
			must(t, err)
			if !made.Created || made.Instance.GetWeight() != 1 || made.Instance.Status != "passing" || made.Revision != made.Instance.Revision {
				t.Errorf("%v", made)
			}
			var header metadata.MD
			found, err := c.Resolve(ctx, &musterv1.ResolveRequest{Namespace: "shop", Service: way, Reading: &musterv1.Reading{MinRevision: made.Revision}}, grpc.Header(&header))
			must(t, err)
			if len(found.Instances) != 1 || found.Instances[0].Id != "one" || found.Instances[0].Port != 8080 || found.Revision != made.Revision {
				t.Errorf("%v", found)
			}
			if len(header["muster-node"]) != 1 || len(header["x-request-id"]) != 1 || header["muster-revision"][0] == "" {
				t.Errorf("%v", header)
			}
			d, err := c.Decide(ctx, &musterv1.DecideRequest{Input: []byte(`{"action":"lookup"}`)})
			must(t, err)
			rest := e.mustDo(t, "POST", "/v1/authorize", `{"input":{"action":"lookup"}}`)
			if !strings.Contains(string(rest.body), fmt.Sprintf(`"allow":%v`, d.Allow)) {
				t.Errorf("%v, over REST %s", d, rest.body)
			}
			base := "/v1/namespaces/shop/services/" + way + "/instances/"
			old := uint64(1)
			decide := func(input string) func() error {
				return func() error {
					_, err := c.Decide(ctx, &musterv1.DecideRequest{Input: []byte(input)})
					return err
				}
			}
			for name, m := range map[string]struct {
				rpc                func() error
				method, path, body string
				header             []string
				code               codes.Code
			}{
				"unknown service": {func() error {
					_, err := c.Resolve(ctx, &musterv1.ResolveRequest{Namespace: "shop", Service: "none"})
					return err
				}, "GET", "/v1/discovery/shop/none", "", nil, codes.NotFound},
				"register with an unknown service": {func() error {
					_, err := c.Register(ctx, &musterv1.RegisterRequest{Instance: &musterv1.Instance{Namespace: "shop", Service: "none", Id: "a", Address: "10.0.0.1", Port: 1}})
					return err
				}, "PUT", "/v1/namespaces/shop/services/none/instances/a", `{"address":"10.0.0.1","port":1}`, nil, codes.NotFound},
				"bad port": {func() error {
					bad := in("two")
					bad.Port = 70000
					_, err := c.Register(ctx, &musterv1.RegisterRequest{Instance: bad})
					return err
				}, "PUT", base + "two", `{"address":"10.0.0.1","port":70000}`, nil, codes.InvalidArgument},
				"bad name": {func() error {
					_, err := c.Resolve(ctx, &musterv1.ResolveRequest{Namespace: "Shop", Service: "x"})
					return err
				}, "GET", "/v1/discovery/Shop/x", "", nil, codes.InvalidArgument},
				"an old revision": {func() error {
					_, err := c.Register(ctx, &musterv1.RegisterRequest{Instance: in("one"), Condition: &musterv1.Condition{Match: &old}})
					return err
				}, "PUT", base + "one", `{"address":"10.0.0.1","port":1}`, []string{"If-Match", `"1"`}, codes.FailedPrecondition},
				"there already": {func() error {
					_, err := c.Register(ctx, &musterv1.RegisterRequest{Instance: in("one"), Condition: &musterv1.Condition{CreateOnly: true}})
					return err
				}, "PUT", base + "one", `{"address":"10.0.0.1","port":1}`, []string{"If-None-Match", "*"}, codes.FailedPrecondition},
				"gone": {func() error {
					_, err := c.Deregister(ctx, &musterv1.DeregisterRequest{Namespace: "shop", Service: way, Id: "none"})
					return err
				}, "DELETE", base + "none", "", nil, codes.NotFound},
				"no input": {func() error {
					_, err := c.Decide(ctx, &musterv1.DecideRequest{})
					return err
				}, "POST", "/v1/authorize", "{}", nil, codes.InvalidArgument},
				"the far future": {func() error {
					_, err := c.Resolve(ctx, &musterv1.ResolveRequest{Namespace: "shop", Service: way, Reading: &musterv1.Reading{MinRevision: 1 << 40}})
					return err
				}, "GET", "/v1/discovery/shop/" + way + "?min_revision=1099511627776", "", nil, codes.Unavailable},
				"a NUL in a name": {func() error {
					bad := in("t\x00wo")
					_, err := c.Register(ctx, &musterv1.RegisterRequest{Instance: bad})
					return err
				}, "PUT", base + "t%00wo", `{"address":"10.0.0.1","port":1}`, nil, codes.InvalidArgument},
				"input 10 000 levels deep": {decide(strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)), "POST", "/v1/authorize",
					`{"input":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`, nil, codes.InvalidArgument},
				"a key twice in the input":  {decide(`{"a":1,"a":2}`), "POST", "/v1/authorize", `{"input":{"a":1,"a":2}}`, nil, codes.InvalidArgument},
				"something after the input": {decide(`{} {}`), "POST", "/v1/authorize", `{"input":{}} {}`, nil, codes.InvalidArgument},
				"nobody": {func() error {
					_, err := c.Resolve(metadata.NewOutgoingContext(ctx, metadata.MD{}), &musterv1.ResolveRequest{Service: "x"})
					return err
				}, "GET", "/v1/discovery/shop/x", "", []string{"Authorization", ""}, codes.Unauthenticated},
			} {
				t.Run(name, func(t *testing.T) {
					err := m.rpc()
					p := problemOf(t, err)
					a := e.send(t, 0, "HTTP/2.0", call{method: m.method, path: m.path, body: strings.NewReader(m.body),
						header: append([]string{"Authorization", "Bearer " + tr.token, "Content-Type", "application/json"}, m.header...)})
					if status.Code(err) != m.code || p.Code != string(a.Code) || p.RequestId == "" || (len(a.Errors) > 0) != (len(p.Errors) > 0) {
						t.Errorf("%v with %v; over REST %d %s", err, p, a.status, a.body)
					}
				})
			}
			// These the library refuses, before it knows who calls.
			_, err = c.Decide(ctx, &musterv1.DecideRequest{Input: make([]byte, 5<<20)})
			if status.Code(err) != codes.ResourceExhausted {
				t.Errorf("more than a message may have: %v", err)
			}
			_, err = c.Decide(ctx, &musterv1.DecideRequest{Input: make([]byte, 40<<20)}, grpc.UseCompressor("gzip"), grpc.MaxCallSendMsgSize(64<<20))
			if status.Code(err) != codes.ResourceExhausted {
				t.Errorf("gzip that grows: %v", err)
			}
			beats, err := c.Heartbeat(ctx)
			must(t, err)
			for _, id := range []string{"one", "none", "one"} {
				must(t, beats.Send(&musterv1.HeartbeatRequest{Namespace: "shop", Service: way, Id: id}))
				res, err := beats.Recv()
				must(t, err)
				if (res.Problem == nil) != (id == "one") || res.Problem != nil && res.Problem.Code != string(fault.InstanceNotFound) {
					t.Errorf("%s: %v", id, res)
				}
			}
			_, err = c.Deregister(ctx, &musterv1.DeregisterRequest{Namespace: "shop", Service: way, Id: "one"})
			must(t, err)
		})
	}
}

// TestRPCOnTheControlPort has health without a credential, and reflection with.
func TestRPCOnTheControlPort(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	conn := e.dialRPC(t, 0, &tls.Config{})
	h, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	must(t, err)
	if h.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("%v", h)
	}
	// Whoever only looks once is anybody; who stays is known.
	stay := func(ctx context.Context) (*grpc_health_v1.HealthCheckResponse, error) {
		s, err := grpc_health_v1.NewHealthClient(conn).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		must(t, err)
		return s.Recv()
	}
	if h, err := stay(t.Context()); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a watch on health for nobody: %v, %v", h, err)
	}
	if h, err := stay(e.context(t)); err != nil || h.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", h, err)
	}
	ask := func(ctx context.Context) (*grpc_reflection_v1.ServerReflectionResponse, error) {
		s, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
		must(t, err)
		_ = s.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
		return s.Recv()
	}
	if _, err := ask(t.Context()); status.Code(err) != codes.Unauthenticated {
		t.Errorf("reflection for nobody: %v", err)
	}
	r, err := ask(e.context(t))
	must(t, err)
	if !strings.Contains(r.String(), "muster.v1.Registry") {
		t.Errorf("%v", r)
	}
	// REST goes on beside it, also for who speaks HTTP/2 alone.
	for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
		if a := e.send(t, 0, version, call{method: "GET", path: "/livez"}); a.status != 200 {
			t.Errorf("%s: %d", version, a.status)
		}
	}
}

// TestRPCWatch follows several scopes on one stream, through a restart of the
// watch elsewhere.
func TestRPCWatch(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	c := musterv1.NewRegistryClient(e.dialRPC(t, 0, &tls.Config{}))
	ctx := e.context(t)
	put := func(svc, id string) uint64 {
		t.Helper()
		r, err := c.Register(ctx, &musterv1.RegisterRequest{CreateService: true, Instance: &musterv1.Instance{Namespace: "shop", Service: svc, Id: id, Address: "10.0.0.1", Port: 1}})
		must(t, err)
		return r.Revision
	}
	first := put("cart", "a")
	w, err := c.Watch(ctx)
	must(t, err)
	begin := func(id uint64, ns, svc string, after uint64) {
		t.Helper()
		must(t, w.Send(&musterv1.WatchRequest{Request: &musterv1.WatchRequest_Begin_{Begin: &musterv1.WatchRequest_Begin{Watch: id, Namespace: ns, Service: svc, After: after}}}))
	}
	// next skips what says only how far the watch is.
	next := func() *musterv1.WatchResponse {
		t.Helper()
		for {
			r, err := w.Recv()
			must(t, err)
			if !r.Progress || len(r.Events) > 0 {
				return r
			}
		}
	}
	begin(1, "shop", "cart", first-1)
	if r := next(); r.Watch != 1 || !r.Begun {
		t.Fatalf("%v", r)
	}
	if r := next(); r.Watch != 1 || len(r.Events) != 2 || r.Events[0].Kind != "service" || r.Events[1].Id != "a" || r.Revision < first {
		t.Fatalf("%v", r)
	}
	begin(2, "shop", "till", 0)
	if r := next(); r.Watch != 2 || !r.Begun {
		t.Fatalf("%v", r)
	}
	put("till", "b")
	if r := next(); r.Watch != 2 || len(r.Events) != 2 || !strings.Contains(string(r.Events[1].Record), `"id":"b"`) {
		t.Fatalf("%v", r)
	}
	must(t, w.Send(&musterv1.WatchRequest{Request: &musterv1.WatchRequest_Cancel{Cancel: 2}}))
	if r := next(); r.Watch != 2 || r.Ended == nil {
		t.Fatalf("%v", r)
	}
	put("till", "c")
	second := put("cart", "b")
	if r := next(); r.Watch != 1 || len(r.Events) != 1 || r.Events[0].Revision != second {
		t.Fatalf("%v", r)
	}
	begin(3, "Shop", "", 0)
	if r := next(); r.Watch != 3 || r.Ended.GetCode() != string(fault.InvalidField) {
		t.Fatalf("%v", r)
	}
	// A stopping node says where to go on.
	tr.stop(0)
	if r := next(); r.Watch != 1 || r.Ended.GetCode() != string(fault.NotReady) {
		t.Fatalf("%v", r)
	}
}
