package node_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/registry"
)

// checked is a real server that instances' checks lead to, and who asked it.
type checked struct {
	*httptest.Server
	mu   sync.Mutex // guards the rest
	ill  map[string]bool
	down bool
	by   map[string]map[string]int // by path and node
}

func newChecked(t *testing.T) *checked {
	c := &checked{ill: map[string]bool{}, by: map[string]map[string]int{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, node, _ := strings.Cut(strings.TrimSuffix(r.UserAgent(), ")"), "check by ")
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.by[r.URL.Path] == nil {
			c.by[r.URL.Path] = map[string]int{}
		}
		c.by[r.URL.Path][node]++
		if c.down || c.ill[r.URL.Path] {
			http.Error(w, "no database", http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *checked) set(do func()) { c.mu.Lock(); defer c.mu.Unlock(); do() }

// probed says who asked for a path since clear.
func (c *checked) probed(path string) (by []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for node := range c.by[path] {
		by = append(by, node)
	}
	return by
}

func (e *edge) instance(t *testing.T, node int, service, id string) (in registry.Instance) {
	t.Helper()
	a := e.send(t, node, "HTTP/2.0", call{method: "GET", path: "/v1/namespaces/default/services/" + service + "/instances/" + id})
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	must(t, json.Unmarshal(a.body, &in))
	return in
}

// An instance is found while its checks pass; the record says what they found.
// When the leader stops, which runs some of the checks, the others take them
// over and nothing is lost meanwhile.
func TestActiveChecks(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.configure(t, "health: {allow: [127.0.0.0/8]}\n")
	tr.startAll()
	e := newEdge(t, tr)
	server := newChecked(t)
	leader := e.leader(t)
	ask := (leader + 1) % 3
	const n = 12
	for i := range n {
		body := fmt.Sprintf(`{"address":"127.0.0.1","port":80,"ttl":"0s","checks":[{"type":"http","id":"up","target":"%s/i%d","interval":"1s","failures_before_critical":2}]}`, server.URL, i)
		if a := e.send(t, ask, "HTTP/2.0", call{method: "PUT", path: fmt.Sprintf("/v1/namespaces/default/services/cart/instances/i%d?create_service=true", i), body: strings.NewReader(body)}); a.status != 201 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	passing := func(node int) int {
		a := e.send(t, node, "HTTP/2.0", call{method: "GET", path: "/v1/discovery/default/cart"})
		return strings.Count(string(a.body), `"status":"passing"`)
	}
	runners := func() map[string]bool {
		all := map[string]bool{}
		for i := range n {
			by := server.probed(fmt.Sprintf("/i%d", i))
			if len(by) != 1 {
				return nil
			}
			all[by[0]] = true
		}
		return all
	}
	tr.eventually("each check is run, by one node", func() error {
		server.set(func() { clear(server.by) })
		deadline := time.Now().Add(2 * time.Second)
		for time.Now().Before(deadline) && len(runners()) == 0 {
			time.Sleep(50 * time.Millisecond)
		}
		if got := runners(); len(got) != 3 {
			return fmt.Errorf("run by %v", got)
		}
		return nil
	})
	server.set(func() { server.ill["/i3"] = true })
	var in registry.Instance
	tr.eventually("what fails is critical", func() error {
		in = e.instance(t, ask, "cart", "i3")
		if in.Status != registry.Critical || in.StatusBy != registry.ByChecks || !strings.Contains(in.States[0].Output, "no database") {
			return fmt.Errorf("%s by %s: %+v", in.Status, in.StatusBy, in.States)
		}
		return nil
	})
	tr.awaitLine(leader, "the change", func(l *audit.Entry) bool { return l.Action == "check changed" && strings.Contains(l.Record, "i3") })
	if got := passing(ask); got != n-1 {
		t.Errorf("%d of %d are found", got, n-1)
	}
	server.set(func() { delete(server.ill, "/i3") })
	tr.eventually("what recovers passes", func() error {
		if got := passing(ask); got != n {
			return fmt.Errorf("%d are found", got)
		}
		return nil
	})
	tr.stop(leader)
	stopped := tr.nodes[leader].id
	tr.eventually("the others run its checks", func() error {
		if got := passing(ask); got != n {
			t.Fatalf("%d are found after the leader stopped", got)
		}
		server.set(func() { clear(server.by) })
		deadline := time.Now().Add(2 * time.Second)
		for time.Now().Before(deadline) && len(runners()) == 0 {
			time.Sleep(50 * time.Millisecond)
		}
		if got := runners(); len(got) != 2 || got[stopped] {
			return fmt.Errorf("run by %v", got)
		}
		return nil
	})
	// All of a service is given up when it is really down.
	server.set(func() { server.down = true })
	tr.eventually("what is down everywhere is down", func() error {
		if got := passing(ask); got != 0 {
			return fmt.Errorf("%d are found", got)
		}
		return nil
	})
}

// Without a word in the configuration, nothing on this machine is asked.
func TestChecksOfPrivateAddresses(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	server := newChecked(t)
	body := fmt.Sprintf(`{"address":"127.0.0.1","port":80,"checks":[{"type":"http","target":"%s/secret","interval":"1s","failures_before_critical":1}]}`, server.URL)
	if a := e.send(t, 0, "HTTP/2.0", call{method: "PUT", path: "/v1/namespaces/default/services/cart/instances/a?create_service=true", body: strings.NewReader(body)}); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	tr.eventually("the check says why it fails", func() error {
		in := e.instance(t, 0, "cart", "a")
		if in.Status != registry.Critical || !strings.Contains(in.States[0].Output, "health.allow") {
			return fmt.Errorf("%s: %+v", in.Status, in.States)
		}
		return nil
	})
	if by := server.probed("/secret"); len(by) > 0 {
		t.Errorf("it was asked by %v", by)
	}
}
