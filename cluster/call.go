package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/fault"
	"google.golang.org/protobuf/proto"
)

// leaderWait is how long a call looks for a leader before it is refused: an
// election fits in, the two seconds a minority may take are kept.
const leaderWait = 1200 * time.Millisecond

// The calls nodes make to each other for the cluster's own sake.
const (
	methodTerm      = "cluster.term"
	methodReadIndex = "cluster.read-index"
	methodState     = "cluster.state"
	methodConsent   = "cluster.consent"
	methodJoin      = "cluster.join"
	methodRemove    = "cluster.remove"
	methodTransfer  = "cluster.transfer"
	methodGone      = "cluster.gone"
	methodGrace     = "cluster.grace"
)

// Handler answers a peer call on this node. from is the node id in the
// caller's certificate; the node's own id when it called itself. Errors travel
// as fault.Error without their cause; any other error becomes internal.
type Handler func(ctx context.Context, from string, payload []byte) ([]byte, error)

type handler struct {
	run        Handler
	leaderOnly bool
	open       bool // also for nodes of other clusters, and of none
	own        bool // the cluster's; those that are not leaderOnly say nothing, and do nothing, that a stranger could use
}

// forwarded marks the context of a call that came from another node.
type forwarded struct{}

// Handle registers what answers a method. A leaderOnly method is refused with
// a definite no_leader on every other node; the leadership may still be lost
// while it runs, which Propose then tells. Every method answers members only:
// those that this node knows of. The context's deadline is the caller's.
func (c *Cluster) Handle(method string, leaderOnly bool, h Handler) {
	if _, twice := c.handlers[method]; twice {
		panic("cluster: two handlers for " + method)
	}
	c.handlers[method] = handler{run: h, leaderOnly: leaderOnly}
}

// Call makes a call to the leader: this node itself, or one hop away. Without
// a leader it waits up to 1.2 s and then refuses with a definite no_leader. A
// definite no_leader from a node that no longer leads is tried again while
// that time remains. When the connection or the context ends after the call
// was sent, the outcome is unknown. A call made while handling a forwarded
// call goes no further than this node: else loop_detected.
func (c *Cluster) Call(ctx context.Context, method string, payload []byte) ([]byte, error) {
	var last error = noLeader("the cluster has no leader that this node knows of")
	patience, cancel := context.WithTimeout(ctx, leaderWait)
	defer cancel()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		reply, err := c.callLeader(ctx, patience, method, payload)
		if err == nil {
			return reply, nil
		}
		e := fault.From(err)
		if e.Code != fault.NoLeader || e.Outcome == fault.Unknown {
			return nil, err
		}
		last = err
		retry := time.NewTimer(pause)
		select {
		case <-retry.C:
			continue
		case <-patience.Done():
		case <-c.done:
		}
		retry.Stop()
		return nil, last
	}
}

// callLeader tries once; looking for the leader ends with patience.
func (c *Cluster) callLeader(ctx, patience context.Context, method string, payload []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(fault.NoLeader, err, "the time was up before a leader was found; nothing was changed")
	}
	id, known := c.Leader()
	if !known {
		return nil, noLeader("the cluster has no leader that this node knows of")
	}
	if id == c.cfg.NodeID {
		return c.admit(ctx, id, "", &wire.Call{Method: method, Payload: payload})
	}
	if ctx.Value(forwarded{}) != nil {
		return nil, fault.New(fault.LoopDetected, "the request was forwarded to node %s, which does not lead; it is not forwarded again", c.cfg.NodeID)
	}
	return c.peers.callSoon(ctx, patience, id, c.member(id), method, payload, 1)
}

// CallNode makes a call to one node, this one included. Errors are as for
// Call, without the wait for a leader.
func (c *Cluster) CallNode(ctx context.Context, id, method string, payload []byte) ([]byte, error) {
	if id == c.cfg.NodeID {
		return c.admit(ctx, id, "", &wire.Call{Method: method, Payload: payload})
	}
	return c.peers.call(ctx, id, c.member(id), method, payload, 0)
}

// member is a node's address in the cluster's configuration, or empty.
func (c *Cluster) member(id string) string {
	s, _ := c.server(id)
	address, _ := placed(s.Address)
	return address
}

// configuration is the latest this node knows, committed or not. The addresses
// in it are places.
func (c *Cluster) configuration() []raft.Server {
	if c.raft == nil {
		return nil
	}
	return c.raft.GetConfiguration().Configuration().Servers
}

func (c *Cluster) voters() (n int) {
	for _, s := range c.configuration() {
		if s.Suffrage == raft.Voter {
			n++
		}
	}
	return n
}

// handleOwn registers the cluster's own methods.
func (c *Cluster) handleOwn() {
	own := func(method string, leaderOnly, open bool, h Handler) {
		c.handlers[method] = handler{run: h, leaderOnly: leaderOnly, open: open, own: true}
	}
	own(methodTerm, false, false, func(_ context.Context, _ string, disk []byte) ([]byte, error) {
		if err := c.isDisk(string(disk)); err != nil {
			return nil, err
		}
		return proto.Marshal(&wire.Index{Value: c.raft.CurrentTerm()})
	})
	own(methodReadIndex, true, false, func(ctx context.Context, from string, asked []byte) ([]byte, error) {
		c.contacts.note(from, asked, c.cfg.MaxStaleness)
		index, err := c.points.do(ctx)
		if err != nil {
			return nil, err
		}
		return proto.Marshal(&wire.Index{Value: index})
	})
	own(methodState, false, true, func(context.Context, string, []byte) ([]byte, error) {
		return proto.Marshal(c.state())
	})
	own(methodConsent, false, true, c.handleConsent)
	own(methodJoin, true, true, c.handleJoin)
	own(methodRemove, true, false, c.handleRemove)
	own(methodTransfer, true, false, c.handleTransfer)
	own(methodGone, false, false, c.handleGone)
	own(methodGrace, true, false, c.handleGrace)
}
