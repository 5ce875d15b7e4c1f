package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/fsm"
)

// stretch is what one watcher was told without being sent back to the start.
type stretch struct {
	node     string
	from, to uint64 // behind from, up to to
	seen     []uint64
}

// tell hands on what a view changed, as package node does.
func (n *Node) tell(v *fsm.View, ev fsm.Events) {
	if ev.Replaced {
		n.changes.Reset(v.Revision)
		return
	}
	var events []*feed.Event
	for _, r := range ev.Records {
		if e := feed.Change(r.Bucket, r.Key, r.Revision, r.Old, r.New); e != nil {
			events = append(events, e)
		}
	}
	n.changes.Publish(v.Revision, events)
}

// follow watches everything at a node until its process ends.
func (w *World) follow(n *Node) {
	for n.running.Err() == nil {
		s := &stretch{node: n.ID, from: n.machine.View().Revision}
		sub, err := n.changes.Subscribe(feed.Scope{}, s.from)
		if err != nil {
			time.Sleep(100 * time.Millisecond) // it was replaced just now
			continue
		}
		s.to = s.from
		for err == nil {
			var told feed.Notice
			if told, err = sub.Next(n.running); err != nil {
				break
			}
			for _, e := range told.Events {
				if e.Revision < s.to {
					w.blame("a watcher at %s was told of revision %d after %d", n.ID, e.Revision, s.to)
				}
				s.seen, s.to = append(s.seen, e.Revision), e.Revision
			}
			s.to = max(s.to, told.Revision)
		}
		sub.Close()
		w.mu.Lock()
		w.stretches = append(w.stretches, s)
		w.mu.Unlock()
		if err != nil && n.running.Err() == nil && !fault.Is(err, fault.Compacted) {
			w.blame("a watcher at %s was turned away: %v", n.ID, err)
		}
	}
}

// shown reports whether watchers are told of a change.
func shown(e *entry) bool {
	c := e.change.Command
	switch {
	case c.GetPut() != nil:
		k := c.GetPut().Kind
		return k == command.Kind_SERVICE || k == command.Kind_VERSION || k == command.Kind_INSTANCE
	case c.GetLeases() != nil, c.GetStatus() != nil:
		return true
	}
	return false
}

// missed demands that each watcher was told of every change that it was let go past.
func (w *World) missed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	for _, s := range w.stretches {
		for revision := s.from + 1; revision <= s.to; revision++ {
			e := w.ledger.entries[revision]
			if e == nil || !shown(e) {
				continue
			}
			if _, ok := slices.BinarySearch(s.seen, revision); !ok {
				return fmt.Errorf("a watcher at %s went from revision %d to %d and was not told of %d", s.node, s.from, s.to, revision)
			}
		}
		w.watched.Add(int64(len(s.seen)))
	}
	return nil
}

// publish stages and activates policy revisions that forbid one word each.
func (c *caller) publish(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		time.Sleep(time.Duration(c.r.Int64N(int64(3 * time.Second))))
		n := c.anybody(c.r)
		if n == nil {
			continue
		}
		try, cancel := context.WithTimeout(ctx, 4*time.Second)
		if number := c.stage(try, n, words[i%len(words)]); number > 0 {
			activate := &command.Command{Op: &command.Command_PolicyActivate{PolicyActivate: &command.PolicyActivate{Revision: number}}}
			_, _ = n.Submit(try, &command.Intent{Principal: operator(), Command: activate})
		}
		cancel()
	}
}
