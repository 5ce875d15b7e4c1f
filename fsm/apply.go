package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
)

// Apply implements raft.FSM. Raft uses ApplyBatch.
func (m *Machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM: it applies the entries in order and
// publishes one view for all of them. The response to a command entry is a
// []command.Result, one for each command in it; nil for entries that an earlier
// start has applied already, and for all from one of a newer format on.
func (m *Machine) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	if m.Trouble() != nil {
		return responses
	}
	b := m.begin()
	for i, l := range logs {
		if l.Index <= b.applied {
			continue
		}
		if l.Type == raft.LogCommand {
			results, ok := b.entry(l)
			if !ok {
				break
			}
			responses[i] = results
		}
		b.applied, b.term = l.Index, l.Term
		b.marks = append(b.marks, mark{l.Index, b.hash})
	}
	b.commit()
	return responses
}

// batch is the next view while it is being made from the current one.
type batch struct {
	m     *Machine
	delta *delta

	reg *registry.Txn
	pol *policy.Txn
	tok *identity.Txn
	set *setting.Txn

	active    uint64 // active policy revision
	applied   uint64
	term      uint64
	revision  uint64
	hash      Hash
	clusterID string
	restoring string
	staged    uint64
	level     uint32
	index     uint64 // of the entry being applied

	heads   map[string]Head // shared with views: see setHead
	events  Events
	marks   []mark   // the state hash after each entry
	changes []Change // for the recorder
}

func (m *Machine) begin() *batch {
	v := m.View()
	b := &batch{
		m: m, delta: newDelta(),
		applied: v.Applied, term: v.Term, revision: v.Revision,
		hash: v.Hash, clusterID: v.ClusterID, restoring: v.Restoring, staged: v.Staged, heads: v.Heads, level: v.Level,
	}
	b.over(v)
	return b
}

// over makes the tables of v the base of what follows.
func (b *batch) over(v *View) {
	b.reg, b.pol, b.tok, b.set = v.Registry.Txn(b.emit), v.Policy.Txn(b.emit), v.Tokens.Txn(b.emit), v.Settings.Txn(b.emit)
	b.active = 0
	if a := v.Policy.Active(); a != nil {
		b.active = a.Number
	}
}

// emit takes one change of a stored record: into the delta for the state file,
// into the state hash, into the events.
func (b *batch) emit(bucket, key string, old, new []byte) {
	b.delta.put(bucket, key, new)
	if hashed(bucket) {
		if old != nil {
			b.hash.remove(bucket, key, old)
		}
		if new != nil {
			b.hash.add(bucket, key, new)
		}
	}
	switch bucket {
	case registry.BucketServices, registry.BucketVersions, registry.BucketInstances:
		// The revision is taken after the change was made: see took.
		b.events.Records = append(b.events.Records, Record{bucket, key, b.revision + 1, old, new})
		if bucket == registry.BucketInstances {
			b.events.Instances = append(b.events.Instances, key)
		}
	case identity.Bucket:
		b.events.Tokens = true
	case policy.BucketRevisions, policy.BucketActive:
		b.events.Policies = true
	case setting.Bucket:
		b.events.Settings = append(b.events.Settings, key)
	}
}

// commit stores and publishes the batch.
func (b *batch) commit() {
	touched := b.reg.Touched()
	v := &View{
		Registry: b.reg.Commit(), Policy: b.pol.Commit(), Tokens: b.tok.Commit(), Settings: b.set.Commit(),
		ClusterID: b.clusterID, Revision: b.revision, Applied: b.applied, Term: b.term,
		Hash: b.hash, Restoring: b.restoring, Staged: b.staged, Heads: b.heads, Level: b.level,
	}
	if len(b.changes) > 0 {
		b.m.recorder.Changed(b.changes)
	}
	b.m.store.add(b.delta, position{b.applied, b.term, b.revision, b.active, uint64(b.level), b.clusterID, b.restoring, b.hash})
	b.m.marks.add(b.marks)
	b.m.publish(v, touched, b.events)
}

// entry applies the commands of one Raft entry. An entry of a newer format
// halts the machine, and one that cannot be read panics: skipping it would make
// this node differ from those that can.
func (b *batch) entry(l *raft.Log) (results []command.Result, ok bool) {
	var in command.Batch
	if err := proto.Unmarshal(l.Data, &in); err != nil {
		panic(fmt.Sprintf("raft entry %d cannot be decoded: %v", l.Index, err))
	}
	if in.Format > command.Format {
		b.m.halt.now(tooNew(fmt.Sprintf("entry %d of the Raft log", l.Index), uint64(in.Format)))
		return nil, false
	}
	b.index, b.level = l.Index, max(b.level, in.Format)
	results = make([]command.Result, len(in.Commands))
	for i, c := range in.Commands {
		receipt, err := b.command(c)
		results[i] = command.Result{Receipt: receipt, Err: err}
		if err != nil {
			results[i].Receipt = nil
		}
	}
	return results, true
}

