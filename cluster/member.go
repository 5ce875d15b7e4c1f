package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/fault"
	"google.golang.org/protobuf/proto"
)

const (
	changeTimeout = 5 * time.Second
	promoteEvery  = 300 * time.Millisecond
	// stableFor is how long a non-voter must have kept up before it votes.
	stableFor = time.Second
)

// Node is one member of the cluster, as it answered for itself.
type Node struct {
	ID          string            `json:"id"`
	Address     string            `json:"address"`
	Role        string            `json:"role"` // leader, voter, non-voter
	Alive       bool              `json:"alive"`
	Ready       bool              `json:"ready"`
	Applied     uint64            `json:"applied"`
	Commit      uint64            `json:"commit"`
	LastContact int64             `json:"last_contact_ms"` // -1: never
	Extra       json.RawMessage   `json:"-"`               // the node's StatusExtra
	Meta        map[string]string `json:"-"`               // as gossiped; nil when gossip does not know it
}

// Status is the whole cluster as seen from one node.
type Status struct {
	ClusterID string `json:"cluster_id"`
	Leader    string `json:"leader"`
	Term      uint64 `json:"term"`
	Nodes     []Node `json:"nodes"`
}

// Members lists the nodes of the configuration this node knows, ordered by
// id, without asking them: only what is known here is filled in.
func (c *Cluster) Members() []Node {
	leader, _ := c.Leader()
	var nodes []Node
	for _, s := range c.configuration() {
		n := Node{ID: string(s.ID), Address: string(s.Address), Role: "voter", LastContact: -1, Meta: c.gossip.meta(string(s.ID))}
		n.Alive = n.Meta != nil || n.ID == c.cfg.NodeID
		if s.Suffrage != raft.Voter {
			n.Role = "non-voter"
		}
		if n.ID == leader {
			n.Role = "leader"
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	return nodes
}

// Status asks all members for their state, for at most half a second. Who
// does not answer is not alive.
func (c *Cluster) Status(ctx context.Context) Status {
	leader, _ := c.Leader()
	st := Status{ClusterID: c.machine.ClusterID(), Leader: leader, Nodes: c.Members()}
	if c.raft != nil {
		st.Term = c.raft.CurrentTerm()
	}
	var asks sync.WaitGroup
	for i := range st.Nodes {
		asks.Go(func() {
			n := &st.Nodes[i]
			s := c.ask(ctx, n.ID, n.Address)
			if n.Alive = s != nil; s != nil {
				n.Ready, n.Applied, n.Commit, n.LastContact, n.Extra = s.Ready, s.Applied, s.Commit, s.LastContactMs, s.Extra
			}
		})
	}
	asks.Wait()
	return st
}

// Remove takes a node out of the cluster. Errors: not_found, conflict when it
// is the last voter.
func (c *Cluster) Remove(ctx context.Context, id string) error {
	return c.about(ctx, methodRemove, id)
}

// TransferLeader hands the leadership to a voter, or to the one most up to
// date when to is empty. It returns once this leader has stepped down.
func (c *Cluster) TransferLeader(ctx context.Context, to string) error {
	return c.about(ctx, methodTransfer, to)
}

func (c *Cluster) about(ctx context.Context, method, id string) error {
	payload, err := proto.Marshal(&wire.Target{Id: id})
	if err != nil {
		return fault.From(err)
	}
	_, err = c.Call(ctx, method, payload)
	return err
}

func (c *Cluster) server(id string) (raft.Server, bool) {
	for _, s := range c.configuration() {
		if string(s.ID) == id {
			return s, true
		}
	}
	return raft.Server{}, false
}

func (c *Cluster) handleRemove(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	var t wire.Target
	if err := proto.Unmarshal(payload, &t); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "not a request to remove a node")
	}
	s, ok := c.server(t.Id)
	switch {
	case !ok:
		return nil, fault.New(fault.NotFound, "no member of the cluster is called %s", t.Id)
	case s.Suffrage == raft.Voter && c.voters() == 1:
		return nil, fault.New(fault.Conflict, "node %s is the last voter", t.Id)
	case t.Id == c.cfg.NodeID:
		// The next leader removes this one: the call is tried again there.
		if err := c.transfer(ctx, ""); err != nil {
			return nil, err
		}
		return nil, noLeader("the leadership was handed over first")
	}
	return nil, c.change(ctx, func() raft.Future { return c.raft.RemoveServer(s.ID, 0, changeTimeout) })
}

func (c *Cluster) handleTransfer(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	var t wire.Target
	if err := proto.Unmarshal(payload, &t); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "not a request to hand the leadership over")
	}
	return nil, c.transfer(ctx, t.Id)
}

