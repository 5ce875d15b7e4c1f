package cluster

import (
	"context"
	"math"
	"net"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/cluster/wire"
)

// contacts is when other nodes last asked this one, as their leader, for the
// proof that lets them go on, and for how long each of them goes on without.
type contacts struct {
	mu sync.Mutex // guards of
	of map[string]contact
}

type contact struct {
	at   time.Time
	most time.Duration // the node's own MaxStaleness; negative: without end
}

// asking is what a node says of itself with the question: its MaxStaleness in
// milliseconds.
func asking(most time.Duration) []byte {
	said := uint64(math.MaxUint64)
	if most >= 0 {
		said = uint64(most.Milliseconds())
	}
	b, err := proto.Marshal(&wire.Index{Value: said})
	if err != nil {
		panic(err)
	}
	return b
}

// note takes down that a node has asked. It is called before the answer is
// looked for: the node counts from before it has asked. usual is for a node
// that does not say how long it goes on.
func (c *contacts) note(from string, asked []byte, usual time.Duration) {
	most := usual
	var said wire.Index
	switch err := proto.Unmarshal(asked, &said); {
	case err != nil || said.Value == 0:
	case said.Value > math.MaxInt64/uint64(time.Millisecond):
		most = -1
	default:
		most = time.Duration(said.Value) * time.Millisecond
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[string]contact{}
	}
	c.of[from] = contact{time.Now(), most}
}

// after is how long at most from now on a node answers by a state that it
// proved before a moment, where clocks differ in their speed by a hundredth.
// Negative: without end.
func after(proved time.Time, most time.Duration) time.Duration {
	if most < 0 {
		return -1
	}
	return max(0, most+most/100+graceMargin-time.Since(proved))
}

// graceMargin is added to what a node is given: it looks at its clock when a
// call begins.
const graceMargin = time.Second

// Grace tells for each other node how long at the most, from now on, it may go
// on answering callers by a state that lacks something that is committed now:
// until it is without its leader for longer than its MaxStaleness, unless it
// learns of it before. 0: it answers nobody, or knows. Negative: without end.
// Nodes that were removed during this leader's time are among them while that
// is not over. Where no leader answers, every member has all its time.
//
// A node that asks for its proof after the commit gets an index that covers it,
// and applies that before it goes on. So what it goes on by was asked for
// before: at the latest when the leader heard from it last, or, of a former
// leader, before this one was elected (see round).
func (c *Cluster) Grace(ctx context.Context) map[string]time.Duration {
	left := map[string]time.Duration{}
	var said wire.Grace
	if reply, err := c.Call(ctx, methodGrace, nil); err != nil || proto.Unmarshal(reply, &said) != nil {
		for _, s := range c.configuration() {
			left[string(s.ID)] = after(time.Now(), c.cfg.MaxStaleness)
		}
		return left
	}
	for id, d := range said.Left {
		left[id] = time.Duration(d)
	}
	return left
}

func (c *Cluster) handleGrace(context.Context, string, []byte) ([]byte, error) {
	ten := c.serving()
	if ten == nil {
		return nil, noLeader("this node does not lead the cluster")
	}
	out := &wire.Grace{Left: map[string]int64{}}
	for _, s := range c.configuration() {
		out.Left[string(s.ID)] = int64(after(ten.since, c.cfg.MaxStaleness))
	}
	c.contacts.mu.Lock()
	for id, k := range c.contacts.of {
		at := k.at
		if at.Before(ten.since) {
			at = ten.since
		}
		left := after(at, k.most)
		if _, member := out.Left[id]; !member && left == 0 {
			delete(c.contacts.of, id)
			continue
		}
		out.Left[id] = int64(left)
	}
	c.contacts.mu.Unlock()
	delete(out.Left, c.cfg.NodeID)
	return proto.Marshal(out)
}

// Ended tells whether a node's process has ended, where this node can know:
// the two run on one machine, and its kernel says that nothing listens on the
// other's peer port. Over a network, a firewall may say so of a node that lives.
func (c *Cluster) Ended(id string) bool {
	host, _, err := net.SplitHostPort(c.member(id))
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback() && c.refused(id)
}
