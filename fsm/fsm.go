// Package fsm owns the replicated state machine: the order of changes, their
// revisions, the in-memory view that reads are served from, and the bbolt file
// that holds it all between starts.
//
// Two truths, one order. The memory view is published after every Raft batch;
// the file follows in transactions of its own, each of which stores the applied
// index together with the changes up to that index, so a crash at any point
// leaves a whole older state and the Raft log replays the rest. Durability of a
// write is the Raft log's; see docs/adr/0002-state-file.md.
//
// It refuses to decide anything: no policy runs here, no clock is read, nothing
// random is drawn. What cannot be applied deterministically panics, since going
// on would let the nodes diverge.
package fsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
)

// View is the whole replicated state at one revision. It is immutable; a
// reader that keeps the pointer keeps a consistent state.
type View struct {
	Registry *registry.Snapshot
	Policy   *policy.Table
	Tokens   *identity.Table
	Settings *setting.Table

	ClusterID string
	Revision  uint64          // of the last change
	Applied   uint64          // Raft index this view includes
	Term      uint64          // of that index
	Hash      Hash            // over every record, see [Hash]
	Restoring string          // id of the restore being staged, or empty
	Heads     map[string]Head // of the nodes' audit trails, by node; not to be changed
	Level     uint32          // the newest format in the log so far; 0 at its beginning
	Staged    uint64          // Raft index of its last step, as far as seen since the start
}

// Events tells observers what one published view changed.
type Events struct {
	Instances []string // keys "namespace/service/id" that were put or removed
	Policies  bool     // a policy revision was staged, shadowed or activated
	Records   []Record // changes of services, versions and instances, in order; none where Replaced
	Tokens    bool     // a token was put or removed
	Settings  []string // keys "kind/namespace/name" of settings that were put or removed
	Replaced  bool     // the whole state was replaced by a restore or a Raft snapshot
}

// Record is one stored change of the registry.
type Record struct {
	Bucket, Key string
	Revision    uint64
	Old, New    []byte // JSON; nil: there was none, there is none
}

// ErrStale is the result of a command whose record has changed since it was
// decided on; the leader admits it again.
var ErrStale = registry.ErrStale

// Options are the settings of a machine; the zero value is good.
type Options struct {
	// FlushEvery is the longest time a change stays out of the state file
	// (default 5 s). It bounds replay after a crash, not durability.
	FlushEvery time.Duration
	// NoSync leaves out fsync on the state file; for tests of speed only.
	NoSync bool
}

// Machine is the state machine of one node. Raft is its only writer; any
// goroutine may read.
type Machine struct {
	path string
	opts Options

	view    atomic.Pointer[View]
	waiters waitList
	watches watchMap
	marks   marks

	mu        sync.Mutex // guards observers
	observers []func(*View, Events)

	repeats  atomic.Pointer[repeatTable]
	expected atomic.Pointer[expectation] // a snapshot that this node has loaded already

	recorder Recorder // nil: none
	store    store
	halt     halt
}

// Open opens or creates the state file in dir and loads it. The caller closes
// the machine after Raft has stopped.
func Open(dir string, opts Options) (*Machine, error) {
	if opts.FlushEvery <= 0 {
		opts.FlushEvery = 5 * time.Second
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	m := &Machine{path: filepath.Join(dir, "state.db"), opts: opts, halt: halt{at: make(chan struct{})}}
	m.watches.init()
	m.store.init(m.path, opts)
	if err := m.store.open(); err != nil {
		return nil, fmt.Errorf("open state file %s: %w", m.path, err)
	}
	v, repeats, err := load(m.store.db)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load state file %s: %w", m.path, err), m.store.db.Close())
	}
	m.repeats.Store(repeats)
	m.view.Store(v)
	m.marks.add([]mark{{v.Applied, v.Hash}})
	m.store.run()
	return m, nil
}

// Close writes what is pending and closes the state file.
func (m *Machine) Close() error { return m.store.close() }

// View gives the current state. It never blocks.
func (m *Machine) View() *View { return m.view.Load() }

// AppliedIndex is the Raft index of the last entry the current view includes.
func (m *Machine) AppliedIndex() uint64 { return m.View().Applied }

// ClusterID is the id of the cluster this state belongs to; empty before the
// first leader has named it.
func (m *Machine) ClusterID() string { return m.View().ClusterID }

// Level is the cluster's feature level as far as applied here: the newest
// format in its log. Commands of a newer one must not be proposed.
func (m *Machine) Level() uint32 { return max(m.View().Level, command.Base) }

// OnApply registers fn to be called after each published view, on the applying
// goroutine: it must return quickly. To be called before Raft starts.
func (m *Machine) OnApply(fn func(*View, Events)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.observers = append(m.observers, fn)
}

// AwaitRevision returns when the view's revision is at least rev, or with the
// context's error.
func (m *Machine) AwaitRevision(ctx context.Context, rev uint64) error {
	return m.waiters.wait(ctx, byRevision, rev, func() uint64 { return m.View().Revision })
}

// AwaitApplied returns when the view includes the Raft index, or with the
// context's error. The index must be one the machine gets to see: a command or
// a configuration.
func (m *Machine) AwaitApplied(ctx context.Context, index uint64) error {
	return m.waiters.wait(ctx, byIndex, index, func() uint64 { return m.View().Applied })
}

