package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-kit/kit/endpoint"
	"github.com/go-kit/kit/sd"
	kitconsul "github.com/go-kit/kit/sd/consul"
	"github.com/go-kit/kit/sd/lb"
	"github.com/go-kit/log"
	"github.com/hashicorp/consul/api"
)

// Consul's own client, through its whole agent, catalog, health and status
// parts as far as muster offers them, each call at another node.
func TestConsulsOwnClient(t *testing.T) {
	c := newCluster(t)
	one, two, three := c.client(0), c.client(1), c.client(2)

	self, err := one.Agent().Self()
	must(t, err)
	if self["Config"]["NodeName"] != "n1" || self["Config"]["Datacenter"] != "dc1" {
		t.Errorf("self: %v", self["Config"])
	}
	members, err := two.Agent().Members(false)
	must(t, err)
	if len(members) != 3 || members[2].Name != "n3" || members[2].Status != 1 {
		t.Errorf("members: %+v", members)
	}
	leader, err := three.Status().Leader()
	must(t, err)
	peers, err := three.Status().Peers()
	must(t, err)
	if len(peers) != 3 || !slices.Contains(peers, leader) {
		t.Errorf("leader %s, peers %v", leader, peers)
	}

	must(t, one.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "web:1", Name: "web", Tags: []string{"v1", "blue"}, Port: 8000, Address: "10.0.0.1",
		Meta: map[string]string{"env": "prod"}, Weights: &api.AgentWeights{Passing: 3, Warning: 1},
		TaggedAddresses: map[string]api.ServiceAddress{"wan": {Address: "198.51.100.1", Port: 80}},
		Check:           &api.AgentServiceCheck{TTL: "1h", DeregisterCriticalServiceAfter: "90m"}}))
	must(t, two.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "web-2", Name: "web", Tags: []string{"v2"}, Port: 8001, Address: "10.0.0.2"}))

	services, err := three.Agent().ServicesWithFilter(`Meta.env == "prod"`)
	must(t, err)
	if s := services["web:1"]; len(services) != 1 || s == nil || s.Service != "web" || s.Weights.Passing != 3 || s.TaggedAddresses["wan"].Address != "198.51.100.1" {
		t.Errorf("services: %+v", services)
	}
	if status, info, err := three.Agent().AgentHealthServiceByID("web:1"); err != nil || status != api.HealthCritical || info == nil || info.Service.Service != "web" || len(info.Checks) != 1 {
		t.Errorf("its health: %s %+v %v", status, info, err)
	}
	if status, info, err := one.Agent().AgentHealthServiceByName("nobody"); err != nil || status != api.HealthCritical || info != nil {
		t.Errorf("the health of nobody: %s %+v %v", status, info, err)
	}
	must(t, three.Agent().UpdateTTL("service:web:1", "all is well", api.HealthPassing))
	checks, err := one.Agent().Checks()
	must(t, err)
	if k := checks["service:web:1"]; k == nil || k.Status != api.HealthPassing || k.Output != "all is well" || k.ServiceID != "web:1" {
		t.Errorf("checks: %+v", checks)
	}
	must(t, two.Agent().WarnTTL("service:web:1", "hm"))
	must(t, two.Agent().FailTTL("service:web:1", "no"))
	must(t, one.Agent().PassTTL("service:web:1", "again"))
	must(t, one.Agent().CheckRegister(&api.AgentCheckRegistration{ID: "second", Name: "Second", ServiceID: "web-2", AgentServiceCheck: api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing}}))
	must(t, two.Agent().EnableServiceMaintenance("web-2", "broken"))
	entries, meta, err := three.Health().ServiceMultipleTags("web", []string{"v1", "blue"}, true, &api.QueryOptions{RequireConsistent: true})
	must(t, err)
	if len(entries) != 1 || entries[0].Service.ID != "web:1" || entries[0].Checks.AggregatedStatus() != api.HealthPassing || entries[0].Node.Node != "n1" || meta.LastIndex < 1 || !meta.KnownLeader {
		t.Errorf("health: %+v %+v", entries, meta)
	}
	all, _, err := one.Health().Service("web", "", false, nil)
	must(t, err)
	if len(all) != 2 {
		t.Fatalf("health of all: %+v", all)
	}
	for _, e := range all {
		if e.Service.ID == "web-2" && e.Checks.AggregatedStatus() != api.HealthMaint {
			t.Errorf("in maintenance it is %s", e.Checks.AggregatedStatus())
		}
		if e.Service.ID == "web-2" && !slices.ContainsFunc(e.Checks, func(k *api.HealthCheck) bool { return k.Notes == "broken" }) {
			t.Errorf("why it is in maintenance: %+v", e.Checks)
		}
	}
	if status, all, err := two.Agent().AgentHealthServiceByName("web"); err != nil || status != api.HealthCritical || len(all) != 2 {
		t.Errorf("the health of web: %s %+v %v", status, all, err)
	}
	must(t, three.Agent().DisableServiceMaintenance("web-2"))
	must(t, three.Agent().CheckDeregister("second"))
	if healthy, _, err := two.Health().Service("web", "", true, &api.QueryOptions{AllowStale: false}); err != nil || len(healthy) != 2 {
		t.Errorf("after the maintenance: %+v %v", healthy, err)
	}
	byName, _, err := two.Health().Checks("web", nil)
	must(t, err)
	onNode, _, err := two.Health().Node("n1", nil)
	must(t, err)
	passing, _, err := two.Health().State(api.HealthPassing, &api.QueryOptions{Filter: `ServiceName == "web"`})
	must(t, err)
	if len(byName) != 1 || len(onNode) != 2 || len(passing) != 1 || passing[0].CheckID != "service:web:1" {
		t.Errorf("checks: %+v %+v %+v", byName, onNode, passing)
	}

	_, err = two.Catalog().Register(&api.CatalogRegistration{Node: "mainframe", Address: "10.9.0.1", NodeMeta: map[string]string{"floor": "2"},
		Service: &api.AgentService{ID: "ledger1", Service: "ledger", Port: 700, Tags: []string{"cobol"}},
		Check:   &api.AgentCheck{CheckID: "service:ledger1", Name: "up", Status: api.HealthPassing, ServiceID: "ledger1"}}, nil)
	must(t, err)
	ledger, _, err := three.Catalog().Service("ledger", "cobol", &api.QueryOptions{NodeMeta: map[string]string{"floor": "2"}})
	must(t, err)
	if len(ledger) != 1 || ledger[0].Node != "mainframe" || ledger[0].Address != "10.9.0.1" || ledger[0].ServiceID != "ledger1" || ledger[0].NodeMeta["floor"] != "2" {
		t.Errorf("catalog: %+v", ledger)
	}
	node, _, err := one.Catalog().Node("mainframe", nil)
	must(t, err)
	if node == nil || node.Services["ledger1"] == nil {
		t.Errorf("node: %+v", node)
	}
	nodes, _, err := one.Catalog().Nodes(&api.QueryOptions{Near: "mainframe"})
	must(t, err)
	if len(nodes) != 4 || nodes[0].Node != "mainframe" {
		t.Errorf("nodes: %+v", nodes)
	}
	names, _, err := one.Catalog().Services(&api.QueryOptions{UseCache: true, MaxAge: time.Minute})
	must(t, err)
	if len(names) != 2 || !slices.Equal(names["web"], []string{"blue", "v1", "v2"}) {
		t.Errorf("services: %v", names)
	}
	dcs, err := one.Catalog().Datacenters()
	must(t, err)
	if !slices.Equal(dcs, []string{"dc1"}) {
		t.Errorf("datacenters: %v", dcs)
	}
	_, err = three.Catalog().Deregister(&api.CatalogDeregistration{Node: "mainframe", ServiceID: "ledger1"}, nil)
	must(t, err)
	must(t, three.Agent().ServiceDeregister("web:1"))
	must(t, one.Agent().ServiceDeregister("web-2"))
	if names, _, err := two.Catalog().Services(nil); err != nil || len(names) != 0 {
		t.Errorf("in the end: %v %v", names, err)
	}

	// What is not offered says so.
	_, err = one.KV().Put(&api.KVPair{Key: "a", Value: []byte("b")}, nil)
	if status := (api.StatusError{}); !errors.As(err, &status) || status.Code != 501 {
		t.Errorf("the key-value store: %v", err)
	}
	if _, _, err := one.Health().Service("web", "", false, &api.QueryOptions{Datacenter: "mars"}); err == nil || !strings.Contains(err.Error(), "No path to datacenter") {
		t.Errorf("another datacenter: %v", err)
	}
}

