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

// probationMark is the marker's name, beside the log.
const probationMark = "probation"

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
	p.since, p.mark = time.Now(), filepath.Join(c.cfg.DataDir, "raft", probationMark)
	had, err := raft.HasExistingState(logs, c.store, c.snaps)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot tell whether the disk holds a Raft log")
	}
	if !had {
		if err := note(p.mark, p.since.UTC().Format(time.RFC3339)); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot note that this node starts without state")
		}
	}
	if _, err := os.Stat(p.mark); err == nil {
		p.on.Store(true)
	}
	return nil
}

// note writes a line into a file that a power cut leaves in its place.
func note(path, line string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
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
	if c.probation.on.Load() && time.Since(c.probation.since) >= c.cfg.Membership.Probation {
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
		case rpc := <-t.Wires.Consumer():
			if t.c.probation.on.Load() && electoral(rpc.Command) {
				rpc.Respond(nil, errProbation)
				continue
			}
			if _, stand := rpc.Command.(*raft.TimeoutNowRequest); stand {
				if err := t.c.abstains(); err != nil {
					rpc.Respond(nil, err)
					continue
				}
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
