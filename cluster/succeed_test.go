package cluster

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestSuccession: when the leader's process is gone, the others do not wait for
// its heartbeats.
func TestSuccession(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	for round := range 3 {
		leader := l.leader(nodes...)
		var rest []*node
		for _, n := range nodes {
			if n != leader {
				rest = append(rest, n)
			}
		}
		cfg := leader.cfg
		began := time.Now()
		l.crash(leader)
		next := l.leader(rest...)
		t.Logf("round %d: %s leads %s after %s was gone", round, next.ID(), time.Since(began).Round(time.Millisecond), leader.ID())
		_, err := next.Propose(t.Context(), put(fmt.Sprintf("k%d", round), "v"))
		must(t, err)
		cfg.Join = l.seeds
		nodes = append(rest, l.start(cfg))
		l.ready(nodes[2])
	}
}

// TestSuccessionNeedsNoHeartbeat restarts the followers with times that Raft
// does not wait out here: only who watches the leader's process can follow it.
// Two who stand at once on a busy machine split the vote, and Raft's time it is
// then: that may happen, but not each time.
func TestSuccessionNeedsNoHeartbeat(t *testing.T) {
	const patience = 20 * time.Second
	for range 4 {
		l := newLab(t)
		nodes := l.form(3)
		leader := l.leader(nodes...)
		var rest []*node
		for _, n := range nodes {
			if n == leader {
				continue
			}
			l.crash(n)
			cfg := n.cfg
			cfg.Timing.Heartbeat, cfg.Timing.Election = patience, patience
			again := l.start(cfg)
			l.ready(again)
			rest = append(rest, again)
		}
		l.crash(leader)
		began := time.Now()
		next := l.leader(rest...)
		took := time.Since(began)
		_, err := next.Propose(t.Context(), put("after", "v"))
		must(t, err)
		if took < patience {
			return
		}
	}
	t.Error("the followers waited for heartbeats of a process that was gone")
}

// TestOneWhoCannotReachTheLeaderDeposesNobody: a single node that is refused is
// no proof.
func TestOneWhoCannotReachTheLeaderDeposesNobody(t *testing.T) {
	l := newLab(t)
	var deaf, refused atomic.Value // the node that is refused, and the address that refuses it
	deaf.Store("")
	refused.Store("")
	var dials atomic.Int64
	l.tune = func(cfg *Config) {
		dial, id := cfg.Dial, cfg.NodeID
		cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if deaf.Load() == id && refused.Load() == address {
				dials.Add(1)
				return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
			}
			return dial(ctx, network, address)
		}
	}
	nodes := l.form(3)
	leader := l.leader(nodes...)
	term := leader.Term()
	follower := nodes[0]
	if follower == leader {
		follower = nodes[1]
	}
	refused.Store(leader.Address())
	deaf.Store(follower.ID())
	// Its stream to the leader breaks, and cannot be made again.
	follower.peers.mu.Lock()
	for _, s := range follower.peers.to {
		s.cancel()
	}
	follower.peers.mu.Unlock()
	l.eventually("it is refused several times", func() error {
		if n := dials.Load(); n < 10 {
			return fmt.Errorf("%d dials", n)
		}
		return nil
	})
	if now := leader.Term(); now != term || !leader.IsLeader() {
		t.Errorf("the leader of term %d was deposed; the term is %d", term, now)
	}
}
