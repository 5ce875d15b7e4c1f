package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
	"github.com/muster-registry/muster/snapshot"
)

// A restore is a series of commands: begin, chunks, commit. The chunks wait in
// a bucket of their own, which Raft snapshots carry along, and the commit swaps
// the whole content in or leaves everything as it was, alike on every node.
// Membership and the cluster's id are never taken from a snapshot.

const restoreBucket = "restore"

func chunkKey(seq uint32) string { return fmt.Sprintf("chunk/%010d", seq) }

func (b *batch) restoreBegin(op *command.RestoreBegin) (*command.Receipt, error) {
	if b.restoring != "" {
		return nil, fault.New(fault.Conflict, "restore %s is in progress", b.restoring)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(op)
	if err != nil {
		panic(fmt.Sprintf("encode restore: %v", err))
	}
	b.delta.clear(restoreBucket)
	b.delta.put(restoreBucket, "begin", raw)
	b.restoring, b.staged = op.Id, b.index
	return b.took(), nil
}

func (b *batch) restoreChunk(op *command.RestoreChunk) (*command.Receipt, error) {
	if b.restoring != op.Id {
		return nil, fault.New(fault.Conflict, "restore %s is not in progress", op.Id)
	}
	b.delta.put(restoreBucket, chunkKey(op.Seq), op.Data)
	b.staged = b.index
	return &command.Receipt{Revision: b.revision}, nil
}

func (b *batch) restoreAbort(op *command.RestoreAbort) (*command.Receipt, error) {
	if b.restoring != op.Id {
		return nil, fault.New(fault.Conflict, "restore %s is not in progress", op.Id)
	}
	b.endRestore()
	return b.took(), nil
}

func (b *batch) endRestore() {
	b.delta.clear(restoreBucket)
	b.restoring = ""
}

// restoreCommit builds the tables anew from the staged chunks. Everything is
// checked before anything is replaced; a refusal ends the restore.
func (b *batch) restoreCommit(op *command.RestoreCommit) (*command.Receipt, error) {
	if b.restoring != op.Id {
		return nil, fault.New(fault.Conflict, "restore %s is not in progress", op.Id)
	}
	in := b.stagedRestore()
	begin, err := in.begin()
	if err != nil {
		b.endRestore()
		return nil, fault.New(fault.InvalidSnapshot, "the staged snapshot is not whole: %v", err)
	}
	next, err := b.m.restored(in.reader(begin), begin.Sha256)
	if err != nil {
		b.endRestore()
		return nil, err
	}
	b.swap(next)
	b.endRestore()
	b.revision = max(b.revision, next.header.Revision)
	return b.took(), nil
}

// restored gives the tables of the snapshot in r, which has that SHA-256: those
// that this node expects, or else made of what r holds.
func (m *Machine) restored(r io.Reader, want []byte) (next *rebuilt, err error) {
	sum := sha256.New()
	r = io.TeeReader(r, sum)
	if e := m.expected.Swap(nil); e != nil && bytes.Equal(e.sum, want) {
		next = e.next
		_, err = io.Copy(io.Discard, r)
	} else {
		// Whoever announced it has read it in full; it is the same, or refused here.
		next, err = buildInto(r, nil, snapshot.ReadKnown)
	}
	if err == nil && !bytes.Equal(sum.Sum(nil), want) {
		err = fault.New(fault.InvalidSnapshot, "the staged snapshot is not the one that was announced: its SHA-256 differs")
	}
	return next, err
}

// expectation is a snapshot that was loaded before it comes through the log.
type expectation struct {
	sum  []byte
	next *rebuilt
}

// Expect spares this node from loading a snapshot again, which is about to be
// restored and has that SHA-256, until forget is called. The plan is one that
// Inspect gave for it, and is used up.
func (m *Machine) Expect(p *Plan, sum []byte) (forget func()) {
	e := &expectation{sum, p.next}
	p.next = nil
	m.expected.Store(e)
	return func() { m.expected.CompareAndSwap(e, nil) }
}

// Plan is what restoring a snapshot would lead to.
type Plan struct {
	Header  snapshot.Header
	Summary *snapshot.Summary
	Counts  registry.Counts
	Hash    Hash

	next *rebuilt // nil once it is used
}

func (r *rebuilt) plan() *Plan {
	return &Plan{Header: r.header, Summary: r.summary, Counts: r.view.Registry.Counts(), Hash: r.view.Hash, next: r}
}

// Inspect loads a whole snapshot beside the current state, which it does not
// touch, and says what restoring it would lead to. The error is invalid_snapshot.
func Inspect(r io.Reader) (*Plan, error) {
	next, err := build(r)
	if err != nil {
		return nil, err
	}
	return next.plan(), nil
}

// swap makes the rebuilt content the state of this batch. What came before in
// the same batch is overwritten by it, in the file too.
func (b *batch) swap(next *rebuilt) {
	for _, name := range Content {
		b.delta.replace(name, next.records[name])
	}
	b.hash = next.view.Hash
	signed := b.pol.Signed()
	before := b.set.Commit()
	b.over(next.view)
	// What was revoked after the snapshot was made stays revoked.
	for r := range before.All(setting.Revocation) {
		b.set.Keep(r)
	}
	// What was signed before the snapshot's time cannot be replayed after it.
	b.pol.KeepSigned(signed)
	b.events = Events{Policies: true, Replaced: true}
}

// staged reads the chunks of a restore: from the batch being applied, from
// what is on its way to the file, or from the file.
type staged struct{ b *batch }

func (b *batch) stagedRestore() staged { return staged{b} }

func (s staged) get(key string) ([]byte, bool) {
	if v, known := s.b.delta.get(restoreBucket, key); known {
		return v, v != nil
	}
	return s.b.m.store.get(restoreBucket, key)
}

func (s staged) begin() (*command.RestoreBegin, error) {
	raw, ok := s.get("begin")
	if !ok {
		return nil, fmt.Errorf("its announcement is missing")
	}
	begin := new(command.RestoreBegin)
	return begin, proto.Unmarshal(raw, begin)
}

func (s staged) reader(begin *command.RestoreBegin) io.Reader {
	return &chunkReader{s: s, chunks: begin.Chunks}
}

type chunkReader struct {
	s       staged
	chunks  uint32
	next    uint32
	current []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.current) == 0 {
		if r.next == r.chunks {
			return 0, io.EOF
		}
		data, ok := r.s.get(chunkKey(r.next))
		if !ok {
			return 0, fmt.Errorf("chunk %d of %d is missing", r.next, r.chunks)
		}
		r.current, r.next = data, r.next+1
	}
	n := copy(p, r.current)
	r.current = r.current[n:]
	return n, nil
}

