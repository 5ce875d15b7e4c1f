package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"google.golang.org/protobuf/proto"
)

// tenure is one stay of this node in the leadership, from the moment on that
// an entry of its own term has been applied. Before that the leader does not
// know what is committed, and serves nothing.
type tenure struct {
	term  uint64
	ctx   context.Context // ends with the leadership
	since time.Time       // no former leader has proved anything to anybody after it
}

// IsLeader reports whether this node leads and has applied an entry of its
// own term. It may be over by the time the caller looks.
func (c *Cluster) IsLeader() bool { return c.serving() != nil }

// Leader names the leader as far as this node knows.
func (c *Cluster) Leader() (id string, known bool) {
	if c.raft == nil {
		return "", false
	}
	_, server := c.raft.LeaderWithID()
	return string(server), server != ""
}

// Term is Raft's current term.
func (c *Cluster) Term() uint64 { return c.raft.CurrentTerm() }

// OnLeadership registers what runs while this node leads, each in its own
// goroutine. The context ends when the leadership does; the next tenure starts
// only after all have returned.
func (c *Cluster) OnLeadership(fn func(ctx context.Context)) { c.onLead = append(c.onLead, fn) }

// leads asks Raft whether this node leads now, and in which term. The term is
// read before and after: it never changes while the state stays Leader.
func (c *Cluster) leads() (term uint64, ok bool) {
	term = c.raft.CurrentTerm()
	return term, c.raft.State() == raft.Leader && c.raft.CurrentTerm() == term
}

// serving returns the tenure when this node leads and may answer for the
// cluster, else nil.
func (c *Cluster) serving() *tenure {
	t := c.tenure.Load()
	if t == nil {
		return nil
	}
	if term, ok := c.leads(); !ok || term != t.term {
		return nil
	}
	return t
}

// watchLeadership follows Raft's word on who leads. Raft blocks until it is
// heard, so nothing here may wait.
func (c *Cluster) watchLeadership() {
	var office sync.WaitGroup
	end := func() {}
	defer func() {
		end()
		c.tenure.Store(nil)
		office.Wait()
	}()
	over := make(chan struct{})
	close(over)
	for {
		select {
		case <-c.done:
			return
		case leads := <-c.notify:
			end()
			c.tenure.Store(nil)
			end = func() {}
			if !leads {
				continue
			}
			ctx, cancel := context.WithCancel(c.life)
			before, now := over, make(chan struct{})
			end, over = cancel, now
			office.Go(func() {
				defer close(now)
				<-before
				c.hold(ctx)
			})
		}
	}
}

// hold takes the leadership up and does what comes with it until it ends.
func (c *Cluster) hold(ctx context.Context) {
	term, ok := c.leads()
	if !ok || !c.takeUp(ctx, term) {
		return
	}
	c.tenure.Store(&tenure{term: term, ctx: ctx, since: time.Now()})
	if ctx.Err() != nil {
		c.tenure.Store(nil) // lost meanwhile: watchLeadership has cleared it before
		return
	}
	c.log.Info("this node leads", "term", term)
	var duties sync.WaitGroup
	duties.Go(func() { c.steward(ctx) })
	for _, fn := range c.onLead {
		duties.Go(func() { fn(ctx) })
	}
	<-ctx.Done()
	duties.Wait()
	c.log.Info("this node no longer leads", "term", term)
}

// takeUp commits and applies an empty batch of this term, which brings the
// machine up to everything committed before, and gives a new cluster its id.
// Raft's own no-op does not do: it never reaches the machine, so nobody could
// wait for its index.
func (c *Cluster) takeUp(ctx context.Context, term uint64) bool {
	batches := []*command.Batch{{Format: c.machine.Level()}}
	for len(batches) > 0 {
		if now, ok := c.leads(); !ok || now != term || ctx.Err() != nil {
			return false
		}
		entry, err := proto.Marshal(batches[0])
		if err != nil {
			panic(err)
		}
		future := c.raft.Apply(entry, time.Second)
		if err := wait(ctx, future); err != nil {
			c.log.Warn("the leadership is not taken up yet", "term", term, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		if c.machine.AppliedIndex() < future.Index() {
			return false // it has halted: see fsm
		}
		batches = batches[1:]
		if len(batches) == 0 && c.machine.ClusterID() == "" {
			id := &command.ClusterInit{ClusterId: uuid.NewString()}
			batches = append(batches, &command.Batch{Format: c.machine.Level(), Commands: []*command.Command{
				{Time: time.Now().UnixNano(), Op: &command.Command_ClusterInit{ClusterInit: id}},
			}})
		}
	}
	now, ok := c.leads()
	return ok && now == term
}

// noLeader is the definite refusal of what only the leader may do.
func noLeader(format string, args ...any) *fault.Error {
	e := fault.New(fault.NoLeader, format, args...)
	e.RetryAfter = time.Second
	return e
}
