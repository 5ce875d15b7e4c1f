package fsm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Pages of the state file in which nothing is are used again by bbolt, and never
// given back to the disk. A compaction copies the file beside itself while it is
// read and written as ever; what is written meanwhile goes into the copy as well,
// and at last the copy takes the file's name. Until then a crash leaves the file
// as it was, and a copy that was not finished means nothing to the next start.

const (
	compactLeast  = 32 << 20 // bytes of free pages, and half of the file, that are worth a copy
	compactScarce = 4 << 20  // where the disk is nearly full, and an eighth of the file
	compactStep   = 4 << 20  // of records in one transaction: a sync for each keeps those of others short
	compactBehind = 64 << 20 // a copy is given up when it falls so far behind what is written
	compactNear   = 1 << 20  // so near to it, it is finished
	compactRest   = 12       // looks after one that failed

	retireLook = 50 * time.Millisecond
)

// compactSuffix is that of the copy's name.
const compactSuffix = ".compact"

var errOvertaken = errors.New("the state file was replaced, is being closed, or changes faster than it is copied")

// compaction is what a store knows of its own; guarded by the store's mu.
type compaction struct {
	when    func() (room uint64, scarce bool) // nil: there are none
	least   int64
	near    int // bytes; see compactNear
	running bool
	rest    int    // looks to leave out
	since   *delta // written to the file since the copy began; nil: there is no copy
	lost    bool   // the copy cannot become the file
	done    int    // finished ones
	failed  int
}

// Compact lets the state file give free pages back to the disk from now on.
// When is asked how many bytes a copy of the file may take for a moment, and
// whether the disk is so nearly full that little is worth it. To be called
// before Raft starts.
func (m *Machine) Compact(when func() (room uint64, scarce bool)) {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	m.store.compaction.when = when
}

// Compactions are how many times the state file was compacted since the start,
// and how many times that failed.
func (m *Machine) Compactions() (done, failed int) {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	return m.store.compaction.done, m.store.compaction.failed
}

