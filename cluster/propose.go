package cluster

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/trace"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Group commit. Commands that arrive while the log is busy share the next
// entry, so the cost of an entry (two syncs, a round trip) is divided by as
// many as are waiting, and a lone command never waits for company.
const (
	maxBatch      = 1024     // commands in one entry
	maxBatchBytes = 1 << 20  // unless one command alone is larger
	maxEntry      = 24 << 20 // one command: a definition of 16 MiB as document and as spec
	// inFlight is how many entries are on their way at once. What arrives while
	// one is synced, replicated and applied shares the next; more on the way at
	// once only makes them smaller: of 1, 2, 3, 4 and 8, one was fastest.
	inFlight       = 1
	enqueueTimeout = time.Second
)

const (
	waiting int32 = iota
	taken         // by the proposer: from here on the outcome is Raft's to tell
	gone          // its caller left first
)

type proposal struct {
	bytes  []byte // a marshalled command.Command
	state  atomic.Int32
	result chan command.Result

	began, ended time.Time // of the batch's Apply, where that is traced
}

// answer tells the caller, once.
func (p *proposal) answer(r command.Result) {
	select {
	case p.result <- r:
	default:
	}
}

// Propose puts a command into the log and returns its receipt once it has been
// applied here. Only the leader can: elsewhere it is a definite no_leader. An
// error of the machine passes through as it is. When the leadership or the
// context ends after the command was handed to Raft, the outcome is unknown
// and the error says so.
func (c *Cluster) Propose(ctx context.Context, cmd *command.Command) (receipt *command.Receipt, err error) {
	ctx, span := trace.Start(ctx, "propose")
	defer func() { span.End(err) }()
	if c.serving() == nil {
		return nil, noLeader("this node does not lead the cluster")
	}
	if c.writes.stuck() > 0 {
		return nil, errStuck()
	}
	bytes, err := proto.Marshal(cmd)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the command cannot be encoded")
	}
	if len(bytes) > maxEntry {
		return nil, fault.New(fault.TooLarge, "the change takes %d bytes in the log, at most %d are allowed", len(bytes), maxEntry)
	}
	p := &proposal{bytes: bytes, result: make(chan command.Result, 1)}
	select {
	case c.proposals <- p:
	case <-ctx.Done():
		return nil, fault.Wrap(fault.NoLeader, ctx.Err(), "the leader was too busy to take the change in time; nothing was changed")
	case <-c.done:
		return nil, noLeader("the node is stopping")
	}
	select {
	case r := <-p.result:
		trace.Past(ctx, "apply", p.began, p.ended)
		return r.Receipt, r.Err
	case <-ctx.Done():
	case <-c.done:
	}
	if p.state.CompareAndSwap(waiting, gone) {
		return nil, fault.Wrap(fault.NoLeader, ctx.Err(), "the change was withdrawn before it was proposed; nothing was changed")
	}
	return nil, fault.Lost(fault.NoLeader, ctx.Err(), "the wait ended while the change was being replicated; it may still happen")
}

// propose is the one goroutine that makes entries of what is waiting.
func (c *Cluster) propose() {
	slots := make(chan struct{}, inFlight)
	var held *proposal // did not fit into the last batch
	for {
		first := held
		if held = nil; first == nil {
			select {
			case first = <-c.proposals:
			case <-c.done:
				return
			}
		}
		// The slot comes first: what arrives while waiting for it comes along.
		select {
		case slots <- struct{}{}:
		case <-c.done:
			return
		}
		var batch []*proposal
		batch, held = c.collect(first)
		if len(batch) == 0 {
			<-slots
			continue
		}
		c.metrics.batch.Observe(float64(len(batch)))
		c.flying.Store(&batch)
		future := c.raft.Apply(encode(c.machine.Level(), batch), enqueueTimeout)
		go func() {
			deliver(future, batch)
			c.flying.CompareAndSwap(&batch, nil)
			<-slots
		}()
	}
}

// collect takes what waits, in order, up to the bounds of one entry.
func (c *Cluster) collect(next *proposal) (batch []*proposal, held *proposal) {
	bytes := 0
	for len(batch) < maxBatch {
		if bytes > 0 && bytes+len(next.bytes) > maxBatchBytes {
			return batch, next
		}
		if next.state.CompareAndSwap(waiting, taken) {
			batch = append(batch, next)
			bytes += len(next.bytes)
		}
		select {
		case next = <-c.proposals:
		default:
			return batch, nil
		}
	}
	return batch, next
}

// encode writes a command.Batch around commands that are encoded already.
func encode(level uint32, batch []*proposal) []byte {
	n := 8
	for _, p := range batch {
		n += protowire.SizeTag(2) + protowire.SizeBytes(len(p.bytes))
	}
	b := make([]byte, 0, n)
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(level))
	for _, p := range batch {
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendBytes(b, p.bytes)
	}
	return b
}

// deliver waits for an entry's fate and tells everyone in it.
func deliver(future raft.ApplyFuture, batch []*proposal) {
	err := future.Error()
	var results []command.Result
	if err == nil {
		var ok bool
		response := future.Response()
		if timed, is := response.(timedResults); is {
			response = timed.results
			for _, p := range batch {
				p.began, p.ended = timed.began, timed.ended
			}
		}
		if results, ok = response.([]command.Result); !ok || len(results) != len(batch) {
			err = errors.New("the machine did not answer each command of the batch")
		}
	}
	for i, p := range batch {
		if err != nil {
			p.answer(command.Result{Err: fate(err)})
		} else {
			p.answer(results[i])
		}
	}
}

// fate tells what became of a command from Raft's error. Only what Raft says
// before it appends is definite.
func fate(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return noLeader("the leadership is changing hands; nothing was changed")
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return noLeader("the leader's log was too busy to take the change; nothing was changed")
	}
	return fault.Lost(fault.NoLeader, err, "the leadership was lost while the change was being replicated; it may have happened")
}

// timedMachine is a machine whose results tell when they were applied: the
// goroutine that applies knows of no request.
type timedMachine struct{ Machine }

type timedResults struct {
	results      any
	began, ended time.Time
}

// ApplyBatch implements raft.BatchingFSM.
func (m timedMachine) ApplyBatch(logs []*raft.Log) []any {
	began := time.Now()
	out := m.Machine.ApplyBatch(logs)
	ended := time.Now()
	for i := range out {
		out[i] = timedResults{results: out[i], began: began, ended: ended}
	}
	return out
}
