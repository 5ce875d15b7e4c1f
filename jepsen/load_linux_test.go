package jepsen

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// patience bounds a request of the load: longer than anything a node may take
// to refuse.
const patience = 5 * time.Second

// load is callers that go on until it is stopped.
type load struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// run starts workers, several per node given; each calls step over and over.
// step says how long to pause.
func (x *test) run(nodes []*Node, perNode int, step func(ctx context.Context, n *Node, worker, i int) time.Duration) *load {
	ctx, cancel := context.WithCancel(x.ctx)
	l := &load{cancel: cancel}
	for _, n := range nodes {
		for w := range perNode {
			worker := n.Number*perNode + w
			l.done.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					// A request under way when the load ends is seen through.
					pause := step(context.WithoutCancel(ctx), n, worker, i)
					select {
					case <-time.After(pause):
					case <-ctx.Done():
					}
				}
			})
		}
	}
	x.Cleanup(l.stop)
	return l
}

// stop lets requests under way finish.
func (l *load) stop() {
	l.cancel()
	l.done.Wait()
}

// writers adds to the set through every node.
func (x *test) writers(s Set, perNode int) *load {
	return x.run(x.Nodes, perNode, func(ctx context.Context, n *Node, worker, i int) time.Duration {
		op := s.Add(ctx, n.Client, worker, fmt.Sprintf("w%d-%d", worker, i))
		if op.Outcome != OK {
			return 50 * time.Millisecond
		}
		return time.Duration(rand.IntN(4)) * time.Millisecond
	})
}

// fill registers count instances with eight callers, all of which must be
// acknowledged.
func (x *test) fill(s Set, nodes []*Node, prefix string, count int) {
	x.Helper()
	var next sync.Mutex
	i := 0
	var group sync.WaitGroup
	for w := range 8 {
		group.Go(func() {
			for {
				next.Lock()
				mine := i
				i++
				next.Unlock()
				if mine >= count {
					return
				}
				n := nodes[w%len(nodes)]
				if op := s.Add(x.ctx, n.Client, w, fmt.Sprintf("%s-%d", prefix, mine)); op.Outcome != OK {
					x.Errorf("%s: %s %d %s %s", op.Key, op.Outcome, op.Status, op.Code, op.Detail)
					return
				}
			}
		})
	}
	group.Wait()
	if x.Failed() {
		x.FailNow()
	}
}

// acknowledged is how many writes began after a moment and were acknowledged.
func (x *test) acknowledged(after time.Time) int {
	from := x.history.Since(after)
	return x.history.Count(func(op *Op) bool { return op.changed() && op.Outcome == OK && op.Invoke >= from })
}

func (op *Op) changed() bool { return op.Kind == Write || op.Kind == CAS }

// next waits for the first acknowledged write that began after the moment, and
// returns how long after the moment the acknowledgement came.
func (x *test) next(after time.Time, most time.Duration) time.Duration {
	x.Helper()
	from := x.history.Since(after)
	ctx, cancel := context.WithTimeout(x.ctx, most+slack*10*time.Second)
	defer cancel()
	var gap time.Duration
	err := Until(ctx, func() error {
		// The history is in the order of returns.
		ops := x.history.Ops(func(op *Op) bool { return op.changed() && op.Outcome == OK && op.Invoke >= from })
		if len(ops) == 0 {
			return fmt.Errorf("no write was acknowledged in %s", since(after))
		}
		gap = time.Duration(ops[0].Return - from).Round(time.Millisecond)
		return nil
	})
	x.must(err)
	if gap > most {
		x.Errorf("the next acknowledged write came after %s, more than %s", gap, most)
	}
	return gap
}

// more waits until callers of the nodes have got so many more writes
// acknowledged.
func (x *test) more(count int, nodes ...*Node) {
	x.Helper()
	from := x.history.Since(time.Now())
	ctx, cancel := context.WithTimeout(x.ctx, slack*15*time.Second)
	defer cancel()
	x.must(Until(ctx, func() error {
		for _, n := range nodes {
			if got := x.history.Count(func(op *Op) bool {
				return op.Node == n.ID && op.changed() && op.Outcome == OK && op.Invoke >= from
			}); got < count {
				return fmt.Errorf("%s acknowledged %d more writes of %d", n.ID, got, count)
			}
		}
		return nil
	}))
}

// intact demands that every node has exactly the set that callers were told of
// since the moment, and revisions that rise.
func (x *test) intact(s Set, since time.Time, least int) {
	x.Helper()
	x.converged()
	from := x.history.Since(since)
	ops := x.history.Ops(func(op *Op) bool { return op.Kind == Write && op.Key != probed && op.Invoke >= from })
	x.must(CheckRevisions(ops))
	for _, n := range x.Nodes {
		found, err := s.Members(x.ctx, n.Client, "linearizable")
		x.must(err)
		count, err := CheckSet(ops, found)
		if err != nil {
			x.Errorf("on %s: %v", n.ID, err)
		}
		if n.Number == 0 {
			x.atLeast(count, least, "acknowledged writes, each looked for on each node")
		}
		lines := 0
		ctx, cancel := context.WithTimeout(x.ctx, 30*time.Second)
		err = Until(ctx, func() (err error) { // lines are written a moment after the change is applied
			lines, err = n.Audited(ctx, ops)
			return err
		})
		cancel()
		if err != nil {
			x.Errorf("audit trail: %v", err)
		}
		x.Logf("the audit trail of %s verifies and holds %d of %d acknowledged writes", n.ID, lines, count)
	}
}
