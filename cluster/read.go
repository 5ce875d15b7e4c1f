package cluster

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/fault"
	"google.golang.org/protobuf/proto"
)

const (
	roundTimeout = 700 * time.Millisecond
	// readTimeout bounds a linearizable read's wait for its proof: a minority
	// must refuse within 2 s, the way to the caller included.
	readTimeout = 1600 * time.Millisecond
)

// ReadIndex returns nil once the local machine shows every change that was
// acknowledged, anywhere, before the call. Nothing is written to the log. All
// calls waiting at one moment share one confirmed round. Errors: no_leader
// within 2 s when no majority confirms, too_stale when this node cannot catch
// up in that time; a context that ends counts as its time being up.
func (c *Cluster) ReadIndex(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	from := c.reads
	if c.serving() != nil {
		from = c.points
	}
	index, err := from.do(ctx)
	if err != nil {
		return err
	}
	if err := c.machine.AwaitApplied(ctx, index); err != nil {
		return fault.Wrap(fault.TooStale, err, "this node has applied %d of the %d entries the read needs", c.machine.AppliedIndex(), index)
	}
	c.freshen(began)
	c.proven()
	return nil
}

// round is the leader's proof that a read may be served, as in Ongaro's
// dissertation, §6.4, with terms in place of heartbeats.
//
// Let the read arrive before the round begins. The leader of term T has
// applied an entry of T. It notes its commit index i, then asks the voters of
// its latest configuration for their current term. Say a majority, itself
// included, answers with at most T.
//
// Claim: i covers every change acknowledged before the round. Changes of T
// were acknowledged by this node only after its commit index had passed them.
// Changes of terms before T are in this node's log below its first own entry
// (Leader Completeness), which is below i. Suppose one of a later term was
// acknowledged, and let T' > T be the first later term with a leader. That
// leader was elected before the round by a majority, of this configuration or
// of one that differs from it by one server, so that the majorities share a
// voter. That voter made its term T' durable and visible before it gave its
// vote, hence before it was asked; terms never fall; so it answered with T' or
// more. Contradiction.
//
// Configurations further apart than one server do not weaken this: between
// them lies one that was committed in T or before by a majority which then
// refuses its vote to a log without it. Non-voters elect no one and are not
// asked. raft.VerifyLeader counts them, and counts answers to what it sent
// before it was asked; it is not used.
//
// The index is one the machine will see: from a leader's first own batch on,
// only commands and configurations are appended, and both reach the machine.
// (muster creates no barriers, and a no-op only starts a term.)
func (c *Cluster) round(ctx context.Context) (uint64, error) {
	ten := c.serving()
	if ten == nil {
		return 0, noLeader("this node does not lead the cluster")
	}
	c.metrics.rounds.Inc()
	index := c.raft.CommitIndex()
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	defer context.AfterFunc(ten.ctx, cancel)()

	var others []raft.Server
	voters, votes := 0, 0
	for _, s := range c.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if string(s.ID) == c.cfg.NodeID {
			votes++
		} else {
			others = append(others, s)
		}
	}
	answers := make(chan bool, len(others))
	for _, s := range others {
		go func() { answers <- c.termAtMost(ctx, s, ten.term) }()
	}
	for asked := len(others); votes <= voters/2; asked-- {
		if asked == 0 {
			return 0, noLeader("no majority confirms that this node still leads")
		}
		if <-answers {
			votes++
		}
	}
	if term, ok := c.leads(); !ok || term != ten.term {
		return 0, noLeader("this node has just lost the leadership")
	}
	return index, nil
}

// termAtMost asks one voter for its term.
func (c *Cluster) termAtMost(ctx context.Context, s raft.Server, term uint64) bool {
	address, disk := placed(s.Address) // a disk that was replaced has not promised anything
	reply, err := c.peers.call(ctx, string(s.ID), address, methodTerm, []byte(disk), 0)
	if err != nil {
		return false
	}
	var theirs wire.Index
	return proto.Unmarshal(reply, &theirs) == nil && theirs.Value > 0 && theirs.Value <= term
}

// askLeader gets a read point from the leader.
func (c *Cluster) askLeader(ctx context.Context) (uint64, error) {
	reply, err := c.Call(ctx, methodReadIndex, asking(c.cfg.MaxStaleness))
	if err != nil {
		e := *fault.From(err)
		e.Outcome = fault.Definite // a read changes nothing, whatever became of it
		return 0, &e
	}
	var index wire.Index
	if err := proto.Unmarshal(reply, &index); err != nil {
		return 0, fault.From(err)
	}
	return index.Value, nil
}

// gather lets all who wait share one answer, which is asked for only after
// the last of them has come. Who comes while it is being asked waits for the
// next.
type gather struct {
	ask  func(ctx context.Context) (uint64, error)
	life context.Context

	mu      sync.Mutex // guards what follows
	next    *turn
	running bool
}

type turn struct {
	done  chan struct{}
	value uint64
	err   error
}

func (g *gather) do(ctx context.Context) (uint64, error) {
	g.mu.Lock()
	if g.next == nil {
		g.next = &turn{done: make(chan struct{})}
	}
	t := g.next
	if !g.running {
		g.running = true
		go g.run()
	}
	g.mu.Unlock()
	select {
	case <-t.done:
		return t.value, t.err
	case <-ctx.Done():
		return 0, fault.Wrap(fault.NoLeader, ctx.Err(), "no leader confirmed the read in time")
	}
}

func (g *gather) run() {
	for {
		g.mu.Lock()
		t := g.next
		g.next = nil
		if t == nil {
			g.running = false
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		t.value, t.err = g.ask(g.life)
		close(t.done)
	}
}

// poll proves freshness over and over, for Staleness and Ready.
func (c *Cluster) poll() {
	tick := time.NewTicker(c.cfg.Timing.Poll)
	defer tick.Stop()
	for {
		// Who waits for the proof does not matter here: an error only means
		// that the staleness goes on growing.
		_ = c.ReadIndex(c.life)
		select {
		case <-tick.C:
		case <-c.done:
			return
		}
	}
}

// freshen notes that the local state was complete as of a moment.
func (c *Cluster) freshen(asOf time.Time) {
	for {
		old := c.fresh.Load()
		if old != nil && !old.Before(asOf) {
			return
		}
		if c.fresh.CompareAndSwap(old, &asOf) {
			return
		}
	}
}

// apartAfter is how old the last proof of contact with the quorum may be for a
// node to be connected.
const apartAfter = 2 * time.Second

// Connected reports whether contact with the quorum was proven in the last two
// seconds. The others learn of it by gossip. Any goroutine may call it.
func (c *Cluster) Connected() bool { return c.Staleness() < apartAfter }

// Staleness bounds the age of the local state: every change acknowledged
// longer ago than this is visible here. It never understates: it counts from
// before the leader was asked, by the clock that says more (the monotonic one
// stands still while a machine is suspended). math.MaxInt64 until the node has
// caught up for the first time.
func (c *Cluster) Staleness() time.Duration {
	asOf := c.fresh.Load()
	if asOf == nil {
		return math.MaxInt64
	}
	now := time.Now()
	return max(now.Sub(*asOf), now.Round(0).Sub(asOf.Round(0)), 0)
}
