// Package journal owns the newest end of the Raft log: a file in front of the
// log store (raft-boltdb) in which an append is durable after one fdatasync,
// where the store needs two. A background task moves the entries into the
// store, many at a time and with the store's full safety. The journal refuses
// to guess: what it finds damaged that a crash cannot have damaged is an
// error, and after a failed write or sync it takes nothing more.
//
// The file (see record.go for its layout) holds records of consecutive entries
// in two halves that are used in turn. Each record carries a sequence number,
// which rises by one, and the salt of the generation in force. A reset begins a
// new generation: it writes a header with a new salt, after which no record in
// the file counts. The last index of the store is called its end.
//
// These hold at all times, each by the rule named:
//
//  1. The records of one generation hold indexes that follow upon each other
//     without a gap or a repetition, from the store's end at the reset. A batch
//     that does not follow, or finds the log empty, goes into the store itself
//     ([Log.StoreLogs]).
//  2. Within a generation the store's end only grows, and only by the entries
//     that are in the journal: each deletion that can change the end, and each
//     batch for the store itself, comes after everything was moved and after a
//     durable reset ([Log.directly]). A deletion of indexes that all lie below
//     the end leaves the end as it is ([Log.DeleteRange]).
//  3. A half is begun anew only when all that it held is in the store
//     ([Log.turn]).
//  4. A record is written only when the one before it has been synced. So a
//     crash can damage one record only, the last, which nobody was told of.
//
// [Open] reads the run of records that ends with the highest sequence number,
// and the other half's where the sequence joins. By 3 and 4 these are all
// acknowledged records of the generation, but for some whose entries are in the
// store. By 1 and 2 an entry up to the store's end is in the store already, or
// was deleted below its end, and is left out; the first one beyond must be
// end+1. So each acknowledged entry comes back, a deleted one does not (its
// generation has ended, or it lies below the end), and records lost by damage
// show as a hole. The journal is synced before it is read, and the store before
// the journal is reset, since a process that was killed may have left either in
// the page cache alone. A crash at any point of this finds the same again.
package journal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/fault"
)

// Store is the log that entries are moved to. Its changes are durable and
// atomic when they return. Nothing else may change it while the journal is
// open.
type Store interface {
	raft.LogStore
	// Sync makes durable what an earlier process may have left in memory.
	Sync() error
}

// Options are optional.
type Options struct {
	Half   int64         // bytes of each of the two halves of a new file, in blocks of 4096; 16 MiB
	Delay  time.Duration // after which an entry is moved at the latest; 1 s
	NoSync bool          // never outside of simulations: loses acknowledged entries
	// Through gives what the file is read and written through. nil: the file itself.
	Through func(File) File
	// OnFailure is told once of the error that ended the journal's use.
	OnFailure func(error)
}

// Log is a raft.LogStore. It allows gaps between entries, as raft expects of a
// store that does not claim to be monotonic. Its methods may be called from any
// goroutine.
type Log struct {
	under   Store
	file    File
	failure func(error)
	delay   time.Duration
	wake    chan struct{} // there is something to move
	full    chan struct{} // there is much to move
	stop    chan struct{}
	tasks   sync.WaitGroup

	write    sync.Mutex // held by what appends or resets; guards what follows
	mark     mark
	slot     int    // a header that holds the generation in force
	sequence uint64 // of the last record
	half     int    // the one in use
	used     int64  // bytes of it
	high     [2]uint64
	buf      []byte // for records up to its length

	moving sync.Mutex // held by what changes the store; taken after write and before mu

	mu      sync.RWMutex // guards what follows
	pending []*raft.Log  // acknowledged and not moved: consecutive, and when there are any, up to last
	bytes   int64        // what they take in the file
	last    uint64       // last index of the whole log
	end     uint64       // last index of the store; changed by the holder of moving
	broken  error        // ends all changes
}

var errClosed = errors.New("the journal is closed")

// StoreLog is StoreLogs with one entry.
func (l *Log) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs appends. When it returns nil the entries survive a power cut; until
// then they cannot be read. After an error it is not known whether they will be
// found at the next start. The entries must not be changed afterwards.
func (l *Log) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	l.write.Lock()
	defer l.write.Unlock()
	last, err := l.state()
	if err != nil {
		return err
	}
	n := recordLen(logs)
	if !follow(last, logs) || n > l.mark.half {
		return l.directly(func() error { return l.under.StoreLogs(logs) })
	}
	if l.used+n > l.mark.half {
		if err := l.turn(); err != nil {
			return err
		}
	}
	b := l.buf
	if int64(len(b)) < n {
		b = make([]byte, n)
	}
	b = b[:n]
	l.mark.record(b, l.sequence+1, logs)
	// A failed sync is never tried again: the system may have forgotten what
	// it could not write.
	if _, err := l.file.WriteAt(b, l.place(l.half)+l.used); err != nil {
		return l.fail(err)
	}
	if err := l.file.Sync(); err != nil {
		return l.fail(err)
	}
	l.sequence++
	l.used += n
	l.high[l.half] = logs[len(logs)-1].Index
	l.mu.Lock()
	l.pending = append(l.pending, logs...)
	l.bytes += n
	l.last = logs[len(logs)-1].Index
	much := l.bytes > l.mark.half/4
	l.mu.Unlock()
	ring(l.wake)
	if much {
		ring(l.full)
	}
	return nil
}