// Watch gives a channel that is closed at the next change of the service, or
// of whether it exists, and a function that ends the watch. Take it before
// reading the view it is to follow. A change to another service never wakes it.
func (m *Machine) Watch(namespace, service string) (changed <-chan struct{}, release func()) {
	return m.watches.hold(namespace + "/" + service)
}

// Repeat gives the first answer to the command's Idempotency-Key: nil when the
// key is new, conflict when it was used for another request.
func (m *Machine) Repeat(c *command.Command) (*command.Receipt, error) {
	if c.IdempotencyKey == "" {
		return nil, nil
	}
	return m.repeats.Load().find(c)
}

// publish makes v the current view and wakes who waits for it, observers
// first: what they derive from the view must be there when a waiter looks.
func (m *Machine) publish(v *View, touched []registry.Key, ev Events) {
	m.view.Store(v)
	m.mu.Lock()
	observers := m.observers
	m.mu.Unlock()
	for _, fn := range observers {
		fn(v, ev)
	}
	m.waiters.wake(v.Revision, v.Applied)
	if ev.Replaced {
		m.watches.wakeAll()
	} else {
		m.watches.wake(touched)
	}
}

func emptyView() *View {
	return &View{Registry: registry.New(), Policy: policy.NewTable(), Tokens: identity.NewTable(), Settings: setting.NewTable()}
}

// load reads the state file into a view and the table of repeats.
func load(db *bolt.DB) (*View, *repeatTable, error) {
	defer spacious()()
	v, repeats := emptyView(), newRepeats()
	err := db.View(func(tx *bolt.Tx) error {
		l := newLoader(v, repeats)
		if err := tx.ForEach(func(name []byte, _ *bolt.Bucket) error { return known(string(name)) }); err != nil {
			return err
		}
		err := loadBuckets(tx, l)
		if err == nil {
			err = l.finish()
		}
		if err != nil {
			return err
		}
		return errors.Join(readMeta(tx, v), verify(tx, v), checkDefinitions(tx, v))
	})
	return v, repeats, err
}

// loadBuckets loads all records into the tables, and hashes them meanwhile.
func loadBuckets(tx *bolt.Tx, l *loader) error {
	sum := make(chan run, 8)
	var hashing sync.WaitGroup
	hashing.Go(func() {
		for r := range sum {
			for _, rec := range r.records {
				l.v.Hash.add(r.bucket, rec.key, rec.value)
			}
		}
	})
	defer hashing.Wait()
	defer close(sum)
	for _, name := range append(slices.Clone(Content), repeatBucket, headBucket) {
		b := tx.Bucket([]byte(name))
		if b == nil || name == registry.BucketDocuments {
			continue
		}
		next := run{bucket: name}
		err := b.ForEach(func(k, value []byte) error {
			rec := record{string(k), bytes.Clone(value)}
			if hashed(name) {
				next.records = append(next.records, rec)
			}
			if len(next.records) == runRecords {
				sum <- next
				next.records = make([]record, 0, runRecords)
			}
			return l.table(name, rec.key, rec.value)
		})
		if err != nil {
			return err
		}
		sum <- next
	}
	return nil
}

// Content are the buckets that hold the records, in the order they are loaded
// and written to snapshots.
var Content = append(slices.Clone(registry.Buckets), policy.BucketRevisions, policy.BucketActive, identity.Bucket, setting.Bucket)

// known refuses what only a newer version can have written.
func known(bucket string) error {
	if slices.Contains(Content, bucket) || slices.Contains([]string{metaBucket, repeatBucket, restoreBucket, headBucket}, bucket) {
		return nil
	}
	return fmt.Errorf("unknown bucket %q: written by a newer version?", bucket)
}

// loader puts stored records into the tables of a view that is being built.
type loader struct {
	v       *View
	reg     *registry.Txn
	pol     *policy.Txn
	tok     *identity.Txn
	set     *setting.Txn
	repeats *repeatTable
}

func newLoader(v *View, repeats *repeatTable) *loader {
	return &loader{v: v, reg: v.Registry.Txn(nil), pol: v.Policy.Txn(nil), tok: v.Tokens.Txn(nil), set: v.Settings.Txn(nil), repeats: repeats}
}

// table puts one record into its table. The value is kept.
func (l *loader) table(bucket, key string, value []byte) error {
	switch bucket {
	case registry.BucketDocuments:
		return nil // kept in the file only, covered by the digest in their version
	case policy.BucketRevisions, policy.BucketActive:
		return l.pol.Load(bucket, key, value)
	case identity.Bucket:
		return l.tok.Load(bucket, key, value)
	case setting.Bucket:
		return l.set.Load(bucket, key, value)
	case repeatBucket:
		return l.repeats.load(key, value)
	case headBucket:
		return l.head(key, value)
	}
	return l.reg.Load(bucket, key, value)
}

func (l *loader) finish() error {
	l.v.Registry, l.v.Policy, l.v.Tokens, l.v.Settings = l.reg.Commit(), l.pol.Commit(), l.tok.Commit(), l.set.Commit()
	l.repeats.sort()
	if n := l.pol.Active(); n != 0 && l.v.Policy.Active() == nil {
		// It would look as if no policy were active, and nothing were denied.
		return fmt.Errorf("policy revision %d is active and not there", n)
	}
	return nil
}
