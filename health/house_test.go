package health_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/health"
	"github.com/muster-registry/muster/registry"
)

// house is some checkers, a judge on the first of them, and a registry that
// proposals change at once. Its instances are paths of one real server.
type house struct {
	t      *testing.T
	server *httptest.Server
	judge  *health.Judge
	metric *prometheus.Registry

	mu       sync.Mutex // guards the rest
	now      *registry.Snapshot
	revision uint64
	checkers map[string]*health.Checker
	stops    map[string]context.CancelFunc
	cut      map[string]bool           // from the quorum
	ill      map[string]bool           // paths, and nodes for whom all paths are
	flaps    map[string]bool           // paths that are ill every other time that a node asks
	by       map[string]map[string]int // probes by path and node
	calls    map[string]int            // reports by node
	most     int                       // probes at one time
	held     chan struct{}             // nil, or what answers wait for
	under    atomic.Int32
}

func newHouse(t *testing.T, threshold float64, probes int, nodes ...string) *house {
	h := &house{t: t, now: registry.New(), checkers: map[string]*health.Checker{}, stops: map[string]context.CancelFunc{}, cut: map[string]bool{},
		ill: map[string]bool{}, flaps: map[string]bool{}, by: map[string]map[string]int{}, calls: map[string]int{}, metric: prometheus.NewRegistry()}
	h.server = httptest.NewServer(http.HandlerFunc(h.answer))
	t.Cleanup(h.server.Close)
	for i, node := range nodes {
		reg := prometheus.NewRegistry()
		if i == 0 {
			reg = h.metric
		}
		m := health.NewMetrics(reg)
		c := health.New(health.Options{Node: node, State: h, Members: h.members, Metrics: m, Logger: slog.New(slog.DiscardHandler), Probes: probes,
			Connected: func() bool { h.mu.Lock(); defer h.mu.Unlock(); return !h.cut[node] },
			Call: func(ctx context.Context, _ string, p []byte) ([]byte, error) {
				h.mu.Lock()
				h.calls[node]++
				cut := h.cut[node]
				h.mu.Unlock()
				if cut {
					return nil, fault.New(fault.NoLeader, "cut off")
				}
				return h.judge.Serve(ctx, node, p)
			},
			Prober: &health.Prober{Dialer: &egress.Dialer{Allow: loopback}, Agent: node}})
		if i == 0 {
			h.judge = health.NewJudge(health.JudgeOptions{State: h, Members: h.members, Propose: h.propose, Threshold: threshold, Metrics: m, Logger: slog.New(slog.DiscardHandler),
				Ask: func(ctx context.Context, node, _ string, p []byte) ([]byte, error) {
					h.mu.Lock()
					c := h.checkers[node]
					h.mu.Unlock()
					if c == nil {
						return nil, fault.New(fault.NotReady, "gone")
					}
					return c.Serve(ctx, p)
				}})
		}
		ctx, stop := context.WithCancel(context.Background())
		h.checkers[node], h.stops[node] = c, stop
		t.Cleanup(stop)
		go c.Run(ctx)
	}
	return h
}

func (h *house) answer(w http.ResponseWriter, r *http.Request) {
	under := int(h.under.Add(1))
	defer h.under.Add(-1)
	node := r.UserAgent()
	h.mu.Lock()
	if h.by[r.URL.Path] == nil {
		h.by[r.URL.Path] = map[string]int{}
	}
	h.by[r.URL.Path][node]++
	h.most = max(h.most, under)
	ill, held := h.ill[r.URL.Path] || h.ill[node], h.held
	ill = ill || h.flaps[r.URL.Path] && h.by[r.URL.Path][node]%2 == 1
	h.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
		}
	}
	if ill {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

func (h *house) Registry() *registry.Snapshot { h.mu.Lock(); defer h.mu.Unlock(); return h.now }

func (h *house) members() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var connected []string
	for _, node := range slices.Sorted(maps.Keys(h.checkers)) {
		if !h.cut[node] {
			connected = append(connected, node)
		}
	}
	return connected
}