// A check of type HTTP is run by the cluster, not by its client.
func TestActiveChecks(t *testing.T) {
	c := newCluster(t)
	healthy := make(chan bool, 1)
	healthy <- true
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		ok := <-healthy
		healthy <- ok
		if !ok {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer server.Close()
	must(t, c.client(0).Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web", Address: "127.0.0.1", Port: port(t, server.URL),
		Check: &api.AgentServiceCheck{HTTP: server.URL, Interval: "1s"}}))
	await := func(want int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d pass", want), func() error {
			entries, _, err := c.client(1).Health().Service("web", "", true, nil)
			if err != nil || len(entries) != want {
				return fmt.Errorf("%+v %v", entries, err)
			}
			return nil
		})
	}
	await(1)
	<-healthy
	healthy <- false
	await(0)
	<-healthy
	healthy <- true
	await(1)
}

func port(t *testing.T, at string) int {
	t.Helper()
	u, err := url.Parse(at)
	must(t, err)
	n, err := strconv.Atoi(u.Port())
	must(t, err)
	return n
}

// A client that keeps itself registered by TTL, and one that follows it, go on
// while nodes are killed one after the other; nothing is empty by accident.
func TestNodesAreKilled(t *testing.T) {
	c := newCluster(t)
	must(t, c.client(0).Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web", Address: "10.0.0.1", Port: 80,
		Check: &api.AgentServiceCheck{TTL: "30s", Status: api.HealthPassing}}))
	for node := range 3 {
		eventually(t, "every node knows it", func() error {
			entries, _, err := c.client(node).Health().Service("web", "", true, &api.QueryOptions{AllowStale: true})
			if err != nil || len(entries) != 1 {
				return fmt.Errorf("%d instances, %w", len(entries), err)
			}
			return nil
		})
	}
	ctx, stop := context.WithCancel(context.Background())
	var taken atomic.Int64
	beaten, followed := make(chan struct{}), make(chan int)
	go func() {
		defer close(beaten)
		for ctx.Err() == nil {
			// As a client behind a list of addresses: the next one when one fails.
			for node := range 3 {
				if c.client(node).Agent().UpdateTTL("service:web", "up", api.HealthPassing) == nil {
					taken.Add(1)
					break
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	go func() {
		answers := 0
		for ctx.Err() == nil {
			for node := range 3 {
				entries, _, err := c.client(node).Health().Service("web", "", true, (&api.QueryOptions{AllowStale: true}).WithContext(ctx))
				if err != nil {
					continue // killed, or has not caught up: it says so rather than nothing
				}
				if answers++; len(entries) != 1 {
					t.Errorf("node %d answered with %d instances", node+1, len(entries))
				}
			}
		}
		followed <- answers
	}()
	for node := range 2 { // muster dev ends with the last of the nodes that it started itself
		c.Kill(node)
		eventually(t, "the others have a leader", func() error {
			other := c.client((node + 1) % 3)
			if _, _, err := other.Health().Service("web", "", true, &api.QueryOptions{RequireConsistent: true}); err != nil {
				return err
			}
			return nil
		})
		before := taken.Load()
		eventually(t, "heartbeats are taken with a node away", func() error {
			if now := taken.Load(); now < before+10 {
				return fmt.Errorf("%d, of %d before", now, before)
			}
			return nil
		})
		c.Revive(node)
	}
	stop()
	<-beaten
	t.Logf("%d heartbeats, %d answers, none empty", taken.Load(), <-followed)
}

// go-kit's service discovery: registrar, instancer and load balancer follow what
// changes, also after the node they watch by was away.
func TestGoKit(t *testing.T) {
	c := newCluster(t)
	client := kitconsul.NewClient(c.client(1))
	registrar := kitconsul.NewRegistrar(kitconsul.NewClient(c.client(0)), &api.AgentServiceRegistration{ID: "prefix/10.0.0.1:8000", Name: "search", Address: "10.0.0.1", Port: 8000, Tags: []string{"prod", "eu"}}, log.NewNopLogger())
	instancer := kitconsul.NewInstancer(client, log.NewNopLogger(), "search", []string{"prod", "eu"}, true)
	defer instancer.Stop()
	factory := func(instance string) (endpoint.Endpoint, io.Closer, error) {
		return func(context.Context, any) (any, error) { return instance, nil }, nil, nil
	}
	balancer := lb.NewRoundRobin(sd.NewEndpointer(instancer, factory, log.NewNopLogger()))
	await := func(want string) {
		t.Helper()
		eventually(t, "the balancer gives "+want, func() error {
			e, err := balancer.Endpoint()
			got := fmt.Sprint(err)
			if err == nil {
				answer, _ := e(context.Background(), nil)
				got = fmt.Sprint(answer)
			}
			if got != want {
				return errors.New(got)
			}
			return nil
		})
	}
	await(lb.ErrNoEndpoints.Error())
	registrar.Register()
	await("10.0.0.1:8000")
	c.Kill(2) // another node than it watches by
	must(t, c.client(0).Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "prefix/10.0.0.1:8000", Name: "search", Address: "10.0.0.2", Port: 8000, Tags: []string{"prod", "eu"}}))
	await("10.0.0.2:8000")
	c.Revive(2)
	c.Kill(1) // the one it watches by: it keeps what it has
	await("10.0.0.2:8000")
	c.Revive(1)
	eventually(t, "it can be deregistered", func() error {
		return kitconsul.NewClient(c.client(2)).Deregister(&api.AgentServiceRegistration{ID: "prefix/10.0.0.1:8000"})
	})
	await(lb.ErrNoEndpoints.Error())
}
