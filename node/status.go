package node

import (
	"context"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// extra is what a node tells of itself beside its place in the cluster.
type extra struct {
	StateHash      rest.StateHash `json:"state_hash"`
	PolicyRevision uint64         `json:"policy_revision"`
	Version        string         `json:"version"`
}

func (n *Node) statusExtra() []byte {
	v := n.machine.View()
	e := extra{StateHash: rest.StateHash{Revision: v.Revision, Hash: v.Hash.String()}, Version: n.version}
	if a := v.Policy.Active(); a != nil {
		e.PolicyRevision = a.Number
	}
	b, err := json.Marshal(e)
	if err != nil {
		n.logger.Error("encode status", "error", err)
		return nil
	}
	return b
}

// ClusterStatus implements rest.Backend.
func (b backend) ClusterStatus(ctx context.Context) (*rest.ClusterStatus, error) {
	st := b.cluster.Status(ctx)
	out := &rest.ClusterStatus{ClusterID: st.ClusterID, Leader: st.Leader, Term: st.Term, Nodes: make([]rest.NodeStatus, len(st.Nodes))}
	for i, m := range st.Nodes {
		out.Nodes[i] = rest.NodeStatus{
			ID: m.ID, Address: m.Address, Role: m.Role, Alive: m.Alive, Ready: m.Ready,
			Applied: m.Applied, Commit: m.Commit, LastContactMS: m.LastContact,
		}
		if len(m.Extra) == 0 {
			continue
		}
		var e extra
		if err := json.Unmarshal(m.Extra, &e); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "the status of node %s cannot be read", m.ID)
		}
		out.Nodes[i].StateHash, out.Nodes[i].PolicyRevision, out.Nodes[i].Version = e.StateHash, e.PolicyRevision, e.Version
	}
	return out, nil
}

// Members implements rest.Backend.
func (b backend) Members(context.Context) ([]rest.Member, error) {
	var out []rest.Member
	for _, m := range b.cluster.Members() {
		out = append(out, rest.Member{ID: m.ID, Address: m.Address, Role: m.Role, Alive: m.Alive})
	}
	return out, nil
}

// TransferLeader implements rest.Backend.
func (b backend) TransferLeader(ctx context.Context, in *command.Intent, to string) error {
	if err := admit.Permit(in, policy.Manage, "cluster", ""); err != nil {
		return err
	}
	return b.cluster.TransferLeader(ctx, to)
}

// RemoveMember implements rest.Backend.
func (b backend) RemoveMember(ctx context.Context, in *command.Intent, id string) error {
	if err := admit.Permit(in, policy.Manage, "cluster", ""); err != nil {
		return err
	}
	return b.cluster.Remove(ctx, id)
}