// ErrPolicyChanged refuses a command admitted under a policy revision that is
// no longer active; the leader admits it again.
var ErrPolicyChanged = errors.New("admitted under a policy revision that is no longer active")

// ErrConditionsChanged refuses a command admitted under settings that have
// changed; the leader admits it again.
var ErrConditionsChanged = errors.New("admitted under settings that have changed")

func (b *batch) command(c *command.Command) (*command.Receipt, error) {
	if receipt, err := b.m.Repeat(c); receipt != nil || err != nil {
		return receipt, err
	}
	if c.Gated && c.PolicyRevision != b.active {
		return nil, ErrPolicyChanged
	}
	if len(c.Conditions) > 0 && !bytes.Equal(c.Conditions, b.set.Conditions()) {
		return nil, ErrConditionsChanged
	}
	if b.restoring != "" && !restores(c) {
		return nil, fault.New(fault.NotReady, "a restore is in progress; try again when it has ended")
	}
	before := b.revision
	receipt, err := b.change(c)
	if err != nil {
		return nil, err
	}
	if c.GetLeases() == nil && b.revision > before {
		b.note(c, nil, receipt.Created)
	}
	receipt.DecisionId, receipt.PolicyRevision, receipt.Filtered = c.DecisionId, c.PolicyRevision, c.Filtered
	if c.IdempotencyKey != "" {
		b.m.repeats.Load().keep(c, receipt, b.delta.put)
	}
	return receipt, nil
}

func restores(c *command.Command) bool {
	switch c.Op.(type) {
	case *command.Command_RestoreChunk, *command.Command_RestoreCommit, *command.Command_RestoreAbort:
		return true
	}
	return false
}

// stamp is what the next change carries. The revision counts only when the
// change happens: see took.
func (b *batch) stamp(c *command.Command) (next uint64, at time.Time) {
	return b.revision + 1, time.Unix(0, c.Time).UTC()
}

func (b *batch) took() *command.Receipt {
	b.revision++
	return &command.Receipt{Revision: b.revision}
}

func (b *batch) change(c *command.Command) (*command.Receipt, error) {
	switch op := c.Op.(type) {
	case *command.Command_Put:
		return b.put(c, op.Put)
	case *command.Command_Delete:
		return b.delete(c, op.Delete)
	case *command.Command_Status:
		return b.status(c, op.Status)
	case *command.Command_Leases:
		return b.leases(c, op.Leases)
	case *command.Command_PolicyStage:
		return b.stage(c, op.PolicyStage)
	case *command.Command_PolicyActivate:
		return b.activate(c, op.PolicyActivate)
	case *command.Command_PolicyShadow:
		return b.shadow(c, op.PolicyShadow)
	case *command.Command_ClusterInit:
		return b.clusterInit(op.ClusterInit)
	case *command.Command_RestoreBegin:
		return b.restoreBegin(op.RestoreBegin)
	case *command.Command_RestoreChunk:
		return b.restoreChunk(op.RestoreChunk)
	case *command.Command_RestoreCommit:
		return b.restoreCommit(op.RestoreCommit)
	case *command.Command_RestoreAbort:
		return b.restoreAbort(op.RestoreAbort)
	case *command.Command_AuditHead:
		return b.auditHead(c, op.AuditHead)
	}
	panic(fmt.Sprintf("unknown command %T: upgrade this node", c.Op))
}

func (b *batch) put(c *command.Command, p *command.Put) (*command.Receipt, error) {
	next, at := b.stamp(c)
	st := registry.Stamp{Revision: next, Time: at, By: c.Principal}
	var record []byte
	var created bool
	switch p.Kind {
	case command.Kind_SERVICE:
		rec, fresh, err := b.reg.PutService(st, p.Namespace, p.Name, p.Spec, p.Observed)
		if err != nil {
			return nil, err
		}
		record, created = rec.JSON, fresh
	case command.Kind_VERSION:
		rec, fresh, err := b.reg.PutVersion(st, p.Namespace, p.Service, p.Name, p.Spec, p.Document, p.Observed)
		if err != nil {
			return nil, err
		}
		record, created = rec.JSON, fresh
	case command.Kind_INSTANCE:
		rec, fresh, err := b.reg.PutInstance(st, p.Namespace, p.Service, p.Name, p.Spec, p.Observed, p.CreateService)
		if err != nil {
			return nil, err
		}
		record, created = rec.JSON, fresh
	case command.Kind_TOKEN:
		rec, err := b.tok.Put(identity.Stamp(st), p.Name, p.Spec)
		if err != nil {
			return nil, err
		}
		record, created = rec.JSON, true
	case command.Kind_SETTING:
		rec, fresh, err := b.set.Put(setting.Stamp(st), setting.Kind(p.Service), p.Namespace, p.Name, p.Spec, p.Observed)
		if err != nil {
			return nil, err
		}
		record, created = rec.JSON, fresh
	default:
		panic(fmt.Sprintf("unknown kind %v: upgrade this node", p.Kind))
	}
	r := b.took()
	r.Record, r.Created = record, created
	return r, nil
}

