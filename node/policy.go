package node

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/cluster"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/policy"
)

// How long to wait for other nodes around a change of the policies: in all, and
// for one answer. A node that dies is taken for dead well within the first.
const (
	everywhere = 10 * time.Second
	oneTry     = 2 * time.Second
)

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
		if !ok || rev.State != policy.Staged || now.ChangedAt != rev.ChangedAt {
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

// ActivatePolicy implements rest.Backend. It waits until every living voter has
// compiled the revision, activates it, and returns when they all decide by it.
func (b backend) ActivatePolicy(ctx context.Context, in *command.Intent, number uint64) (*policy.Revision, error) {
	if err := b.prepare(ctx, number, true); err != nil {
		return nil, err
	}
	return b.switchPolicy(ctx, in, &command.PolicyActivate{Revision: number})
}

// RollbackPolicy implements rest.Backend. It is the way out of trouble, so a
// node that does not answer does not stand in its way; one that cannot compile
// the revision does.
func (b backend) RollbackPolicy(ctx context.Context, in *command.Intent) (*policy.Revision, error) {
	op := &command.PolicyActivate{Rollback: true}
	// Where this node does not know better, the gate says what is wrong.
	if to, err := b.machine.View().Policy.RollbackTarget(); err == nil {
		if err := b.prepare(ctx, to.Number, false); err != nil {
			return nil, err
		}
		op.Revision = to.Number
	}
	return b.switchPolicy(ctx, in, op)
}

// ShadowPolicy implements rest.Backend. Every node that answers has compiled the
// revision before it is the shadow, and takes its share when this returns.
func (b backend) ShadowPolicy(ctx context.Context, in *command.Intent, number uint64, share float64) (*policy.Revision, error) {
	if err := b.prepare(ctx, number, false); err != nil {
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
	if late := b.everyNode(ctx, methodReached, receipt.Revision, b.everywhere); len(late) > 0 {
		return nil, fault.Lost(fault.NotReady, late[0].err, "the change was made, at revision %d, and node %s, which is alive, has not said within %v that it has it: until it does, it may answer by what was before",
			receipt.Revision, late[0].node, b.everywhere)
	}
	return decodeRevision(receipt)
}

func decodeRevision(receipt *command.Receipt) (*policy.Revision, error) {
	rev, err := policy.DecodeRevision(receipt.Record)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the stored policy revision cannot be read")
	}
	return rev, nil
}

// silence is a living node without an answer.
type silence struct {
	node string
	err  error
}

// everyNode asks all living members at once, again and again for so long, and
// lists those voters that are alive and have not done it. A node that dies
// meanwhile is left out.
func (b backend) everyNode(ctx context.Context, method string, number uint64, wait time.Duration) (undone []silence) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	payload := binary.BigEndian.AppendUint64(nil, number)
	members := b.cluster.Members()
	errs := make([]error, len(members))
	var asks sync.WaitGroup
	for i, m := range members {
		if m.Alive {
			asks.Go(func() { errs[i] = b.persist(ctx, m.ID, method, payload) })
		}
	}
	asks.Wait()
	for i, m := range members {
		if errs[i] != nil && (m.Role != nonVoter || fault.Is(errs[i], fault.InvalidPolicy)) {
			undone = append(undone, silence{m.ID, errs[i]})
		}
	}
	return undone
}

const nonVoter = "non-voter"

// persist asks a node until it has a definite answer, is dead, or time is up.
func (b backend) persist(ctx context.Context, id, method string, payload []byte) error {
	for {
		// A call does not notice by itself that its node is no longer there.
		try, cancel := context.WithTimeout(ctx, oneTry)
		_, err := b.cluster.CallNode(try, id, method, payload)
		cancel()
		if err == nil || fault.Is(err, fault.InvalidPolicy) || fault.Is(err, fault.NotFound) {
			return err
		}
		if !b.alive(id) {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// alive says whether gossip takes the member for alive.
func (b backend) alive(id string) bool {
	return slices.ContainsFunc(b.cluster.Members(), func(m cluster.Node) bool { return m.ID == id && m.Alive })
}

// prepare has all nodes compile the revision. What does not compile on one of
// them is refused; strict refuses as well where a living voter gives no answer.
func (b backend) prepare(ctx context.Context, number uint64, strict bool) error {
	wait := b.everywhere
	if !strict {
		wait = oneTry
	}
	undone := b.everyNode(ctx, methodPrepared, number, wait)
	for _, u := range undone {
		switch f := fault.From(u.err); f.Code {
		case fault.NotFound:
			return u.err
		case fault.InvalidPolicy:
			refused := fault.Wrap(fault.InvalidPolicy, u.err, "policy revision %d does not compile on node %s, so nothing was changed: %s", number, u.node, f.Detail)
			refused.Places = f.Places
			return refused
		}
	}
	if !strict || len(undone) == 0 {
		return nil
	}
	// A conflict, and not a time-out: callers try those again by themselves, and
	// each time would wait as long.
	return fault.Wrap(fault.Conflict, undone[0].err, "node %s is alive and has not said within %v that it has compiled policy revision %d, so nothing was changed; look at that node, stop it, or try again",
		undone[0].node, wait, number)
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
