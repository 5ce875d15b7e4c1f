package workload

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// session is a clock in the registry, which only moves on, and callers that
// read it in three ways: locally, where the answer says how old it may be;
// bounded, where it may not be older; and in a session, which carries the
// newest revision it has seen from node to node and never goes back.
type session struct {
	jepsen.Registers
	tick     atomic.Int64
	mu       sync.Mutex // guards sessions and mistakes
	newest   map[int]jepsen.Op
	mistakes fewMistakes
}

// bound is the max_staleness of a bounded read; rounding what whole
// milliseconds and a clock read early may take away from an age.
const (
	bound    = 500 * time.Millisecond
	rounding = 2 * time.Millisecond
)

func (*session) Config() map[string]any { return nil }

func (w *session) Begin(ctx context.Context, s *Stage) error {
	w.Registers = jepsen.Registers{History: s.History, Patience: Patience}
	w.newest = map[int]jepsen.Op{}
	_, err := s.must(ctx, http.MethodPut, clock, `{"description":"0"}`)
	return err
}

const clock = "/v1/namespaces/jepsen/services/clock"

// Step of the first caller moves the clock on; of the others each has its way.
func (w *session) Step(ctx context.Context, s *Stage, c *Caller) time.Duration {
	if c.Number == 0 {
		w.Set(ctx, c.any(s).Client, 0, "clock", strconv.FormatInt(w.tick.Add(1), 10))
		return c.between(5*time.Millisecond, 20*time.Millisecond)
	}
	switch c.Number % 3 {
	case 0:
		w.read(ctx, s, c, c.Node, "local", "")
	case 1:
		w.read(ctx, s, c, c.Node, "bounded", "?max_staleness="+bound.String())
	default:
		w.mu.Lock()
		seen := w.newest[c.Number]
		w.mu.Unlock()
		n := c.any(s)
		if c.Rand.IntN(20) == 0 { // its own write counts as seen
			op := w.Set(ctx, n.Client, c.Number, fmt.Sprintf("own%d", c.Number), strconv.Itoa(c.Count))
			if op.Outcome == jepsen.OK {
				w.mu.Lock()
				seen.At = max(seen.At, op.Revision)
				w.newest[c.Number] = seen
				w.mu.Unlock()
			}
			return time.Millisecond
		}
		op := w.read(ctx, s, c, n, "session", fmt.Sprintf("?min_revision=%d&wait=2s", seen.At))
		if op.Outcome == jepsen.OK {
			w.goesOn(c, seen, op)
		}
	}
	return c.between(time.Millisecond, 6*time.Millisecond)
}

func (w *session) goesOn(c *Caller, seen, op jepsen.Op) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if op.At < seen.At || op.Revision < seen.Revision {
		w.mistakes.add("%s answered session %d from revision %d, clock %s; it had seen %d, clock %s, at %s", op.Node, c.Number, op.At, op.Value, seen.At, seen.Value, seen.Node)
	}
	op.At = max(op.At, seen.At)
	w.newest[c.Number] = op
}

func (w *session) read(ctx context.Context, s *Stage, c *Caller, n *jepsen.Node, how, query string) jepsen.Op {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	op := jepsen.Op{Worker: c.Number, Node: n.ID, Kind: jepsen.Local, Key: "clock", Detail: how}
	a := n.Call(ctx, http.MethodGet, clock+query, nil)
	if a.Outcome == jepsen.OK {
		op.Value, op.Revision = a.Register()
		if _, ok := a.Staleness(); !ok {
			w.mu.Lock()
			w.mistakes.add("a read by %s says nothing of its age", n.ID)
			w.mu.Unlock()
		}
	}
	return s.History.Add(op, a)
}

func (w *session) Check(_ context.Context, s *Stage) (string, error) {
	// Values rise with the order of invocations, but for what two nodes had
	// under way at once: of those only what is newer counts.
	acknowledged := s.History.Ops(func(op *jepsen.Op) bool {
		return op.Kind == jepsen.Write && op.Key == "clock" && op.Outcome == jepsen.OK
	})
	judged, worst := 0, time.Duration(0)
	reads := s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.Local && op.Outcome == jepsen.OK })
	for _, op := range reads {
		judged++
		claimed := time.Duration(op.Staleness) * time.Millisecond
		// So old it was when it was asked for; after that it may have waited
		// for a round with the leader.
		if asked := claimed - time.Duration(op.Return-op.Invoke); op.Detail == "bounded" && asked > bound+rounding {
			w.mistakes.add("%s answered a read bounded by %s with something %s old", op.Node, bound, asked)
		}
		// The first newer value that had been acknowledged: so old is the answer.
		for _, a := range newer(acknowledged, op.Revision) {
			truth := time.Duration(op.Invoke - a.Return)
			if truth > 0 {
				worst = max(worst, truth)
				if op.Detail == "bounded" && truth > bound+rounding {
					w.mistakes.add("%s answered a read bounded by %s with what had been overwritten for %s", op.Node, bound, truth)
				}
				if claimed < truth-rounding {
					w.mistakes.add("%s said its state was %s old; clock %s had been acknowledged %s before it was asked, and it showed %s", op.Node, claimed, a.Value, truth, op.Value)
				}
			}
			break
		}
	}
	if judged*int(s.Slack) < 60 {
		w.mistakes.add("only %d reads were judged; the run shows nothing", judged)
	}
	return fmt.Sprintf("%d local, bounded and session reads held to their word; the oldest answer was %s old", judged, worst.Round(time.Millisecond)), w.mistakes.err()
}

// newer are the acknowledged writes of a higher revision, the earliest
// acknowledged of them first. They come one after the other from one caller, so
// both orders are one.
func newer(acknowledged []jepsen.Op, revision uint64) []jepsen.Op {
	from, to := 0, len(acknowledged)
	for from < to {
		if middle := (from + to) / 2; acknowledged[middle].Revision > revision {
			to = middle
		} else {
			from = middle + 1
		}
	}
	return acknowledged[from:]
}
