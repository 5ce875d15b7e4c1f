package node

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// serveImpact tells what this node's shadow has seen: null when none is.
func (n *Node) serveImpact(context.Context, string, []byte) ([]byte, error) {
	i := n.shadow.Impact()
	if i != nil {
		for at := range i.Nodes {
			i.Nodes[at].Node = n.cfg.NodeID
		}
	}
	return json.Marshal(i)
}

// ShadowReport implements rest.Backend: the figures of all nodes together. Of
// a node whose figures are missing, it says why.
func (b backend) ShadowReport(ctx context.Context) (*policy.Impact, error) {
	v := b.machine.View()
	rev := v.Policy.Shadow()
	if rev == nil {
		return nil, nil
	}
	total := &policy.Impact{Revision: rev.Number, Share: rev.Share, Differences: []policy.Difference{}, Nodes: []policy.NodeImpact{}}
	if a := v.Policy.Active(); a != nil {
		total.Active = a.Number
	}
	b.gather(ctx, methodImpact, nil, total)
	return total, nil
}

// gather asks all members for an impact at once and adds what they counted of
// the same two revisions.
func (b backend) gather(ctx context.Context, method string, payload []byte, total *policy.Impact) {
	ctx, cancel := context.WithTimeout(ctx, everywhere)
	defer cancel()
	members := b.cluster.Members()
	parts := make([]*policy.Impact, len(members))
	var asks sync.WaitGroup
	for at, m := range members {
		asks.Go(func() {
			missing := func(why string) {
				parts[at] = &policy.Impact{Nodes: []policy.NodeImpact{{Node: m.ID, Problem: why}}}
			}
			if !m.Alive {
				missing("the node is not alive")
				return
			}
			raw, err := b.cluster.CallNode(ctx, m.ID, method, payload)
			var part *policy.Impact
			if err == nil {
				err = json.Unmarshal(raw, &part)
			}
			switch {
			case err != nil:
				missing(fault.From(err).Detail)
			case part == nil || part.Revision != total.Revision || part.Active != total.Active:
				missing("the node compares other revisions at the moment; ask again")
			default:
				parts[at] = part
			}
		})
	}
	asks.Wait()
	for _, part := range parts {
		total.Merge(part)
	}
	slices.SortFunc(total.Nodes, func(a, b policy.NodeImpact) int { return cmp.Compare(a.Node, b.Node) })
}
