package cluster

import (
	"context"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/fault"
	"google.golang.org/protobuf/proto"
)

// handleJoin takes a node in as a non-voter, or notes its new address. A node
// that comes with an empty disk under a member's name, or at a dead member's
// address, takes its place: the old one is removed first, by the others.
func (c *Cluster) handleJoin(ctx context.Context, from string, payload []byte) ([]byte, error) {
	var j wire.Join
	if err := proto.Unmarshal(payload, &j); err != nil || j.Id == "" || j.Address == "" || j.Instance == "" {
		return nil, fault.Wrap(fault.BadRequest, err, "not a request to join")
	}
	if j.Id != from {
		return nil, fault.New(fault.Forbidden, "node %s may not join as %s", from, j.Id)
	}
	select {
	case c.joining <- struct{}{}:
		defer func() { <-c.joining }()
	case <-ctx.Done():
		return nil, noLeader("another node is being taken in; nothing was changed")
	}
	s, member := c.server(j.Id)
	if err := c.mayJoin(ctx, &j, s, member); err != nil {
		return nil, err
	}
	address, disk := placed(s.Address)
	switch {
	case member && disk != "" && j.Disk != disk:
		if err := c.remove(ctx, j.Id, RemovedReplaced); err != nil {
			return nil, err
		}
		member = false
	case member && address == j.Address:
		return nil, nil
	case !member:
		if err := c.makeRoom(ctx, &j); err != nil {
			return nil, err
		}
	}
	if !member {
		if disk = ""; c.machine.Level() >= diskLevel {
			disk = j.Disk
		}
	}
	c.log.Info("taking a node in", "id", j.Id, "address", j.Address, "member", member)
	return nil, c.change(ctx, func() raft.Future {
		if member && s.Suffrage == raft.Voter {
			return c.raft.AddVoter(s.ID, place(j.Address, disk), 0, changeTimeout)
		}
		return c.raft.AddNonvoter(raft.ServerID(j.Id), place(j.Address, disk), 0, changeTimeout)
	})
}

// mayJoin refuses who is of another cluster, too old, or not who it says it is.
// s is the member of its name, where there is one.
func (c *Cluster) mayJoin(ctx context.Context, j *wire.Join, s raft.Server, member bool) error {
	address, disk := placed(s.Address)
	switch {
	case foreign(j.ClusterId, c.machine.ClusterID()):
		return fault.New(fault.Conflict, "node %s holds data of cluster %s, this is cluster %s: start it with an empty data directory to join",
			j.Id, j.ClusterId, c.machine.ClusterID())
	case knows(j.Format) < c.machine.Level():
		return fault.New(fault.Conflict, "node %s knows feature levels up to %d, and the cluster is at %d: start a newer version of muster there", j.Id, knows(j.Format), c.machine.Level())
	case !member && j.HasState:
		return fault.New(fault.Conflict, "node %s holds data and is not a member: it was removed, or comes from elsewhere; start it with an empty data directory to join", j.Id)
	case !member:
		return nil
	}
	if other := c.ask(ctx, j.Id, address); other != nil && other.Instance != j.Instance {
		return fault.New(fault.Conflict, "another node %s is alive at %s: give this one an id of its own", j.Id, address)
	}
	if disk != "" && j.Disk != disk && j.HasState {
		return fault.New(fault.Conflict, "node %s was replaced: the cluster knows it by another disk than this one; start it with an empty data directory to take its place again", j.Id)
	}
	return nil
}

// makeRoom removes the dead member that was where a new node is now.
func (c *Cluster) makeRoom(ctx context.Context, j *wire.Join) error {
	for _, m := range c.configuration() {
		if at, _ := placed(m.Address); at != j.Address || string(m.ID) == j.Id {
			continue
		}
		if c.ask(ctx, string(m.ID), j.Address) != nil {
			return fault.New(fault.Conflict, "node %s is alive and listed at %s, where node %s says that it is: give it an address of its own, or wait until the other's new one is noted", m.ID, j.Address, j.Id)
		}
		if s := c.ask(ctx, j.Id, j.Address); s == nil || s.Instance != j.Instance {
			return fault.New(fault.Conflict, "node %s is not at %s, where it says that it is: see advertise.peer", j.Id, j.Address)
		}
		return c.remove(ctx, string(m.ID), RemovedReplaced)
	}
	return nil
}
