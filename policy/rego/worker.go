package rego

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/fault"
)

// OPA looks at its cancel flag between steps. A single step can still take for
// ever: to compare two documents in which one part stands very many times is
// one. So no caller evaluates on its own goroutine: it gives the question to a
// worker, and gives the worker up when even a cut-off evaluation should have
// ended. What cannot be ended goes on in the background, so a revision that has
// maxStuck of those is not asked any more; every other revision is, which is
// the way out.
const (
	grace        = 2 * time.Second // from the limit to giving up
	slotWait     = time.Second     // for a worker, when all are busy
	questionWait = 5 * time.Second // for a revision that has to be compiled first
	maxStuck     = 2
)

// job is one evaluation on its way through a worker.
type job struct {
	run   func() any
	set   *set
	state atomic.Int32 // running, finished by the worker or given up by the caller
	done  chan any
}

const (
	running int32 = iota
	finished
	givenUp
)

// evaluate asks the entry point about the input, within the limit. Now is
// what time.now_ns gives, so that a decision can be replayed; zero means now.
// It always returns soon after the limit: an evaluation that does not end is
// left behind.
func (e *Engine) evaluate(ctx context.Context, s *set, entry *entry, now time.Time, input func() ast.Value) *verdict {
	if entry.err != nil {
		return no("the entry point data.%s cannot be asked: %s", dotted(entry.path), entry.err.Error())
	}
	v, err := e.supervise(ctx, s, entry.path, func() any { return e.ask(ctx, s, entry, now, nil, input) })
	if err != nil {
		v := missed("%s", fault.From(err).Detail)
		v.limited = errors.Is(err, errGivenUp)
		return v
	}
	return v.(*verdict)
}

// supervise has a worker run what evaluates, and gives it up soon after the
// limit. What it runs ends at the limit by itself where that is possible, and
// recovers from its own panics. The error is not_ready: nobody answered.
func (e *Engine) supervise(ctx context.Context, s *set, what string, run func() any) (any, error) {
	return e.superviseFor(ctx, s, what, e.options.Limit, run)
}

// superviseFor is supervise for what has another limit than a decision.
func (e *Engine) superviseFor(ctx context.Context, s *set, what string, limit time.Duration, run func() any) (any, error) {
	if s.stuck.Load() >= maxStuck {
		return nil, fault.New(fault.NotReady, "evaluations of this policy do not end, so it is not asked any more; activate another revision")
	}
	if !e.slot(ctx) {
		return nil, fault.New(fault.NotReady, "the policy was not asked in time, because the node is busy; try again")
	}
	defer func() { <-e.slots }()
	j := &job{set: s, run: run, done: make(chan any, 1)}
	select {
	case e.jobs <- j:
	default:
		go e.work(j)
	}
	patience := time.NewTimer(limit + schemaAllowance + grace)
	defer patience.Stop()
	select {
	case v := <-j.done:
		return v, nil
	case <-patience.C:
	}
	if !j.state.CompareAndSwap(running, givenUp) {
		return <-j.done, nil
	}
	e.options.Logger.Error("an evaluation of the policy does not end and was given up", "entry_point", what, "given_up", s.stuck.Add(1))
	return nil, fault.Wrap(fault.NotReady, errGivenUp, "%s", fault.From(e.cutOff()).Detail)
}

var errGivenUp = errors.New("given up")

// cutOff says that an evaluation took longer than the limit.
func (e *Engine) cutOff() error {
	return fault.New(fault.NotReady, "the policy took longer than %v and was cut off", e.options.Limit)
}

// slot waits for its turn among the evaluations, but not for long.
func (e *Engine) slot(ctx context.Context) bool {
	select {
	case e.slots <- struct{}{}:
		return true
	default:
	}
	wait := time.NewTimer(slotWait + e.options.Limit)
	defer wait.Stop()
	select {
	case e.slots <- struct{}{}:
		return true
	case <-ctx.Done():
	case <-wait.C:
	}
	return false
}

// work evaluates, and waits for more to do.
func (e *Engine) work(j *job) {
	for {
		v := j.run()
		if !j.state.CompareAndSwap(running, finished) {
			j.set.stuck.Add(-1) // given up too early, or ended after all
			return
		}
		j.done <- v
		select {
		case j = <-e.jobs:
		case <-e.done:
			return
		}
	}
}
