package node

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/policy"
)

// everywhere bounds the wait for other nodes around an activation: for those
// that do not answer it is not made to last.
const everywhere = 5 * time.Second

// StagePolicy implements rest.Backend.
func (b backend) StagePolicy(ctx context.Context, in *command.Intent, content *policy.Content, origin policy.Origin, activate bool) (*policy.Revision, error) {
	if !activate {
		return b.push(ctx, in, content, origin, nil)
	}
	return b.push(ctx, in, content, origin, b.ActivatePolicy)
}

// StageShadow implements rest.Backend.
func (b backend) StageShadow(ctx context.Context, in *command.Intent, content *policy.Content, origin policy.Origin, share float64) (*policy.Revision, error) {
	return b.push(ctx, in, content, origin, func(ctx context.Context, in *command.Intent, number uint64) (*policy.Revision, error) {
		return b.ShadowPolicy(ctx, in, number, share)
	})
}

// push stores a revision and, if wanted, does something with it then.
func (b backend) push(ctx context.Context, in *command.Intent, content *policy.Content, origin policy.Origin,
	then func(context.Context, *command.Intent, uint64) (*policy.Revision, error)) (*policy.Revision, error) {
	staged := proto.CloneOf(in)
	staged.Command = &command.Command{Op: &command.Command_PolicyStage{PolicyStage: &command.PolicyStage{Content: content.Encode(), Origin: origin.Encode()}}}
	receipt, err := b.Submit(ctx, staged)
	if err != nil {
		return nil, err
	}
	rev, err := decodeRevision(receipt)
	if err != nil || then == nil {
		return rev, err
	}
	if receipt.Repeated {
		// What has been active, or the shadow, since the first push may have
		// been replaced on purpose: a repeat must not bring it back.
		if err := b.cluster.ReadIndex(ctx); err != nil {
			return nil, err
		}
		now, ok := b.machine.View().Policy.Get(rev.Number)
		if !ok || now.ChangedAt != rev.ChangedAt {
			if ok {
				rev = now
			}
			return rev, nil
		}
	}
	next := proto.CloneOf(in)
	// The key belongs to the push.
	next.IdempotencyKey = ""
	return then(ctx, next, rev.Number)
}

// ActivatePolicy implements rest.Backend. It waits until every node that
// answers has compiled the revision, activates it, and returns when they all
// decide by it.
func (b backend) ActivatePolicy(ctx context.Context, in *command.Intent, number uint64) (*policy.Revision, error) {
	if err := b.everyNode(ctx, methodPrepared, number); err != nil {
		return nil, err
	}
	return b.switchPolicy(ctx, in, &command.PolicyActivate{Revision: number})
}

// RollbackPolicy implements rest.Backend.
func (b backend) RollbackPolicy(ctx context.Context, in *command.Intent) (*policy.Revision, error) {
	return b.switchPolicy(ctx, in, &command.PolicyActivate{Rollback: true})
}

// ShadowPolicy implements rest.Backend. Every node that answers has compiled the
// revision before it is the shadow, and takes its share when this returns.
func (b backend) ShadowPolicy(ctx context.Context, in *command.Intent, number uint64, share float64) (*policy.Revision, error) {
	if err := b.everyNode(ctx, methodPrepared, number); err != nil {
		return nil, err
	}
	op := &command.PolicyShadow{Revision: number, Share: share}
	return b.change(ctx, in, &command.Command{Op: &command.Command_PolicyShadow{PolicyShadow: op}})
}

// StopShadow implements rest.Backend.
func (b backend) StopShadow(ctx context.Context, in *command.Intent) (*policy.Revision, error) {
	op := &command.PolicyShadow{Stop: true}
	return b.change(ctx, in, &command.Command{Op: &command.Command_PolicyShadow{PolicyShadow: op}})
}

func (b backend) switchPolicy(ctx context.Context, in *command.Intent, op *command.PolicyActivate) (*policy.Revision, error) {
	return b.change(ctx, in, &command.Command{Op: &command.Command_PolicyActivate{PolicyActivate: op}})
}

// change submits a change of the policies and waits until the nodes have it.
func (b backend) change(ctx context.Context, in *command.Intent, c *command.Command) (*policy.Revision, error) {
	next := proto.CloneOf(in)
	next.Command = c
	receipt, err := b.Submit(ctx, next)
	if err != nil {
		return nil, err
	}
	// It is active from here on; a node that does not answer in time is not
	// live, and it decides by the new revision as soon as it catches up.
	_ = b.everyNode(ctx, methodReached, receipt.Revision)
	return decodeRevision(receipt)
}

func decodeRevision(receipt *command.Receipt) (*policy.Revision, error) {
	rev, err := policy.DecodeRevision(receipt.Record)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the stored policy revision cannot be read")
	}
	return rev, nil
}

// everyNode asks all live members at once. A refusal of any of them is given
// back; a member that cannot be reached is left out.
func (b backend) everyNode(ctx context.Context, method string, number uint64) error {
	members := b.cluster.Members()
	ctx, cancel := context.WithTimeout(ctx, everywhere)
	defer cancel()
	payload := binary.BigEndian.AppendUint64(nil, number)
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		if !m.Alive {
			continue
		}
		wg.Go(func() { _, errs[i] = b.cluster.CallNode(ctx, m.ID, method, payload) })
	}
	wg.Wait()
	for _, err := range errs {
		if fault.Is(err, fault.InvalidPolicy) || fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

// servePrepared compiles a policy revision off to the side and answers when it
// is ready to decide.
func (n *Node) servePrepared(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	number, err := decodeNumber(payload)
	if err != nil {
		return nil, err
	}
	rev, ok := n.machine.View().Policy.Get(number)
	if !ok {
		if err := n.cluster.ReadIndex(ctx); err != nil {
			return nil, err
		}
		if rev, ok = n.machine.View().Policy.Get(number); !ok {
			return nil, fault.New(fault.NotFound, "there is no policy revision %d", number)
		}
	}
	return nil, n.engine.Prepare(ctx, rev)
}

// serveReached answers when this node has the revision of the state.
func (n *Node) serveReached(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	number, err := decodeNumber(payload)
	if err != nil {
		return nil, err
	}
	return nil, n.machine.AwaitRevision(ctx, number)
}

func decodeNumber(payload []byte) (uint64, error) {
	if len(payload) != 8 {
		return 0, fault.New(fault.BadRequest, "a number has 8 bytes, not %d", len(payload))
	}
	return binary.BigEndian.Uint64(payload), nil
}

// preparePolicies compiles what is staged or active as soon as it is known,
// off the applying goroutine.
func (n *Node) preparePolicies(ctx context.Context, v *fsm.View) {
	var want []*policy.Revision
	if a := v.Policy.Active(); a != nil {
		want = append(want, a)
	}
	if s := v.Policy.Shadow(); s != nil {
		want = append(want, s)
	}
	if last := v.Policy.Last(); last != nil && last.State == policy.Staged {
		want = append(want, last)
	}
	for _, rev := range want {
		if n.engine.Prepared(rev) {
			continue
		}
		if err := n.engine.Prepare(ctx, rev); err != nil && ctx.Err() == nil {
			n.logger.Error("policy revision does not compile on this node", "policy_revision", rev.Number, "digest", rev.Digest, "error", err)
		}
	}
}