// considerCompaction begins one where it is worth it. It is asked at each tick.
func (s *store) considerCompaction() {
	s.mu.Lock()
	c := &s.compaction
	when, least, page := c.when, c.least, s.db.Info().PageSize
	idle := when != nil && !c.running && !s.closed && runtime.GOOS != "windows" // which cannot rename a file in use
	if c.rest > 0 {
		c.rest--
		idle = false
	}
	s.mu.Unlock()
	if !idle {
		return
	}
	stats, size := s.stats()
	free := int64(stats.FreePageN+stats.PendingPageN) * int64(page)
	room, scarce := when()
	switch {
	case room < uint64(size-free+compactStep):
		return
	case free >= least && free >= size/2:
	case scarce && free >= min(least, compactScarce) && free >= size/8:
	default:
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || c.running {
		return
	}
	c.running, c.lost = true, false
	s.tasks.Go(func() {
		err := s.compact()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.idle.Broadcast()
		if c.running = false; err == nil {
			c.done++
		} else if c.rest = compactRest; !errors.Is(err, errOvertaken) {
			c.failed++
		}
	})
}

// compact copies the state file and puts the copy in its place.
func (s *store) compact() error {
	copied, err := s.beginCopy()
	if err != nil {
		return err
	}
	if err = s.catchUp(copied); err == nil {
		err = s.takeOver(copied)
	}
	if err == nil {
		return nil
	}
	s.mu.Lock()
	s.compaction.since = nil
	s.mu.Unlock()
	return errors.Join(err, copied.Close(), os.Remove(s.path+compactSuffix))
}

// beginCopy gives a copy of the file as it was at some moment. Everything that
// has been written since then is kept in compaction.since, in order; some of it
// may be in the copy already, which does no harm.
func (s *store) beginCopy() (copied *bolt.DB, err error) {
	if err := os.Remove(s.path + compactSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if copied, err = bolt.Open(s.path+compactSuffix, 0o600, boltOptions(s.opts.NoSync)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.compaction.since = newDelta()
	from := s.db
	tx, err := from.Begin(false)
	s.mu.Unlock() // what is being written now may be in the copy or not, and is in since
	if err == nil {
		err = errors.Join(copyRecords(copied, tx, s.overtaken), tx.Rollback())
	}
	if err == nil {
		return copied, nil
	}
	s.mu.Lock()
	s.compaction.since = nil
	s.mu.Unlock()
	return nil, errors.Join(err, copied.Close(), os.Remove(s.path+compactSuffix))
}

// overtaken says why a copy cannot become the file any more.
func (s *store) overtaken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.compaction.lost || s.closed {
		return errOvertaken
	}
	return nil
}

// copyRecords copies all buckets, a few MiB at a time.
func copyRecords(to *bolt.DB, from *bolt.Tx, stop func() error) error {
	return from.ForEach(func(name []byte, b *bolt.Bucket) error {
		cursor := b.Cursor()
		for k, v := cursor.First(); ; {
			if err := stop(); err != nil {
				return err
			}
			err := to.Update(func(tx *bolt.Tx) error {
				out, err := tx.CreateBucketIfNotExists(name)
				if err != nil {
					return err
				}
				out.FillPercent = filled
				for n := 0; k != nil && n < compactStep; k, v = cursor.Next() {
					n += len(k) + len(v)
					if err := out.Put(k, v); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil || k == nil {
				return err
			}
		}
	})
}

// catchUp writes into the copy what was written to the file meanwhile, until
// little is left.
func (s *store) catchUp(copied *bolt.DB) error {
	for {
		if err := s.overtaken(); err != nil {
			return err
		}
		s.mu.Lock()
		d := s.compaction.since
		if d.bytes < s.compaction.near && len(d.fill) == 0 {
			s.mu.Unlock()
			return nil
		}
		s.compaction.since = newDelta()
		s.mu.Unlock()
		if err := write(copied, d); err != nil {
			return err
		}
	}
}

// takeOver makes the copy the state file. Nothing is written meanwhile; reads go on.
func (s *store) takeOver(copied *bolt.DB) error {
	s.mu.Lock()
	for s.writing != nil {
		s.idle.Wait()
	}
	if s.compaction.lost || s.closed {
		s.mu.Unlock()
		return errOvertaken
	}
	d := s.compaction.since
	s.writing = newDelta() // keeps others from writing
	s.mu.Unlock()

	var err error
	if d.at.applied != 0 {
		err = write(copied, d)
	}
	if err == nil {
		err = os.Rename(s.path+compactSuffix, s.path)
	}
	if err == nil {
		if synced := syncDir(filepath.Dir(s.path)); synced != nil {
			// Nobody knows which of the two files has the name after a power cut.
			panic(fmt.Sprintf("replace state file %s: %v", s.path, synced))
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = nil
	s.idle.Broadcast()
	if err != nil {
		return err
	}
	old := s.db
	s.db, s.compaction.since = copied, nil
	s.retire(old)
	return nil
}

// retire closes a file that is not the state file any more, when the last of
// those who read in it has ended. bbolt's own Close would hold up the others until
// then. The caller holds mu, under which every reader begins.
func (s *store) retire(db *bolt.DB) {
	s.tasks.Go(func() {
		look := time.NewTicker(retireLook)
		defer look.Stop()
		for stats := db.Stats(); stats.OpenTxN > 0; stats = db.Stats() {
			<-look.C
		}
		_ = db.Close()
	})
}

// wrote keeps what was written to the file while a copy is made. The caller
// holds mu.
func (s *store) wrote(d *delta) {
	c := &s.compaction
	if c.since == nil || c.lost {
		return
	}
	d.over(c.since)
	if c.since.at = d.at; c.since.bytes > compactBehind {
		c.since, c.lost = newDelta(), true
	}
}

// syncDir makes a rename in the folder last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
