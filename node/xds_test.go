package node_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
)

// meshCertificate issues what a client without a proxy shows to the nodes, and
// has a role rule give it a role.
func (e *edge) meshCertificate(t *testing.T, name, role string) (crt, key, serial string) {
	t.Helper()
	id := "spiffe://muster/ns/shop/sa/" + name
	cert, err := e.tr.ca.Issue("muster", pki.Request{ID: id}, time.Now())
	must(t, err)
	crt, key = e.tr.file(name+".crt"), e.tr.file(name+".key")
	must(t, cert.Write(crt, key))
	e.mustDo(t, "PUT", "/v1/roles/"+name, fmt.Sprintf(`{"role":%q,"match":{"spiffe_id":%q}}`, role, id))
	e.states(t)
	return crt, key, fmt.Sprintf("%x", cert.Certificate.SerialNumber)
}

// bootstrap is what a gRPC client without a proxy is configured by.
func (e *edge) bootstrap(t *testing.T, crt, key, zone string, servers ...string) resolver.Builder {
	t.Helper()
	// The one in the manual, with what is this trial's own.
	guide, err := os.ReadFile("../docs/services.md")
	must(t, err)
	_, text, _ := strings.Cut(string(guide), "`GRPC_XDS_BOOTSTRAP`")
	_, text, _ = strings.Cut(text, "```json\n")
	text, _, found := strings.Cut(text, "```")
	for from, to := range map[string]string{
		"/etc/muster/ca.crt": e.tr.file("ca.crt"), "/etc/muster/client.crt": crt, "/etc/muster/client.key": key,
		`"region": "eu-west-1", "zone": "eu-west-1a"`: fmt.Sprintf(`"zone": %q`, zone),
	} {
		found = found && strings.Contains(text, from)
		text = strings.ReplaceAll(text, from, to)
	}
	var config map[string]any
	if err := json.Unmarshal([]byte(text), &config); err != nil || !found {
		t.Fatalf("the bootstrap file of the manual: %v\n%s", err, text)
	}
	template := config["xds_servers"].([]any)[0].(map[string]any)
	var all []any
	for _, uri := range servers {
		one := maps.Clone(template)
		one["server_uri"] = uri
		all = append(all, one)
	}
	config["xds_servers"] = all
	b, err := json.Marshal(config)
	must(t, err)
	r, err := xds.NewXDSResolverWithConfigForTesting(b)
	must(t, err)
	return r
}

// backend is an instance that runs: a gRPC server that answers for its health.
func backend(t *testing.T) (address string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	stop = func() { s.Stop(); <-done }
	t.Cleanup(s.Stop)
	return l.Addr().String(), stop
}

func (e *edge) registered(t *testing.T, node int, id, address, zone string) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	must(t, err)
	a := e.send(t, node, "HTTP/2.0", call{method: "PUT", path: "/v1/namespaces/shop/services/payments/instances/" + id + "?create_service=true",
		body: strings.NewReader(fmt.Sprintf(`{"address":%q,"port":%s,"zone":%q,"ttl":"10m"}`, host, port, zone)), header: []string{"Content-Type", "application/json"}})
	if a.status/100 != 2 {
		t.Fatalf("%d %s", a.status, a.body)
	}
}

