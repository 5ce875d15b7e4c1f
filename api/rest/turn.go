package rest

import (
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/policy"
)

// takes says what answering the route takes of the node.
func (r *Route) takes() flow.Kind {
	if r.Reads || r.Action == policy.Authorize || r.ID == "openapi" {
		return flow.Quick
	}
	return flow.Change
}

// begin waits for the call's turn. A call with a body waits once it is there,
// so that nobody waits for a slow sender; a stream, which lasts as long as the
// caller likes, has a place and no turn.
func (c *call) begin() error {
	if c.route.Open || c.route.Media == mediaStream || c.route.Media == mediaEvent || c.route.Body != nil && c.R.ContentLength != 0 {
		return nil
	}
	return c.Turn(c.route.takes())
}
