package sim

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/jepsen"
)

// ledger is what all nodes told of the changes they applied, by revision: as
// the audit trails have it, in one book. Two nodes that tell different things
// of one revision have parted.
type ledger struct {
	mu      sync.Mutex // guards what follows
	entries map[uint64]*entry
	wrong   []error
	words   map[uint64]string // forbidden by a policy revision
	swaps   int               // states taken from another node
}

type entry struct {
	change fsm.Change
	said   []byte // the change, encoded
	by     string // the node that told first
	at     time.Time
}

func newLedger() *ledger {
	return &ledger{entries: map[uint64]*entry{}, words: map[uint64]string{}}
}

func (l *ledger) blame(format string, args ...any) {
	if len(l.wrong) < 5 {
		l.wrong = append(l.wrong, fmt.Errorf(format, args...))
	}
}

// scribe tells the ledger what one process applies: an fsm.Recorder.
type scribe struct {
	*ledger
	node string
	last uint64 // 0: nothing yet
}

// Changed implements fsm.Recorder.
func (s *scribe) Changed(changes []fsm.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		said, err := proto.MarshalOptions{Deterministic: true}.Marshal(c.Command)
		if err != nil {
			s.blame("%v", err)
		}
		if c.Lease != nil {
			said = append(said, c.Lease.String()...)
		}
		if s.last != 0 && c.Revision != s.last+1 && c.Command.GetRestoreCommit() == nil {
			s.blame("%s applied revision %d after %d", s.node, c.Revision, s.last)
		}
		s.last = c.Revision
		if e := s.entries[c.Revision]; e == nil {
			s.entries[c.Revision] = &entry{change: c, said: said, by: s.node, at: time.Now()}
		} else if !bytes.Equal(e.said, said) {
			s.blame("revision %d is %v for %s and %v for %s", c.Revision, c.Command, s.node, e.change.Command, e.by)
		}
	}
}

// Replaced implements fsm.Recorder.
func (s *scribe) Replaced(_ string, revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if revision < s.last {
		s.blame("%s went back from revision %d to %d", s.node, s.last, revision)
	}
	s.last = revision
	s.swaps++
}

// Sync implements fsm.Recorder.
func (s *scribe) Sync() {}

// value is what a register or an instance is given by a change.
func value(c *command.Command) (key, value string) {
	p := c.GetPut()
	if p == nil || p.Namespace != namespace {
		return "", ""
	}
	return p.Name, described(p.Spec)
}

// check holds the ledger against itself and what callers were told.
func (l *ledger) check(ops []jepsen.Op) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var last, active uint64
	where := map[string]uint64{} // of a value
	for _, revision := range slices.Sorted(maps.Keys(l.entries)) {
		c := l.entries[revision].change.Command
		if revision != last+1 && c.GetRestoreCommit() == nil {
			l.blame("nobody applied the revisions between %d and %d", last, revision)
		}
		last = revision
		if c.Gated && c.PolicyRevision != active {
			l.blame("revision %d was admitted under policy revision %d while %d was active", revision, c.PolicyRevision, active)
		}
		switch {
		case c.GetPolicyActivate() != nil:
			active = c.GetPolicyActivate().Revision
		case c.GetRestoreCommit() != nil:
			active = 0 // where there are restores, nobody publishes policies
		}
		if key, v := value(c); v != "" {
			if twice := where[v]; twice != 0 {
				l.blame("%s=%s was applied twice, as revisions %d and %d", key, v, twice, revision)
			}
			where[v] = revision
			if w := l.words[c.PolicyRevision]; w != "" && bytes.Contains(c.GetPut().Spec, []byte(w)) {
				l.blame("revision %d stores %s, which policy revision %d forbids", revision, w, c.PolicyRevision)
			}
		}
	}
	for i := range ops {
		l.told(&ops[i], where)
	}
	if len(l.wrong) > 0 {
		return l.wrong[0]
	}
	return nil
}

// told holds what a caller was told of a change against the ledger.
func (l *ledger) told(op *jepsen.Op, where map[string]uint64) {
	if op.Kind != jepsen.Write && op.Kind != jepsen.CAS {
		return
	}
	switch at := where[op.Value]; {
	case op.Outcome == jepsen.OK && (at == 0 || at != op.Revision):
		l.blame("%s=%s was acknowledged by %s with revision %d and applied as %d (0: never)", op.Key, op.Value, op.Node, op.Revision, at)
	case op.Outcome == jepsen.Failed && at != 0:
		l.blame("%s=%s was refused by %s (%s) and applied as revision %d", op.Key, op.Value, op.Node, op.Code, at)
	}
}

// expired is when an instance was first given up at or after a moment; zero: never.
func (l *ledger) expired(service, id string, from time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, revision := range slices.Sorted(maps.Keys(l.entries)) {
		e := l.entries[revision]
		if it := e.change.Lease; it != nil && it.Service == service && it.Name == id && it.Change == command.Leases_EXPIRED && !e.at.Before(from) {
			return e.at
		}
	}
	return time.Time{}
}

// restored reports whether the restore was committed.
func (l *ledger) restored(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if c := e.change.Command.GetRestoreCommit(); c != nil && c.Id == id {
			return true
		}
	}
	return false
}
