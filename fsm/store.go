package fsm

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// flushBytes is the amount of pending changes that are written without waiting
// for the next tick; four times as much makes the applying goroutine wait.
const flushBytes = 16 << 20

// position says which prefix of the log a set of changes completes.
type position struct {
	applied, term, revision, policy uint64
	clusterID, restoring            string
}

// delta is what has been applied and not yet written: the last value of each
// changed key (nil: removed), complete up to at.
type delta struct {
	buckets map[string]map[string][]byte
	drop    map[string]bool // buckets to empty before anything is put in
	bytes   int
	at      position
}

func newDelta() *delta { return &delta{buckets: map[string]map[string][]byte{}} }

func (d *delta) put(bucket, key string, value []byte) {
	b, ok := d.buckets[bucket]
	if !ok {
		b = map[string][]byte{}
		d.buckets[bucket] = b
	}
	b[key] = value
	d.bytes += len(key) + len(value) + 64
}

func (d *delta) clear(bucket string) {
	delete(d.buckets, bucket)
	if d.drop == nil {
		d.drop = map[string]bool{}
	}
	d.drop[bucket] = true
}

func (d *delta) get(bucket, key string) (value []byte, known bool) {
	if v, ok := d.buckets[bucket][key]; ok {
		return v, true
	}
	return nil, d.drop[bucket]
}

// store is the state file with the changes that are on their way into it.
type store struct {
	path string
	opts Options
	db   *bolt.DB

	mu      sync.Mutex // guards pending, writing and closed; db is swapped under it too
	idle    *sync.Cond // signalled when writing becomes nil
	pending *delta
	writing *delta
	closed  bool
	before  func() // called ahead of each write to the file; nil: nothing

	kick    chan struct{}
	stop    chan struct{}
	stopped chan struct{}
}

func (s *store) init(path string, opts Options) {
	s.path, s.opts = path, opts
	s.pending = newDelta()
	s.idle = sync.NewCond(&s.mu)
	s.kick = make(chan struct{}, 1)
	s.stop, s.stopped = make(chan struct{}), make(chan struct{})
}

func (s *store) open() error {
	db, err := bolt.Open(s.path, 0o600, &bolt.Options{
		Timeout:        2 * time.Second, // of the lock another process may hold
		NoFreelistSync: true,
		FreelistType:   bolt.FreelistMapType,
		NoSync:         s.opts.NoSync,
	})
	if err != nil {
		return err
	}
	s.db = db
	return nil
}

// run starts the goroutine that moves pending changes into the file.
func (s *store) run() {
	go func() {
		defer close(s.stopped)
		tick := time.NewTicker(s.opts.FlushEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-s.kick:
			case <-s.stop:
				return
			}
			s.flush()
		}
	}()
}