// Export streams the state as a snapshot file. It is one consistent state: the
// one that View gave, or a later one. Writes go on meanwhile. The header is
// completed from the state; the caller gives created-at and version.
func (m *Machine) Export(w io.Writer, h snapshot.Header) error {
	tx, err := m.store.image()
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	v := new(View)
	if err := readMeta(tx, v); err != nil {
		return err
	}
	h.ClusterID, h.Revision, h.AppliedIndex, h.Term = v.ClusterID, v.Revision, v.Applied, v.Term
	h.PolicyRevision = activePolicy(tx)
	out, err := snapshot.NewWriter(w, h)
	if err != nil {
		return err
	}
	definitions, err := digests(tx)
	if err != nil {
		return err
	}
	for _, name := range Content {
		if err := exportBucket(tx, out, name, definitions); err != nil {
			return err
		}
	}
	return out.Close()
}

func exportBucket(tx *bolt.Tx, out *snapshot.Writer, name string, definitions map[string]string) error {
	if err := out.Section(name); err != nil {
		return err
	}
	b := tx.Bucket([]byte(name))
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, v []byte) error {
		if digest, known := definitions[string(k)]; known && name == registry.BucketDocuments && !isDigest(digest, v) {
			return damagedDefinition(string(k))
		}
		return out.Put(string(k), v)
	})
}

func activePolicy(tx *bolt.Tx) uint64 {
	b := tx.Bucket([]byte(metaBucket))
	if b == nil {
		return 0
	}
	if raw := b.Get([]byte("policy")); len(raw) == 8 {
		return binary.BigEndian.Uint64(raw)
	}
	return 0
}
