package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/cluster"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// ClusterSettings says which cluster the node belongs to, and by which rules
// its leader gives votes and removes who is dead. The rules should be the same
// on all nodes.
type ClusterSettings struct {
	TrustDomain     string   `yaml:"trust_domain"`     // of the SPIFFE ids in certificates
	BootstrapExpect int      `yaml:"bootstrap_expect"` // nodes that form the cluster; 0: this node only joins one
	Join            []string `yaml:"join"`             // gossip addresses of other nodes, host:port

	StabilizationTime    time.Duration `yaml:"stabilization_time"`     // that a new node is healthy without a break before it votes
	LastContactThreshold time.Duration `yaml:"last_contact_threshold"` // healthy: it heard from the leader no longer ago
	MaxTrailingLogs      uint64        `yaml:"max_trailing_logs"`      // healthy: it lacks no more log entries
	DeadServerAfter      time.Duration `yaml:"dead_server_after"`      // of silence a node is removed; 0: never
	MinQuorum            int           `yaml:"min_quorum"`             // voters that removing the dead leaves at least
}

func clusterDefaults() ClusterSettings {
	return ClusterSettings{
		TrustDomain: "muster", StabilizationTime: 10 * time.Second, LastContactThreshold: 500 * time.Millisecond, MaxTrailingLogs: 250,
		DeadServerAfter: 24 * time.Hour, MinQuorum: 3,
	}
}

func (s *ClusterSettings) validate() (errs []error) {
	if s.StabilizationTime < time.Second {
		errs = append(errs, fmt.Errorf("cluster.stabilization_time: %s is too short; at least 1s", s.StabilizationTime))
	}
	if s.LastContactThreshold < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("cluster.last_contact_threshold: %s is too short; at least 100ms", s.LastContactThreshold))
	}
	if s.MaxTrailingLogs == 0 {
		errs = append(errs, errors.New("cluster.max_trailing_logs: must be more than 0; leave it out for the default"))
	}
	if s.DeadServerAfter != 0 && s.DeadServerAfter < 10*time.Second {
		errs = append(errs, fmt.Errorf("cluster.dead_server_after: %s is too short, a restart would cost a node its place; at least 10s, or 0s for never", s.DeadServerAfter))
	}
	if s.MinQuorum < 1 {
		errs = append(errs, fmt.Errorf("cluster.min_quorum: %d is too few; at least 1", s.MinQuorum))
	}
	return errs
}

func (s *ClusterSettings) rules() cluster.Membership {
	return cluster.Membership{
		Stabilization: s.StabilizationTime, MaxContact: s.LastContactThreshold, MaxTrailing: s.MaxTrailingLogs,
		DeadAfter: s.DeadServerAfter, MinQuorum: s.MinQuorum,
	}
}

// TransferLeader implements rest.Backend.
func (b backend) TransferLeader(ctx context.Context, in *command.Intent, to string) error {
	record := "leader"
	if to != "" {
		record = "node " + to
	}
	return b.administer(in, "transfer leader", record, func() error { return b.cluster.TransferLeader(ctx, to) })
}

// RemoveMember implements rest.Backend.
func (b backend) RemoveMember(ctx context.Context, in *command.Intent, id string) error {
	return b.administer(in, "remove", "node "+id, func() error { return b.cluster.Remove(ctx, id) })
}

// administer makes a change of the cluster itself for somebody who may, and puts
// it on record, on the node that took the call.
func (n *Node) administer(in *command.Intent, action, record string, change func() error) error {
	if err := admit.Permit(in, policy.Manage, "cluster", ""); err != nil {
		return err
	}
	if err := n.auditable(); err != nil {
		return err
	}
	err := change()
	if n.trail != nil && (err == nil || fault.From(err).Outcome == fault.Unknown) {
		e := audit.Entry{
			Time: time.Now(), Type: audit.Membership, Principal: in.Principal.GetId(), Source: in.Request.GetSourceAddress(),
			Action: action, Record: short(record), RequestID: in.RequestId, Outcome: audit.Applied,
		}
		if err != nil {
			e.Outcome = audit.Unknown
		}
		n.trail.Changed([]audit.Entry{e})
	}
	return err
}

// removed puts on record whom this leader has removed by itself, or the one
// before it, which fell meanwhile.
func (n *Node) removed(id, why string) {
	if n.trail == nil || why == cluster.RemovedOperator { // who said so is on record where it was said
		return
	}
	if why == cluster.RemovedBefore {
		why = "decided by a leader that fell before it could say why"
	}
	n.trail.Changed([]audit.Entry{{
		Time: time.Now(), Type: audit.Membership, Principal: "muster", Action: "remove", Record: short("node " + id), Reason: why, Outcome: audit.Applied,
	}})
}
