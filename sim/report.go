package sim

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// Report says what a run has been.
type Report struct {
	Seed                uint64
	Nodes               int
	Virtual             time.Duration  // of the cluster's life
	Faults              map[string]int // by kind
	OK, Failed, Unknown int            // operations, as their callers were told
	Leaders             int64          // times that a node took up the leadership
	Crashes             int64          // of processes, with the loss of what was not synced
	Changes             int            // in the log
	Restores            int64          // committed, with a fault in their midst
	Swaps               int            // states that a node took from another, as a Raft snapshot or a restore
	Looks, Denied       int64          // reads of a node's own state; entries refused after a revocation
	Watched             int64          // events that watchers were told
	Messages            int64
	Lost, Doubled       int64 // of those

	// Registers are the operations on registers, for [jepsen.CheckRegisters]. It has
	// to be called outside of the bubble: its limit on time would never pass there.
	Registers []jepsen.Op
}

// Totals sum up reports. Safe for concurrent use.
type Totals struct {
	mu        sync.Mutex // guards what follows
	runs      int
	quick     time.Duration // with the default clocks of Raft
	nodeHours time.Duration
	sum       Report
}

// Add takes a report in; nil: one that there is not.
func (t *Totals) Add(r *Report, quick bool) {
	if r == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.runs++
	t.sum.Virtual += r.Virtual
	t.nodeHours += r.Virtual * time.Duration(r.Nodes)
	if quick {
		t.quick += r.Virtual
	}
	if t.sum.Faults == nil {
		t.sum.Faults = map[string]int{}
	}
	for kind, n := range r.Faults {
		t.sum.Faults[kind] += n
	}
	t.sum.OK, t.sum.Failed, t.sum.Unknown = t.sum.OK+r.OK, t.sum.Failed+r.Failed, t.sum.Unknown+r.Unknown
	t.sum.Leaders, t.sum.Crashes = t.sum.Leaders+r.Leaders, t.sum.Crashes+r.Crashes
	t.sum.Changes, t.sum.Restores, t.sum.Swaps = t.sum.Changes+r.Changes, t.sum.Restores+r.Restores, t.sum.Swaps+r.Swaps
	t.sum.Looks, t.sum.Denied, t.sum.Watched = t.sum.Looks+r.Looks, t.sum.Denied+r.Denied, t.sum.Watched+r.Watched
	t.sum.Messages, t.sum.Lost, t.sum.Doubled = t.sum.Messages+r.Messages, t.sum.Lost+r.Lost, t.sum.Doubled+r.Doubled
}

func (t *Totals) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.sum
	text := fmt.Sprintf("%d schedules: %.1f cluster-hours (%.1f with the default clocks), %.1f node-hours\n", t.runs, s.Virtual.Hours(), t.quick.Hours(), t.nodeHours.Hours())
	text += fmt.Sprintf("operations: %d acknowledged, %d refused, %d unknown; %d local reads; %d entries denied; %d changes, %d events watched\n",
		s.OK, s.Failed, s.Unknown, s.Looks, s.Denied, s.Changes, s.Watched)
	text += fmt.Sprintf("%d leaderships, %d crashes, %d restores, %d states taken over; %d messages, %d lost, %d doubled\nfaults:",
		s.Leaders, s.Crashes, s.Restores, s.Swaps, s.Messages, s.Lost, s.Doubled)
	for _, kind := range slices.Sorted(maps.Keys(s.Faults)) {
		text += fmt.Sprintf(" %s %d", kind, s.Faults[kind])
	}
	return text + "\n"
}
