package opa

import (
	"net/http"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/policy"
)

// takes says what answering the route takes of the node.
func (r *route) takes() flow.Kind {
	if r.action == policy.Manage {
		return flow.Change
	}
	return flow.Quick
}

// begin waits for the call's turn. A call with a body waits once it is there,
// so that nobody waits for a slow sender.
func (c *call) begin() error {
	if c.route.open || c.r.Method != http.MethodGet && c.r.ContentLength != 0 {
		return nil
	}
	return c.turn()
}

// fresh is how old what was looked at may be after a wait, for the caller or
// for its turn: then it is looked again, and asked again who the caller is.
const fresh = 500 * time.Millisecond

func (c *call) turn() error {
	if err := c.visit.Begin(c.r.Context(), c.route.takes()); err != nil || time.Since(c.began) < fresh {
		return err
	}
	c.age = c.api.backend.Staleness()
	c.state, c.who = c.api.backend.Policies(), nil
	if err := c.authenticate(); err != nil {
		return err
	}
	if err := c.permit(); err != nil {
		return err
	}
	return c.young()
}

// proven tells the limits who calls, or that nobody could prove it.
func (c *call) proven(err error) error {
	if err == nil {
		return c.visit.Enter(flow.Who(c.who.ID, c.who.Roles))
	}
	if fault.Is(err, fault.Unauthenticated) {
		c.visit.Failed()
	}
	return err
}
