package node

import (
	"cmp"
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/lease"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
)

// The peer calls this room answers.
const (
	methodSubmit   = "submit"          // an intent, for the leader
	methodTry      = "try"             // one that must change nothing: a leader of before it does not know it
	methodReached  = "state.reached"   // whether the node has a revision
	methodPrepared = "policy.prepared" // whether the node has compiled a policy revision
	methodImpact   = "policy.impact"   // how the shadow has differed on the node
	methodReplay   = "policy.replay"   // how a revision would have answered the node's newest decisions
)

// backend is the node as the edges see it.
type backend struct{ *Node }

// NodeID implements door.Backend.
func (b backend) NodeID() string { return b.cfg.NodeID }

// State implements door.Backend.
func (b backend) State() *door.State {
	v := b.machine.View()
	return &door.State{Registry: v.Registry, Policy: v.Policy, Tokens: b.credentials(v), Settings: v.Settings, Revision: v.Revision, ClusterID: v.ClusterID}
}

// Document implements door.Backend.
func (b backend) Document(namespace, service, version string, revision uint64) ([]byte, error) {
	return b.machine.Document(namespace, service, version, revision)
}

// Feed implements door.Backend.
func (b backend) Feed() *feed.Feed { return b.changes }

// AwaitRevision implements door.Backend.
func (b backend) AwaitRevision(ctx context.Context, revision uint64) error {
	return b.machine.AwaitRevision(ctx, revision)
}

// ReadIndex implements door.Backend.
func (b backend) ReadIndex(ctx context.Context) error { return b.cluster.ReadIndex(ctx) }

// Staleness implements door.Backend.
func (b backend) Staleness() time.Duration { return b.cluster.Staleness() }

// Ready implements door.Backend.
func (b backend) Ready() error {
	if b.draining.Load() {
		return fault.New(fault.NotReady, "this node is shutting down; ask another")
	}
	if err := b.diverged.err(); err != nil {
		return err
	}
	if err := b.cluster.Ready(); err != nil {
		return err
	}
	if err := b.cluster.Current(context.Background()); err != nil {
		return err
	}
	return b.broken()
}

// Votes implements rest.Backend.
func (b backend) Votes() error { return b.cluster.Votes() }

// IsLeader implements door.Backend.
func (b backend) IsLeader() bool { return b.cluster.IsLeader() }

// Decider implements door.Backend.
func (b backend) Decider() policy.Decider { return b.decider }

// Submit implements door.Backend: the leader executes the intent, wherever it is.
func (b backend) Submit(ctx context.Context, in *command.Intent) (*command.Receipt, error) {
	if err := b.auditable(); err != nil {
		if full := b.roomFor(in.Command); full != nil && b.cluster.IsLeader() {
			return nil, full // which is why
		}
		return nil, err
	}
	b.mirror.called(in)
	if b.cluster.IsLeader() {
		if err := b.roomFor(in.Command); err != nil {
			return nil, err
		}
		receipt, err := b.gate.Execute(ctx, in)
		if !fault.Is(err, fault.NoLeader) || fault.From(err).Outcome == fault.Unknown {
			return receipt, err
		}
		// The leadership was lost before anything was proposed: the next
		// leader, if there is one in time, decides.
	}
	payload, err := proto.Marshal(in)
	if err != nil {
		return nil, err
	}
	method := methodSubmit
	if in.DryRun {
		method = methodTry
	}
	raw, err := b.cluster.Call(ctx, method, payload)
	if err != nil {
		return nil, err
	}
	receipt := new(command.Receipt)
	if err := proto.Unmarshal(raw, receipt); err != nil {
		return nil, fault.Lost(fault.Internal, err, "the leader's answer cannot be read; the change may have happened")
	}
	return receipt, nil
}

func (n *Node) serveSubmit(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	in := new(command.Intent)
	if err := proto.Unmarshal(payload, in); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the intent cannot be read")
	}
	if err := cmp.Or(n.roomFor(in.Command), n.auditable()); err != nil {
		return nil, err
	}
	receipt, err := n.gate.Execute(ctx, in)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(receipt)
}

// Heartbeat implements door.Backend.
func (b backend) Heartbeat(ctx context.Context, namespace, service, id string) error {
	return b.beats.Beat(ctx, lease.Key{Namespace: namespace, Service: service, ID: id})
}

// Report implements door.Backend.
func (b backend) Report(ctx context.Context, namespace, service, id, check, status, output string) error {
	return b.beats.Report(ctx, lease.Report{Key: lease.Key{Namespace: namespace, Service: service, ID: id, Check: check}, Status: status, Output: output})
}

// log is the replicated log as the gate and the leases see it.
type log struct{ *Node }

// Propose implements admit.Log and lease.State.
func (l log) Propose(ctx context.Context, c *command.Command) (*command.Receipt, error) {
	return l.cluster.Propose(ctx, c)
}

// ReadIndex implements admit.Log.
func (l log) ReadIndex(ctx context.Context) error { return l.cluster.ReadIndex(ctx) }

// Registry implements lease.State.
func (l log) Registry() *registry.Snapshot { return l.machine.View().Registry }

// admission is what the gate decides on: this node's newest state.
func (n *Node) admission() admit.State {
	v := n.machine.View()
	return admit.State{Revision: v.Revision, Registry: v.Registry, Policy: v.Policy, Settings: v.Settings, Tokens: v.Tokens, Restore: v.Restoring, Repeat: n.machine.Repeat}
}

// again tells by which results Apply asks for another admission.
func again(err error) bool {
	return errors.Is(err, fsm.ErrStale) || errors.Is(err, fsm.ErrPolicyChanged) || errors.Is(err, fsm.ErrConditionsChanged) || errors.Is(err, setting.ErrStale) || errors.Is(err, policy.ErrOvertaken)
}
