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

const changeTimeout = 5 * time.Second

// Node is one member of the cluster, as it answered for itself.
type Node struct {
	ID          string            `json:"id"`
	Address     string            `json:"address"`
	Role        string            `json:"role"` // leader, voter, non-voter
	Alive       bool              `json:"alive"`
	Ready       bool              `json:"ready"`
	Applied     uint64            `json:"applied"`
	Commit      uint64            `json:"commit"`
	Term        uint64            `json:"term"`
	Level       uint32            `json:"feature_level"`   // the newest it knows
	LastContact int64             `json:"last_contact_ms"` // -1: never
	Extra       json.RawMessage   `json:"-"`               // the node's StatusExtra
	Asked       time.Time         `json:"-"`               // when the node was asked, by this node's clock
	Took        time.Duration     `json:"-"`               // until it had answered
	Meta        map[string]string `json:"-"`               // as gossiped; nil when gossip does not know it
	Apart       bool              `json:"-"`               // it lives, and says that it has no contact with the quorum
}

// Status is the whole cluster as seen from one node.
type Status struct {
	ClusterID string `json:"cluster_id"`
	Leader    string `json:"leader"`
	Term      uint64 `json:"term"`
	Level     uint32 `json:"feature_level"` // of the cluster, as far as this node has applied
	Nodes     []Node `json:"nodes"`
}

// Members lists the nodes of the configuration this node knows, ordered by
// id, without asking them: only what is known here is filled in.
func (c *Cluster) Members() []Node {
	leader, _ := c.Leader()
	var nodes []Node
	for _, s := range c.configuration() {
		address, _ := placed(s.Address)
		n := Node{ID: string(s.ID), Address: address, Role: "voter", LastContact: -1}
		n.Meta, n.Apart = c.gossip.about(n.ID)
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
	st := Status{ClusterID: c.machine.ClusterID(), Leader: leader, Level: c.machine.Level(), Nodes: c.Members()}
	if c.raft != nil {
		st.Term = c.raft.CurrentTerm()
	}
	var asks sync.WaitGroup
	for i := range st.Nodes {
		asks.Go(func() {
			n := &st.Nodes[i]
			n.Asked = time.Now()
			s := c.ask(ctx, n.ID, n.Address)
			n.Took = time.Since(n.Asked)
			if n.Alive = s != nil; s != nil {
				n.Ready, n.Applied, n.Commit, n.LastContact, n.Extra = s.Ready, s.Applied, s.Commit, s.LastContactMs, s.Extra
				n.Term, n.Level = s.Term, knows(s.Format)
			}
		})
	}
	asks.Wait()
	return st
}

// Remove takes a node out of the cluster. Errors: not_found, conflict when it
// is the last voter, or too few of the others answer to go on without it.
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
	return nil, c.remove(ctx, t.Id, RemovedOperator)
}

// remove takes a member out, unless the quorum would go with it.
func (c *Cluster) remove(ctx context.Context, id, why string) error {
	if _, ok := c.server(id); !ok { // no need to ask anybody
		return fault.New(fault.NotFound, "no member of the cluster is called %s; muster cluster members lists them", id)
	}
	looks, index := c.looks(ctx)
	at := slices.IndexFunc(looks, func(l look) bool { return string(l.ID) == id })
	if at < 0 {
		return fault.New(fault.NotFound, "no member of the cluster is called %s; muster cluster members lists them", id)
	}
	voters, alive := tally(looks, looks[at].ID)
	switch {
	case looks[at].Suffrage != raft.Voter:
	case voters == 0:
		return fault.New(fault.Conflict, "node %s is the last voter: there would be no cluster without it. Stop it, if that is meant", id)
	case alive <= voters/2:
		// The others could not even agree on this removal.
		return fault.New(fault.Conflict, "without node %s the cluster would lose its quorum: only %d of the other %d voters answer. Bring those back, or remove one that is dead first; nothing was changed", id, alive, voters)
	case id == c.cfg.NodeID:
		// The next leader removes this one: the call is tried again there.
		if err := c.transfer(ctx, ""); err != nil {
			return err
		}
		return noLeader("the leadership was handed over first")
	}
	c.roll.leaves(looks[at].ID, c.raft.CurrentTerm(), why)
	return c.change(ctx, func() raft.Future { return c.raft.RemoveServer(looks[at].ID, index, changeTimeout) })
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
	case to != "" && !ok:
		return fault.New(fault.NotFound, "no member of the cluster is called %s; muster cluster members lists them", to)
	case to != "" && s.Suffrage != raft.Voter:
		return fault.New(fault.Conflict, "node %s has no vote yet, so it cannot lead; it gets one when it has kept up for a while", to)
	case to != "" && c.ask(ctx, to, c.member(to)) == nil:
		return fault.New(fault.Conflict, "node %s does not answer, so it is not handed the leadership; nothing was changed", to)
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
