package cluster

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/command"
	"google.golang.org/protobuf/proto"
)

// stewardEvery is how often the leader looks at all members, by default.
const stewardEvery = 300 * time.Millisecond

// Why a node is no longer a member.
const (
	RemovedDead     = "dead"     // it did not answer for Membership.DeadAfter
	RemovedOperator = "operator" // somebody said so
	RemovedReplaced = "replaced" // another disk or node has taken its place

	RemovedBefore    = "before"    // a leader that fell before it could say why
	RemovedElsewhere = "elsewhere" // another node says why; told to nobody but the log and the metrics
)

// health is what the leader has seen of one member since it leads.
type health struct {
	instance string    // of its process
	since    time.Time // it has been healthy without a break; zero: it is not
	answered time.Time // it answered last, or was first looked for
	kept     string    // why it stays though it is dead; "": it does not, or is not
}

// look is one member as the leader saw it at one moment.
type look struct {
	raft.Server
	state *wire.State // nil: it did not answer
}

// roster is what a leader makes of its looks at the members.
type roster struct {
	rules  Membership
	newest uint32 // format that this leader knows
	log    *slog.Logger
	known  map[raft.ServerID]*health
	looks  []look // the last ones, ordered by id
}

// steward changes who votes, by the rules of Consul's and Vault's autopilot: a
// non-voter gets its vote when it has been healthy for a while without a break,
// and a member that has been dead for long goes, where enough voters stay. A
// new leader knows nothing of what was before, and waits both times out anew.
func (c *Cluster) steward(ctx context.Context) {
	r := &roster{rules: c.cfg.Membership, newest: c.cfg.Format, log: c.log, known: map[raft.ServerID]*health{}}
	tick := time.NewTicker(c.cfg.Membership.Every)
	defer tick.Stop()
	for {
		term, commit := c.raft.CurrentTerm(), c.raft.CommitIndex()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		looks, index := c.looks(ctx)
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		r.see(looks, term, commit, now)
		if level := r.level(); level > c.machine.Level() {
			c.raise(ctx, level)
		} else if l, ok := r.seatless(c.machine.Level()); ok {
			c.seat(ctx, l, index)
		} else if l, ok := r.worthy(now); ok {
			err := c.change(ctx, func() raft.Future { return c.raft.AddVoter(l.ID, l.Address, index, changeTimeout) })
			c.log.Info("a node that has caught up gets its vote", "id", l.ID, "error", err)
		} else if l, ok := r.dead(now); ok {
			c.bury(ctx, l.ID, index, now.Sub(r.known[l.ID].answered))
		}
	}
}

// looks asks all members of the configuration with the index for their state.
func (c *Cluster) looks(ctx context.Context) (looks []look, index uint64) {
	future := c.raft.GetConfiguration()
	for _, s := range future.Configuration().Servers {
		looks = append(looks, look{Server: s})
	}
	slices.SortFunc(looks, func(a, b look) int { return cmp.Compare(a.ID, b.ID) })
	var asks sync.WaitGroup
	for i := range looks {
		asks.Go(func() {
			address, disk := placed(looks[i].Address)
			if s := c.ask(ctx, string(looks[i].ID), address); s != nil && (disk == "" || s.Disk == disk) {
				looks[i].state = s
			}
		})
	}
	asks.Wait()
	return looks, future.Index()
}

// knows is the newest format of a node that says it knows format.
func knows(format uint32) uint32 { return max(format, command.Base) }

// level is the newest format that all members know; Base while one of them
// does not answer.
func (r *roster) level() uint32 {
	level := r.newest
	for _, l := range r.looks {
		if l.state == nil {
			return command.Base
		}
		level = min(level, knows(l.state.Format))
	}
	return level
}

// raise lifts the feature level by an empty batch of the new format: from here
// on no member can go back to a version that does not know it.
func (c *Cluster) raise(ctx context.Context, level uint32) {
	entry, err := proto.Marshal(&command.Batch{Format: level})
	if err != nil {
		panic(err)
	}
	err = wait(ctx, c.raft.Apply(entry, time.Second))
	c.log.Info("all members know a newer format: the feature level rises", "level", level, "error", err)
}