// reached calls the service through the resolver n times and lists who answered.
func reached(t *testing.T, conn *grpc.ClientConn, n int) ([]string, error) {
	t.Helper()
	var all []string
	for range n {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		var p peer.Peer
		_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Peer(&p))
		cancel()
		if err != nil {
			return all, err
		}
		all = append(all, p.Addr.String())
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// A gRPC client with its own xDS client finds a service by its name alone,
// through any node: its own zone first, away from what is under maintenance, in
// another zone when its own has died, whichever nodes live.
func TestProxylessGRPC(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	crt, key, _ := e.meshCertificate(t, "web", "viewer")
	a1, stopA1 := backend(t)
	a2, stopA2 := backend(t)
	b1, _ := backend(t)
	for id, at := range map[string][2]string{"a1": {a1, "za"}, "a2": {a2, "za"}, "b1": {b1, "zb"}} {
		e.registered(t, 0, id, at[0], at[1])
	}
	// All nodes under one name, as DNS would have it.
	nodes := manual.NewBuilderWithScheme("nodes")
	var addresses []resolver.Address
	for _, n := range tr.nodes {
		addresses = append(addresses, resolver.Address{Addr: strings.TrimPrefix(n.control, "https://"), ServerName: "127.0.0.1"})
	}
	nodes.InitialState(resolver.State{Addresses: addresses})
	resolver.Register(nodes)
	service := "payments"
	dial := func(b resolver.Builder) *grpc.ClientConn {
		t.Helper()
		conn, err := grpc.NewClient("xds:///"+service+".shop", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithResolvers(b))
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	conn := dial(e.bootstrap(t, crt, key, "za", "nodes:///muster"))
	becomes := func(what string, conn *grpc.ClientConn, want ...string) {
		t.Helper()
		slices.Sort(want)
		tr.eventually(what, func() error {
			got, err := reached(t, conn, 20)
			if err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("reached %v, want %v", got, want)
			}
			return err
		})
	}
	becomes("the client's own zone", conn, a1, a2)
	becomes("a client of the other zone", dial(e.bootstrap(t, crt, key, "zb", "nodes:///muster")), b1)
	becomes("a client without a zone", dial(e.bootstrap(t, crt, key, "", "nodes:///muster")), a1, a2, b1)

	// A call that only one version offers goes to the instances of that version alone, and to all when the other offers it too.
	service = "menu"
	const menu = "/v1/namespaces/shop/services/menu"
	e.mustDo(t, "PUT", menu, `{"protocol":"grpc","owner":"x"}`)
	offers := func(version, path string) {
		t.Helper()
		e.mustDo(t, "PUT", menu+"/versions/"+version, fmt.Sprintf(`{"format":"openapi","lifecycle":"published","document":{"openapi":"3.0.3","info":{"title":"m","version":%q},
			"paths":{%q:{"post":{"responses":{"200":{"description":"ok"}}}}}}}`, version, path))
	}
	for version, at := range map[string]string{"1.0.0": a1, "2.0.0": b1} {
		_, port, err := net.SplitHostPort(at)
		must(t, err)
		e.mustDo(t, "PUT", menu+"/instances/i"+version[:1], fmt.Sprintf(`{"address":"127.0.0.1","port":%s,"ttl":"10m","version":%q}`, port, version))
	}
	offers("1.0.0", "/other")
	offers("2.0.0", "/grpc.health.v1.Health/Check")
	e.states(t)
	versioned := dial(e.bootstrap(t, crt, key, "", "nodes:///muster"))
	becomes("the version that has the call", versioned, b1)
	offers("1.0.0", "/grpc.health.v1.Health/Check")
	becomes("both versions", versioned, a1, b1)
	service = "payments"

	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/payments/instances/a1/status", `{"status":"maintenance"}`)
	becomes("without the one under maintenance", conn, a2)
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/payments/instances/a2/status", `{"status":"maintenance"}`)
	becomes("another zone while all of the own drain", conn, b1)
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/payments/instances/a1/status", `{"status":"passing"}`)
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/payments/instances/a2/status", `{"status":"passing"}`)
	becomes("back in the own zone", conn, a1, a2)

	// The zone dies before the registry knows.
	stopA1()
	stopA2()
	becomes("another zone when the own one has died", conn, b1)

	// Whichever node goes, changes still arrive, and no call fails meanwhile.
	known := []string{b1}
	for i := range tr.nodes {
		tr.stop(i)
		if _, err := reached(t, conn, 5); err != nil {
			t.Errorf("while %s is down: %v", tr.nodes[i].id, err)
		}
		next, _ := backend(t)
		other := (i + 1) % 3
		tr.eventually("the others take changes", func() error {
			_, err := tr.client(tr.token, other).Status(t.Context())
			return err
		})
		e.registered(t, other, fmt.Sprintf("b%d", i+2), next, "zb")
		known = append(known, next)
		becomes("an instance that was registered while "+tr.nodes[i].id+" was down", conn, known...)
		tr.start(i)
		tr.awaitReady(i)
	}
	// A client whose first server is gone begins at the next.
	tr.stop(1)
	listed := dial(e.bootstrap(t, crt, key, "zb", tr.nodes[1].control[len("https://"):], tr.nodes[2].control[len("https://"):]))
	becomes("the second server of the list", listed, known...)
}

// adsClient is a client of the protocol itself, which takes what it is sent.
type adsClient struct {
	t       *testing.T
	stream  discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	names   map[string][]string
	version map[string]string
	nonce   map[string]string
	zone    string
	skipped map[string][]proto.Message
}

func (e *edge) ads(t *testing.T, node int, token, zone string) *adsClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(e.dialRPC(t, node, &tls.Config{})).
		StreamAggregatedResources(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token))
	must(t, err)
	return &adsClient{t: t, stream: s, names: map[string][]string{}, version: map[string]string{}, nonce: map[string]string{}, zone: zone, skipped: map[string][]proto.Message{}}
}

