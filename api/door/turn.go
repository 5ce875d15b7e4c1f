package door

import (
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
)

// Arrive takes the call in, before it is known who sent it; remote is the
// caller's address, host:port. It comes right after Begin, and each is followed
// by Leave, also where it refuses. An edge leaves out what is to be answered
// however busy the node is.
func (c *Call) Arrive(remote string) error { return c.visit.Arrive(c.door.opt.Flow, remote) }

// Leave gives back all that the call has of the node.
func (c *Call) Leave() { c.visit.Leave() }

// Turn waits for the call's turn to be answered. What comes after it must not
// wait for the caller: a body is there already, an answer is sent after Pause.
// Where an edge does not ask, Decide, Ask, Submit and Heartbeat do, each for
// itself.
func (c *Call) Turn(kind flow.Kind) error {
	if err := c.visit.Begin(c.req.Context(), kind); err != nil {
		return err
	}
	if c.Who != nil && time.Since(c.seen) > fresh {
		return c.Again()
	}
	return nil
}

// fresh is how old what was looked at may be after a wait, for the caller or
// for its turn: then it is looked again, and asked again who the caller is.
const fresh = 500 * time.Millisecond

// hold waits for a turn where the call has none; the turn ends with done.
func (c *Call) hold(kind flow.Kind) (own bool, err error) {
	if c.visit.Busy() {
		return false, nil
	}
	return true, c.visit.Begin(c.req.Context(), kind)
}

func (c *Call) done(own bool) {
	if own {
		c.visit.Pause()
	}
}

// Pause gives the turn back: what is left is up to the caller.
func (c *Call) Pause() { c.visit.Pause() }

// Visit is the call's way through the limits, for an edge that reads bodies or
// has reads of its own that wait.
func (c *Call) Visit() *flow.Visit { return &c.visit }

// proven tells the limits who calls, or that nobody could prove it.
func (c *Call) proven(err error) error {
	if err == nil {
		return c.visit.Enter(flow.Who(c.Who.ID, c.Who.Roles))
	}
	if fault.Is(err, fault.Unauthenticated) {
		c.visit.Failed()
	}
	return err
}

// resume goes on after the turn was given up to wait.
func (c *Call) resume() error {
	if err := c.visit.Resume(c.req.Context()); err != nil {
		return err
	}
	return c.Again()
}