func (b *batch) delete(c *command.Command, d *command.Delete) (*command.Receipt, error) {
	next, at := b.stamp(c)
	st := registry.Stamp{Revision: next, Time: at, By: c.Principal}
	var err error
	switch d.Kind {
	case command.Kind_SERVICE:
		err = b.reg.Delete(st, registry.KindService, d.Namespace, d.Name, "", d.Observed)
	case command.Kind_VERSION:
		err = b.reg.Delete(st, registry.KindVersion, d.Namespace, d.Service, d.Name, d.Observed)
	case command.Kind_INSTANCE:
		err = b.reg.Delete(st, registry.KindInstance, d.Namespace, d.Service, d.Name, d.Observed)
	case command.Kind_TOKEN:
		if err = b.tok.Delete(d.Name); err == nil && len(d.Revocation) > 0 {
			_, _, err = b.set.Put(setting.Stamp(st), setting.Revocation, "", d.RevocationName, d.Revocation, b.set.Revision(setting.Revocation, "", d.RevocationName))
		}
	case command.Kind_SETTING:
		err = b.set.Delete(setting.Kind(d.Service), d.Namespace, d.Name, d.Observed)
	default:
		panic(fmt.Sprintf("unknown kind %v: upgrade this node", d.Kind))
	}
	if err != nil {
		return nil, err
	}
	return b.took(), nil
}

func (b *batch) status(c *command.Command, s *command.InstanceStatus) (*command.Receipt, error) {
	next, at := b.stamp(c)
	rec, err := b.reg.SetStatus(registry.Stamp{Revision: next, Time: at, By: c.Principal}, s.Namespace, s.Service, s.Name, s.Status, registry.ByCaller, s.Observed)
	if err != nil {
		return nil, err
	}
	r := b.took()
	r.Record = rec.JSON
	return r, nil
}

var leaseChanges = map[command.Leases_Change]registry.LeaseChange{
	command.Leases_EXPIRED:    registry.Expired,
	command.Leases_BACK:       registry.Back,
	command.Leases_DEREGISTER: registry.Deregister,
}

// leases applies each item whose instance is still as the leader saw it; the
// others are dropped, since a newer change has the last word.
func (b *batch) leases(c *command.Command, l *command.Leases) (*command.Receipt, error) {
	for _, it := range l.Items {
		next, at := b.stamp(c)
		st := registry.Stamp{Revision: next, Time: at, By: c.Principal}
		if it.Change == command.Leases_CHECK {
			if b.reg.SetCheck(st, it.Namespace, it.Service, it.Name, registry.CheckResult{Check: it.Check, Status: it.Status, Output: it.Output, Observed: it.Observed}) {
				b.revision++
				b.note(c, it, false)
			}
			continue
		}
		if b.reg.Lease(st, it.Namespace, it.Service, it.Name, leaseChanges[it.Change], it.Observed) {
			b.revision++
			b.note(c, it, false)
		}
	}
	return &command.Receipt{Revision: b.revision}, nil
}

func (b *batch) stage(c *command.Command, p *command.PolicyStage) (*command.Receipt, error) {
	next, at := b.stamp(c)
	rec, err := b.pol.Stage(policy.Stamp{Revision: next, Time: at, By: c.Principal},
		policy.Draft{Content: p.Content, Digest: p.Digest, Report: p.Report, Origin: p.Origin, Engine: p.Engine})
	if err != nil {
		return nil, err
	}
	r := b.took()
	r.Record, r.Created = rec.JSON, true
	return r, nil
}

func (b *batch) activate(c *command.Command, p *command.PolicyActivate) (*command.Receipt, error) {
	next, at := b.stamp(c)
	rec, err := b.pol.Activate(policy.Stamp{Revision: next, Time: at, By: c.Principal}, p.Revision, p.ExpectActive, p.Rollback)
	if err != nil {
		return nil, err
	}
	b.active = rec.Number
	r := b.took()
	r.Record = rec.JSON
	return r, nil
}

func (b *batch) shadow(c *command.Command, p *command.PolicyShadow) (*command.Receipt, error) {
	next, at := b.stamp(c)
	st := policy.Stamp{Revision: next, Time: at, By: c.Principal}
	var rec *policy.Revision
	var err error
	if p.Stop {
		rec, err = b.pol.Unshadow(st)
	} else {
		rec, err = b.pol.Shadow(st, p.Revision, p.Share)
	}
	if err != nil {
		return nil, err
	}
	r := b.took()
	r.Record = rec.JSON
	return r, nil
}

func (b *batch) clusterInit(c *command.ClusterInit) (*command.Receipt, error) {
	if b.clusterID != "" {
		return nil, fault.New(fault.Conflict, "the cluster already has the id %s", b.clusterID)
	}
	b.clusterID = c.ClusterId
	return b.took(), nil
}