// add merges the changes of one applied batch, complete up to at. The delta is
// visible to get at once and to the file later.
func (s *store) add(d *delta, at position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.pending.bytes > 4*flushBytes && s.writing != nil {
		s.idle.Wait()
	}
	for b := range d.drop {
		s.pending.clear(b)
	}
	for b, records := range d.buckets {
		for k, v := range records {
			s.pending.put(b, k, v)
		}
	}
	s.pending.at = at
	if s.pending.bytes > flushBytes {
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
}

// flush writes everything that was pending when it was called. A state file
// that cannot be written stops the node: the log has the changes, and a node
// that went on would grow without bound and fail later.
func (s *store) flush() {
	s.mu.Lock()
	for s.writing != nil {
		s.idle.Wait()
	}
	d := s.pending
	if d.at.applied == 0 {
		s.mu.Unlock()
		return
	}
	s.pending, s.writing = newDelta(), d
	db, before := s.db, s.before
	s.mu.Unlock()

	if before != nil {
		before()
	}
	if err := write(db, d); err != nil {
		panic(fmt.Sprintf("write state file %s: %v", s.path, err))
	}

	s.mu.Lock()
	s.writing = nil
	s.idle.Broadcast()
	s.mu.Unlock()
}

func write(db *bolt.DB, d *delta) error {
	return db.Update(func(tx *bolt.Tx) error {
		for name := range d.drop {
			if tx.Bucket([]byte(name)) != nil {
				if err := tx.DeleteBucket([]byte(name)); err != nil {
					return err
				}
			}
		}
		for name, records := range d.buckets {
			b, err := tx.CreateBucketIfNotExists([]byte(name))
			if err != nil {
				return err
			}
			if err := putSorted(b, records); err != nil {
				return err
			}
		}
		return writeMeta(tx, d.at)
	})
}

// putSorted writes in key order, which is how bbolt fills its pages best.
func putSorted(b *bolt.Bucket, records map[string][]byte) error {
	for _, k := range slices.Sorted(maps.Keys(records)) {
		var err error
		if v := records[k]; v == nil {
			err = b.Delete([]byte(k))
		} else {
			err = b.Put([]byte(k), v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// get reads a value that may still be on its way into the file.
func (s *store) get(bucket, key string) ([]byte, bool) {
	s.mu.Lock()
	for _, d := range []*delta{s.pending, s.writing} {
		if d == nil {
			continue
		}
		if v, known := d.get(bucket, key); known {
			s.mu.Unlock()
			return v, v != nil
		}
	}
	tx, err := s.db.Begin(false)
	s.mu.Unlock()
	if err != nil {
		return nil, false
	}
	defer func() { _ = tx.Rollback() }()
	b := tx.Bucket([]byte(bucket))
	if b == nil {
		return nil, false
	}
	v := b.Get([]byte(key))
	if v == nil {
		return nil, false
	}
	return append([]byte(nil), v...), true
}

// image writes everything pending and opens a read transaction on the result.
// Called on the applying goroutine, the transaction is exactly the state at
// the applied index; the caller must roll it back.
func (s *store) image() (*bolt.Tx, error) {
	s.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db.Begin(false)
}

// replace puts the file at path in the place of the state file. Pending
// changes are dropped: they belong to the state that is replaced.
func (s *store) replace(path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.writing != nil {
		s.idle.Wait()
	}
	s.pending = newDelta()
	if err := s.db.Close(); err != nil {
		return err
	}
	if err := os.Rename(path, s.path); err != nil {
		return err
	}
	return s.open()
}

func (s *store) close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	<-s.stopped
	s.flush()
	return s.db.Close()
}

const metaBucket = "meta"

func writeMeta(tx *bolt.Tx, at position) error {
	b, err := tx.CreateBucketIfNotExists([]byte(metaBucket))
	if err != nil {
		return err
	}
	for k, v := range map[string]uint64{"format": 1, "applied": at.applied, "term": at.term, "revision": at.revision, "policy": at.policy} {
		if err := b.Put([]byte(k), binary.BigEndian.AppendUint64(nil, v)); err != nil {
			return err
		}
	}
	if err := b.Put([]byte("cluster_id"), []byte(at.clusterID)); err != nil {
		return err
	}
	return b.Put([]byte("restoring"), []byte(at.restoring))
}

func readMeta(tx *bolt.Tx, v *View) error {
	b := tx.Bucket([]byte(metaBucket))
	if b == nil {
		return nil
	}
	number := func(k string) uint64 {
		if raw := b.Get([]byte(k)); len(raw) == 8 {
			return binary.BigEndian.Uint64(raw)
		}
		return 0
	}
	if f := number("format"); f != 1 {
		return fmt.Errorf("format %d is not known to this version, which reads format 1", f)
	}
	v.Applied, v.Term, v.Revision = number("applied"), number("term"), number("revision")
	v.ClusterID, v.Restoring = string(b.Get([]byte("cluster_id"))), string(b.Get([]byte("restoring")))
	return nil
}

// copyTo streams the file as one read transaction sees it.
func copyTo(tx *bolt.Tx, w io.Writer) error {
	_, err := tx.WriteTo(w)
	return err
}
