package node

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/decision"
	"github.com/muster-registry/muster/policy/shadow"
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

// replay is what is asked of each node.
type replay struct {
	Revision uint64    `json:"revision"`
	Since    time.Time `json:"since"`
	Limit    int       `json:"limit"`
	Active   uint64    `json:"active"`
}

// ReplayPolicy implements rest.Backend.
func (b backend) ReplayPolicy(ctx context.Context, number uint64, since time.Duration, limit int) (*policy.Impact, error) {
	ask := replay{Revision: number, Limit: limit}
	if since > 0 {
		ask.Since = time.Now().Add(-since).UTC()
	}
	if a := b.machine.View().Policy.Active(); a != nil {
		ask.Active = a.Number
	}
	payload, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	total := &policy.Impact{Revision: number, Active: ask.Active, Since: ask.Since, Differences: []policy.Difference{}, Nodes: []policy.NodeImpact{}}
	b.gather(ctx, methodReplay, payload, total)
	return total, nil
}

// serveReplay makes this node's newest decisions again, for as long as the
// caller waits.
func (n *Node) serveReplay(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	var ask replay
	if err := json.Unmarshal(payload, &ask); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "not a request to replay decisions")
	}
	rev, ok := n.machine.View().Policy.Get(ask.Revision)
	if !ok {
		return nil, fault.New(fault.NotFound, "there is no policy revision %d on this node yet", ask.Revision)
	}
	if err := n.engine.Prepare(ctx, rev); err != nil {
		return nil, err
	}
	made := func(yield func(*shadow.Made) bool) {
		for r := range n.decisions.Recent(ask.Since, ask.Limit) {
			// No rule made what webhooks said or break-glass lifted, and no path was asked by a query.
			if r.Result.Cause == policy.ByWebhook || r.Result.BreakGlass || r.Query != "" {
				continue
			}
			if !yield(madeOf(r)) {
				return
			}
		}
	}
	// Some of the caller's time is for the way back.
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)*8/10)
		defer cancel()
	}
	i := shadow.Replay(ctx, n.engine, rev, made, n.masked)
	i.Active, i.Nodes[0].Node = ask.Active, n.cfg.NodeID
	return json.Marshal(i)
}

// masked is an input as others may see it.
func (n *Node) masked(input []byte) []byte {
	out, _ := n.masker.Mask("input", input)
	return out
}

// madeOf reads a record as the decision it is of.
func madeOf(r *decision.Record) *shadow.Made {
	past := r.Past()
	if past == nil {
		past = &policy.Past{Time: r.Time} // its input was not kept: it is counted as dropped
	}
	return &shadow.Made{Past: *past, EntryPoint: r.EntryPoint,
		Decision: policy.Decision{
			ID: r.ID, PolicyRevision: r.PolicyRevision, Allow: r.Result.Allow, Reasons: r.Result.Reasons,
			Filtered: r.Result.Filtered, Missed: r.Result.Missed, Default: r.Result.Default, Result: r.Result.Value,
		},
	}
}
