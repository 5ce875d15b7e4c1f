package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

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
	Engine         string         `json:"engine"`
	PolicyError    string         `json:"policy_error,omitempty"`
}

func (n *Node) statusExtra() []byte {
	v := n.machine.View()
	e := extra{StateHash: rest.StateHash{Revision: v.Revision, Hash: v.Hash.String()}, Version: n.version, Engine: n.engine.Version()}
	if a := v.Policy.Active(); a != nil {
		e.PolicyRevision = a.Number
	}
	if err := n.broken(); err != nil {
		e.PolicyError = fault.From(err).Detail
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
		at := &out.Nodes[i]
		at.StateHash, at.PolicyRevision, at.Version, at.Engine, at.PolicyError = e.StateHash, e.PolicyRevision, e.Version, e.Engine, e.PolicyError
		at.Ready = at.Ready && e.PolicyError == ""
	}
	out.Warnings = append(warnings(out.Nodes), b.emergencies()...)
	return out, nil
}

// warnings say what a person should look at.
func warnings(nodes []rest.NodeStatus) (all []string) {
	engines := map[string][]string{}
	for _, n := range nodes {
		if n.PolicyError != "" {
			all = append(all, fmt.Sprintf("node %s is out of service: %s", n.ID, n.PolicyError))
		}
		if n.Engine != "" {
			engines[n.Engine] = append(engines[n.Engine], n.ID)
		}
	}
	if len(engines) > 1 {
		var parts []string
		for _, engine := range slices.Sorted(maps.Keys(engines)) {
			parts = append(parts, engine+" on "+strings.Join(engines[engine], ", "))
		}
		all = append(all, "nodes decide by different engines: "+strings.Join(parts, "; ")+"; finish the upgrade before activating a policy")
	}
	return all
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
