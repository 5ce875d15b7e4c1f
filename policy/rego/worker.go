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
//
// There are three lanes, so that none keeps the ones before it from their turn:
// the registry's own decisions, questions that callers put to the policy, and
// what is no part of the policy, such as queries in Rego. One of the last that
// does not end says nothing about the revision: it keeps its place in the lane
// instead, so that there are never more of those than the lane is wide.
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
	place chan struct{} // the lane of what keeps its place until it ends; nil: the caller frees it
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
	return e.evaluateIn(ctx, e.slots, s, entry, now, input)
}

// evaluateIn is evaluate for a question of that lane.
func (e *Engine) evaluateIn(ctx context.Context, lane chan struct{}, s *set, entry *entry, now time.Time, input func() ast.Value) *verdict {
	if entry.err != nil {
		return no("the entry point data.%s cannot be asked: %s", dotted(entry.path), fault.From(entry.err).Detail)
	}
	v, err := e.supervise(ctx, lane, s, entry.path, func() any { return e.ask(ctx, s, entry, now, nil, input) })
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
func (e *Engine) supervise(ctx context.Context, lane chan struct{}, s *set, what string, run func() any) (any, error) {
	return e.superviseFor(ctx, lane, s, what, e.options.Limit, run)
}

// superviseFor is supervise for what has another limit than a decision.
func (e *Engine) superviseFor(ctx context.Context, lane chan struct{}, s *set, what string, limit time.Duration, run func() any) (any, error) {
	if s.stuck.Load() >= maxStuck {
		return nil, fault.New(fault.NotReady, "evaluations of this policy do not end, so it is not asked any more; activate another revision")
	}
	if !e.slot(ctx, lane) {
		return nil, fault.New(fault.NotReady, "the policy was not asked in time, because the node is busy; try again")
	}
	j := &job{set: s, run: run, done: make(chan any, 1)}
	if lane == e.queries {
		j.place = lane
	}
	defer func() {
		if j.place == nil || j.state.Load() != givenUp {
			<-lane
		}
	}()
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
	if j.place != nil {
		e.options.Logger.Error("a query does not end and was given up; it keeps its place among the queries until it ends", "query", what, "places", cap(lane))
	} else {
		e.options.Logger.Error("an evaluation of the policy does not end and was given up", "entry_point", what, "given_up", s.stuck.Add(1))
	}
	return nil, fault.Wrap(fault.NotReady, errGivenUp, "%s", fault.From(e.cutOff()).Detail)
}

var errGivenUp = errors.New("given up")

// cutOff says that an evaluation took longer than the limit.
func (e *Engine) cutOff() error {
	return fault.New(fault.NotReady, "the policy took longer than %v and was cut off", e.options.Limit)
}

// slot waits for its turn among the evaluations, but not for long.
func (e *Engine) slot(ctx context.Context, lane chan struct{}) bool {
	select {
	case lane <- struct{}{}:
		return true
	default:
	}
	wait := time.NewTimer(slotWait + e.options.Limit)
	defer wait.Stop()
	select {
	case lane <- struct{}{}:
		return true
	case <-ctx.Done():
	case <-wait.C:
	}
	return false
}

// largeInput is the size from which on inputs take turns: as values they take
// some fifty times the memory of their text.
const (
	largeInput = 256 << 10
	largeWait  = 10 * time.Second
)

// Room waits until there is room in memory for an input of so many bytes, and
// gives what makes the room free again: once the question is answered. The error
// is not_ready. Who holds room must not ask for more.
func (e *Engine) Room(ctx context.Context, bytes int) (release func(), err error) {
	if bytes < largeInput {
		return func() {}, nil
	}
	wait := time.NewTimer(largeWait)
	defer wait.Stop()
	select {
	case e.large <- struct{}{}:
		return func() { <-e.large }, nil
	case <-ctx.Done():
	case <-wait.C:
	}
	return nil, fault.New(fault.NotReady, "this node has many large inputs to read, and this one did not get its turn in time; try again, or send less than %d bytes", largeInput)
}

// work evaluates, and waits for more to do.
func (e *Engine) work(j *job) {
	for {
		v := j.run()
		if !j.state.CompareAndSwap(running, finished) {
			if j.place != nil { // given up too early, or ended after all
				<-j.place
			} else {
				j.set.stuck.Add(-1)
			}
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