func (c *adsClient) ask(url string, names ...string) {
	c.t.Helper()
	c.names[url] = names
	c.send(url, nil)
}

func (c *adsClient) send(url string, refuse *statuspb.Status) {
	_ = c.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: url, ResourceNames: c.names[url], VersionInfo: c.version[url], ResponseNonce: c.nonce[url], ErrorDetail: refuse,
		Node: &corev3.Node{Id: "test", UserAgentName: "envoy", Locality: &corev3.Locality{Zone: c.zone}}}) // how the stream ended, next tells
}

// next gives the next answer, and acknowledges it.
func (c *adsClient) next() (string, []proto.Message, error) {
	r, err := c.stream.Recv()
	if err != nil {
		return "", nil, err
	}
	c.version[r.TypeUrl], c.nonce[r.TypeUrl] = r.VersionInfo, r.Nonce
	var all []proto.Message
	for _, a := range r.Resources {
		m, err := a.UnmarshalNew()
		must(c.t, err)
		all = append(all, m)
	}
	c.send(r.TypeUrl, nil)
	return r.TypeUrl, all, nil
}

// until takes answers until one of the type is as it is to be. Those of other
// types are for whom asks for them next.
func (c *adsClient) until(what, url string, holds func([]proto.Message) bool) {
	c.t.Helper()
	for {
		if all, ok := c.skipped[url]; ok {
			delete(c.skipped, url)
			if holds(all) {
				return
			}
		}
		got, all, err := c.next()
		if err != nil {
			c.t.Fatalf("%s: %v", what, err)
		}
		c.skipped[got] = all
	}
}

func clusterNames(all []proto.Message) (names []string) {
	for _, m := range all {
		names = append(names, m.(*clusterv3.Cluster).Name)
	}
	slices.Sort(names)
	return names
}

