package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/cluster"
)

const (
	lookoutEvery = time.Second
	// awayAfter is how long a member may be silent, behindAfter how old the state
	// may be that it has reached.
	awayAfter   = 5 * time.Second
	behindAfter = 10 * time.Second
	// apartBy is how far clocks may differ, beyond what cannot be told.
	apartBy = 2 * time.Second
)

// lookout is what the leader sees of the other members: the state of each, as
// it last answered. On other nodes it is empty.
type lookout struct {
	self string

	mu      sync.Mutex // guards all below
	members map[string]*seen
	past    []mark // what this node had applied, the oldest first, over a little more than behindAfter
}

// seen is one member.
type seen struct {
	voter   bool
	heard   time.Time // when it last answered; when it was first looked for, before that
	alive   bool
	room    bool // it answers, and its disk is well
	applied uint64
	reached time.Time     // when this node had been where the member now is
	ahead   time.Duration // its clock, of this node's; 0: as far as can be told
}

type mark struct {
	at      time.Time
	applied uint64
}

// Run looks while this node leads.
func (l *lookout) run(ctx context.Context, status func(context.Context) cluster.Status) {
	defer l.forget()
	tick := time.NewTicker(lookoutEvery)
	defer tick.Stop()
	for {
		l.note(time.Now(), status(ctx).Nodes)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (l *lookout) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.members, l.past = nil, nil
}

// note takes what the members answered.
func (l *lookout) note(now time.Time, nodes []cluster.Node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	members := map[string]*seen{}
	for _, n := range nodes {
		if n.ID == l.self {
			l.past = append(l.past, mark{now, n.Applied})
			for len(l.past) > 2 && now.Sub(l.past[1].at) > behindAfter {
				l.past = l.past[1:]
			}
		}
	}
	for _, n := range nodes {
		s := l.members[n.ID]
		if s == nil {
			s = &seen{heard: now, reached: now}
		}
		s.voter, s.alive, s.room = n.Role != nonVoter, n.Alive, false
		if n.Alive {
			var e extra // of a version that tells less, what it tells
			_ = json.Unmarshal(n.Extra, &e)
			s.heard, s.applied, s.ahead, s.room = now, n.Applied, ahead(&n, &e), !e.raised(diskAlarms...)
			for _, m := range l.past {
				if m.applied <= n.Applied && m.at.After(s.reached) {
					s.reached = m.at
				}
			}
		}
		members[n.ID] = s
	}
	l.members = members
}

// ahead is by how much a member's clock is ahead of this node's, without what
// the way there and back may account for.
func ahead(n *cluster.Node, e *extra) time.Duration {
	if e.Clock == 0 {
		return 0
	}
	between := time.Unix(0, e.Clock).Sub(n.Asked.Round(0).Add(n.Took / 2))
	switch {
	case between > n.Took/2:
		return between - n.Took/2
	case between < -n.Took/2:
		return between + n.Took/2
	}
	return 0
}

// each gives the others in the order of their ids.
func (l *lookout) each(f func(id string, s *seen)) {
	var ids []string
	for id := range l.members {
		if id != l.self {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		f(id, l.members[id])
	}
}

func (l *lookout) gone(s *seen) bool { return !s.alive && time.Since(s.heard) > awayAfter }

func (l *lookout) away() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	l.each(func(id string, s *seen) {
		if l.gone(s) {
			all = append(all, fmt.Sprintf("%s has not answered for %s", id, time.Since(s.heard).Round(time.Second)))
		}
	})
	return strings.Join(all, "; ")
}

// atRisk is about clusters that could lose a node. With two voters the next loss
// is always the one; that is told of where there is a third member, which does
// not vote yet: one that has come in the place of another.
func (l *lookout) atRisk() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	voters, silent, without := 0, []string{}, ""
	for _, s := range l.members {
		if s.voter {
			voters++
		}
	}
	l.each(func(id string, s *seen) {
		switch {
		case !s.voter:
			without += "; " + id + " has no vote yet"
		case l.gone(s):
			silent = append(silent, id)
		}
	})
	if left := voters - len(silent); len(l.members) < 3 || left-1 > voters/2 {
		return ""
	}
	if len(silent) > 0 {
		without = ", without " + strings.Join(silent, ", ") + without
	}
	return fmt.Sprintf("%d of %d voters answer%s: when one more is lost, changes and linearizable reads end", voters-len(silent), voters, without)
}

// rooms counts the voters, and of the others those that live, by whether their
// disks are well. Before the first look, and off the leader, there are none.
func (l *lookout) rooms() (well, ill, voters int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, s := range l.members {
		if !s.voter {
			continue
		}
		voters++
		if id != l.self && s.alive && s.room {
			well++
		} else if id != l.self && s.alive {
			ill++
		}
	}
	return well, ill, voters
}

func (l *lookout) behind() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	l.each(func(id string, s *seen) {
		if s.alive && len(l.past) > 0 && time.Since(s.reached) > behindAfter {
			all = append(all, fmt.Sprintf("%s has applied entry %d of %d, where this node was %s ago", id, s.applied, l.past[len(l.past)-1].applied, time.Since(s.reached).Round(time.Second)))
		}
	})
	return strings.Join(all, "; ")
}

func (l *lookout) apart() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	l.each(func(id string, s *seen) {
		if s.ahead.Abs() > apartBy {
			word := "ahead of"
			if s.ahead < 0 {
				word = "behind"
			}
			all = append(all, fmt.Sprintf("the clock of %s is %s %s that of %s", id, s.ahead.Abs().Round(100*time.Millisecond), word, l.self))
		}
	})
	if others := len(l.members) - 1; len(all) == others && others > 1 {
		all = append(all, "since all others differ, it is probably "+l.self+"'s that is wrong")
	}
	return strings.Join(all, "; ")
}
