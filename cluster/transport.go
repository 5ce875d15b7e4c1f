package cluster

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// raftTimeout bounds one Raft message and its answer, a disk's sync
	// included; snapshots get more by their size.
	raftTimeout = 3 * time.Second
	// maxAppendEntries bounds what one Raft message carries. Group commit makes
	// entries large and few, so more would not be faster.
	maxAppendEntries = 64
	raftPool         = 3
)

// transport is raft's own network transport, or the one of a [Network], with four changes: it dials node
// identities instead of addresses, it tries a vote again on a fresh connection
// when a pooled one turns out dead, it keeps raft from backing off for up to ten
// seconds from a follower that has come back, and it keeps a node on probation
// out of elections, and one whose disk is in trouble from standing.
type transport struct {
	Wires
	c    *Cluster
	rpcs chan raft.RPC // what Consumer gives

	mu   sync.Mutex // guards beat
	beat map[raft.ServerID]chan struct{}
}

func (c *Cluster) newTransport() *transport {
	return &transport{c: c, Wires: c.wires(), rpcs: make(chan raft.RPC), beat: map[raft.ServerID]chan struct{}{}}
}

// named writes the identity into the address, for the layer to check.
func named(id raft.ServerID, address raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(id) + "@" + address
}

// LocalAddr is the address others reach this node at.
func (t *transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.c.Address()) }

func (t *transport) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	under, err := t.Wires.AppendEntriesPipeline(id, named(id, to))
	if err != nil {
		return nil, err
	}
	return newPipeline(under), nil
}

func (t *transport) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return t.Wires.InstallSnapshot(id, named(id, to), args, resp, data)
}

func (t *transport) TimeoutNow(id raft.ServerID, to raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return fresh(func() error { return t.Wires.TimeoutNow(id, named(id, to), args, resp) })
}

func (t *transport) RequestVote(id raft.ServerID, to raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := t.c.abstains(); err != nil {
		return err
	}
	return fresh(func() error { return t.Wires.RequestVote(id, named(id, to), args, resp) })
}

func (t *transport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := t.c.abstains(); err != nil {
		return err
	}
	return fresh(func() error { return t.Wires.RequestPreVote(id, named(id, to), args, resp) })
}

// fresh repeats a call that failed at once, as it does on each pooled
// connection that a restarted peer has left behind. Votes and TimeoutNow may
// be repeated: the receiver answers a repeat as it did the first.
func fresh(call func() error) error {
	began := time.Now()
	var err error
	for range raftPool + 1 {
		if err = call(); err == nil || time.Since(began) > 100*time.Millisecond {
			return err
		}
	}
	return err
}

func (t *transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := t.Wires.AppendEntries(id, named(id, to), args, resp)
	heartbeat := args.PrevLogEntry == 0 && args.PrevLogTerm == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0
	if heartbeat {
		if err == nil {
			t.beaten(id)
		}
		return err
	}
	if err == nil {
		return nil
	}
	// raft doubles its pause with each failure, up to ten seconds. Holding the
	// call until a heartbeat has got through keeps the count of failures low,
	// and the follower back in step as soon as it can be reached.
	if !t.awaitBeat(id, args.Term) {
		return err
	}
	return t.Wires.AppendEntries(id, named(id, to), args, resp)
}

// beaten wakes what waits for a heartbeat of this peer.
func (t *transport) beaten(id raft.ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ch := t.beat[id]; ch != nil {
		close(ch)
		delete(t.beat, id)
	}
}

// awaitBeat returns true once a heartbeat has been answered, false when this
// node no longer leads in the term.
func (t *transport) awaitBeat(id raft.ServerID, term uint64) bool {
	t.mu.Lock()
	ch := t.beat[id]
	if ch == nil {
		ch = make(chan struct{})
		t.beat[id] = ch
	}
	t.mu.Unlock()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-ch:
			return true
		case <-t.c.done:
			return false
		case <-look.C:
			if now, ok := t.c.leads(); !ok || now != term {
				return false
			}
		}
	}
}

// layer is the raft.StreamLayer on the peer port.
type layer struct {
	*queue
	c *Cluster
}

func (l *layer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(l.c.life, timeout)
	defer cancel()
	id, at, _ := strings.Cut(string(address), "@")
	at, disk := placed(raft.ServerAddress(at))
	conn, err := l.c.dial(ctx, id, at, protoRaft)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(dialTimeout))
	if err := l.c.writeHello(conn, disk); err != nil {
		_ = conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	return conn, nil
}
