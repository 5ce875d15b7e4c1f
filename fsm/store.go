package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/muster-registry/muster/command"
)

// flushBytes is the amount of pending changes that are written without waiting
// for the next tick; four times as much makes the applying goroutine wait.
const flushBytes = 16 << 20

// position says which prefix of the log a set of changes completes.
type position struct {
	applied, term, revision, policy, level uint64
	clusterID, restoring                   string
	hash                                   Hash // of all records
}

// check covers what the position says and, by the hash, every record: a disk
// that gives back something else is found when the file is loaded. It begins with
// the index, by which one is known that an older version left behind.
func (p position) check() []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d %d %d %q %q %s", p.applied, p.term, p.revision, p.policy, p.level, p.clusterID, p.restoring, p.hash))
	return append(binary.BigEndian.AppendUint64(nil, p.applied), sum[:]...)
}

// delta is what has been applied and not yet written: the last value of each
// changed key (nil: removed), complete up to at.
type delta struct {
	buckets map[string]map[string][]byte
	drop    map[string]bool     // buckets to empty before anything is put in
	fill    map[string][]record // what buckets that were emptied hold before that, by rising keys
	bytes   int
	at      position
}

// record is one stored key and its value, which must not be changed.
type record struct {
	key   string
	value []byte
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
	delete(d.fill, bucket)
	if d.drop == nil {
		d.drop = map[string]bool{}
	}
	d.drop[bucket] = true
}

// replace makes the records, by rising keys, all that the bucket holds. They do
// not count in bytes, since the tables hold them anyway: a state that was
// restored goes into the file in its time, and not while all nodes load it.
func (d *delta) replace(bucket string, with []record) {
	d.clear(bucket)
	if d.fill == nil {
		d.fill = map[string][]record{}
	}
	d.fill[bucket] = with
}

func (d *delta) get(bucket, key string) (value []byte, known bool) {
	if v, ok := d.buckets[bucket][key]; ok {
		return v, true
	}
	all := d.fill[bucket]
	if i, ok := slices.BinarySearchFunc(all, key, func(r record, key string) int { return strings.Compare(r.key, key) }); ok {
		return all[i].value, true
	}
	return nil, d.drop[bucket]
}

// over puts the changes of d on top of those in to.
func (d *delta) over(to *delta) {
	for b := range d.drop {
		to.clear(b)
	}
	for b, records := range d.fill {
		to.replace(b, records)
	}
	for b, records := range d.buckets {
		for k, v := range records {
			to.put(b, k, v)
		}
	}
}

// store is the state file with the changes that are on their way into it.
type store struct {
	path string
	opts Options
	db   *bolt.DB

	mu      sync.Mutex // guards pending, writing, closed, full and compaction; db is swapped under it too
	idle    *sync.Cond // signalled when writing becomes nil, and when a compaction ends
	pending *delta
	writing *delta
	closed  bool
	full    bool   // the last write found no room
	before  func() // called ahead of each write to the file; nil: nothing

	compaction  compaction
	refillLeast int            // see the constant
	tasks       sync.WaitGroup // compactions, and files that were replaced and are still read

	kick    chan struct{}
	stop    chan struct{}
	stopped chan struct{}
}

func (s *store) init(path string, opts Options) {
	s.path, s.opts = path, opts
	s.pending = newDelta()
	s.compaction.least, s.compaction.near = compactLeast, compactNear
	s.refillLeast = refillLeast
	s.idle = sync.NewCond(&s.mu)
	s.kick = make(chan struct{}, 1)
	s.stop, s.stopped = make(chan struct{}), make(chan struct{})
}

