package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/snapshot"
)

// chunkSize is how much of a snapshot one command carries.
const chunkSize = 512 << 10

// restoreIdle is how long a restore may stand still before the leader gives it
// up: the node that fed it has gone.
const restoreIdle = time.Minute

// Snapshot implements rest.Backend.
func (b backend) Snapshot(_ context.Context, w io.Writer) error {
	return b.machine.Export(w, snapshot.Header{CreatedAt: time.Now().UTC(), MusterVersion: b.version})
}

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
	if dryRun {
		return report, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	begin := &command.RestoreBegin{
		Id: rand.Text(), ClusterId: plan.Header.ClusterID, Revision: plan.Header.Revision,
		Chunks: uint32((size + chunkSize - 1) / chunkSize), Size: uint64(size), Sha256: sum.Sum(nil),
	}
	receipt, err := b.stage(ctx, in, begin, f)
	if err != nil {
		return nil, err
	}
	report.Revision = receipt.Revision
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

// stage sends the snapshot through the log and swaps it in. When it fails
// before the swap was proposed, the restore is given up, so that writes go on.
func (b backend) stage(ctx context.Context, in *command.Intent, begin *command.RestoreBegin, r io.Reader) (*command.Receipt, error) {
	if _, err := b.restoreStep(ctx, in, &command.Command{Op: &command.Command_RestoreBegin{RestoreBegin: begin}}); err != nil {
		return nil, err
	}
	receipt, err := b.feed(ctx, in, begin, r)
	if err != nil && fault.From(err).Outcome == fault.Definite {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), everywhere)
		defer cancel()
		abort := &command.Command{Op: &command.Command_RestoreAbort{RestoreAbort: &command.RestoreAbort{Id: begin.Id}}}
		if _, abortErr := b.restoreStep(undo, in, abort); abortErr != nil {
			b.logger.Warn("the restore could not be given up; the leader does so when it stands still", "restore", begin.Id, "error", abortErr)
		}
	}
	return receipt, err
}

func (b backend) feed(ctx context.Context, in *command.Intent, begin *command.RestoreBegin, r io.Reader) (*command.Receipt, error) {
	for seq := range begin.Chunks {
		data := make([]byte, chunkSize)
		n, err := io.ReadFull(r, data)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
		chunk := &command.RestoreChunk{Id: begin.Id, Seq: seq, Data: data[:n]}
		if _, err := b.restoreStep(ctx, in, &command.Command{Op: &command.Command_RestoreChunk{RestoreChunk: chunk}}); err != nil {
			return nil, err
		}
	}
	commit := &command.RestoreCommit{Id: begin.Id}
	return b.restoreStep(ctx, in, &command.Command{Op: &command.Command_RestoreCommit{RestoreCommit: commit}})
}

func (b backend) restoreStep(ctx context.Context, in *command.Intent, c *command.Command) (*command.Receipt, error) {
	next := proto.CloneOf(in)
	next.Command, next.IdempotencyKey, next.HasMatch, next.CreateOnly = c, "", false, false
	return b.Submit(ctx, next)
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
