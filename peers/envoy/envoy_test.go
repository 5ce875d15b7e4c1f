// Package envoy runs clients of Envoy's protocols, and dig, beside muster as it
// is built, on three nodes whose leaders are killed: grpc-go's own xDS client, a
// client of external authorization made from Envoy's definitions.
package envoy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"

	"github.com/muster-registry/muster/peers/cluster"
)

const policies = `package api.security.authz
import rego.v1
default allow := false
allow if input.action != "authorize"
allow if input.attributes.request.http.path == "/public"
`

// world is a cluster, and a service whose instances run.
type world struct {
	*cluster.Cluster
	t     *testing.T
	known []string // addresses of the instances
	nodes *manual.Resolver
}

func newWorld(t *testing.T) *world {
	w := &world{Cluster: cluster.New(t, ""), t: t, nodes: manual.NewBuilderWithScheme("nodes")}
	var all []resolver.Address
	for _, n := range w.Nodes { // all nodes under one name, as DNS would have it
		all = append(all, resolver.Address{Addr: strings.TrimPrefix(n.Control, "https://"), ServerName: "127.0.0.1"})
	}
	w.nodes.InitialState(resolver.State{Addresses: all})
	resolver.Register(w.nodes)
	push, err := json.Marshal(map[string]any{"modules": map[string]string{"authz.rego": policies}})
	cluster.Must(t, err)
	w.Do(0, http.MethodPost, "/v1/policy/revisions?activate=true", string(push))
	w.instance(0)
	w.instance(1)
	return w
}

// instance starts an instance and registers it through a node.
func (w *world) instance(node int) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	cluster.Must(w.t, err)
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(l) }()
	w.t.Cleanup(s.Stop)
	body := fmt.Sprintf(`{"address":"127.0.0.1","port":%d,"ttl":"0s"}`, l.Addr().(*net.TCPAddr).Port)
	path := fmt.Sprintf("/v1/namespaces/shop/services/payments/instances/i%d?create_service=true", len(w.known))
	cluster.Eventually(w.t, "an instance is registered", func() error {
		_, err := w.Try(node, http.MethodPut, path, body)
		return err
	})
	w.known = append(w.known, l.Addr().String())
}

// proxyless connects to the service by its name alone.
func (w *world) proxyless() *grpc.ClientConn {
	w.t.Helper()
	config, err := json.Marshal(map[string]any{
		"node": map[string]any{"id": "web-1"},
		"xds_servers": []any{map[string]any{"server_uri": "nodes:///muster", "server_features": []string{"xds_v3"}, "channel_creds": []any{map[string]any{"type": "tls",
			"config": map[string]string{"ca_certificate_file": w.CA, "certificate_file": w.ClientCert, "private_key_file": w.ClientKey}}}}},
	})
	cluster.Must(w.t, err)
	r, err := xds.NewXDSResolverWithConfigForTesting(config)
	cluster.Must(w.t, err)
	conn, err := grpc.NewClient("xds:///payments.shop", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithResolvers(r))
	cluster.Must(w.t, err)
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// answered is what a client has got: the answers are counted, each that is
// wrong fails the test.
type answered struct {
	atomic.Int64
	mu   sync.Mutex
	last string // who answered of late
}

func (a *answered) note(what string) {
	a.Add(1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = what
}

// call calls the service over and over: no call may fail, since its instances
// live, whichever node does not.
func (w *world) call(ctx context.Context, conn *grpc.ClientConn, reached *sync.Map) {
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, time.Minute)
		var p peer.Peer
		_, err := grpc_health_v1.NewHealthClient(conn).Check(call, &grpc_health_v1.HealthCheckRequest{}, grpc.Peer(&p), grpc.WaitForReady(true))
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			w.t.Errorf("a call over xds:/// failed: %v", err)
			continue
		}
		reached.Store(p.Addr.String(), true)
		pause(ctx)
	}
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Millisecond):
	}
}