func (s *store) open() (err error) {
	for _, left := range []string{s.path + compactSuffix, s.path + refillSuffix} {
		if err := os.Remove(left); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err = create(s.path); err == nil {
		s.db, err = bolt.Open(s.path, 0o600, boltOptions(s.opts.NoSync))
	}
	return err
}

func boltOptions(noSync bool) *bolt.Options {
	o := &bolt.Options{
		Timeout:        2 * time.Second, // of the lock another process may hold
		NoFreelistSync: true,
		FreelistType:   bolt.FreelistMapType,
		NoSync:         noSync,
	}
	// A file that outgrows its mapping is mapped anew, for which bbolt waits for
	// every reader (an export, say) and copies all that the transaction holds.
	// Windows would make the file as large as the mapping.
	if strconv.IntSize == 64 && runtime.GOOS != "windows" {
		o.InitialMmapSize = 1 << 30
	}
	return o
}

// create makes an empty state file where there is none. It gets its name when
// it is whole: bbolt does not open one of which a power cut has left half.
func create(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	part := path + ".new"
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := bolt.Open(part, 0o600, boltOptions(false))
	if err != nil {
		return err
	}
	return errors.Join(db.Close(), os.Rename(part, path))
}

// run starts the goroutine that moves pending changes into the file.
func (s *store) run() {
	go func() {
		defer close(s.stopped)
		tick := time.NewTicker(s.opts.FlushEvery)
		defer tick.Stop()
		for {
			ticked := false
			select {
			case <-tick.C:
				ticked = true
			case <-s.kick:
			case <-s.stop:
				return
			}
			_ = s.flush() // while there is no room, it is tried again at the next tick
			if ticked {
				s.considerCompaction()
			}
		}
	}()
}

// add merges the changes of one applied batch, complete up to at. The delta is
// visible to get at once and to the file later.
func (s *store) add(d *delta, at position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.pending.bytes > 4*flushBytes && (s.writing != nil || s.full) && !s.closed {
		s.idle.Wait()
	}
	d.over(s.pending)
	s.pending.at = at
	if s.pending.bytes > flushBytes {
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
}

// flush writes everything that was pending when it was called. While the disk is
// full the changes stay pending, and the error says so. A state file that cannot be
// written for another reason stops the node: the log has the changes, and a node
// that went on would grow without bound and fail later.
func (s *store) flush() error {
	s.mu.Lock()
	for s.writing != nil {
		s.idle.Wait()
	}
	d := s.pending
	if d.at.applied == 0 {
		s.mu.Unlock()
		return nil
	}
	s.pending, s.writing = newDelta(), d
	db, before := s.db, s.before
	s.mu.Unlock()

	if before != nil {
		before()
	}
	var next *bolt.DB // nil: the file stays
	var err error
	if s.refills(d) {
		next, err = s.refill(db, d)
	} else {
		err = write(db, d)
	}
	if err != nil && !noRoom(err) {
		panic(fmt.Sprintf("write state file %s: %v", s.path, err))
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full = err != nil; s.full {
		// The transaction was rolled back: the file is as it was.
		at := s.pending.at
		if at.applied == 0 {
			at = d.at
		}
		s.pending.over(d)
		d.at = at
		s.pending = d
		err = fmt.Errorf("write state file %s: %w", s.path, err)
	} else {
		s.wrote(d)
	}
	if next != nil {
		s.compaction.lost = true // it copies what is replaced here
		s.db = next
		s.retire(db)
	}
	s.writing = nil
	s.idle.Broadcast()
	return err
}

// noRoom reports whether a write was refused since the disk is full. A sync that
// fails names no file, and is never tried again.
func noRoom(err error) bool {
	of, write := errors.AsType[*fs.PathError](err)
	return write && of.Op != "sync" && (errors.Is(of, syscall.ENOSPC) || errors.Is(of, syscall.EDQUOT))
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
		for name, records := range d.fill {
			if err := fill(tx, name, records); err != nil {
				return err
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

// filled is how full pages are made that are written in order: half of each page
// would be for what comes in between, of which there is nothing.
const filled = 0.9

// fill writes the records of a bucket that is empty, or not there.
func fill(tx *bolt.Tx, name string, records []record) error {
	b, err := tx.CreateBucketIfNotExists([]byte(name))
	if err != nil {
		return err
	}
	b.FillPercent = filled
	for _, r := range records {
		if err := b.Put([]byte(r.key), r.value); err != nil {
			return err
		}
	}
	return nil
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
	if err := s.flush(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db.Begin(false)
}

// replace puts the file at path in the place of the state file. Pending
// changes are dropped: they belong to the state that is replaced. It does not
// wait for those who still read in the old file: among them is Raft's snapshot,
// which waits for the caller of Restore.
func (s *store) replace(path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compaction.lost = true // it copies what is replaced here
	for s.writing != nil || s.compaction.running {
		s.compaction.lost = true // another has begun meanwhile
		s.idle.Wait()
	}
	s.pending = newDelta()
	old := s.db
	if runtime.GOOS == "windows" { // which cannot rename over a file in use
		if err := old.Close(); err != nil {
			return err
		}
	}
	if err := os.Rename(path, s.path); err != nil {
		return err
	}
	if err := s.open(); err != nil {
		return err
	}
	s.retire(old)
	return nil
}

func (s *store) close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.idle.Broadcast()
	s.mu.Unlock()
	close(s.stop)
	<-s.stopped
	err := s.flush()
	s.tasks.Wait()
	return errors.Join(err, s.db.Close())
}

const metaBucket = "meta"

func writeMeta(tx *bolt.Tx, at position) error {
	b, err := tx.CreateBucketIfNotExists([]byte(metaBucket))
	if err != nil {
		return err
	}
	for _, r := range at.records() {
		if err := b.Put([]byte(r.key), r.value); err != nil {
			return err
		}
	}
	return nil
}

// records are what the file says of the position, by rising keys.
func (p position) records() []record {
	all := []record{{"cluster_id", []byte(p.clusterID)}, {"restoring", []byte(p.restoring)}, {checkKey, p.check()}}
	for k, v := range map[string]uint64{"format": 1, "applied": p.applied, "term": p.term, "revision": p.revision, "policy": p.policy, "level": p.level} {
		all = append(all, record{k, binary.BigEndian.AppendUint64(nil, v)})
	}
	slices.SortFunc(all, func(a, b record) int { return strings.Compare(a.key, b.key) })
	return all
}

const checkKey = "check"

// verify demands that the file's records and position, as they were loaded, are
// those that were written. What versions before this wrote last has no check, or
// that of an earlier index.
func verify(tx *bolt.Tx, v *View) error {
	b := tx.Bucket([]byte(metaBucket))
	if b == nil {
		return nil
	}
	at := position{applied: v.Applied, term: v.Term, revision: v.Revision, level: uint64(v.Level), clusterID: v.ClusterID, restoring: v.Restoring, hash: v.Hash}
	if raw := b.Get([]byte("policy")); len(raw) == 8 {
		at.policy = binary.BigEndian.Uint64(raw)
	}
	want, got := b.Get([]byte(checkKey)), at.check()
	if len(want) == len(got) && bytes.Equal(want[:8], got[:8]) && !bytes.Equal(want, got) {
		return errDamaged
	}
	return nil
}

var errDamaged = errors.New("the disk gives back something else than was written to it; keep the data folder for whoever looks into it, and start the node with an empty one")

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
	if l := number("level"); l > command.Format {
		return tooNew("the state", l)
	}
	v.Level = uint32(number("level"))
	v.Applied, v.Term, v.Revision = number("applied"), number("term"), number("revision")
	v.ClusterID, v.Restoring = string(b.Get([]byte("cluster_id"))), string(b.Get([]byte("restoring")))
	return nil
}

// copyTo streams the file as one read transaction sees it.
func copyTo(tx *bolt.Tx, w io.Writer) error {
	_, err := tx.WriteTo(w)
	return err
}