func (h *house) propose(_ context.Context, c *command.Command) (*command.Receipt, error) {
	h.change(func(x *registry.Txn) {
		for _, it := range c.GetLeases().Items {
			x.SetCheck(h.stamp(), it.Namespace, it.Service, it.Name, registry.CheckResult{Check: it.Check, Status: it.Status, Output: it.Output, Observed: it.Observed})
		}
	})
	return &command.Receipt{}, nil
}

func (h *house) stamp() registry.Stamp {
	h.revision++
	return registry.Stamp{Revision: h.revision, Time: time.Now(), By: "test"}
}

func (h *house) change(do func(*registry.Txn)) {
	h.mu.Lock()
	x := h.now.Txn(nil)
	do(x)
	touched := x.Touched()
	h.now = x.Commit()
	now, checkers := h.now, slices.Collect(maps.Values(h.checkers))
	h.mu.Unlock()
	for _, k := range touched {
		all, _ := now.Instances(k.Namespace, k.Service, "", 0)
		for _, in := range all {
			for _, c := range checkers {
				c.Changed(k.Namespace, k.Service, in.ID, now)
			}
		}
	}
}

// register makes n instances of a service, whose paths are /service/id.
func (h *house) register(service string, n int, more string) {
	h.change(func(x *registry.Txn) {
		for i := range n {
			id := fmt.Sprintf("i%d", i)
			spec, err := registry.CanonicalInstance("default", service, id, fmt.Appendf(nil,
				`{"address":"127.0.0.1","port":80,"ttl":"0s","checks":[{"type":"http","target":"%s/%s/%s"%s}]}`, h.server.URL, service, id, more))
			if err != nil {
				h.t.Fatal(err)
			}
			var observed uint64
			if in, ok := h.now.Instance("default", service, id); ok {
				observed = in.Revision
			}
			if _, _, err := x.PutInstance(h.stamp(), "default", service, id, spec, observed, true); err != nil {
				h.t.Fatal(err)
			}
		}
	})
}

func (h *house) set(which map[string]bool, name string, to bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	which[name] = to
}

func (h *house) passing(service string) int {
	e, _ := h.Registry().Discover("default", service)
	return e.Passing()
}

// forget begins to count probes anew.
func (h *house) forget() { h.mu.Lock(); defer h.mu.Unlock(); clear(h.by); clear(h.calls) }

// probes gives by path who probed how often.
func (h *house) probes() map[string]map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]map[string]int{}
	for path, by := range h.by {
		out[path] = maps.Clone(by)
	}
	return out
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// rounds waits until each of n paths was probed at least often times: as long
// as there are ever more of them.
func (h *house) rounds(n, often int) {
	h.t.Helper()
	for most, since := -1, time.Now(); ; time.Sleep(20 * time.Millisecond) {
		enough := 0
		for _, by := range h.probes() {
			sum := 0
			for _, count := range by {
				sum += count
			}
			if sum >= often {
				enough++
			}
		}
		if enough >= n {
			return
		}
		if enough > most {
			most, since = enough, time.Now()
		}
		if time.Since(since) > time.Minute {
			h.t.Fatalf("of %d paths %d are probed %d times, and none more for a minute", n, most, often)
		}
	}
}

// quiet counts probes and reports anew until there are enough, without noise
// among them. What was under way at first may be noise once; what goes on is
// each time.
func (h *house) quiet(what string, look func(probes map[string]map[string]int, reports map[string]int) (enough, noise bool)) {
	h.t.Helper()
	h.forget()
	eventually(h.t, what, func() bool {
		probes := h.probes()
		h.mu.Lock()
		reports := maps.Clone(h.calls)
		h.mu.Unlock()
		enough, noise := look(probes, reports)
		if noise {
			h.forget()
		}
		return enough && !noise
	})
}