// seatless is a member whose disk is not in its place yet.
func (r *roster) seatless(level uint32) (look, bool) {
	for _, l := range r.looks {
		if _, disk := placed(l.Address); level >= diskLevel && disk == "" && l.state != nil && l.state.Disk != "" {
			return l, true
		}
	}
	return look{}, false
}

// seat notes a member's disk in its place.
func (c *Cluster) seat(ctx context.Context, l look, index uint64) {
	address, _ := placed(l.Address)
	err := c.change(ctx, func() raft.Future {
		if l.Suffrage == raft.Voter {
			return c.raft.AddVoter(l.ID, place(address, l.state.Disk), index, changeTimeout)
		}
		return c.raft.AddNonvoter(l.ID, place(address, l.state.Disk), index, changeTimeout)
	})
	if err != nil {
		c.log.Warn("a node's disk could not be noted", "id", l.ID, "error", err)
	}
}

// see notes who answered, and who is healthy: the same process as before, of
// this leader's term, that heard from it a moment ago and has applied nearly
// all that was committed at the look before.
func (r *roster) see(looks []look, term, commit uint64, now time.Time) {
	r.looks = looks
	for _, l := range looks {
		h := r.known[l.ID]
		if h == nil {
			h = &health{answered: now}
			r.known[l.ID] = h
		}
		s := l.state
		if s == nil {
			h.since = time.Time{}
			continue
		}
		contact := time.Duration(s.LastContactMs) * time.Millisecond
		healthy := s.Instance == h.instance && s.Term == term && contact >= 0 && contact <= r.rules.MaxContact && s.Applied+r.rules.MaxTrailing >= commit
		h.answered, h.kept, h.instance = now, "", s.Instance
		switch {
		case !healthy:
			h.since = time.Time{}
		case h.since.IsZero():
			h.since = now
		}
	}
	maps.DeleteFunc(r.known, func(id raft.ServerID, _ *health) bool {
		return !slices.ContainsFunc(looks, func(l look) bool { return l.ID == id })
	})
}

// worthy is a non-voter that is to vote.
func (r *roster) worthy(now time.Time) (look, bool) {
	for _, l := range r.looks {
		if h := r.known[l.ID]; l.Suffrage != raft.Voter && !h.since.IsZero() && now.Sub(h.since) >= r.rules.Stabilization {
			return l, true
		}
	}
	return look{}, false
}

// dead is a member that is to go. One at a time: the next look counts anew.
func (r *roster) dead(now time.Time) (look, bool) {
	for _, l := range r.looks {
		h := r.known[l.ID]
		if r.rules.DeadAfter <= 0 || l.state != nil || now.Sub(h.answered) < r.rules.DeadAfter {
			continue
		}
		voters, alive := tally(r.looks, l.ID)
		why := ""
		switch {
		case l.Suffrage != raft.Voter:
		case voters < r.rules.MinQuorum:
			why = "fewer voters than cluster.min_quorum would stay"
		case alive <= voters/2:
			why = "of the voters that would stay, no majority answers"
		}
		if why == "" {
			return l, true
		}
		if h.kept != why {
			h.kept = why
			r.log.Warn("a node is dead and stays a member: add one in its place, or remove it", "id", l.ID, "because", why, "silent", now.Sub(h.answered).Round(time.Second))
		}
	}
	return look{}, false
}

// tally counts the voters without one of them, and those of them that answer.
func tally(looks []look, without raft.ServerID) (voters, alive int) {
	for _, l := range looks {
		if l.Suffrage != raft.Voter || l.ID == without {
			continue
		}
		voters++
		if l.state != nil {
			alive++
		}
	}
	return voters, alive
}

// bury removes a dead member, unless the configuration has changed since the look.
func (c *Cluster) bury(ctx context.Context, id raft.ServerID, index uint64, silent time.Duration) {
	c.roll.leaves(id, c.raft.CurrentTerm(), RemovedDead)
	err := c.change(ctx, func() raft.Future { return c.raft.RemoveServer(id, index, changeTimeout) })
	if err != nil {
		c.log.Warn("a dead node could not be removed", "id", id, "error", err)
		return
	}
	c.log.Warn("removed a node that is dead", "id", id, "silent", silent.Round(time.Second))
}
