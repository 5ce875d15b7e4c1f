package node_test

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/muster-registry/muster/api/consul"
	"github.com/muster-registry/muster/api/opa"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/api/rpc/musterv1"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
	"github.com/muster-registry/muster/policy"
)

// asked is one call that an edge answers.
type asked struct {
	base         func(*running) string
	method, path string
	action       policy.Action
	kind         string
	open         bool // answered without a credential
}

// edges lists the calls of every edge. A new room below api belongs in here,
// with all it answers; what answers nobody is nil.
var edges = map[string]func() []asked{
	"door":  nil, // the edges are in front of it
	"dns":   nil, // it has no paths and only looks up: TestDNSAsksForTheRole
	"rpc":   nil, // it has no paths: TestNoMethodWithoutARole
	"envoy": nil, // likewise
	"xds":   nil, // likewise
	"rest": func() (all []asked) {
		for _, r := range rest.Table() {
			all = append(all, asked{func(n *running) string { return n.control }, r.Method, r.Path, r.Action, r.Kind, r.Open})
		}
		return all
	},
	"consul": func() (all []asked) {
		for _, r := range consul.Table() {
			all = append(all, asked{func(n *running) string { return n.control }, r.Method, r.Path, r.Action, r.Kind, false})
		}
		return all
	},
	"opa": func() (all []asked) {
		for _, r := range opa.Table() {
			all = append(all, asked{func(n *running) string { return n.policy }, r.Method, r.Path, r.Action, r.Kind, r.Open})
		}
		return all
	},
}

var placeholder = regexp.MustCompile(`\{[a-z_.]+\}|\{\$\}`)

// Every call of every edge asks who calls and whether the role allows it:
// without a credential it is 401, with one that no rule knows 403, and with each
// role what testdata/roles.txt says. Nothing has changed after it: who may, asks
// for what cannot be done.
func TestNoCallWithoutARole(t *testing.T) {
	t.Parallel()
	rooms, err := filepath.Glob("../api/*")
	must(t, err)
	for _, room := range rooms {
		files, err := filepath.Glob(filepath.Join(room, "*.go"))
		must(t, err)
		if _, known := edges[filepath.Base(room)]; !known && len(files) > 0 {
			t.Errorf("this test does not walk the edge %s: list its calls in edges", room)
		}
	}
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	tokens := map[string]string{}
	for _, role := range policy.Roles() {
		tokens[role] = e.credential(t, role)
	}
	stranger := e.certified(t, pki.Request{ID: "spiffe://muster/ns/shop/sa/stranger"})
	table := readLedger(t)
	before := e.states(t)
	refused, allowed := 0, 0
	for room, calls := range edges {
		if calls == nil {
			continue
		}
		for _, c := range calls() {
			roles := table.of(t, room, c.method, c.path, c.open)
			if c.open {
				continue
			}
			base, path, what := c.base(tr.nodes[0]), located(c.path), room+" "+c.method+" "+c.path
			if status, said := e.status(t, "", c.method, base+path); status != 401 {
				t.Errorf("%s without a credential: %d %s", what, status, said)
			}
			if a := stranger.do(t, base, c.method, path, "{"); a.status != 403 {
				t.Errorf("%s as somebody without a role: %d %s", what, a.status, a.body)
			}
			for role, token := range tokens {
				status, said := e.status(t, token, c.method, base+path)
				switch may := slices.Contains(roles, role); {
				case !may && status != 403, may && (status == 403 || status == 401):
					t.Errorf("%s as %s: %d %s", what, role, status, said)
				case may:
					allowed++
				default:
					refused++
				}
			}
		}
	}
	table.done(t, "rest", "opa", "consul")
	if after := e.states(t); after != before {
		t.Errorf("a call changed the state:\nbefore %s\nafter  %s", before, after)
	}
	t.Logf("%d calls were refused for their role, %d were not", refused, allowed)
	if refused < 200 || allowed < 200 {
		t.Errorf("only %d calls with a wrong role were tried, and %d with one that may", refused, allowed)
	}
}

// located is a path with names in it of what is not there.
func located(path string) string {
	return placeholder.ReplaceAllStringFunc(path, func(name string) string {
		if name == "{$}" {
			return ""
		}
		if value, ok := map[string]string{"{revision}": "999", "{token}": "0123456789abcdef", "{version}": "1.0.0"}[name]; ok {
			return value
		}
		return "shop"
	})
}

// status makes a call with a body that nobody can read, and looks no further
// than the beginning of the answer, which may be a stream.
func (e *edge) status(t *testing.T, token, method, url string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader("{"))
	must(t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := e.http["HTTP/2.0"].Do(req)
	must(t, err)
	defer res.Body.Close()
	if res.StatusCode == 200 {
		return 200, nil
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, 4096))
	must(t, err)
	return res.StatusCode, b
}

