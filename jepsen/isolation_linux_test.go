package jepsen

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

var (
	refusesWithin = slack * 2 * time.Second // a minority, every write and linearizable read
	goesOnWithin  = slack * 3 * time.Second // the majority, since the cut
)

// TestIsolatedLeader: the leader is cut off the others while callers still
// reach it. It refuses, the others go on, nothing acknowledged is lost.
func TestIsolatedLeader(t *testing.T) {
	x := cluster(t, nil)
	s := Set{History: x.history, Service: "set", Patience: patience}
	begin := time.Now()
	writing := x.writers(s, 2)
	x.next(time.Now(), slack*5*time.Second)
	leader, term := x.leader()

	cut := x.isolate(leader, PeerLinks)
	x.probe(leader, cut, 6*time.Second)
	t.Logf("the majority's next acknowledged write: %s after the cut", x.next(cut, goesOnWithin))
	next, later := x.leader()
	if next.ID == leader.ID || later <= term {
		t.Errorf("the majority is led by %s in term %d; before the cut it was %s in term %d", next.ID, later, leader.ID, term)
	}
	majority := x.acknowledged(cut)
	x.heal()
	healed := time.Now()
	t.Logf("the next write after healing: %s", x.next(healed, slack*5*time.Second))
	x.more(20, leader)
	t.Logf("the healed node acknowledges writes %s after healing", since(healed))
	writing.stop()

	x.refused(leader, cut, healed)
	x.atLeast(majority, 100, "writes acknowledged by the majority during the cut")
	x.intact(s, begin, 300)
}

// probed is the register that probe writes and reads.
const probed = "probe"

// probe asks a cut-off node to write and to read linearizably, one after the
// other with several callers, for a while.
func (x *test) probe(n *Node, cut time.Time, duration time.Duration) {
	r := Registers{History: x.history, Patience: patience}
	var callers sync.WaitGroup
	for w := range 4 {
		callers.Go(func() {
			worker := 100 + w
			for i := 0; time.Since(cut) < duration; i++ {
				if w%2 == 0 {
					r.Get(x.ctx, n.Client, worker, probed)
				} else {
					r.Set(x.ctx, n.Client, worker, probed, fmt.Sprintf("%d-%d", worker, i))
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	callers.Wait()
}

// refused demands that nothing which began at the node during the cut, and
// ended in it, succeeded, that it was refused in time, with 503 and a code that
// says why; and that what was under way at the cut was answered in time.
func (x *test) refused(n *Node, cut, healed time.Time) {
	x.Helper()
	wrong := x.some()
	from, to := x.history.Since(cut), x.history.Since(healed)
	count, slowest := map[string]int{}, time.Duration(0)
	for _, op := range x.history.Ops(func(op *Op) bool {
		return op.Node == n.ID && op.Kind != Fault && op.Kind != Local && op.Return > from && op.Return < to
	}) {
		took := time.Duration(op.Return - max(op.Invoke, from))
		slowest = max(slowest, took)
		if took > refusesWithin {
			wrong("isolated %s kept a %s waiting for %s, more than %s: %s %d %s %s", n.ID, op.Kind, took, refusesWithin, op.Outcome, op.Status, op.Code, op.Detail)
		}
		if op.Invoke < from {
			continue
		}
		if op.Outcome == OK {
			wrong("isolated %s did a %s of %s %s after the cut", n.ID, op.Kind, op.Key, time.Duration(op.Invoke-from))
			continue
		}
		if op.Status != http.StatusServiceUnavailable || !slices.Contains([]string{"no_leader", "too_stale", "not_ready"}, op.Code) {
			wrong("isolated %s refused a %s with %d %q %s, not with a 503 that says why", n.ID, op.Kind, op.Status, op.Code, op.Detail)
		}
		count[fmt.Sprintf("%s %s %s", op.Kind, op.Code, op.Outcome)]++
		count[string(op.Kind)]++
	}
	x.Logf("isolated %s answered, the slowest after %s: %v", n.ID, slowest.Round(time.Millisecond), count)
	x.atLeast(count[string(Write)], 5, "writes refused by the minority")
	x.atLeast(count[string(Read)], 5, "linearizable reads refused by the minority")
}

// TestRegister: compare-and-set registers, used by callers on all nodes while
// the leader is isolated again and again, once from its callers as well, and
// between that stands still without knowing it, are linearizable.
func TestRegister(t *testing.T) {
	thorough(t)
	x := cluster(t, nil)
	r := Registers{History: x.history, Patience: patience}
	begin := time.Now()
	working := x.run(x.Nodes, 3, func(ctx context.Context, n *Node, worker, i int) time.Duration {
		// New registers every other second keep each history short enough to
		// be searched, and still cross every fault.
		key := fmt.Sprintf("r%d-%d", int(time.Since(begin)/(2*time.Second)), rand.IntN(3))
		value := fmt.Sprintf("%d-%d", worker, i)
		if rand.IntN(8) == 0 {
			r.Set(ctx, n.Client, worker, key, value)
		} else if seen := r.Get(ctx, n.Client, worker, key); seen.Outcome == OK {
			r.Swap(ctx, n.Client, seen, value)
		}
		return time.Duration(10+rand.IntN(10)) * time.Millisecond
	})
	_, first := x.leader()
	isolate := func(links Links) func(*Node) time.Time {
		return func(n *Node) time.Time { return x.isolate(n, links) }
	}
	heal := func(*Node) { x.heal() }
	faults := []struct {
		begin func(leader *Node) time.Time
		end   func(leader *Node)
	}{{isolate(PeerLinks), heal}, {x.pause, x.resume}, {isolate(AllLinks), heal}, {x.pause, x.resume}, {isolate(PeerLinks), heal}}
	for _, f := range faults {
		leader, _ := x.leader()
		begun := f.begin(leader)
		x.next(begun, goesOnWithin)
		time.Sleep(time.Until(begun.Add(3 * time.Second)))
		f.end(leader)
		x.more(50, x.Nodes...)
	}
	working.stop()
	x.converged()
	_, last := x.leader()
	if last < first+uint64(len(faults)) {
		t.Errorf("%d leaders were cut off or paused, and the term only went from %d to %d", len(faults), first, last)
	}

	x.tally(map[Kind]int{Read: 500, CAS: 200, Write: 50})
	begin = time.Now()
	x.must(CheckRegisters(x.history.Ops(nil), 30*time.Second, filepath.Dir(x.history.Path)))
	x.must(CheckRevisions(x.history.Ops(nil)))
	t.Logf("linearizable; the search took %s", since(begin))
}

func (x *test) pause(n *Node) time.Time {
	x.Helper()
	x.must(n.Pause())
	return x.history.Mark(n.ID, "SIGSTOP")
}

func (x *test) resume(n *Node) {
	x.Helper()
	x.history.Mark(n.ID, "SIGCONT")
	x.must(n.Resume())
}

// tally reports what became of the operations, and demands a least number of
// successes of each kind.
func (x *test) tally(least map[Kind]int) {
	x.Helper()
	count := map[string]int{}
	for _, op := range x.history.Ops(func(op *Op) bool { return op.Kind != Fault }) {
		what := string(op.Kind) + " " + string(op.Outcome)
		if op.Outcome == Failed && op.Code != "" {
			what += " " + op.Code
		}
		count[what]++
	}
	x.Logf("operations: %v", count)
	for kind, n := range least {
		x.atLeast(count[string(kind)+" "+string(OK)], n, string(kind)+" operations that succeeded")
	}
}