func (h *house) heldBack() (sum float64) {
	all, err := h.metric.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == "muster_health_held_total" {
			for _, m := range f.Metric {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

const often = `,"interval":"1s","failures_before_critical":1`

// Each check is run by one node; when one dies the others take its checks over,
// and only those change hands.
func TestEachCheckIsRunByOneNode(t *testing.T) {
	h := newHouse(t, 0.5, 64, "a", "b", "c")
	h.register("cart", 40, often)
	h.rounds(40, 1)
	var seen map[string]map[string]int
	each := func(often int, good func(path string, by map[string]int) bool) func(probes map[string]map[string]int, _ map[string]int) (enough, noise bool) {
		return func(probes map[string]map[string]int, _ map[string]int) (enough, noise bool) {
			paths := 0
			for path, by := range probes {
				sum := 0
				for _, n := range by {
					sum += n
				}
				if sum >= often {
					paths++
				}
				noise = noise || !good(path, by)
			}
			seen = probes
			return paths == 40, noise
		}
	}
	h.quiet("each path is probed by one node", each(3, func(_ string, by map[string]int) bool { return len(by) == 1 }))
	before := map[string]string{}
	count := map[string]int{}
	for path, by := range seen {
		for node := range by {
			before[path] = node
			count[node]++
		}
	}
	if len(count) != 3 {
		t.Errorf("the checks are spread as %v", count)
	}
	h.mu.Lock()
	h.stops["b"]()
	delete(h.checkers, "b")
	h.mu.Unlock()
	eventually(t, "the others probe what b did", func() bool {
		taken := 0
		for path, by := range h.probes() {
			if before[path] == "b" && by["a"]+by["c"] > 0 {
				taken++
			}
		}
		return taken == count["b"]
	})
	h.quiet("each is probed by one of those that are left, by the same as before where that is one of them", each(2, func(path string, by map[string]int) bool {
		return len(by) == 1 && by["b"] == 0 && (before[path] == "b" || by[before[path]] > 0)
	}))
}

// Checks that are taken over run soon, however rarely they run.
func TestTakenOverChecksRunSoon(t *testing.T) {
	h := newHouse(t, 0.5, 64, "a", "b")
	h.register("rare", 40, `,"interval":"2m"`)
	h.rounds(40, 1)
	h.forget()
	h.mu.Lock()
	h.stops["b"]()
	delete(h.checkers, "b")
	h.mu.Unlock()
	eventually(t, "a probes what b did, long before their interval is over", func() bool { return len(h.probes()) > 5 })
}

// A service is never given up on the word of one node: not one with many
// instances, not one with a single one. What is really down is, in full.
func TestOneNodesWordDoesNotEmptyAService(t *testing.T) {
	h := newHouse(t, 0.5, 64, "a", "b", "c")
	h.register("cart", 12, often)
	for i := range 12 {
		h.register(fmt.Sprintf("single%d", i), 1, often)
	}
	h.rounds(24, 2)
	// b finds everything down: it is cut off from the instances, or broken.
	h.set(h.ill, "b", true)
	eventually(t, "changes are held back", func() bool { return h.heldBack() > 5 })
	h.forget()
	h.rounds(24, 3)
	for i := range 12 {
		if name := fmt.Sprintf("single%d", i); h.passing(name) != 1 {
			t.Errorf("%s was given up", name)
		}
	}
	if n := h.passing("cart"); n < 6 {
		t.Errorf("%d of 12 instances are left", n)
	}
	h.set(h.ill, "b", false)
	eventually(t, "all pass", func() bool { return h.passing("cart") == 12 })
	for _, node := range []string{"a", "b", "c"} {
		h.set(h.ill, node, true)
	}
	eventually(t, "what all nodes find down is down", func() bool {
		for i := range 12 {
			if h.passing(fmt.Sprintf("single%d", i)) != 0 {
				return false
			}
		}
		return h.passing("cart") == 0
	})
	if in, _ := h.Registry().Instance("default", "cart", "i0"); !strings.Contains(in.States[0].Output, "503") {
		t.Errorf("the output is %q", in.States[0].Output)
	}
}

// A node without the quorum runs nothing and reports nothing, and what it saw
// before does not count when it is back.
func TestANodeCutOffReportsNothing(t *testing.T) {
	h := newHouse(t, 0, 64, "a", "b")
	h.register("cart", 20, `,"interval":"1s","failures_before_critical":2`)
	h.rounds(20, 2)
	h.set(h.ill, "b", true)
	h.set(h.cut, "b", true)
	h.quiet("a runs the checks of both, and b probes and reports nothing", func(probes map[string]map[string]int, reports map[string]int) (enough, noise bool) {
		all, other := 0, 0
		for _, by := range probes {
			if by["a"] > 0 {
				all++
			}
			other += by["b"]
		}
		return all == 20, other+reports["b"] > 0
	})
	if h.passing("cart") != 20 {
		t.Errorf("%d of 20 pass", h.passing("cart"))
	}
	h.set(h.ill, "b", false)
	h.set(h.cut, "b", false)
	h.forget()
	h.rounds(20, 3)
	if h.passing("cart") != 20 {
		t.Errorf("%d of 20 pass after it came back", h.passing("cart"))
	}
}

// Only as many failures in a row as the check says make it critical, and as many
// successes passing; what flaps faster stays as it is, and costs no change.
func TestThresholds(t *testing.T) {
	h := newHouse(t, 0.5, 64, "a", "b")
	h.register("cart", 1, `,"interval":"1s","failures_before_critical":3,"successes_before_passing":2`)
	h.rounds(1, 1)
	revision := h.revisionNow()
	h.forget()
	h.set(h.flaps, "/cart/i0", true)
	h.rounds(1, 7)
	h.set(h.flaps, "/cart/i0", false)
	if h.passing("cart") != 1 || h.revisionNow() != revision {
		t.Errorf("flapping made %d changes; %d pass", h.revisionNow()-revision, h.passing("cart"))
	}
	h.set(h.ill, "/cart/i0", true)
	eventually(t, "it is critical", func() bool { return h.passing("cart") == 0 })
	h.set(h.ill, "/cart/i0", false)
	eventually(t, "it passes", func() bool { return h.passing("cart") == 1 })
	if n := h.revisionNow() - revision; n != 2 {
		t.Errorf("two changes of status took %d changes", n)
	}
}

func (h *house) revisionNow() uint64 { h.mu.Lock(); defer h.mu.Unlock(); return h.revision }

// Registering again does not disturb a check under way; another target is
// probed soon, and an instance that is gone no more.
func TestChecksFollowTheirInstances(t *testing.T) {
	h := newHouse(t, 0.5, 64, "a")
	h.register("other", 1, often)
	h.rounds(1, 1) // it runs now
	h.register("cart", 1, `,"interval":"1h"`)
	h.rounds(2, 1)
	h.forget()
	h.register("cart", 1, `,"interval":"1h"`)
	h.register("cart", 1, `,"interval":"1h","method":"POST"`)
	h.rounds(2, 1)
	if by := h.probes()["/cart/i0"]; by["a"] != 1 {
		t.Errorf("probed %v", by)
	}
	h.register("cart", 1, often)
	h.forget()
	h.rounds(2, 2)
	h.change(func(x *registry.Txn) {
		in, _ := h.now.Instance("default", "cart", "i0")
		if err := x.Delete(h.stamp(), registry.KindInstance, "default", "cart", "i0", in.Revision); err != nil {
			t.Error(err)
		}
	})
	h.checkers["a"].Changed("default", "cart", "i0", h.Registry())
	h.quiet("an instance that is gone is not probed", func(probes map[string]map[string]int, _ map[string]int) (enough, noise bool) {
		return probes["/other/i0"]["a"] >= 3, probes["/cart/i0"] != nil
	})
}

// Thousands of checks cost no goroutine each: as many run at one time as the
// node allows, and none is left out.
func TestThousandsOfChecks(t *testing.T) {
	const n, probes = 3000, 16
	h := newHouse(t, 0.5, probes, "a")
	held := make(chan struct{})
	h.mu.Lock()
	h.held = held
	h.mu.Unlock()
	goroutines := runtime.NumGoroutine()
	h.register("cart", n, `,"interval":"20s","timeout":"20s"`)
	eventually(t, "all probes are taken", func() bool { return int(h.under.Load()) == probes })
	if more := runtime.NumGoroutine() - goroutines; more > 12*probes {
		t.Errorf("%d goroutines for %d checks, of which %d run", more, n, probes)
	}
	close(held)
	h.rounds(n, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.most > probes {
		t.Errorf("%d probes at one time, and %d are allowed", h.most, probes)
	}
}