// Every method of the gRPC edge does likewise, with every role, but for health, which is open.
func TestNoMethodWithoutARole(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	stranger := e.certified(t, pki.Request{ID: "spiffe://muster/ns/shop/sa/stranger"})
	instance := &musterv1.Instance{Namespace: "shop", Service: "cart", Id: "a", Address: "10.0.0.1", Port: 80}
	const own = "muster.v1.Registry/"
	first := map[string]proto.Message{
		own + "Register":   &musterv1.RegisterRequest{Instance: instance, CreateService: true},
		own + "Heartbeat":  &musterv1.HeartbeatRequest{Namespace: "shop", Service: "cart", Id: "a"},
		own + "Deregister": &musterv1.DeregisterRequest{Namespace: "shop", Service: "cart", Id: "a"},
		own + "Resolve":    &musterv1.ResolveRequest{Namespace: "shop", Service: "cart"},
		own + "Watch":      &musterv1.WatchRequest{Request: &musterv1.WatchRequest_Begin_{Begin: &musterv1.WatchRequest_Begin{Watch: 1}}},
		own + "Decide":     &musterv1.DecideRequest{Input: []byte(`{}`)},

		"envoy.service.auth.v3.Authorization/Check":                                       &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Path: "/"}}}},
		"envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources": &discoveryv3.DiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"},
		"envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources":  &discoveryv3.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"},
		"envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit":                     &ratelimitv3.RateLimitRequest{Domain: "shop"},
	}
	table, tokens := readLedger(t), map[string]string{}
	for _, role := range policy.Roles() {
		tokens[role] = e.credential(t, role)
	}
	plain, shown := e.dialRPC(t, 0, &tls.Config{}), e.dialRPC(t, 0, &tls.Config{Certificates: []tls.Certificate{stranger.pair}})
	before := e.states(t)
	// answered gives what became of the first message. Who may asks for what
	// cannot be done.
	answered := func(method string, message proto.Message, conn *grpc.ClientConn, pairs ...string) codes.Code {
		t.Helper()
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), pairs...), time.Minute)
		defer cancel()
		desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
		s, err := conn.NewStream(ctx, desc, "/"+method)
		must(t, err)
		_ = s.SendMsg(message)                            // what became of it the answer tells
		problem := func(p *musterv1.Problem) codes.Code { // streams answer each message by itself
			return map[string]codes.Code{string(fault.Forbidden): codes.PermissionDenied, string(fault.Unauthenticated): codes.Unauthenticated}[p.GetCode()]
		}
		switch method {
		case own + "Heartbeat":
			beat := new(musterv1.HeartbeatResponse)
			if err := s.RecvMsg(beat); err != nil {
				return status.Code(err)
			}
			return problem(beat.GetProblem())
		case own + "Watch":
			event := new(musterv1.WatchResponse)
			if err := s.RecvMsg(event); err != nil {
				return status.Code(err)
			}
			return problem(event.GetEnded())
		}
		must(t, s.CloseSend())
		return status.Code(s.RecvMsg(new(emptypb.Empty)))
	}
	impossible := map[string]proto.Message{
		own + "Register": &musterv1.RegisterRequest{Instance: &musterv1.Instance{Namespace: "shop", Service: "cart", Id: "a", Address: "10.0.0.1", Port: 70000}},
	}
	var methods []string
	for _, d := range []grpc.ServiceDesc{musterv1.Registry_ServiceDesc, authv3.Authorization_ServiceDesc, ratelimitv3.RateLimitService_ServiceDesc, discoveryv3.AggregatedDiscoveryService_ServiceDesc} {
		for _, m := range d.Methods {
			methods = append(methods, d.ServiceName+"/"+m.MethodName)
		}
		for _, m := range d.Streams {
			methods = append(methods, d.ServiceName+"/"+m.StreamName)
		}
	}
	for _, service := range e.services(t, plain) {
		known := strings.HasPrefix(service, "grpc.reflection.") || strings.HasPrefix(service, "grpc.health.")
		if !known && !slices.ContainsFunc(methods, func(m string) bool { return strings.HasPrefix(m, service+"/") }) {
			t.Errorf("this test does not walk the service %s", service)
		}
	}
	for _, m := range methods {
		if first[m] == nil {
			t.Errorf("this test does not know %s: say above how it is called", m)
			continue
		}
		if code := answered(m, first[m], plain); code != codes.Unauthenticated {
			t.Errorf("%s without a credential: %s", m, code)
		}
		if code := answered(m, first[m], shown); code != codes.PermissionDenied {
			t.Errorf("%s as somebody without a role: %s", m, code)
		}
		roles := table.of(t, "rpc", "CALL", m, false)
		for role, token := range tokens {
			message, may := first[m], slices.Contains(roles, role)
			if other, ok := impossible[m]; ok && may {
				message = other
			}
			code := answered(m, message, plain, "authorization", "Bearer "+token)
			if may == (code == codes.PermissionDenied) || code == codes.Unauthenticated {
				t.Errorf("%s as %s: %s", m, role, code)
			}
		}
	}
	table.done(t, "rpc")
	if after := e.states(t); after != before {
		t.Errorf("a call changed the state:\nbefore %s\nafter  %s", before, after)
	}
}

// services are those that a node offers over gRPC, by its own word.
func (e *edge) services(t *testing.T, conn *grpc.ClientConn) (all []string) {
	t.Helper()
	s, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(e.context(t))
	must(t, err)
	must(t, s.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}))
	r, err := s.Recv()
	must(t, err)
	for _, one := range r.GetListServicesResponse().GetService() {
		all = append(all, one.GetName())
	}
	if len(all) < 2 {
		t.Fatalf("%v", r)
	}
	return all
}
