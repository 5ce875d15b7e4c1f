package lease

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// Method is the peer call that carries heartbeats and reports to the leader.
const Method = "lease.beat"

// batchLimit bounds the heartbeats in one peer call.
const batchLimit = 4096

// linger is how long the first heartbeat of a call waits for others. A
// heartbeat is in no hurry, and a call costs more than all that is in it.
const linger = 8 * time.Millisecond

// callTimeout bounds one peer call of heartbeats.
const callTimeout = 2 * time.Second

// Batch sends the heartbeats that arrive at one node on to the leader, as many
// in one call as come in within a few milliseconds or while the last call is
// under way.
type Batch struct {
	call  func(ctx context.Context, method string, payload []byte) ([]byte, error)
	queue chan beat
}

// beat is a heartbeat, or a report where its key has a check.
type beat struct {
	Report
	done chan error
}

// NewBatch makes a batch that reaches the leader by call.
func NewBatch(call func(ctx context.Context, method string, payload []byte) ([]byte, error)) *Batch {
	return &Batch{call: call, queue: make(chan beat, batchLimit)}
}

// Beat renews one lease. It returns nil when the leader has taken it,
// instance_not_found when the instance must register again, or why the leader
// could not be reached.
func (b *Batch) Beat(ctx context.Context, key Key) error {
	return b.send(ctx, Report{Key: key})
}

// Report passes on what somebody says of a check of type ttl. It returns nil when
// the leader has taken it, instance_not_found when the instance must register
// again, not_found when it has no such check, or why the leader could not be
// reached.
func (b *Batch) Report(ctx context.Context, r Report) error { return b.send(ctx, r) }

func (b *Batch) send(ctx context.Context, r Report) error {
	one := beat{Report: r, done: make(chan error, 1)}
	select {
	case b.queue <- one:
	case <-ctx.Done():
		return fault.Wrap(fault.NotReady, ctx.Err(), "the heartbeat did not get its turn in time; send it again")
	}
	select {
	case err := <-one.done:
		return err
	case <-ctx.Done():
		return fault.Lost(fault.NoLeader, ctx.Err(), "the heartbeat was not confirmed in time; send it again")
	}
}

// Run sends until the context ends.
func (b *Batch) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case first := <-b.queue:
			time.Sleep(linger)
			b.carry(ctx, b.drain(first))
		}
	}
}

func (b *Batch) drain(first beat) []beat {
	beats := []beat{first}
	for len(beats) < batchLimit {
		select {
		case next := <-b.queue:
			beats = append(beats, next)
		default:
			return beats
		}
	}
	return beats
}

func (b *Batch) carry(ctx context.Context, beats []beat) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	absent, err := b.exchange(ctx, beats)
	for i, one := range beats {
		switch {
		case err != nil:
			one.done <- err
		case absent[uint32(i)] == noInstance:
			one.done <- fault.New(fault.InstanceNotFound, "service %s/%s has no instance %s; register it again", one.Key.Namespace, one.Key.Service, one.Key.ID)
		case absent[uint32(i)] == noCheck:
			one.done <- fault.New(fault.NotFound, "instance %s of service %s/%s has no check %s of type ttl to report about", one.Key.ID, one.Key.Namespace, one.Key.Service, one.Key.Check)
		default:
			one.done <- nil
		}
	}
}

func (b *Batch) exchange(ctx context.Context, beats []beat) (absent map[uint32]Absence, err error) {
	msg := &command.Beats{Keys: make([]*command.Beats_Key, len(beats))}
	for i, one := range beats {
		msg.Keys[i] = &command.Beats_Key{Namespace: one.Key.Namespace, Service: one.Key.Service, Id: one.Key.ID,
			Check: one.Key.Check, Status: one.Status, Output: registry.ClipOutput(one.Output)}
	}
	payload, err := proto.Marshal(msg)
	if err != nil {
		return nil, err
	}
	raw, err := b.call(ctx, Method, payload)
	if err != nil {
		return nil, err
	}
	var reply command.BeatsReply
	if err := proto.Unmarshal(raw, &reply); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the leader's answer cannot be read")
	}
	absent = make(map[uint32]Absence, len(reply.Unknown)+len(reply.NoCheck))
	for _, i := range reply.Unknown {
		absent[i] = noInstance
	}
	for _, i := range reply.NoCheck {
		absent[i] = noCheck
	}
	return absent, nil
}

// Serve answers the peer call on the leader.
func (k *Keeper) Serve(ctx context.Context, payload []byte) ([]byte, error) {
	var msg command.Beats
	if err := proto.Unmarshal(payload, &msg); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the heartbeats cannot be read")
	}
	keys, at := make([]Key, 0, len(msg.Keys)), make([]uint32, 0, len(msg.Keys))
	var reports []Report
	var reported []uint32
	for i, key := range msg.Keys {
		to := Key{key.Namespace, key.Service, key.Id, key.Check}
		if key.Check == "" {
			keys, at = append(keys, to), append(at, uint32(i))
		} else {
			reports, reported = append(reports, Report{to, key.Status, key.Output}), append(reported, uint32(i))
		}
	}
	unknown, err := k.Beat(ctx, keys)
	if err != nil {
		return nil, err
	}
	absent, err := k.Report(ctx, reports)
	if err != nil {
		return nil, err
	}
	reply := &command.BeatsReply{}
	for _, i := range unknown {
		reply.Unknown = append(reply.Unknown, at[i])
	}
	for i, what := range absent {
		if what == noInstance {
			reply.Unknown = append(reply.Unknown, reported[i])
		} else {
			reply.NoCheck = append(reply.NoCheck, reported[i])
		}
	}
	return proto.Marshal(reply)
}