// What a stream shows is what its caller may see, at any time.
func TestADSShowsWhatTheCallerMaySee(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	for _, path := range []string{"shop/services/payments", "shop/services/cart", "bank/services/vault"} {
		e.mustDo(t, "PUT", "/v1/namespaces/"+path, `{"protocol":"rest","owner":"x"}`)
	}
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/payments/versions/1.0.0", `{"format":"openapi","lifecycle":"published","document":{"openapi":"3.0.3","info":{"title":"p","version":"1.0.0"},
		"paths":{"/items/{id}":{"get":{"responses":{"200":{"description":"ok"}}}},"/items":{"post":{"responses":{"200":{"description":"ok"}}}}}}}`)
	for id, spec := range map[string]string{
		"a": `{"address":"10.0.0.1","port":80,"ttl":"10m","zone":"eu-1a","weight":3}`, "b": `{"address":"10.0.0.2","port":80,"ttl":"10m","zone":"eu-1b"}`, "c": `{"address":"10.0.0.3","port":80,"ttl":"10m","zone":"eu-1a"}`,
		"twice": `{"address":"10.0.0.1","port":80,"ttl":"10m","zone":"eu-1c"}`, "named": `{"address":"host.example","port":80,"ttl":"10m","zone":"eu-1a"}`,
	} {
		e.mustDo(t, "PUT", "/v1/namespaces/shop/services/payments/instances/"+id, spec)
	}
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/payments/instances/c/status", `{"status":"critical"}`)
	token := e.credential(t, "viewer")
	const name = "payments.shop"

	c := e.ads(t, 0, token, "eu-1b")
	c.ask(resourcev3.ClusterType)
	c.until("all services", resourcev3.ClusterType, func(all []proto.Message) bool {
		return slices.Equal(clusterNames(all), []string{"cart.shop", "payments.shop", "vault.bank"})
	})
	c.ask(resourcev3.RouteType, name)
	c.until("routes", resourcev3.RouteType, func(all []proto.Message) bool {
		host := all[0].(*routev3.RouteConfiguration).VirtualHosts[0]
		var names []string
		for _, r := range host.Routes {
			names = append(names, r.Name)
		}
		if got := strings.Join(names, ", "); got != "POST /items, GET /items/{id}, other" || host.Routes[1].Match.GetSafeRegex().GetRegex() != "/items/[^/]+" {
			t.Errorf("%v", host)
		}
		return true
	})
	c.ask(resourcev3.EndpointType, name, "none.shop", "nonsense")
	c.until("endpoints", resourcev3.EndpointType, func(all []proto.Message) bool {
		if len(all) != 1 {
			t.Fatalf("%v", all)
		}
		var got []string
		for _, l := range all[0].(*endpointv3.ClusterLoadAssignment).Endpoints {
			for _, p := range l.LbEndpoints {
				got = append(got, fmt.Sprintf("%s p%d w%d/%d %s %s", l.Locality.Zone, l.Priority, p.LoadBalancingWeight.Value, l.LoadBalancingWeight.Value, p.GetEndpoint().Address.GetSocketAddress().Address, p.HealthStatus))
			}
		}
		if s := strings.Join(got, "; "); s != "eu-1a p1 w3/3 10.0.0.1 HEALTHY; eu-1a p1 w1/3 10.0.0.3 UNHEALTHY; eu-1b p0 w1/1 10.0.0.2 HEALTHY" {
			t.Errorf("%s", s)
		}
		return true
	})
	// A change of another service wakes nobody here: the next answer about endpoints is of the service's own change.
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/cart/instances/a", `{"address":"10.0.0.9","port":80,"ttl":"10m"}`)
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/payments/instances/d", `{"address":"10.0.0.4","port":80,"ttl":"10m","zone":"eu-1b"}`)
	c.until("an instance more", resourcev3.EndpointType, func(all []proto.Message) bool {
		if len(all) != 1 || !strings.Contains(fmt.Sprint(all[0]), "10.0.0.4") {
			t.Errorf("%v", all)
		}
		return true
	})
	// A client that does not take an answer is counted, and keeps its stream.
	c.send(resourcev3.EndpointType, &statuspb.Status{Message: "no good"})
	tr.eventually("the refusal is counted", func() error {
		if line, err := tr.metric(0, `muster_xds_rejected_total{kind="endpoints"}`); err != nil || !strings.HasSuffix(line, " 1") {
			return fmt.Errorf("%q %v", line, err)
		}
		return nil
	})
	// What only some versions have leads to their instances, and to those that name no version.
	const menu = "/v1/namespaces/shop/services/menu"
	e.mustDo(t, "PUT", menu, `{"protocol":"rest","owner":"x"}`)
	for version, paths := range map[string]string{"1.0.0": `"/a":{%s},"/old":{%s}`, "2.0.0": `"/a":{%s},"/new":{%s}`, "3.0.0-draft": `"/later":{%s},"/b":{%s}`} {
		lifecycle := "published"
		if strings.HasSuffix(version, "draft") {
			lifecycle = "draft"
		}
		get := `"get":{"responses":{"200":{"description":"ok"}}}`
		e.mustDo(t, "PUT", menu+"/versions/"+version, fmt.Sprintf(`{"format":"openapi","lifecycle":%q,"document":{"openapi":"3.0.3","info":{"title":"m","version":"1"},"paths":{`+fmt.Sprintf(paths, get, get)+`}}}`, lifecycle))
		e.mustDo(t, "PUT", menu+"/instances/v"+version[:1], `{"address":"10.0.1.`+version[:1]+`","port":80,"ttl":"10m","version":"`+version+`"}`)
	}
	e.mustDo(t, "PUT", menu+"/instances/any", `{"address":"10.0.1.9","port":80,"ttl":"10m"}`)
	c.until("clusters by version", resourcev3.ClusterType, func(all []proto.Message) bool {
		names := clusterNames(all)
		return slices.Contains(names, "menu.shop") && slices.Contains(names, "menu.shop/1.0.0") && slices.Contains(names, "menu.shop/2.0.0") && len(names) == 6
	})
	c.ask(resourcev3.RouteType, name, "menu.shop", "menu.shop/1.0.0")
	c.until("routes by version", resourcev3.RouteType, func(all []proto.Message) bool {
		var got []string
		for _, m := range all {
			if r := m.(*routev3.RouteConfiguration); r.Name == "menu.shop" {
				for _, one := range r.VirtualHosts[0].Routes {
					got = append(got, one.Name+" > "+one.GetRoute().GetCluster())
				}
			}
		}
		if s := strings.Join(got, ", "); s != "GET /a > menu.shop, GET /new > menu.shop/2.0.0, GET /old > menu.shop/1.0.0, other > menu.shop" || strings.Contains(fmt.Sprint(all), `name:"menu.shop/`) {
			t.Errorf("%s", s)
		}
		return true
	})
	c.ask(resourcev3.EndpointType, name, "menu.shop/2.0.0", "menu.shop/1.0.0,2.0.0", "menu.shop/2.0.0,1.0.0", "menu.shop/")
	c.until("endpoints by version", resourcev3.EndpointType, func(all []proto.Message) bool {
		got := map[string]string{}
		for _, m := range all {
			a := m.(*endpointv3.ClusterLoadAssignment)
			for _, l := range a.Endpoints {
				for _, p := range l.LbEndpoints {
					got[a.ClusterName] += p.GetEndpoint().Address.GetSocketAddress().Address + " "
				}
			}
		}
		delete(got, name)
		if want := map[string]string{"menu.shop/2.0.0": "10.0.1.2 10.0.1.9 ", "menu.shop/1.0.0,2.0.0": "10.0.1.1 10.0.1.2 10.0.1.9 "}; !maps.Equal(got, want) {
			t.Errorf("%v", got)
		}
		return true
	})
	e.mustDo(t, "DELETE", menu, "")
	c.ask(resourcev3.EndpointType, name)
	c.until("no more of it", resourcev3.ClusterType, func(all []proto.Message) bool {
		return slices.Equal(clusterNames(all), []string{"cart.shop", "payments.shop", "vault.bank"})
	})
	// New services appear, and go.
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/till", `{"protocol":"grpc","owner":"x"}`)
	c.until("a service more", resourcev3.ClusterType, func(all []proto.Message) bool { return slices.Contains(clusterNames(all), "till.shop") })
	e.mustDo(t, "DELETE", "/v1/namespaces/shop/services/till", "")
	c.until("a service less", resourcev3.ClusterType, func(all []proto.Message) bool { return !slices.Contains(clusterNames(all), "till.shop") })

	// What the policy begins to refuse goes, on the stream that is open.
	push := func(rules string) {
		t.Helper()
		b, err := json.Marshal(map[string]any{"modules": map[string]string{"authz.rego": "package api.security.authz\nimport rego.v1\n" + rules}})
		must(t, err)
		e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(b))
	}
	push("default allow := true\ndeny contains \"secret\" if input.resource.name == \"vault\"\nfiltered := object.union(input.resource.payload, {\"instances\": [i | some i in input.resource.payload.instances; i.zone == \"eu-1b\"]}) if input.resource.name == \"payments\"\n")
	c.until("the vault is gone", resourcev3.ClusterType, func(all []proto.Message) bool {
		return slices.Equal(clusterNames(all), []string{"cart.shop", "payments.shop"})
	})
	c.until("what the policy filters", resourcev3.EndpointType, func(all []proto.Message) bool { return !strings.Contains(fmt.Sprint(all[0]), "eu-1a") })
	push("default allow := true\n")
	c.until("the vault is back", resourcev3.ClusterType, func(all []proto.Message) bool { return slices.Contains(clusterNames(all), "vault.bank") })

	// A caller of one namespace sees that one only.
	own := e.ads(t, 0, e.credential(t, "viewer", "shop"), "")
	own.ask(resourcev3.ClusterType, "payments.shop", "vault.bank")
	own.until("one of two", resourcev3.ClusterType, func(all []proto.Message) bool { return slices.Equal(clusterNames(all), []string{"payments.shop"}) })
	own.ask(resourcev3.ClusterType, "*")
	own.until("all that it may see", resourcev3.ClusterType, func(all []proto.Message) bool {
		return slices.Equal(clusterNames(all), []string{"cart.shop", "payments.shop"})
	})
	// A credential that is taken away takes the stream along.
	deltaOf := e.deltaADS(t, token)
	e.mustDo(t, "POST", "/v1/revocations", fmt.Sprintf(`{"kind":"token","value":%q,"reason":"test"}`, strings.TrimPrefix(token, "muster_")[:16]))
	for {
		if _, _, err := c.next(); err != nil {
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("%v", err)
			}
			break
		}
	}
	for {
		if _, err := deltaOf.Recv(); err != nil {
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("%v", err)
			}
			break
		}
	}
	// What is no type here ends the stream.
	own.ask(resourcev3.SecretType, "x")
	for {
		if _, _, err := own.next(); err != nil {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v", err)
			}
			break
		}
	}
}

