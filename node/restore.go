package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/policy"
)

const (
	chunkSize = 512 << 10 // how much of a snapshot one command carries
	feeders   = 4         // how many of them are on their way at one time
)

const (
	// restoreIdle is how long a restore may stand still before the leader gives it
	// up: the node that fed it has gone. How long it takes as a whole is not bounded.
	restoreIdle = 20 * time.Second
	// restorePatience is how long one step of it waits for a leader.
	restorePatience = 10 * time.Second
)

// Restore implements rest.Backend. The snapshot is received and loaded whole
// on this node first; only then is it staged, chunk by chunk, through the log.
func (b backend) Restore(ctx context.Context, in *command.Intent, r io.Reader, dryRun, force bool) (*rest.RestoreReport, error) {
	if err := admit.Permit(in, policy.Manage, "snapshot", ""); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(b.cfg.DataDir, "restore-*.snapshot")
	if err != nil {
		return nil, err
	}
	defer func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) }()
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, sum), r)
	if err != nil {
		return nil, fault.Wrap(fault.InvalidSnapshot, err, "the snapshot was not received whole; nothing was changed")
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	plan, err := fsm.Inspect(f)
	if err != nil {
		return nil, err
	}
	if err := b.mayRestore(ctx, plan, force, dryRun); err != nil {
		return nil, err
	}
	report := b.report(plan, dryRun)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if dryRun {
		report.Changes, err = b.wouldChange(f)
		return report, err
	}
	begin := &command.RestoreBegin{
		Id: rand.Text(), ClusterId: plan.Header.ClusterID, Revision: plan.Header.Revision,
		Chunks: uint32((size + chunkSize - 1) / chunkSize), Size: uint64(size), Sha256: sum.Sum(nil),
	}
	defer b.machine.Expect(plan, begin.Sha256)()
	receipt, saved, err := b.stage(ctx, in, begin, f)
	if err != nil {
		return nil, err
	}
	report.Revision, report.Saved, report.SavedOn = receipt.Revision, saved, b.cfg.NodeID
	_ = b.everyNode(ctx, methodReached, receipt.Revision, b.everywhere)
	return report, nil
}

// mayRestore refuses what would replace services or policies, and says so
// first where the snapshot is of another cluster, unless it is forced. An empty
// cluster takes any snapshot: that is how a lost one comes back. A dry run of
// the cluster's own snapshot replaces nothing, so it needs no force.
func (b backend) mayRestore(ctx context.Context, plan *fsm.Plan, force, dryRun bool) error {
	if force {
		return nil
	}
	// This node may not know yet what the cluster holds.
	if err := b.cluster.ReadIndex(ctx); err != nil {
		return err
	}
	v := b.machine.View()
	c, policies := v.Registry.Counts(), v.Policy.Len()
	switch {
	case c.Services == 0 && policies == 0:
		return nil
	case plan.Header.ClusterID != v.ClusterID:
		return fault.New(fault.InvalidSnapshot, "the snapshot is of another cluster, %q; restore it with force if that is meant", plan.Header.ClusterID)
	case dryRun:
		return nil
	}
	return fault.New(fault.Conflict, "the cluster holds %d services, %d versions, %d instances and %d policy revisions, which a restore replaces; save a snapshot first, then restore with force",
		c.Services, c.Versions, c.Instances, policies)
}

func (b backend) report(plan *fsm.Plan, dryRun bool) *rest.RestoreReport {
	return &rest.RestoreReport{
		DryRun: dryRun, ClusterID: plan.Header.ClusterID, SnapshotRevision: plan.Header.Revision,
		Services: plan.Counts.Services, Versions: plan.Counts.Versions, Instances: plan.Counts.Instances,
		PolicyRevision: plan.Header.PolicyRevision, StateHash: plan.Hash.String(),
	}
}

// wouldChange says, by kind, what lies between this node's state and the
// snapshot.
func (b backend) wouldChange(r io.Reader) (map[string]rest.Tally, error) {
	now, state := io.Pipe()
	go func() { state.CloseWithError(b.Snapshot(context.Background(), state)) }()
	d, err := fsm.Diff(now, r)
	_ = now.Close()
	if err != nil {
		return nil, err
	}
	out := map[string]rest.Tally{}
	for kind, t := range d.Kinds {
		out[kind] = rest.Tally(*t)
	}
	return out, nil
}

// stage sends the snapshot through the log and swaps it in. Changes are refused
// from its first step on, so the state that is then saved is the one that is
// replaced. When it fails it is given up, so that changes go on: where that
// succeeds nothing was swapped in, and will not be.
func (b backend) stage(ctx context.Context, in *command.Intent, begin *command.RestoreBegin, r io.Reader) (receipt *command.Receipt, saved string, err error) {
	receipt, err = b.restoreStep(ctx, in, begin.Id+"/begin", &command.Command{Op: &command.Command_RestoreBegin{RestoreBegin: begin}})
	if err == nil {
		err = b.machine.AwaitRevision(ctx, receipt.Revision)
	} else if fault.From(err).Outcome == fault.Definite {
		return nil, "", err
	}
	if err == nil {
		if saved, err = b.saveFirst(ctx, in, begin.Id); err == nil {
			receipt, err = b.feed(ctx, in, begin, r)
		}
	}
	if err == nil {
		return receipt, saved, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), restorePatience+everywhere)
	defer cancel()
	abort := &command.Command{Op: &command.Command_RestoreAbort{RestoreAbort: &command.RestoreAbort{Id: begin.Id}}}
	switch _, undone := b.restoreStep(undo, in, "", abort); {
	case undone == nil && fault.From(err).Outcome == fault.Unknown:
		f := fault.From(err)
		err = fault.Wrap(f.Code, err, "the restore was given up, and nothing was changed: %s", f.Detail)
	case undone != nil:
		b.logger.Warn("the restore could not be given up; where it is not over, the leader does so when it stands still", "restore", begin.Id, "error", undone)
	}
	return nil, saved, err
}

