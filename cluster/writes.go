package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

const (
	diskLook = 100 * time.Millisecond
	roomLook = time.Second
	// probeEvery is how long nothing may have been written before a block is, to
	// see whether the disk still takes any.
	probeEvery = 2 * time.Second
	// distrust is how long a disk counts as stalled, or as full, after it was last
	// seen to be.
	distrust = 10 * time.Second
	// leaderless is how long a node whose disk is in trouble leaves elections to
	// others. After that a slow leader is better than none.
	leaderless = 10 * time.Second
	yieldTries = time.Second // between attempts to give the leadership away
)

// DiskHealth is what a node knows of the disk that holds its Raft log.
type DiskHealth struct {
	Stalled time.Duration // how long a write took lately, or has been taking, where that is too long; else 0
	Failed  error         // why nothing can be written until a restart; nil: nothing is wrong
	Full    bool          // less than the reserve is free, or the disk has just refused to take more
	Free    uint64        // bytes; 0 together with Size 0: not known
	Size    uint64        // bytes
	Reserve uint64        // bytes that should stay free: as configured, or a tenth of a small disk
}

// Trouble reports whether a node with such a disk should leave the lead to others.
func (h DiskHealth) Trouble() bool { return h.Stalled > 0 || h.Failed != nil || h.Full }

// writes watches what Raft writes to the disk: how long each write takes, and
// whether there is room.
type writes struct {
	bound   time.Duration // 0: time is not watched
	reserve uint64
	hold    func() // before each write; nil: nothing

	mu    sync.Mutex // guards what follows
	open  map[uint64]time.Time
	last  uint64
	ended time.Time // when a write last ended
	slow  time.Time // when one was last seen to take too long
	took  time.Duration
	full  time.Time // when one was last refused for want of room
	free  uint64
	size  uint64
}

// during runs one write.
func (w *writes) during(write func() error) error {
	w.mu.Lock()
	w.last++
	id := w.last
	w.open[id] = time.Now()
	w.mu.Unlock()
	if w.hold != nil {
		w.hold()
	}
	err := write()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = time.Now()
	if took := w.ended.Sub(w.open[id]); w.bound > 0 && took > w.bound {
		w.slow, w.took = w.ended, took
	}
	delete(w.open, id)
	if noRoom(err) {
		w.full = w.ended
	}
	return err
}

// noRoom reports whether a write failed since the disk, or the quota on it, is full.
func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// stuck is how long a write has been under way, where that is too long; else 0.
func (w *writes) stuck() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest := time.Duration(0)
	for _, began := range w.open {
		longest = max(longest, time.Since(began))
	}
	if w.bound == 0 || longest <= w.bound {
		return 0
	}
	w.slow, w.took = time.Now(), longest
	return longest
}

func (w *writes) health() DiskHealth {
	stuck := w.stuck()
	w.mu.Lock()
	defer w.mu.Unlock()
	h := DiskHealth{Free: w.free, Size: w.size, Stalled: stuck}
	if h.Stalled == 0 && !w.slow.IsZero() && time.Since(w.slow) < distrust {
		h.Stalled = w.took
	}
	h.Reserve = min(w.reserve, w.size/10)
	h.Full = w.free < h.Reserve || !w.full.IsZero() && time.Since(w.full) < distrust
	return h
}

// DiskHealth tells how this node's disk is. It does not wait for the disk.
func (c *Cluster) DiskHealth() DiskHealth {
	h := c.writes.health()
	h.Failed = c.journal.Failed()
	return h
}

// abstains says why this node leaves the lead to others for now; nil: it does not.
func (c *Cluster) abstains() error {
	if c.probation.on.Load() {
		return errProbation
	}
	h := c.DiskHealth()
	switch {
	case h.Failed != nil:
		return h.Failed
	case h.Trouble() && time.Since(c.raft.LastContact()) < leaderless:
		return errors.New("the disk of this node is in trouble, so others should lead")
	}
	return nil
}

// watchedLog is the Raft log under watch.
type watchedLog struct {
	raft.LogStore
	w *writes
}

func (l watchedLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

func (l watchedLog) StoreLogs(logs []*raft.Log) error {
	return l.w.during(func() error { return l.LogStore.StoreLogs(logs) })
}

// watchedStable holds term and vote under watch. Raft ends the process where the
// term cannot be written; while the disk is full it waits here instead, and takes
// no part in elections meanwhile.
type watchedStable struct {
	raft.StableStore
	c *Cluster
}

func (s watchedStable) Set(key, value []byte) error {
	return s.patiently(func() error { return s.StableStore.Set(key, value) })
}

func (s watchedStable) SetUint64(key []byte, value uint64) error {
	return s.patiently(func() error { return s.StableStore.SetUint64(key, value) })
}

func (s watchedStable) patiently(write func() error) error {
	for {
		err := s.c.writes.during(write)
		if !noRoom(err) {
			return err
		}
		s.c.log.Error("the disk is full: this node waits for room before it goes on", "error", err)
		select {
		case <-time.After(time.Second):
		case <-s.c.done:
			select {} // raft would panic; the process is ending
		}
	}
}

// mindDisk looks after the disk until the node stops.
func (c *Cluster) mindDisk() {
	tick := time.NewTicker(diskLook)
	defer tick.Stop()
	var looked, tried time.Time
	probing := make(chan struct{}, 1)
	for {
		if time.Since(looked) > roomLook {
			looked = time.Now()
			c.lookForRoom()
			c.probe(probing)
		}
		if term, leads := c.leads(); leads && time.Since(tried) > yieldTries {
			if stuck := c.writes.stuck(); stuck > 0 {
				tried = time.Now()
				c.yield(term, stuck)
			}
		}
		select {
		case <-c.done:
			return
		case <-tick.C:
		}
	}
}

func (c *Cluster) lookForRoom() {
	free, size, ok := room(c.cfg.DataDir)
	if !ok {
		return
	}
	w := &c.writes
	w.mu.Lock()
	defer w.mu.Unlock()
	w.free, w.size = free, size
}

// probe writes a block when nothing else was written for a while.
func (c *Cluster) probe(probing chan struct{}) {
	w := &c.writes
	w.mu.Lock()
	idle := len(w.open) == 0 && time.Since(w.ended) > probeEvery
	w.mu.Unlock()
	if !idle || w.bound == 0 || c.cfg.Storage.NoSync {
		return
	}
	select {
	case probing <- struct{}{}:
		go func() {
			defer func() { <-probing }()
			if err := w.during(func() error { return writeProbe(filepath.Join(c.cfg.DataDir, "raft", "probe")) }); err != nil && !noRoom(err) {
				c.log.Error("the disk of the Raft log took no write", "error", err)
			}
		}()
	default:
	}
}

func writeProbe(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, time.Now().UTC().Format(time.RFC3339))
	return errors.Join(err, f.Sync(), f.Close())
}