// deltaADS follows a service in increments: what changed comes, and nothing else.
func (e *edge) deltaADS(t *testing.T, token string) discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(e.dialRPC(t, 0, &tls.Config{})).
		DeltaAggregatedResources(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token))
	must(t, err)
	node := &corev3.Node{Id: "delta", UserAgentName: "envoy"}
	recv := func() *discoveryv3.DeltaDiscoveryResponse {
		t.Helper()
		r, err := s.Recv()
		must(t, err)
		must(t, s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}))
		return r
	}
	must(t, s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: resourcev3.ListenerType, ResourceNamesSubscribe: []string{"payments.shop"}}))
	if r := recv(); len(r.Resources) != 1 || r.Resources[0].Name != "payments.shop" {
		t.Errorf("%v", r)
	}
	must(t, s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: resourcev3.EndpointType, ResourceNamesSubscribe: []string{"payments.shop", "cart.shop"}}))
	if r := recv(); len(r.Resources) != 2 {
		t.Errorf("%v", r)
	}
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/cart/instances/z", `{"address":"10.0.0.77","port":80,"ttl":"10m"}`)
	if r := recv(); len(r.Resources) != 1 || r.Resources[0].Name != "cart.shop" || !strings.Contains(r.String(), "10.0.0.77") {
		t.Errorf("%v", r)
	}
	return s
}

