package cluster

import (
	"context"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/fault"
)

// Network stands in for the peer port and the gossip where clusters run inside
// of one process, in virtual time: whole messages travel, with no connections,
// no TLS and no addresses of the machine. Only simulations set it.
type Network interface {
	// Attach puts a node that starts on the network. Its Link is closed when
	// the node stops.
	Attach(Station) Link
}

// Station is a node as the others on a [Network] see it.
type Station struct {
	Card      *wire.Card
	ClusterID func() string
	// Answer runs one call of the node from, which belongs to the cluster.
	Answer func(ctx context.Context, from, cluster string, call *wire.Call) *wire.Reply
}

// Wires carry Raft's messages.
type Wires interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// Link is what one node has of a [Network]. The addresses of Raft's messages
// are "id@address".
type Link interface {
	Wires
	// Call carries one call to a node and its reply back. sent: it may have got
	// there, even if there is an error.
	Call(ctx context.Context, id, address string, call *wire.Call) (reply *wire.Reply, sent bool, err error)
	// Cards are those of the other nodes that are up, ordered by id.
	Cards() []*wire.Card
	// Over is closed when the node's process has ended since.
	Over(id string) <-chan struct{}
}

// linked makes a call through the link, with the errors of a stream's.
func (p *peers) linked(ctx context.Context, id, address string, call *wire.Call) ([]byte, error) {
	reply, sent, err := p.c.link.Call(ctx, id, address, call)
	switch {
	case err == nil:
		return reply.Payload, fromWire(reply.Fault)
	case sent:
		return nil, fault.Lost(fault.NoLeader, err, "node %s was asked and did not answer; the request may have been executed", id)
	}
	return nil, fault.Wrap(fault.NoLeader, err, "node %s could not be asked in time; nothing was changed", id)
}

// attach puts this node on the network that the configuration names.
func (c *Cluster) attach() {
	if c.advertise.Load() == nil {
		c.advertise.Store(&c.cfg.PeerAddr)
	}
	s := &service{c: c}
	c.link = c.cfg.Network.Attach(Station{
		Card:      &wire.Card{Id: c.cfg.NodeID, Instance: c.instance, Address: c.Address(), Meta: c.cfg.Meta},
		ClusterID: c.machine.ClusterID, Answer: s.answer,
	})
}

// open makes the node reachable: on the peer port, or on a network that stands
// in for it.
func (c *Cluster) open(ctx context.Context) (err error) {
	if c.cfg.Network != nil {
		c.attach()
		return nil
	}
	if c.port, err = c.listen(ctx); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot listen on the peer port %s", c.cfg.PeerAddr)
	}
	if c.advertise.Load() == nil {
		address := c.port.ln.Addr().String()
		c.advertise.Store(&address)
	}
	return nil
}

// close is the end of open.
func (c *Cluster) close() {
	switch {
	case c.link != nil:
		_ = c.link.Close()
	case c.port != nil:
		_ = c.port.ln.Close()
		_ = c.port.peer.Close()
	}
}

// wires are Raft's own, on the peer port or on the network in its place.
func (c *Cluster) wires() Wires {
	if c.link != nil {
		return c.link
	}
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger: raftLogger(c.log), Stream: &layer{queue: c.port.raft, c: c},
		MaxPool: raftPool, Timeout: raftTimeout, MsgpackUseNewTimeFormat: true,
	})
}
