package cluster

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
)

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 6*d)
	t.Cleanup(cancel)
	return ctx
}

// Three nodes find each other and form one cluster; a write through any of
// them can be read through every other.
func TestThreeNodes(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	for _, n := range nodes {
		if id := n.kv.ClusterID(); id == "" || id != nodes[0].kv.ClusterID() {
			t.Fatalf("%s is in cluster %q, n1 in %q", n.ID(), id, nodes[0].kv.ClusterID())
		}
	}
	for _, w := range nodes {
		if _, err := w.Call(within(t, 30*time.Second), "put", []byte("by "+w.ID())); err != nil {
			t.Fatalf("write through %s: %v", w.ID(), err)
		}
		for _, r := range nodes {
			must(t, r.ReadIndex(within(t, 30*time.Second)))
			if r.kv.get("by "+w.ID()) == "" {
				t.Errorf("%s does not show what %s wrote before the read", r.ID(), w.ID())
			}
		}
	}
	st := nodes[1].Status(t.Context())
	if st.ClusterID != nodes[0].kv.ClusterID() || st.Leader == "" || st.Term == 0 || len(st.Nodes) != 3 {
		t.Fatalf("status %+v", st)
	}
	for i, n := range st.Nodes {
		id := fmt.Sprintf("n%d", i+1)
		role := "voter"
		if id == st.Leader {
			role = "leader"
		}
		if n.ID != id || n.Role != role || !n.Alive || !n.Ready || n.Applied == 0 || n.LastContact < 0 ||
			string(n.Extra) != `{"of":"`+id+`"}` || n.Meta["control"] != "https://"+id || n.Address != nodes[i].Address() {
			t.Errorf("status of %s: %+v", id, n)
		}
	}
}

func TestSingleNode(t *testing.T) {
	l := newLab(t)
	n := l.form(1)[0]
	_, err := n.Call(within(t, 30*time.Second), "put", []byte("a"))
	must(t, err)
	l.crash(n)
	again := l.start(n.cfg)
	l.ready(again)
	if again.kv.get("a") == "" {
		t.Fatal("the write did not survive the restart")
	}
}

// A refusal of the machine reaches the caller through another node, whole.
func TestRefusalTravels(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	for _, n := range nodes {
		began := time.Now()
		_, err := n.Call(within(t, 30*time.Second), "put", []byte("refused"))
		wantFault(t, err, fault.RevisionMismatch, fault.Definite, began, 2*time.Second)
	}
}

// Commands that wait together share entries, and each gets its own receipt.
func TestGroupCommit(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	const callers = 300
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var all sync.WaitGroup
	leader := l.leader(nodes...)
	for i := range callers {
		all.Go(func() {
			r, err := leader.Propose(within(t, 10*time.Second), put(fmt.Sprint("key ", i), "v"))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if seen[r.Revision] {
				t.Errorf("two commands have revision %d", r.Revision)
			}
			seen[r.Revision] = true
		})
	}
	all.Wait()
	if leader.kv.largest < 2 {
		t.Errorf("%d concurrent commands shared no entry", callers)
	}
}

// Writes go on after the leader's death, how soon is jepsen's to measure, and the
// dead node catches up by itself when it returns.
func TestLeaderDies(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	for round := range 3 {
		leader := l.leader(nodes...)
		var rest []*node
		for _, n := range nodes {
			if n != leader {
				rest = append(rest, n)
			}
		}
		died := time.Now()
		l.crash(leader)
		key := fmt.Sprint("after ", round)
		l.eventually("the others take a write", func() error {
			_, err := rest[0].Call(within(t, 20*time.Second), "put", []byte(key))
			return err
		})
		if took := time.Since(died); took > 20*time.Second {
			t.Errorf("round %d: the next write came after %s", round, took)
		} else {
			t.Logf("the next write came after %s", took)
		}
		back := l.start(leader.cfg)
		l.ready(back)
		if back.kv.get(key) == "" {
			t.Fatalf("%s is ready and does not show what was written while it was away", back.ID())
		}
		nodes = append(rest, back)
	}
}

// All at once: nothing acknowledged is lost, all come back unaided.
func TestAllDie(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	for i := range 20 {
		_, err := nodes[i%3].Call(within(t, 30*time.Second), "put", fmt.Append(nil, "key ", i))
		must(t, err)
	}
	for _, n := range nodes {
		l.crash(n)
	}
	for i, n := range nodes {
		nodes[i] = l.start(n.cfg)
	}
	for _, n := range nodes {
		l.ready(n)
		for i := range 20 {
			if n.kv.get(fmt.Sprint("key ", i)) == "" {
				t.Errorf("%s lost key %d", n.ID(), i)
			}
		}
	}
}

