package node

import (
	"context"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
)

// broken says that the active policy does not compile on this node: it must
// not decide then, since it would decide otherwise than the others. It is out of
// service until a revision is active that compiles.
func (n *Node) broken() error {
	a := n.machine.View().Policy.Active()
	if a == nil {
		return nil
	}
	err := n.engine.Broken(a)
	if err == nil {
		return nil
	}
	f := fault.Wrap(fault.PolicyUnavailable, err, "policy revision %d is active and does not compile on this node, whose engine is %s: %s",
		a.Number, n.engine.Version(), fault.From(err).Detail)
	f.RetryAfter = time.Second
	return f
}

// stepAside hands the leadership to a node that can decide and has room on its
// disk whenever this one leads and does not: a leader decides about every change.
func (n *Node) stepAside(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if n.broken() != nil {
			n.handOver(ctx, "the active policy does not compile on this node: the leadership goes to one that can decide")
		} else if n.cluster.DiskHealth().Full {
			n.handOver(ctx, "the disk of this node is full: the leadership goes to one that has room")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) handOver(ctx context.Context, why string) {
	for _, m := range n.cluster.Status(ctx).Nodes {
		var e extra
		if m.ID == n.cfg.NodeID || !m.Alive || !m.Ready || m.Role == nonVoter || json.Unmarshal(m.Extra, &e) != nil || e.PolicyError != "" || e.raised(diskAlarms...) {
			continue
		}
		n.logger.Warn(why, "to", m.ID)
		if err := n.cluster.TransferLeader(ctx, m.ID); err != nil {
			n.logger.Warn("the leadership could not be handed over", "to", m.ID, "error", err)
		}
		return
	}
}
