package cluster

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/muster-registry/muster/fault"
)

// Votes returns nil when this node is a voter that takes part in elections, else
// a not_ready that says why it does not. A node that is new, or came with an
// empty disk, answers reads as soon as it has caught up, and votes later. Whoever
// takes one node after the other away, and waits for each to be back, has to wait
// for this: the others' votes alone may not be a majority.
func (c *Cluster) Votes() error {
	own, member := c.server(c.cfg.NodeID)
	_, disk := placed(own.Address)
	switch {
	case c.raft == nil:
		return fault.New(fault.NotReady, "the node is starting")
	case !member:
		return fault.New(fault.NotReady, "the node is no member of the cluster")
	case c.isDisk(disk) != nil:
		return fault.Wrap(fault.NotReady, c.isDisk(disk), "another disk votes in the place of this node's")
	case own.Suffrage != raft.Voter:
		return unvoted("the node has caught up and answers reads, and has no vote yet: it gets one when it has kept up for %s. Take no other node away before that", c.cfg.Membership.Stabilization)
	case c.probation.on.Load():
		return unvoted("the node came with an empty disk, and takes part in elections when it has caught up and %s have passed since its start. Take no other node away before that", c.cfg.Membership.Probation)
	}
	return nil
}

func unvoted(format string, args ...any) error {
	e := fault.New(fault.NotReady, format, args...)
	e.RetryAfter = time.Second
	return e
}

// Quorum is how many voters the cluster has, and how many of them are there, as
// far as this node knows by gossip.
func (c *Cluster) Quorum() (voters, there int) {
	for _, m := range c.Members() {
		if m.Role == "non-voter" {
			continue
		}
		voters++
		if m.Alive && !m.Apart {
			there++
		}
	}
	return voters, there
}