// Law 6: a leader without a majority refuses writes and linearizable reads
// (how soon is jepsen's to measure), the majority goes on, and no read on the old leader ever
// shows the past as the present. Staleness grows there and is told.
func TestLeaderIsolated(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	old := l.leader(nodes...)
	_, err := old.Call(within(t, 30*time.Second), "put", []byte("before"))
	must(t, err)
	began := time.Now()
	l.isolate(old)

	// Reads on the cut off node: served only while no one else can have written.
	var wg sync.WaitGroup
	var mu sync.Mutex
	var written time.Time
	wg.Go(func() {
		for time.Since(began) < 4*time.Second {
			start := time.Now()
			err := old.ReadIndex(t.Context())
			mu.Lock()
			past := !written.IsZero() && start.After(written)
			mu.Unlock()
			if err == nil && past && old.kv.get("after") == "" {
				t.Error("a linearizable read missed an acknowledged write")
			}
			if err != nil {
				wantFault(t, err, fault.NoLeader, fault.Definite, start, 10*time.Second)
			}
		}
	})
	start := time.Now()
	_, err = old.Call(context.Background(), "put", []byte("lost"))
	wantFault(t, err, fault.NoLeader, fault.Unknown, start, 10*time.Second)
	start = time.Now()
	_, err = old.Call(context.Background(), "put", []byte("refused"))
	wantFault(t, err, fault.NoLeader, fault.Definite, start, 10*time.Second)

	var rest []*node
	for _, n := range nodes {
		if n != old {
			rest = append(rest, n)
		}
	}
	l.eventually("the others take a write", func() error {
		_, err := rest[1].Call(within(t, 20*time.Second), "put", []byte("after"))
		return err
	})
	mu.Lock()
	written = time.Now()
	mu.Unlock()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the majority went on only after %s", took)
	}
	must(t, rest[0].ReadIndex(within(t, 20*time.Second)))
	if rest[0].kv.get("after") == "" {
		t.Error("a read in the majority missed the write")
	}
	wg.Wait()
	// What old shows is as of some moment no later than the cut and a poll's
	// length; it must not claim to be fresher than the new leader's first write.
	if s := old.Staleness(); s < time.Since(written) {
		t.Errorf("cut off since %s, the node claims to be at most %s old, and does not show what was written %s ago", time.Since(began), s, time.Since(written))
	}
	if old.Ready() != nil {
		t.Error("a node that had caught up is not ready any more; it only grows stale")
	}
	apart := func(want bool) func() error {
		return func() error {
			for _, m := range rest[0].Members() {
				if m.Apart != (want && m.ID == old.ID()) || !m.Alive {
					return fmt.Errorf("%s: alive %t, apart %t", m.ID, m.Alive, m.Apart)
				}
			}
			return nil
		}
	}
	l.eventually("the others know by gossip that it has lost the quorum", apart(true))
	l.join()
	l.eventually("the others know that it is back", apart(false))
	l.eventually("the old leader catches up", func() error {
		if old.kv.get("after") == "" || old.Staleness() > time.Second {
			return fmt.Errorf("staleness %s", old.Staleness())
		}
		return nil
	})
}

// A leader that does not know yet that it was deposed, as one that was paused,
// serves no linearizable read: each needs a majority's word from after it came.
func TestDeposedLeaderServesNoRead(t *testing.T) {
	l := newLab(t)
	slow := func(id string, expect int) Config {
		cfg := l.config(id, expect)
		cfg.Timing = Timing{Heartbeat: 15 * time.Second, Election: 15 * time.Second, Lease: 15 * time.Second}
		return cfg
	}
	cfgs := []Config{slow("n1", 3), l.config("n2", 3), l.config("n3", 3)}
	for i := range cfgs {
		l.seeds = append(l.seeds, cfgs[i].GossipAddr)
	}
	var nodes []*node
	for i, cfg := range cfgs {
		cfg.Join = l.seeds
		if i > 0 {
			cfg.Timing.Heartbeat, cfg.Timing.Election = time.Second, time.Second
		}
		nodes = append(nodes, l.start(cfg))
	}
	for _, n := range nodes {
		l.ready(n)
	}
	old := nodes[0]
	l.eventually("n1 leads", func() error {
		_ = nodes[1].TransferLeader(within(t, 20*time.Second), "n1")
		if !old.IsLeader() {
			return fmt.Errorf("%v leads", nodes[1].Members())
		}
		return nil
	})
	l.isolate(old)
	l.eventually("the others take a write", func() error {
		_, err := nodes[1].Call(within(t, 20*time.Second), "put", []byte("after"))
		return err
	})
	if !old.IsLeader() {
		t.Fatal("the old leader has noticed already: the test tests nothing")
	}
	began := time.Now()
	wantFault(t, old.ReadIndex(t.Context()), fault.NoLeader, fault.Definite, began, 2*time.Second)
}

// Nodes that disagree on how many they are form no cluster, and say why.
func TestExpectationsDiffer(t *testing.T) {
	l := newLab(t)
	a, b := l.config("n1", 2), l.config("n2", 3)
	a.Join = []string{b.GossipAddr}
	n1, n2 := l.start(a), l.start(b)
	for _, n := range []*node{n1, n2} {
		l.eventually(n.ID()+" says why", func() error {
			if !fault.Is(n.Ready(), fault.NotReady) || n.trouble.Load() == nil {
				return fmt.Errorf("ready says %v", n.Ready())
			}
			return nil
		})
		if n.hasState() {
			t.Errorf("%s has state", n.ID())
		}
	}
}

// A follower cut off refuses what needs the leader within two seconds.
func TestFollowerIsolated(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	leader := l.leader(nodes...)
	for _, n := range nodes {
		if n == leader {
			continue
		}
		l.isolate(n)
		start := time.Now()
		_, err := n.Call(context.Background(), "put", []byte("x"))
		wantFault(t, err, fault.NoLeader, fault.Unknown, start, 10*time.Second)
		start = time.Now()
		wantFault(t, n.ReadIndex(context.Background()), fault.NoLeader, fault.Definite, start, 10*time.Second)
		start = time.Now()
		_, err = n.Call(context.Background(), "put", []byte("x"))
		wantFault(t, err, fault.NoLeader, fault.Definite, start, 10*time.Second)
		return
	}
}
