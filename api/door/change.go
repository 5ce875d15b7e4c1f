package door

import (
	"strings"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/trace"
)

// Condition is under which circumstances a change is wanted.
type Condition struct {
	Match      uint64 // the revision that the record must have,
	HasMatch   bool   // where this is set
	CreateOnly bool   // there must be no such record yet

	IdempotencyKey string // a repeat gets the first answer
	Digest         []byte // of call and body: tells a repeat from another use of the key
	DryRun         bool   // decide and tell what would come of it; change nothing
	Hops           uint64 // how often the call was forwarded before it came here
}

// Hops refuses a call that has been forwarded before and would have to be
// again: one hop is all it takes to reach the leader, two mean a circle.
func (c *Call) Hops(n uint64) error {
	if n > 0 && !c.door.backend.IsLeader() {
		return fault.New(fault.LoopDetected, "the request has been forwarded once and this node is not the leader; send it to a node directly")
	}
	return nil
}

// Intent is the call as the leader gets to see it, without a command.
func (c *Call) Intent(when Condition) (*command.Intent, error) {
	f := c.req.Form()
	in := &command.Intent{
		Principal: Sent(c.Who),
		Request: &command.Request{
			Method: f.Method, Path: f.Path, Host: f.Host, Scheme: f.Scheme,
			Headers: pairs(f.Headers), SourceAddress: f.Source, Token: f.token(),
		},
		RequestId: c.ID,
		Match:     when.Match, HasMatch: when.HasMatch, CreateOnly: when.CreateOnly,
		IdempotencyKey: when.IdempotencyKey, RequestDigest: when.Digest, DryRun: when.DryRun,
	}
	return in, c.Hops(when.Hops)
}

// Submit hands a change over and waits for its receipt. payload is what the
// policy sees where it is not what is stored.
func (c *Call) Submit(op *command.Command, payload []byte, when Condition) (*command.Receipt, error) {
	in, err := c.Intent(when)
	if err != nil {
		return nil, err
	}
	in.Command, in.Payload = op, payload
	own, err := c.hold(flow.Change)
	if err != nil {
		return nil, err
	}
	defer c.done(own)
	receipt, err := c.door.backend.Submit(trace.WithRequest(c.req.Context(), c.ID), in)
	if err != nil {
		return nil, err
	}
	c.Decision, c.Filtered = receipt.DecisionId, receipt.Filtered
	c.Written()
	return receipt, nil
}

// Written makes the answer that of a change: no older than the request.
func (c *Call) Written() {
	c.Consistency, c.seen, c.age = Linearizable, c.Began, 0
}

// Heartbeat renews an instance's lease. It is decided by the role alone.
func (c *Call) Heartbeat(namespace, service, id string) error {
	own, err := c.hold(flow.Change)
	if err != nil {
		return err
	}
	defer c.done(own)
	return c.door.backend.Heartbeat(c.req.Context(), namespace, service, id)
}

// Report passes on what the caller says of an instance's check of type ttl. It is
// decided by the role alone, as a heartbeat is.
func (c *Call) Report(namespace, service, id, check, status, output string) error {
	switch status {
	case registry.Passing, registry.Warning, registry.Critical:
	default:
		return fault.Invalid("/status", "must be passing, warning or critical")
	}
	own, err := c.hold(flow.Change)
	if err != nil {
		return err
	}
	defer c.done(own)
	return c.door.backend.Report(c.req.Context(), namespace, service, id, check, status, output)
}

// pairs is flatten as names and values that follow upon each other.
func pairs(h map[string][]string) []string {
	out := make([]string, 0, 2*len(h))
	for name, values := range h {
		out = append(out, name, strings.Join(values, ", "))
	}
	return out
}