// follow reports whether the entries go on from last without a gap. Nothing
// follows upon an empty log.
func follow(last uint64, logs []*raft.Log) bool {
	for i, l := range logs {
		if last == 0 || l.Index != last+1+uint64(i) {
			return false
		}
	}
	return true
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// place is where a half begins in the file.
func (l *Log) place(half int) int64 { return 2*block + int64(half)*l.mark.half }

// turn goes on with the other half once all that it holds is in the store.
func (l *Log) turn() error {
	other := 1 - l.half
	l.mu.RLock()
	end := l.end
	l.mu.RUnlock()
	if end < l.high[other] {
		if err := l.move(); err != nil {
			return err
		}
	}
	l.half, l.used = other, 0
	return nil
}

// move stores in under what was pending when it began.
func (l *Log) move() error {
	l.moving.Lock()
	defer l.moving.Unlock()
	l.mu.RLock()
	batch, bytes, err := l.pending, l.bytes, l.broken
	l.mu.RUnlock()
	if err != nil || len(batch) == 0 {
		return err
	}
	if err := l.under.StoreLogs(batch); err != nil {
		return l.unlessFull(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end = batch[len(batch)-1].Index
	// Nothing else shortens pending, so the batch is still its beginning. A
	// new slice lets go of the entries.
	l.pending = append([]*raft.Log(nil), l.pending[len(batch):]...)
	l.bytes -= bytes
	return nil
}

// moves is the background task.
func (l *Log) moves() {
	for {
		select {
		case <-l.wake:
		case <-l.stop:
			return
		}
		late := time.NewTimer(l.delay)
		select {
		case <-late.C:
		case <-l.full:
		case <-l.stop:
		}
		late.Stop()
		if err := l.move(); noRoom(err) {
			ring(l.wake) // it waits for room, and for Delay
		} else if err != nil {
			return // the next append says why
		}
	}
}

// DeleteRange deletes the entries from one index to another, both included.
// When it returns nil, they will not come back.
func (l *Log) DeleteRange(from, to uint64) error {
	if done, err := l.deleteBelow(from, to); done {
		return err
	}
	l.write.Lock()
	defer l.write.Unlock()
	if _, err := l.state(); err != nil {
		return err
	}
	return l.directly(func() error { return l.under.DeleteRange(from, to) })
}

// deleteBelow deletes what lies below the store's end, as compaction does,
// while appends go on.
func (l *Log) deleteBelow(from, to uint64) (done bool, err error) {
	l.moving.Lock()
	defer l.moving.Unlock()
	l.mu.RLock()
	end, broken := l.end, l.broken
	l.mu.RUnlock()
	if broken != nil || to >= end {
		return broken != nil, broken
	}
	if err := l.under.DeleteRange(from, to); err != nil {
		return true, l.unlessFull(err)
	}
	return true, nil
}

// directly changes the store past the journal. The order is the point of it:
// what is pending is moved, then no record counts any more, then the change.
func (l *Log) directly(change func() error) error {
	if err := l.move(); err != nil {
		return err
	}
	if err := l.reset(); err != nil {
		return l.fail(err)
	}
	l.moving.Lock()
	defer l.moving.Unlock()
	changed := change()
	if changed != nil && !noRoom(changed) {
		return l.fail(changed)
	}
	end, err := l.under.LastIndex()
	if err != nil {
		return l.fail(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last, l.end = end, end
	return changed
}

// reset begins a generation. Both headers get it, so that damage to one does
// not bring the old one back; the one that may be out of date goes first, so
// that one is intact at any time.
func (l *Log) reset() error {
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // never fails
	next := mark{generation: l.mark.generation + 1, salt: binary.LittleEndian.Uint64(salt[:]), half: l.mark.half}
	for _, slot := range [2]int{1 - l.slot, l.slot} {
		if _, err := l.file.WriteAt(next.encode(), int64(slot)*block); err != nil {
			return err
		}
		if err := l.file.Sync(); err != nil {
			return err
		}
	}
	l.mark, l.sequence, l.half, l.used, l.high = next, 0, 0, 0, [2]uint64{}
	return nil
}

// GetLog reads the entry at an index; raft.ErrLogNotFound when there is none.
func (l *Log) GetLog(index uint64, log *raft.Log) error {
	l.mu.RLock()
	if n := uint64(len(l.pending)); n > 0 {
		if first := l.pending[0].Index; index >= first && index-first < n {
			*log = *l.pending[index-first]
			l.mu.RUnlock()
			return nil
		}
	}
	l.mu.RUnlock()
	return l.under.GetLog(index, log)
}

// FirstIndex is the store's: while entries are pending, the ones before them
// are in it.
func (l *Log) FirstIndex() (uint64, error) { return l.under.FirstIndex() }

// LastIndex is the index of the last entry; 0 when there is none.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.last, nil
}

// state gives the last index, or why nothing can be changed any more.
func (l *Log) state() (last uint64, err error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.last, l.broken
}

// fail ends all changes for good. What was acknowledged stays readable.
func (l *Log) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken == nil {
		l.broken = fault.Wrap(fault.Internal, err, "the Raft log cannot be written any more: look at the disk, then start the node again")
		if l.failure != nil {
			go l.failure(l.broken)
		}
	}
	return l.broken
}

// Close moves what is pending and leaves an empty journal. It does not close
// the store.
func (l *Log) Close() error {
	l.write.Lock()
	defer l.write.Unlock()
	_, err := l.state()
	if errors.Is(err, errClosed) {
		return nil
	}
	close(l.stop)
	l.tasks.Wait()
	if err == nil {
		if err = l.move(); err == nil {
			err = l.reset()
		}
	}
	l.mu.Lock()
	l.broken = errClosed
	l.mu.Unlock()
	return errors.Join(err, l.file.Close())
}