// A node that is cut off for too long ends its streams; it never takes away
// what it has shown.
func TestADSOfACutOffNodeEndsInsteadOfEmptying(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.configure(t, "isolation: {max_staleness: 2s}\n")
	tr.startAll()
	e := newEdge(t, tr)
	left := (e.leader(t) + 1) % 3
	e.registered(t, left, "a", "10.0.0.1:80", "")
	e.states(t)
	c := e.ads(t, left, tr.token, "")
	c.ask(resourcev3.ClusterType, "payments.shop")
	c.until("the service", resourcev3.ClusterType, func(all []proto.Message) bool { return len(all) == 1 })
	c.ask(resourcev3.EndpointType, "payments.shop")
	c.until("its instance", resourcev3.EndpointType, func(all []proto.Message) bool {
		return strings.Contains(fmt.Sprint(all), "10.0.0.1")
	})
	for i := range tr.nodes {
		if i != left {
			tr.stop(i)
		}
	}
	for {
		url, all, err := c.next()
		if err != nil {
			if p := problemOf(t, err); status.Code(err) != codes.Unavailable || p.Code != string(fault.TooStale) {
				t.Errorf("%v with %v", err, p)
			}
			return
		}
		if len(all) != 1 {
			t.Errorf("%s: %v", url, all)
		}
	}
}