func (c *Cluster) transfer(ctx context.Context, to string) error {
	s, ok := c.server(to)
	switch {
	case to == c.cfg.NodeID:
		return nil // it leads already
	case to == "" && c.voters() < 2:
		return fault.New(fault.Conflict, "there is no other voter to lead")
	case to != "" && (!ok || s.Suffrage != raft.Voter):
		return fault.New(fault.NotFound, "no voter of the cluster is called %s", to)
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	future := raft.Future(nil)
	if to == "" {
		future = c.raft.LeadershipTransfer()
	} else {
		future = c.raft.LeadershipTransferToServer(s.ID, s.Address)
	}
	if err := wait(ctx, future); err != nil {
		e := fault.Wrap(fault.NotReady, err, "the leadership could not be handed over: %v", err)
		e.RetryAfter = time.Second
		return e
	}
	return nil
}

// change makes one change of the configuration.
func (c *Cluster) change(ctx context.Context, start func() raft.Future) error {
	err := wait(ctx, start())
	switch {
	case err == nil:
		return nil
	case err == raft.ErrNotLeader, err == raft.ErrLeadershipTransferInProgress, err == raft.ErrEnqueueTimeout:
		return noLeader("the leadership is changing hands; the membership was not changed")
	case err == raft.ErrLeadershipLost, err == raft.ErrRaftShutdown, ctx.Err() != nil:
		return fault.Lost(fault.NoLeader, err, "the change of the membership may still happen")
	}
	return fault.Wrap(fault.Conflict, err, "the membership was not changed: %v", err)
}

// handleJoin takes a node in as a non-voter, or notes its new address.
func (c *Cluster) handleJoin(ctx context.Context, from string, payload []byte) ([]byte, error) {
	var j wire.Join
	if err := proto.Unmarshal(payload, &j); err != nil || j.Id == "" || j.Address == "" || j.Instance == "" {
		return nil, fault.Wrap(fault.BadRequest, err, "not a request to join")
	}
	if j.Id != from {
		return nil, fault.New(fault.Forbidden, "node %s may not join as %s", from, j.Id)
	}
	if foreign(j.ClusterId, c.machine.ClusterID()) {
		return nil, fault.New(fault.Conflict, "node %s holds data of cluster %s, this is cluster %s: start it with an empty data directory to join",
			j.Id, j.ClusterId, c.machine.ClusterID())
	}
	s, member := c.server(j.Id)
	if !member && j.HasState {
		return nil, fault.New(fault.Conflict, "node %s holds data and is not a member: it was removed, or comes from elsewhere; start it with an empty data directory to join", j.Id)
	}
	if member {
		if other := c.ask(ctx, j.Id, string(s.Address)); other != nil && other.Instance != j.Instance {
			return nil, fault.New(fault.Conflict, "another node %s is alive at %s: give this one an id of its own", j.Id, s.Address)
		}
	}
	id, address := raft.ServerID(j.Id), raft.ServerAddress(j.Address)
	if member && s.Address == address {
		return nil, nil
	}
	c.log.Info("taking a node in", "id", j.Id, "address", j.Address, "member", member)
	return nil, c.change(ctx, func() raft.Future {
		if member && s.Suffrage == raft.Voter {
			return c.raft.AddVoter(id, address, 0, changeTimeout)
		}
		return c.raft.AddNonvoter(id, address, 0, changeTimeout)
	})
}

// promote gives a vote to each non-voter that has kept up for a while: at
// each look it had applied what was committed at the look before.
func (c *Cluster) promote(ctx context.Context) {
	goals, since := map[raft.ServerID]uint64{}, map[raft.ServerID]time.Time{}
	tick := time.NewTicker(promoteEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, s := range c.configuration() {
			if s.Suffrage == raft.Voter {
				delete(since, s.ID)
				continue
			}
			goal, commit := goals[s.ID], c.raft.CommitIndex()
			goals[s.ID] = commit
			state := c.ask(ctx, string(s.ID), string(s.Address))
			if state == nil || goal == 0 || state.Applied < goal {
				delete(since, s.ID)
				continue
			}
			if _, ok := since[s.ID]; !ok {
				since[s.ID] = time.Now()
			}
			if time.Since(since[s.ID]) < stableFor {
				continue
			}
			err := c.change(ctx, func() raft.Future { return c.raft.AddVoter(s.ID, s.Address, 0, changeTimeout) })
			c.log.Info("a node that has caught up gets its vote", "id", s.ID, "error", err)
		}
	}
}
