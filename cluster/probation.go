package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/muster-registry/muster/fault"
)

// probationLasts is the least time a node without a past stays out of
// elections: whatever election it may have voted in before its disk was lost
// has been decided by then.
const probationLasts = 10 * time.Second

// probation keeps a node whose disk is empty out of elections, in both
// directions, until it has what it may have known before.
//
// Raft lets a voter forget nothing. One that comes back with an empty disk
// under its old id still counts as a voter, has forgotten the entries it once
// acknowledged, and would give its vote to a node that never had them. So a
// node that starts without state takes no part until it either consents to the
// founding of a new cluster, in which nobody has a past, or has applied
// everything that a leader, confirmed by a majority, had committed. A marker
// file carries this over restarts.
type probation struct {
	on    atomic.Bool
	since time.Time
	mark  string
}

var errProbation = errors.New("this node came with an empty disk and has not caught up: it takes no part in elections yet")

// beginProbation looks at the disk before Raft starts.
func (c *Cluster) beginProbation(logs raft.LogStore) error {
	p := &c.probation
	p.since, p.mark = time.Now(), filepath.Join(c.cfg.DataDir, "raft", "probation")
	had, err := raft.HasExistingState(logs, c.store, c.snaps)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot tell whether the disk holds a Raft log")
	}
	if !had {
		if err := os.WriteFile(p.mark, []byte(p.since.UTC().Format(time.RFC3339)+"\n"), 0o600); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot note that this node starts without state")
		}
	}
	if _, err := os.Stat(p.mark); err == nil {
		p.on.Store(true)
	}
	return nil
}

// endProbation lets the node take part in elections from now on.
func (c *Cluster) endProbation(why string) {
	if !c.probation.on.Swap(false) {
		return
	}
	if err := os.Remove(c.probation.mark); err != nil {
		c.log.Warn("the marker of a node without a past could not be removed; it is ignored until the next start", "file", c.probation.mark, "error", err)
	}
	c.log.Info("this node takes part in elections", "because", why)
}

// proven ends the probation of a node that has caught up.
func (c *Cluster) proven() {
	if c.probation.on.Load() && time.Since(c.probation.since) >= probationLasts {
		c.endProbation("it has caught up")
	}
}

// Consumer gives raft the messages that reach this node, without those by
// which a node on probation would decide elections.
func (t *transport) Consumer() <-chan raft.RPC { return t.rpcs }

func (t *transport) filter() {
	for {
		select {
		case <-t.c.done:
			return
		case rpc := <-t.NetworkTransport.Consumer():
			if t.c.probation.on.Load() && electoral(rpc.Command) {
				rpc.Respond(nil, errProbation)
				continue
			}
			select {
			case t.rpcs <- rpc:
			case <-t.c.done:
				return
			}
		}
	}
}

func electoral(message any) bool {
	switch message.(type) {
	case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest, *raft.TimeoutNowRequest:
		return true
	}
	return false
}
