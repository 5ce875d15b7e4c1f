package jepsen

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// beatTTL is the lease of the instances that send heartbeats.
var beatTTL = slack * 4 * time.Second

// healthy are services whose instances are well all the time: some are asked by
// checks, which lead to a server that every node reaches, the others send
// heartbeats.
type healthy struct {
	*test
	target string // the server's address, without a port
	url    string
	server *http.Server
	mute   atomic.Bool // heartbeats are held up

	checked, beating []string // services
	paths            []string // of heartbeats

	mu     sync.Mutex // guards the rest
	asked  int
	empty  []string // where a node said that a service has nothing
	answer int      // look-ups that were answered
}

func newHealthy(x *test) *healthy {
	h := &healthy{test: x, target: strings.TrimSuffix(x.Net.Hosts[0].Peer, ".2") + ".1"}
	l, err := net.Listen("tcp", h.target+":0")
	x.must(err)
	h.url = "http://" + l.Addr().String()
	h.server = &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		h.mu.Lock()
		h.asked++
		h.mu.Unlock()
	}), ReadHeaderTimeout: time.Minute}
	go func() { _ = h.server.Serve(l) }()
	x.Cleanup(func() { _ = h.server.Close() })
	add := func(service string, n int, more string) {
		for i := range n {
			path := fmt.Sprintf("/v1/namespaces/default/services/%s/instances/i%d", service, i)
			body := fmt.Sprintf(`{"address":"10.0.0.%d","port":80,%s}`, i+1, more)
			x.must(Until(x.ctx, func() error {
				if a := x.Nodes[i%3].Call(x.ctx, http.MethodPut, path+"?create_service=true", []byte(body)); a.Outcome != OK {
					return fmt.Errorf("%s: %s", path, a)
				}
				return nil
			}))
			if strings.Contains(more, "checks") {
				continue
			}
			h.paths = append(h.paths, path+"/heartbeat")
		}
	}
	check := fmt.Sprintf(`"ttl":"0s","checks":[{"type":"http","target":"%s/","interval":"1s","timeout":"1s","failures_before_critical":1}]`, h.url)
	beats := fmt.Sprintf(`"ttl":%q`, beatTTL)
	for name, n := range map[string]int{"six": 6, "one": 1, "single": 1} {
		h.checked = append(h.checked, name)
		add(name, n, check)
	}
	for name, n := range map[string]int{"five": 5, "alone": 1} {
		h.beating = append(h.beating, name)
		add(name, n, beats)
	}
	return h
}

// beat sends heartbeats, each to any node that takes it.
func (h *healthy) beat(ctx context.Context) {
	tick := time.NewTicker(beatTTL / 4)
	defer tick.Stop()
	for {
		for i, path := range h.paths {
			for try := 0; try < 3 && !h.mute.Load() && ctx.Err() == nil; try++ {
				call, cancel := context.WithTimeout(ctx, 2*time.Second)
				a := h.Nodes[(i+try)%3].Call(call, http.MethodPost, path, nil)
				cancel()
				if a.Outcome == OK {
					break
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look asks all nodes for all services over and over, and notes where one is
// empty.
func (h *healthy) look(ctx context.Context) {
	for ctx.Err() == nil {
		for _, n := range h.Nodes {
			for _, service := range append(h.checked, h.beating...) {
				call, cancel := context.WithTimeout(ctx, time.Second)
				a := n.Call(call, http.MethodGet, "/v1/discovery/default/"+service, nil)
				cancel()
				if a.Status != http.StatusOK {
					continue // it is down, or says that it knows nothing new
				}
				var d struct {
					Instances []jsontext.Value `json:"instances"`
				}
				h.mu.Lock()
				h.answer++
				if err := json.Unmarshal(a.Body, &d); err != nil || len(d.Instances) == 0 {
					h.empty = append(h.empty, fmt.Sprintf("%s at %s: %s", service, n.ID, a.Body))
				}
				h.mu.Unlock()
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// blind keeps a node from the instances, but not from the other nodes.
func (h *healthy) blind(n *Node) {
	h.Helper()
	h.must(h.Net.lose([]string{n.host.Peer + " . " + h.target, h.target + " . " + n.host.Peer}))
	h.history.Mark(n.ID, "blind")
}

func (h *healthy) well(after string) {
	h.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, e := range h.empty {
		if i < 5 {
			h.Errorf("%s: nothing is found of %s", after, e)
		}
	}
	h.empty = nil
}

// TestHealthyServicesAreKept: a checker that is cut off the instances, a node cut
// off all, a leader that is killed, heartbeats that are all one TTL late: no node
// ever answers that a healthy service has nothing. What is really down is gone.
func TestHealthyServicesAreKept(t *testing.T) {
	thorough(t)
	x := cluster(t, map[string]any{"health": map[string]any{"allow": []string{"10.10.0.0/16"}}})
	h := newHealthy(x)
	ctx, stop := context.WithCancel(x.ctx)
	var running sync.WaitGroup
	running.Go(func() { h.beat(ctx) })
	looking, quit := context.WithCancel(ctx)
	running.Go(func() { h.look(looking) })
	defer running.Wait()
	defer stop()
	defer quit()

	for _, n := range x.Nodes {
		h.blind(n)
		time.Sleep(4 * time.Second)
		x.heal()
		h.well(n.ID + " blind")
	}
	leader, _ := x.leader()
	x.isolate(leader, AllLinks)
	h.blind(leader)
	time.Sleep(6 * time.Second)
	x.heal()
	x.leader()
	time.Sleep(2 * time.Second)
	h.well("the leader cut off, and back")

	leader, _ = x.leader()
	x.kill(leader)
	x.leader()
	time.Sleep(4 * time.Second)
	h.well("the leader killed")
	x.restart(leader)

	h.mute.Store(true)
	time.Sleep(beatTTL + beatTTL/4)
	h.mute.Store(false)
	time.Sleep(beatTTL)
	h.well("all heartbeats one TTL late")

	quit()
	h.mu.Lock()
	h.atLeast(h.answer, 200, "look-ups were answered")
	h.atLeast(h.asked, 20, "probes were made")
	h.mu.Unlock()
	h.must(h.server.Close())
	h.mute.Store(true)
	x.must(Until(x.ctx, func() error {
		for _, service := range append(h.checked, h.beating...) {
			a := x.Nodes[0].Call(x.ctx, http.MethodGet, "/v1/discovery/default/"+service, nil)
			if !strings.Contains(string(a.Body), `"instances":[]`) {
				return fmt.Errorf("%s is down and found: %s", service, a.Body)
			}
		}
		return nil
	}))
}
