package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/alarm"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
)

// extra is what a node tells of itself beside its place in the cluster.
type extra struct {
	StateHash      rest.StateHash `json:"state_hash"`
	PolicyRevision uint64         `json:"policy_revision"`
	Version        string         `json:"version"`
	Engine         string         `json:"engine"`
	PolicyError    string         `json:"policy_error,omitempty"`
	Clock          int64          `json:"clock"` // nanoseconds since 1970
	Alarms         []alarm.Alarm  `json:"alarms,omitempty"`
}

func (n *Node) statusExtra() []byte {
	v := n.machine.View()
	e := extra{StateHash: rest.StateHash{Revision: v.Revision, Hash: v.Hash.String()}, Version: n.version, Engine: n.engine.Version(), Clock: n.clock.Wall().UnixNano(), Alarms: n.alarms.Raised()}
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
	out := &rest.ClusterStatus{ClusterID: st.ClusterID, Leader: st.Leader, Term: st.Term, FeatureLevel: st.Level, Nodes: make([]rest.NodeStatus, len(st.Nodes))}
	for i, m := range st.Nodes {
		out.Nodes[i] = rest.NodeStatus{
			ID: m.ID, Address: m.Address, Role: m.Role, Alive: m.Alive, Ready: m.Ready,
			Applied: m.Applied, Commit: m.Commit, LastContactMS: m.LastContact, Term: m.Term, FeatureLevel: m.Level,
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
		for _, a := range e.Alarms {
			out.Alarms = append(out.Alarms, rest.Alarm{Alarm: string(a.Name), Node: m.ID, Detail: a.Detail, Since: a.Since})
		}
	}
	out.Warnings = slices.Concat(warnings(out.Nodes), quorumWarnings(out.Nodes), b.emergencies())
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
	if old := behind(nodes); len(old) > 0 {
		all = append(all, "the upgrade is not finished: "+strings.Join(old, ", ")+" know no newer feature level; until all do, the cluster stays at the old one")
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

// quorumWarnings say when no node may be taken away. A cluster of one or two
// voters is always so, and is warned of only while it becomes larger.
func quorumWarnings(nodes []rest.NodeStatus) (all []string) {
	voters, there, waiting := 0, 0, []string{}
	for _, n := range nodes {
		switch {
		case n.Role != nonVoter && n.Alive:
			voters, there = voters+1, there+1
		case n.Role != nonVoter:
			voters++
		case n.Alive:
			waiting = append(waiting, n.ID)
		}
	}
	if len(waiting) > 0 {
		all = append(all, strings.Join(waiting, ", ")+": no vote yet; it comes when the node has kept up for a while, and /readyz of the node says so")
	}
	if there-1 <= voters/2 && len(nodes) > 2 {
		all = append(all, fmt.Sprintf("%d of %d voters answer: whoever takes another one away, or empties its disk, takes the quorum", there, voters))
	}
	return all
}

// behind names the nodes that know less than another.
func behind(nodes []rest.NodeStatus) (old []string) {
	newest := uint32(0)
	for _, n := range nodes {
		newest = max(newest, n.FeatureLevel)
	}
	for _, n := range nodes {
		if n.FeatureLevel > 0 && n.FeatureLevel < newest {
			old = append(old, n.ID)
		}
	}
	return old
}

// Members implements rest.Backend.
func (b backend) Members(context.Context) ([]rest.Member, error) {
	var out []rest.Member
	for _, m := range b.cluster.Members() {
		out = append(out, rest.Member{ID: m.ID, Address: m.Address, Role: m.Role, Alive: m.Alive})
	}
	return out, nil
}
