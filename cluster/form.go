package cluster

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/fault"
	"google.golang.org/protobuf/proto"
)

const (
	settleEvery = 200 * time.Millisecond // while in no cluster
	attendEvery = 2 * time.Second        // once in one
	askTimeout  = 500 * time.Millisecond
	// A node lets one other found a cluster with it at a time. The founder must
	// be done well before the consent lapses.
	foundWithin  = 3 * time.Second
	consentLasts = 10 * time.Second
)

// consent is a node's promise to take part in the cluster of one founder.
type consent struct {
	mu    sync.Mutex // guards what follows
	to    string     // the founder's instance
	until time.Time
}

// settle brings the node into a cluster and keeps its address there right.
func (c *Cluster) settle() {
	for {
		pause := settleEvery
		switch {
		case !c.hasState():
			c.enter()
		case c.attend():
			pause = attendEvery
		}
		select {
		case <-c.done:
			return
		case <-time.After(pause):
		}
	}
}

// hasState reports whether there is a term, a log or a snapshot.
func (c *Cluster) hasState() bool {
	return c.raft.CurrentTerm() > 0 || c.raft.LastIndex() > 0
}

// state is this node's answer about itself.
func (c *Cluster) state() *wire.State {
	leader, _ := c.Leader()
	s := &wire.State{
		Id: c.cfg.NodeID, Instance: c.instance, ClusterId: c.machine.ClusterID(), HasState: c.hasState(),
		BootstrapExpect: uint32(c.cfg.BootstrapExpect), Address: c.Address(), Term: c.raft.CurrentTerm(),
		Applied: c.machine.AppliedIndex(), Commit: c.raft.CommitIndex(), Leader: leader,
		Ready: c.Ready() == nil, LastContactMs: -1, Extra: c.cfg.StatusExtra(), Format: c.cfg.Format, Disk: c.disk,
	}
	if last := c.raft.LastContact(); c.raft.State() == raft.Leader {
		s.LastContactMs = 0
	} else if !last.IsZero() {
		s.LastContactMs = time.Since(last).Milliseconds()
	}
	return s
}

// ask gets a node's state, nil when it does not answer.
func (c *Cluster) ask(ctx context.Context, id, address string) *wire.State {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if id == c.cfg.NodeID && address == c.Address() {
		return c.state()
	}
	reply, err := c.peers.call(ctx, id, address, methodState, nil, 0)
	if err != nil {
		return nil
	}
	s := &wire.State{}
	if proto.Unmarshal(reply, s) != nil || s.Id != id {
		return nil
	}
	return s
}

// enter looks around: where a cluster is, it asks to be taken in; where none
// is and all who are expected are there, the lowest id founds one.
func (c *Cluster) enter() {
	cards := c.gossip.others()
	states := make([]*wire.State, len(cards))
	var asks sync.WaitGroup
	for i, card := range cards {
		asks.Go(func() { states[i] = c.ask(c.life, card.Id, card.Address) })
	}
	asks.Wait()
	members := []*wire.State{c.state()}
	complete := true
	for _, s := range states {
		switch {
		case s == nil:
			complete = false // alive in gossip and not to be asked: it may have state
		case s.HasState:
			c.joinVia(s)
			return
		case s.Id == c.cfg.NodeID:
			c.joined(fault.New(fault.Conflict, "another node %s is there, at %s: give this one an id of its own", s.Id, s.Address))
			complete = false
		case s.BootstrapExpect != uint32(c.cfg.BootstrapExpect):
			c.joined(fault.New(fault.Conflict, "node %s has bootstrap_expect %d, this one %d: no cluster is formed until they agree", s.Id, s.BootstrapExpect, c.cfg.BootstrapExpect))
			complete = false
		default:
			members = append(members, s)
		}
	}
	n := c.cfg.BootstrapExpect
	if complete {
		c.joined(nil)
	}
	if n == 0 || !complete || len(members) < n {
		return
	}
	slices.SortFunc(members, func(a, b *wire.State) int {
		if a.Id < b.Id {
			return -1
		}
		return 1
	})
	if members = members[:n]; members[0].Id == c.cfg.NodeID {
		c.found(members)
	}
}