// authorize asks about requests over and over, as Envoy does of a cluster of
// all nodes: a node that does not answer is left for the next.
func (w *world) authorize(ctx context.Context, count *answered) {
	ca, err := credentials.NewClientTLSFromFile(w.CA, "")
	cluster.Must(w.t, err)
	conn, err := grpc.NewClient("nodes:///muster", grpc.WithTransportCredentials(ca), grpc.WithResolvers(w.nodes), grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
	cluster.Must(w.t, err)
	defer conn.Close()
	client := authv3.NewAuthorizationClient(conn)
	for i := 0; ctx.Err() == nil; i++ {
		path, want := "/public", codes.OK
		if i%2 == 1 {
			path, want = "/secret", codes.PermissionDenied
		}
		call, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+w.OperatorToken), 10*time.Second)
		a, err := client.Check(call, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
			Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Host: "shop.example", Scheme: "https", Path: path}}}})
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if got := codes.Code(a.GetStatus().GetCode()); got != want {
				w.t.Errorf("%s: %s, want %s", path, got, want)
			}
			count.note(path)
		case status.Code(err) != codes.Unavailable && status.Code(err) != codes.DeadlineExceeded:
			w.t.Errorf("%s: %v", path, err)
		}
		pause(ctx)
	}
}

var digStatus = regexp.MustCompile(`status: ([A-Z]+)`)

// errNoAnswer is where a server says nothing, or that it cannot.
var errNoAnswer = errors.New("no answer")

// dig asks one node for the service with the real one, and gives the ports.
func (w *world) dig(ctx context.Context, node int) (ports []string, err error) {
	host, port, err := net.SplitHostPort(w.Nodes[node].DNS)
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "dig", "@"+host, "-p", port, "+time=2", "+tries=1", "payments.shop.svc.muster", "SRV").CombinedOutput()
	said := digStatus.FindSubmatch(out)
	if err != nil || said == nil || string(said[1]) == "SERVFAIL" {
		return nil, errNoAnswer
	}
	for _, line := range strings.Split(string(out), "\n") {
		if f := strings.Fields(line); len(f) == 8 && f[3] == "SRV" && !strings.HasPrefix(line, ";") {
			ports = append(ports, f[6])
		}
	}
	if len(ports) == 0 {
		return nil, fmt.Errorf("%s says %s and has nothing:\n%s", w.Nodes[node].ID, said[1], out)
	}
	return ports, nil
}

// resolve asks all nodes over and over; none may say that there is nothing.
func (w *world) resolve(ctx context.Context, count *answered) {
	for ctx.Err() == nil {
		for node := range w.Nodes {
			_, err := w.dig(ctx, node)
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				count.note(w.Nodes[node].ID)
			case !errors.Is(err, errNoAnswer):
				w.t.Error(err)
			}
		}
	}
}

// Whoever is found by xDS, who is authorized and what dig says stays right
// while one leader after the other is killed, and follows what changes then.
func TestLeadersAreKilled(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("LEFT OUT: dig is not installed")
	}
	w := newWorld(t)
	conn := w.proxyless()
	ctx, stop := context.WithCancel(t.Context())
	var reached sync.Map
	var authorized, resolved answered
	var running sync.WaitGroup
	running.Go(func() { w.call(ctx, conn, &reached) })
	running.Go(func() { w.authorize(ctx, &authorized) })
	running.Go(func() { w.resolve(ctx, &resolved) })
	defer running.Wait()
	defer stop()
	follows := func(alive []int) {
		t.Helper()
		cluster.Eventually(t, "xDS leads to all instances", func() error {
			for _, at := range w.known {
				if _, ok := reached.Load(at); !ok {
					return fmt.Errorf("%s is not reached", at)
				}
			}
			return nil
		})
		for _, node := range alive {
			cluster.Eventually(t, "dig finds all instances", func() error {
				ports, err := w.dig(ctx, node)
				if err == nil && len(ports) != len(w.known) {
					err = fmt.Errorf("%d of %d", len(ports), len(w.known))
				}
				return err
			})
		}
		before := authorized.Load()
		cluster.Eventually(t, "requests are authorized", func() error {
			if now := authorized.Load(); now < before+20 {
				return fmt.Errorf("%d after %d", now, before)
			}
			return nil
		})
	}
	follows([]int{0, 1, 2})
	for range 2 {
		leader := w.Leader()
		w.Kill(leader)
		alive := slices.DeleteFunc([]int{0, 1, 2}, func(n int) bool { return n == leader })
		w.instance(alive[0])
		follows(alive)
		w.Revive(leader)
	}
	follows([]int{0, 1, 2})
	t.Logf("%d requests authorized, %d answers of dig, %d instances reached", authorized.Load(), resolved.Load(), len(w.known))
}
