package cluster

import (
	"cmp"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
)

// yieldWait is how long another voter gets to win its election.
const yieldWait = 1500 * time.Millisecond

// yield gives the leadership away while a write to this node's log does not
// return. Raft cannot: its own goroutine waits for the disk, while others go on
// sending heartbeats, so that nobody else would stand. The voter that is furthest
// along is told to stand now; one whose own disk is in trouble refuses. Nothing
// is lost by it: whoever is elected has all that was acknowledged.
func (c *Cluster) yield(term uint64, stuck time.Duration) {
	c.abandon()
	type voter struct {
		raft.Server
		applied uint64
	}
	var voters []voter
	for _, s := range c.configuration() {
		if s.Suffrage != raft.Voter || string(s.ID) == c.cfg.NodeID {
			continue
		}
		if state := c.ask(c.life, string(s.ID), string(s.Address)); state != nil {
			voters = append(voters, voter{s, state.Applied})
		}
	}
	slices.SortFunc(voters, func(a, b voter) int {
		return cmp.Or(cmp.Compare(b.applied, a.applied), cmp.Compare(a.ID, b.ID))
	})
	for _, v := range voters {
		header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(c.cfg.NodeID), Addr: []byte(c.Address())}
		err := c.trans.TimeoutNow(v.ID, v.Address, &raft.TimeoutNowRequest{RPCHeader: header}, &raft.TimeoutNowResponse{})
		if err != nil {
			c.log.Warn("a voter does not take the leadership over", "voter", v.ID, "error", err)
			continue
		}
		c.log.Error("a write to the Raft log does not return: another node is to lead", "to", v.ID, "since", stuck.Round(time.Millisecond).String())
		if c.overtaken(v.Server, term) {
			return
		}
	}
}

// overtaken waits until a voter is in a later term.
func (c *Cluster) overtaken(v raft.Server, term uint64) bool {
	for deadline := time.Now().Add(yieldWait); time.Now().Before(deadline); {
		var state *wire.State
		if state = c.ask(c.life, string(v.ID), string(v.Address)); state != nil && state.Term > term && state.Leader != c.cfg.NodeID {
			return true
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-c.done:
			return true
		}
	}
	return false
}

// abandon tells those who wait for the log that it does not move. What was handed
// to Raft may still happen; what was not, will not.
func (c *Cluster) abandon() {
	if batch := c.flying.Load(); batch != nil {
		for _, p := range *batch {
			p.answer(command.Result{Err: fault.Lost(fault.NoLeader, nil, "the leader's disk does not return from a write; the change may still happen")})
		}
	}
	for {
		select {
		case p := <-c.proposals:
			if p.state.CompareAndSwap(waiting, gone) {
				p.answer(command.Result{Err: errStuck()})
			}
		default:
			return
		}
	}
}

func errStuck() error {
	return noLeader("the disk of the leader does not return from a write, and another node is to lead; nothing was changed")
}