// A node that is too busy to ask the policy takes nothing away: the stream ends,
// and the client keeps what it has.
func TestADSOfABusyNodeEndsInsteadOfEmptying(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.configure(t, "limits: {working: 1, queue_wait: 20ms}\n")
	tr.startAll()
	e := newEdge(t, tr)
	e.registered(t, 0, "i0", "10.0.0.1:80", "")
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/slow", `{}`)
	viewer, publisher := e.credential(t, "viewer"), e.credential(t, "publisher")
	modules, err := json.Marshal(map[string]any{"modules": map[string]string{"l.rego": `package api.security.authz
import rego.v1
default allow := true
n := numbers.range(1, 5000)
deny contains "x" if {
	input.resource.name == "slow"
	count([1 | some a in n; some b in n; some c in n; a + b == c]) < 0
}
`}})
	must(t, err)
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(modules))
	c := e.ads(t, 0, viewer, "")
	c.ask(resourcev3.ClusterType, "payments.shop")
	c.until("the cluster", resourcev3.ClusterType, func(all []proto.Message) bool { return len(all) == 1 })
	c.ask(resourcev3.EndpointType, "payments.shop")
	c.until("the instance", resourcev3.EndpointType, func(all []proto.Message) bool { return strings.Contains(fmt.Sprint(all), "10.0.0.1") })

	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	defer busy.Wait()
	defer stop()
	for range 3 {
		busy.Go(func() {
			for ctx.Err() == nil {
				req, err := http.NewRequestWithContext(ctx, "GET", tr.nodes[0].control+"/v1/discovery/shop/slow", nil)
				if err != nil {
					return
				}
				req.Header.Set("Authorization", "Bearer "+publisher)
				if res, err := e.http["HTTP/2.0"].Do(req); err == nil {
					_ = res.Body.Close()
				}
			}
		})
	}
	for i := 1; ; i++ {
		if i == 1000 {
			t.Fatal("the node was never too busy")
		}
		e.registered(t, 0, "i0", fmt.Sprintf("10.0.0.1:%d", 1000+i), "")
		url, all, err := c.next()
		if err != nil {
			// No turn; or, where the machine is as busy as the node, no answer in time.
			if code := status.Code(err); code != codes.ResourceExhausted && code != codes.Unavailable {
				t.Errorf("the stream ends with %v", err)
			}
			return
		}
		if len(all) != 1 || url == resourcev3.EndpointType && !strings.Contains(fmt.Sprint(all), "10.0.0.1") {
			t.Fatalf("after %d changes the stream takes something away: %s %v", i, url, all)
		}
	}
}
