package node_test

import (
	"context"
	"crypto/tls"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

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
	"door": nil, // the edges are in front of it
	"rpc":  nil, // it has no paths: TestNoMethodWithoutARole
	"rest": func() (all []asked) {
		for _, r := range rest.Table() {
			all = append(all, asked{func(n *running) string { return n.control }, r.Method, r.Path, r.Action, r.Kind, r.Open})
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
// without a credential it is 401, with one that no rule knows and with every
// role that the table does not name 403, and nothing has changed.
func TestNoCallWithoutARole(t *testing.T) {
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
	anonymous := &http.Client{Transport: e.http["HTTP/1.1"].Transport}
	n := tr.nodes[0]
	before := e.states(t)
	refused := 0
	for room, calls := range edges {
		if calls == nil {
			continue
		}
		for _, c := range calls() {
			if c.open {
				continue
			}
			path := placeholder.ReplaceAllStringFunc(c.path, func(name string) string {
				return map[string]string{"{$}": "", "{revision}": "1", "{token}": "0123456789abcdef", "{version}": "1.0.0"}[name] + map[bool]string{true: "shop"}[name != "{$}" && name != "{revision}" && name != "{token}" && name != "{version}"]
			})
			url, what := c.base(n)+path, room+" "+c.method+" "+c.path
			req, err := http.NewRequestWithContext(t.Context(), c.method, url, strings.NewReader("{}"))
			must(t, err)
			res, err := anonymous.Do(req)
			must(t, err)
			if a := read(t, res); a.status != 401 {
				t.Errorf("%s without a credential: %d %s", what, a.status, a.body)
			}
			if a := stranger.do(t, c.base(n), c.method, path, "{}"); a.status != 403 {
				t.Errorf("%s as somebody without a role: %d %s", what, a.status, a.body)
			}
			for role, token := range tokens {
				p := policy.Principal{Roles: []string{role}}
				if policy.Permit(p, c.action, c.kind, "shop") == nil || policy.Permit(p, c.action, c.kind, "") == nil {
					continue // it may, and what it does then is for other tests
				}
				req, err := http.NewRequestWithContext(t.Context(), c.method, url, strings.NewReader("{}"))
				must(t, err)
				req.Header.Set("Authorization", "Bearer "+token)
				res, err := anonymous.Do(req)
				must(t, err)
				if a := read(t, res); a.status != 403 {
					t.Errorf("%s as %s: %d %s", what, role, a.status, a.body)
				}
				refused++
			}
		}
	}
	if after := e.states(t); after != before {
		t.Errorf("a refused call changed the state:\nbefore %s\nafter  %s", before, after)
	}
	if refused < 100 {
		t.Errorf("only %d calls with a wrong role were tried", refused)
	}
}

// Every method of the gRPC edge does likewise, but for health, which is open.
func TestNoMethodWithoutARole(t *testing.T) {
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	stranger := e.certified(t, pki.Request{ID: "spiffe://muster/ns/shop/sa/stranger"})
	instance := &musterv1.Instance{Namespace: "shop", Service: "cart", Id: "a", Address: "10.0.0.1", Port: 80}
	first := map[string]proto.Message{
		"Register":   &musterv1.RegisterRequest{Instance: instance, CreateService: true},
		"Heartbeat":  &musterv1.HeartbeatRequest{Namespace: "shop", Service: "cart", Id: "a"},
		"Deregister": &musterv1.DeregisterRequest{Namespace: "shop", Service: "cart", Id: "a"},
		"Resolve":    &musterv1.ResolveRequest{Namespace: "shop", Service: "cart"},
		"Watch":      &musterv1.WatchRequest{Request: &musterv1.WatchRequest_Begin_{Begin: &musterv1.WatchRequest_Begin{Watch: 1}}},
		"Decide":     &musterv1.DecideRequest{Input: []byte(`{}`)},
	}
	changes := map[string]bool{"Register": true, "Heartbeat": true, "Deregister": true}
	viewer := e.credential(t, "viewer")
	plain, shown := e.dialRPC(t, 0, &tls.Config{}), e.dialRPC(t, 0, &tls.Config{Certificates: []tls.Certificate{stranger.pair}})
	before := e.states(t)
	refused := func(who, method string, conn *grpc.ClientConn, code codes.Code, pairs ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), pairs...), time.Minute)
		defer cancel()
		desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
		s, err := conn.NewStream(ctx, desc, "/"+musterv1.Registry_ServiceDesc.ServiceName+"/"+method)
		must(t, err)
		_ = s.SendMsg(first[method]) // what became of it the answer tells
		answer := new(musterv1.WatchResponse)
		switch method {
		case "Heartbeat": // each beat has its own answer
			beat := new(musterv1.HeartbeatResponse)
			if err := s.RecvMsg(beat); err == nil {
				if want := map[codes.Code]fault.Code{codes.PermissionDenied: fault.Forbidden, codes.Unauthenticated: fault.Unauthenticated}[code]; beat.GetProblem().GetCode() != string(want) {
					t.Errorf("%s as %s: %v", method, who, beat)
				}
				return
			} else if status.Code(err) != code {
				t.Errorf("%s as %s: %v", method, who, err)
			}
		case "Watch":
			if err := s.RecvMsg(answer); err == nil {
				if want := map[codes.Code]fault.Code{codes.PermissionDenied: fault.Forbidden, codes.Unauthenticated: fault.Unauthenticated}[code]; answer.GetEnded().GetCode() != string(want) {
					t.Errorf("%s as %s: %v", method, who, answer)
				}
			} else if status.Code(err) != code {
				t.Errorf("%s as %s: %v", method, who, err)
			}
		default:
			if err := s.CloseSend(); err != nil {
				t.Error(err)
			}
			if err := s.RecvMsg(new(emptypb.Empty)); status.Code(err) != code {
				t.Errorf("%s as %s: %v", method, who, err)
			}
		}
	}
	var methods []string
	for _, m := range musterv1.Registry_ServiceDesc.Methods {
		methods = append(methods, m.MethodName)
	}
	for _, s := range musterv1.Registry_ServiceDesc.Streams {
		methods = append(methods, s.StreamName)
	}
	for _, m := range methods {
		if first[m] == nil {
			t.Errorf("this test does not know %s: say above how it is called", m)
			continue
		}
		refused("anonymous", m, plain, codes.Unauthenticated)
		refused("somebody without a role", m, shown, codes.PermissionDenied)
		if changes[m] {
			refused("viewer", m, plain, codes.PermissionDenied, "authorization", "Bearer "+viewer)
		}
	}
	if after := e.states(t); after != before {
		t.Errorf("a refused call changed the state:\nbefore %s\nafter  %s", before, after)
	}
}