// found makes a cluster of these nodes when all of them consent. Where more
// nodes than expected start at once, two may think themselves the lowest; the
// founders' sets would overlap, and whoever is in both consents to one only.
func (c *Cluster) found(members []*wire.State) {
	began := time.Now()
	var servers []raft.Server
	for _, m := range members {
		ctx, cancel := context.WithTimeout(c.life, askTimeout)
		payload, _ := proto.Marshal(&wire.Target{Id: c.instance})
		var err error
		if m.Id == c.cfg.NodeID {
			_, err = c.handleConsent(ctx, m.Id, payload)
		} else {
			_, err = c.peers.call(ctx, m.Id, m.Address, methodConsent, payload, 0)
		}
		cancel()
		if err != nil {
			c.log.Info("no cluster is founded yet", "without", m.Id, "error", err)
			return
		}
		servers = append(servers, raft.Server{ID: raft.ServerID(m.Id), Address: place(m.Address, m.Disk)})
	}
	if slices.ContainsFunc(members, func(m *wire.State) bool { return m.Disk == "" }) {
		for i, m := range members { // one of them would not know what else there is
			servers[i].Address = place(m.Address, "")
		}
	}
	if time.Since(began) > foundWithin || c.hasState() {
		return
	}
	if err := wait(c.life, c.raft.BootstrapCluster(raft.Configuration{Servers: servers})); err != nil {
		c.log.Error("the cluster could not be founded", "error", err)
		return
	}
	c.log.Info("founded a cluster", "members", servers)
}

func (c *Cluster) handleConsent(_ context.Context, from string, payload []byte) ([]byte, error) {
	var founder wire.Target
	if err := proto.Unmarshal(payload, &founder); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "not a founder's request")
	}
	c.consent.mu.Lock()
	defer c.consent.mu.Unlock()
	switch {
	case c.hasState():
		return nil, fault.New(fault.Conflict, "node %s has state: it does not found another cluster", c.cfg.NodeID)
	case c.consent.to != founder.Id && time.Now().Before(c.consent.until):
		return nil, fault.New(fault.Conflict, "node %s takes part in the founding of another cluster", c.cfg.NodeID)
	}
	c.consent.to, c.consent.until = founder.Id, time.Now().Add(consentLasts)
	c.endProbation("it takes part in the founding of a cluster")
	c.log.Info("consented to the founding of a cluster", "founder", from)
	return nil, nil
}

// joinVia asks the leader that a node with state knows of.
func (c *Cluster) joinVia(s *wire.State) {
	if s.Leader == "" {
		return
	}
	payload, _ := proto.Marshal(c.request())
	ctx, cancel := context.WithTimeout(c.life, 5*time.Second)
	defer cancel()
	_, err := c.peers.call(ctx, s.Leader, "", methodJoin, payload, 0)
	c.joined(err)
}

// request is what this node says of itself when it joins.
func (c *Cluster) request() *wire.Join {
	return &wire.Join{Id: c.cfg.NodeID, Instance: c.instance, ClusterId: c.machine.ClusterID(), HasState: c.hasState(), Address: c.Address(), Format: c.cfg.Format, Disk: c.disk}
}

func (c *Cluster) joined(err error) {
	if err == nil {
		c.trouble.Store(nil)
		return
	}
	e := fault.From(err)
	if e.Code == fault.NoLeader {
		return // an election; the next round asks again
	}
	if old := c.trouble.Swap(e); old == nil || old.Detail != e.Detail {
		c.log.Error("this node is in no cluster", "error", err)
	}
}

// attend has the leader note this node's address when it has changed. It
// returns true when there is nothing to do.
func (c *Cluster) attend() bool {
	own, _ := c.server(c.cfg.NodeID)
	listed, disk := placed(own.Address)
	leader, known := c.Leader()
	switch {
	case !known:
		c.lookAround()
		return true
	case listed == c.Address() && (disk == "" || disk == c.disk):
		return true
	case leader == c.cfg.NodeID || listed != "":
	default:
		return true // removed, or not told of its place yet
	}
	payload, _ := proto.Marshal(c.request())
	ctx, cancel := context.WithTimeout(c.life, 5*time.Second)
	defer cancel()
	_, err := c.Call(ctx, methodJoin, payload)
	c.joined(err)
	return err == nil
}

// lookAround explains why a node with state hears of no leader, where others
// do: they belong to another cluster, or theirs has removed this node, or does
// not know its new address.
func (c *Cluster) lookAround() {
	for _, card := range c.gossip.others() {
		s := c.ask(c.life, card.Id, card.Address)
		switch {
		case s == nil:
		case foreign(s.ClusterId, c.machine.ClusterID()):
			c.joined(fault.New(fault.Conflict, "node %s belongs to cluster %s, this node's data to cluster %s: start it with an empty data directory to join",
				s.Id, s.ClusterId, c.machine.ClusterID()))
			return
		case s.Leader != "" && s.Leader != c.cfg.NodeID:
			c.joinVia(s)
			return
		}
	}
}
