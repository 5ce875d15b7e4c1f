package git

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/muster-registry/muster/fault"
)

// request asks for a pull at once.
type request struct {
	done chan result // buffered
}

type result struct {
	status  *Status
	outcome Outcome
}

// Run pulls until the context ends: at once, then on the interval and whenever
// it is asked to, and less and less often, down to one in half an hour, while
// the repository does not answer.
func (s *Source) Run(ctx context.Context) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = s.cfg.Interval
	wait.MaxInterval = max(s.cfg.Interval, 30*time.Minute)
	force := true // the last leader may have known other keys
	var asked []*request
	for {
		status, outcome := s.Pull(ctx, force)
		for _, r := range asked {
			r.done <- result{status, outcome}
		}
		if ctx.Err() != nil {
			return
		}
		next := s.cfg.Interval
		if outcome == FetchFailed || outcome == Failed {
			next = wait.NextBackOff()
		} else {
			wait.Reset()
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			force, asked = false, nil
		case r := <-s.wake:
			timer.Stop()
			force, asked = true, s.gather(r)
		}
	}
}

// gather takes all who wait for the same pull.
func (s *Source) gather(first *request) []*request {
	asked := []*request{first}
	for {
		select {
		case r := <-s.wake:
			asked = append(asked, r)
		default:
			return asked
		}
	}
}

// Poke asks for a pull at once and does not wait for it. Pulls that were asked
// for before one began are one pull.
func (s *Source) Poke() {
	select {
	case s.wake <- &request{done: make(chan result, 1)}:
	default: // as many wait for a pull already
	}
}

// Sync asks for a pull and gives its result. The error is not_ready: it did not
// begin or end in time, or the leadership went on to another node.
func (s *Source) Sync(ctx context.Context) (*Status, Outcome, error) {
	r := &request{done: make(chan result, 1)}
	select {
	case s.wake <- r:
	case <-ctx.Done():
		return nil, "", late(ctx)
	}
	select {
	case got := <-r.done:
		return got.status, got.outcome, nil
	case <-ctx.Done():
		return nil, "", late(ctx)
	}
}

func late(ctx context.Context) error {
	return fault.Wrap(fault.NotReady, ctx.Err(), "the pull from Git has not ended in time; it goes on, and its status tells how it ends")
}
