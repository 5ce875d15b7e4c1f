package cluster

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/cluster/wire"
	"google.golang.org/protobuf/proto"
)

const (
	succeedLook    = 100 * time.Millisecond // how often a follower looks whom to watch
	succeedAsk     = 300 * time.Millisecond // for another voter to look at the leader
	succeedStagger = 250 * time.Millisecond // between voters, so that not all stand at once
)

// succeed watches the leader's process, and stands for election at once when
// it is gone, instead of after the time that Raft waits for a heartbeat.
//
// A process that ends, however it ends, closes its connections, and nothing
// listens in its place. A follower whose stream to the leader has ended, and
// whose dial the leader's address refuses, asks the other voters to dial it
// too. Only where a majority of all voters is refused does one of them stand.
// So a fault between two nodes deposes nobody, and neither does a leader that
// is slow, stands still, or cannot be reached: those are left to Raft's time.
//
// This is about speed alone. Who leads is decided by votes as ever; an election
// that was not needed costs one.
func (c *Cluster) succeed() {
	for {
		if id, term, ok := c.watched(); ok {
			c.outlive(id)
			c.stand(id, term)
		}
		select {
		case <-c.done:
			return
		case <-time.After(succeedLook):
		}
	}
}

// watched is the leader that this node would succeed.
func (c *Cluster) watched() (leader string, term uint64, ok bool) {
	term = c.raft.CurrentTerm()
	leader, known := c.Leader()
	own, is := c.server(c.cfg.NodeID)
	ok = known && leader != c.cfg.NodeID && is && own.Suffrage == raft.Voter && c.abstains() == nil && c.voters() > 2
	return leader, term, ok
}

// outlive returns when the stream to the leader has ended, or another leads.
func (c *Cluster) outlive(leader string) {
	ctx, cancel := context.WithTimeout(c.life, dialTimeout)
	over, err := c.peers.over(ctx, leader, c.member(leader))
	cancel()
	if err != nil {
		return
	}
	look := time.NewTicker(succeedLook)
	defer look.Stop()
	for {
		select {
		case <-over:
			return
		case <-c.done:
			return
		case <-look.C:
			if id, _ := c.Leader(); id != leader {
				return
			}
		}
	}
}

// stand has this node stand for election when the leader of the term is gone.
func (c *Cluster) stand(leader string, term uint64) {
	if !c.refused(leader) || !c.agreed(leader) {
		return
	}
	select {
	case <-time.After(time.Duration(c.rank(leader)) * succeedStagger):
	case <-c.done:
		return
	}
	if id, now, ok := c.watched(); !ok || id != leader || now != term {
		return // another was quicker
	}
	c.log.Info("the leader's process is gone; this node stands for election", "leader", leader, "term", term)
	own := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(c.cfg.NodeID), Addr: []byte(c.Address())}
	answer := make(chan raft.RPCResponse, 1)
	select {
	case c.trans.rpcs <- raft.RPC{Command: &raft.TimeoutNowRequest{RPCHeader: own}, RespChan: answer}:
	case <-time.After(succeedAsk): // raft is busy; its own time will do
	case <-c.done:
	}
}

// refused tells whether nothing listens where the leader did.
func (c *Cluster) refused(leader string) bool {
	address := c.member(leader)
	if address == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(c.life, succeedAsk)
	defer cancel()
	conn, err := c.cfg.Dial(ctx, "tcp", address)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// agreed asks the other voters, and tells whether a majority of all is refused
// as this node is.
func (c *Cluster) agreed(leader string) bool {
	ctx, cancel := context.WithTimeout(c.life, succeedAsk)
	defer cancel()
	asked, voters := 0, 0
	said := make(chan bool)
	for _, s := range c.configuration() {
		if s.Suffrage != raft.Voter {
			continue
		}
		if voters++; string(s.ID) == leader || string(s.ID) == c.cfg.NodeID {
			continue
		}
		asked++
		go func() {
			reply, err := c.CallNode(ctx, string(s.ID), methodGone, []byte(leader))
			gone := new(wire.Index)
			said <- err == nil && proto.Unmarshal(reply, gone) == nil && gone.Value == 1
		}()
	}
	agree := 1
	for range asked {
		if <-said {
			agree++
		}
	}
	return agree > voters/2
}

// handleGone looks for another voter whether the leader is gone.
func (c *Cluster) handleGone(_ context.Context, _ string, payload []byte) ([]byte, error) {
	out := &wire.Index{}
	if c.refused(string(payload)) {
		out.Value = 1
	}
	return proto.Marshal(out)
}

// rank is this node's place among those who may stand.
func (c *Cluster) rank(leader string) int {
	var ids []string
	for _, s := range c.configuration() {
		if s.Suffrage == raft.Voter && string(s.ID) != leader {
			ids = append(ids, string(s.ID))
		}
	}
	slices.Sort(ids)
	return max(0, slices.Index(ids, c.cfg.NodeID))
}