// saveFirst saves what the restore is about to replace. However long that takes,
// the leader hears that it goes on as long as it does.
func (b backend) saveFirst(ctx context.Context, in *command.Intent, id string) (string, error) {
	var done atomic.Int64
	ctx, stop := context.WithCancel(ctx)
	var telling sync.WaitGroup
	telling.Go(func() { b.tellProgress(ctx, in, id, &done, restoreIdle/4) })
	defer telling.Wait()
	defer stop()
	return b.saveBefore(&done)
}

// tellProgress takes a step of the restore that changes nothing (a chunk without
// data, before any that has some) whenever done has grown, until the context ends.
func (b backend) tellProgress(ctx context.Context, in *command.Intent, id string, done *atomic.Int64, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for told := int64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := done.Load()
		if now == told {
			continue
		}
		told = now
		c := &command.Command{Op: &command.Command_RestoreChunk{RestoreChunk: &command.RestoreChunk{Id: id}}}
		if _, err := b.restoreStep(ctx, in, "", c); err != nil && ctx.Err() == nil {
			b.logger.Warn("the leader was not told that a restore goes on", "restore", id, "error", err)
		}
	}
}

func (b backend) feed(ctx context.Context, in *command.Intent, begin *command.RestoreBegin, r io.Reader) (*command.Receipt, error) {
	if err := b.feedChunks(ctx, in, begin, r); err != nil {
		return nil, err
	}
	commit := &command.RestoreCommit{Id: begin.Id}
	return b.restoreStep(ctx, in, begin.Id+"/commit", &command.Command{Op: &command.Command_RestoreCommit{RestoreCommit: commit}})
}

// feedChunks sends the chunks, some at the same time: they have numbers, and the
// log may take them in any order.
func (b backend) feedChunks(ctx context.Context, in *command.Intent, begin *command.RestoreBegin, r io.Reader) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var reading sync.Mutex // guards r and seq
	seq := uint32(0)
	next := func() (*command.RestoreChunk, error) {
		reading.Lock()
		defer reading.Unlock()
		if seq == begin.Chunks {
			return nil, nil
		}
		data := make([]byte, chunkSize)
		n, err := io.ReadFull(r, data)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
		seq++
		return &command.RestoreChunk{Id: begin.Id, Seq: seq - 1, Data: data[:n]}, nil
	}
	errs := make([]error, feeders)
	var work sync.WaitGroup
	for i := range errs {
		work.Go(func() {
			for {
				chunk, err := next()
				if err == nil && chunk != nil {
					_, err = b.restoreStep(ctx, in, "", &command.Command{Op: &command.Command_RestoreChunk{RestoreChunk: chunk}})
				}
				if errs[i] = err; err != nil {
					stop(err)
				}
				if err != nil || chunk == nil {
					return
				}
			}
		})
	}
	work.Wait()
	if err := context.Cause(ctx); err != nil {
		return err // the first: the others were cut off by it
	}
	return errors.Join(errs...)
}

// restoreStep takes one step of a restore. A leader that goes meanwhile ends no
// restore: the step is taken again, at the next one, and means nothing when it
// was taken already: a chunk is the same chunk, and what has a key is known by it.
func (b backend) restoreStep(ctx context.Context, in *command.Intent, key string, c *command.Command) (*command.Receipt, error) {
	next := proto.CloneOf(in)
	next.Command, next.IdempotencyKey, next.RequestDigest, next.HasMatch, next.CreateOnly = c, "", nil, false, false
	if key != "" {
		next.IdempotencyKey, next.RequestDigest = "restore/"+key, []byte(key)
	}
	for until := time.Now().Add(restorePatience); ; {
		receipt, err := b.Submit(ctx, next)
		if err == nil || !fault.Is(err, fault.NoLeader) || time.Now().After(until) {
			return receipt, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// watchRestores runs on the leader and gives up a restore that stands still.
func (n *Node) watchRestores(ctx context.Context) {
	tick := time.NewTicker(restoreIdle / 6)
	defer tick.Stop()
	var at uint64
	since := time.Now() // of the leadership: its first step may be from before
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			v := n.machine.View()
			if v.Restoring == "" || v.Staged != at {
				at, since = v.Staged, now
				continue
			}
			if now.Sub(since) < restoreIdle {
				continue
			}
			n.logger.Warn("giving up a restore that stands still", "restore", v.Restoring)
			abort := &command.RestoreAbort{Id: v.Restoring}
			c := &command.Command{Principal: "muster", Time: now.UnixNano(), Op: &command.Command_RestoreAbort{RestoreAbort: abort}}
			if _, err := n.cluster.Propose(ctx, c); err != nil {
				n.logger.Warn("the restore was not given up", "restore", v.Restoring, "error", err)
			}
		}
	}
}
