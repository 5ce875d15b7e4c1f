package sim

import (
	"slices"
	"sync"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/jepsen"
)

// history is what the callers of a cluster did and were told.
type history struct {
	began time.Time

	mu   sync.Mutex // guards what follows
	last int64
	ops  []jepsen.Op
	acks []ack // in the order of their times
}

// ack is the highest revision that was acknowledged by a moment.
type ack struct {
	at       time.Time
	revision uint64
}

// now is the virtual time, made different for each call: what happened one
// after the other in no time has an order all the same.
func (h *history) now() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = max(h.last+1, int64(time.Since(h.began)))
	return h.last
}

// add records an operation that began at op.Invoke and has just returned.
func (h *history) add(op jepsen.Op, err error) jepsen.Op {
	op.Return, op.Outcome = h.now(), jepsen.OK
	if err != nil {
		f := fault.From(err)
		op.Outcome, op.Status, op.Code, op.Detail = jepsen.Failed, f.Code.Status(), string(f.Code), f.Detail
		if f.Outcome == fault.Unknown {
			op.Outcome = jepsen.Unknown
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
	if op.Outcome == jepsen.OK && op.Kind != jepsen.Read {
		most := op.Revision
		if n := len(h.acks); n > 0 {
			most = max(most, h.acks[n-1].revision)
		}
		h.acks = append(h.acks, ack{time.Now(), most})
	}
	return op
}

// before is the highest revision that was acknowledged before a moment.
func (h *history) before(t time.Time) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, _ := slices.BinarySearchFunc(h.acks, t, func(a ack, t time.Time) int { return a.at.Compare(t) })
	if n == 0 {
		return 0
	}
	return h.acks[n-1].revision
}

// of is the revision with which the write of a value was acknowledged; 0: it was not.
func (h *history) of(value string) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range slices.Backward(h.ops) {
		if op.Value == value && op.Outcome == jepsen.OK {
			return op.Revision
		}
	}
	return 0
}

// all are the operations so far.
func (h *history) all() []jepsen.Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ops[:len(h.ops):len(h.ops)]
}

func (h *history) count(outcome jepsen.Outcome) (n int) {
	for _, op := range h.all() {
		if op.Outcome == outcome {
			n++
		}
	}
	return n
}
