// Package health owns the active checks of instances: when they run, on which
// node, how an answer is judged, and what of it is told to the leader.
//
// Each check is run by one node, the first of the living in an order that is
// drawn for the check (rendezvous hashing): when a node dies or comes back, only
// its own checks change hands. Two nodes may run a check for the moment in which
// they do not agree who lives.
//
// One scheduler and a bounded number of probes run all checks of a node. Only
// changes of status leave it, many in one call to the leader. A node that cannot
// prove contact with the quorum runs nothing, reports nothing, and forgets what
// it saw. What would leave too few instances of a service is not believed of one
// node alone: the leader has another one look, see [Judge].
//
// The room refuses to connect to addresses that are not public, unless the
// configuration lists them, to follow redirects, and to touch records itself.
package health

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/muster-registry/muster/registry"
)

// The calls nodes make to each other.
const (
	MethodReport = "health.report" // to the leader: statuses that changed
	MethodProbe  = "health.probe"  // from the leader: look now
)

// Key names one check.
type Key struct{ Namespace, Service, ID, Check string }

// instance is the instance that a check belongs to.
type instance struct{ namespace, service, id string }

// State is what the room needs of the node it runs on.
type State interface {
	Registry() *registry.Snapshot
}

// Options shape a Checker.
type Options struct {
	Node      string
	State     State
	Members   func() []string // ids of the nodes that live and are in contact with the quorum, this one included
	Connected func() bool     // whether contact with the quorum was proven of late
	Call      func(ctx context.Context, method string, payload []byte) ([]byte, error)
	Prober    *Prober
	Probes    int // at one time
	Metrics   *Metrics
	Logger    *slog.Logger
}

// Checker runs the checks that are this node's. All methods may be called from
// any goroutine.
type Checker struct {
	opt     Options
	wake    chan struct{} // something is due, or a probe has ended
	pending chan struct{} // there is something to report

	mu      sync.Mutex // guards the rest
	on      bool       // connected, and checks are held
	members []string
	jobs    map[instance][]*job
	queue   queue
	count   int // jobs
	failing int // jobs whose last probe failed
	probing int // probes under way
	reports map[Key]change
	idle    time.Time // since when checks were let go of for want of a connection; zero: they were not
}

// change is a status to report.
type change struct {
	status, output string
	observed       uint64 // revision of the state it was decided on
}

// job is one check that this node runs.
type job struct {
	key     Key
	check   *registry.Check // as registered; not to be modified
	next    time.Time
	pos     int  // in the queue; -1: not in it
	gone    bool // no longer this node's
	failing bool // its last probe failed
	fails   int  // in a row
	passes  int  // in a row
}

// New makes a checker that runs nothing until Run.
func New(o Options) *Checker {
	return &Checker{opt: o, wake: make(chan struct{}, 1), pending: make(chan struct{}, 1),
		jobs: map[instance][]*job{}, reports: map[Key]change{}}
}

// look is how often a checker looks who lives and whether it is connected.
const look = 250 * time.Millisecond

// Run checks until the context ends.
func (c *Checker) Run(ctx context.Context) {
	go c.report(ctx)
	tick := time.NewTicker(look)
	defer tick.Stop()
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			c.release()
			return
		case <-tick.C:
			c.attend()
		case <-due.C:
		case <-c.wake:
		}
		due.Reset(c.start(ctx, time.Now()))
	}
}

// attend takes note of who lives, and of the connection to the quorum.
func (c *Checker) attend() {
	if !c.opt.Connected() {
		c.mu.Lock()
		if c.idle.IsZero() && c.count > 0 {
			c.idle = time.Now()
		}
		c.mu.Unlock()
		c.release()
		return
	}
	members := c.opt.Members()
	c.mu.Lock()
	same := c.on && equal(members, c.members)
	c.mu.Unlock()
	if !same {
		c.take(members)
	}
}

// release lets go of all checks, and of what was seen of them.
func (c *Checker) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on, c.members = false, nil
	for _, jobs := range c.jobs {
		for _, j := range jobs {
			c.drop(j)
		}
	}
	clear(c.jobs)
	clear(c.reports)
}

// take takes over the checks that are this node's among members.
func (c *Checker) take(members []string) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on, c.members, c.idle = true, members, time.Time{}
	here := map[instance]bool{}
	c.opt.State.Registry().EachInstance(func(in *registry.Instance) bool {
		if len(in.Checks) > 0 {
			c.follow(in, now, false)
			here[instance{in.Namespace, in.Service, in.ID}] = true
		}
		return true
	})
	for id := range c.jobs {
		if !here[id] {
			c.forget(id)
		}
	}
	c.nudge()
}

// Late is how long the check that waits longest for a free probe has been due;
// 0 where none waits.
func (c *Checker) Late() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return 0
	}
	return max(0, time.Since(c.queue[0].next))
}

// Idle is how long this node has run none of the checks that were its own, since
// it is not connected to the quorum; 0 where it runs them or had none.
func (c *Checker) Idle() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle.IsZero() {
		return 0
	}
	return time.Since(c.idle)
}

// Reset takes the checks anew: after a restore.
func (c *Checker) Reset() {
	c.mu.Lock()
	on, members := c.on, c.members
	c.mu.Unlock()
	if on {
		c.take(members)
	}
}

// Changed follows a change of one instance: called with the registry as it is
// after it.
func (c *Checker) Changed(namespace, service, id string, now *registry.Snapshot) {
	in, ok := now.Instance(namespace, service, id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.on {
		return
	}
	if !ok || len(in.Checks) == 0 {
		c.forget(instance{namespace, service, id})
		return
	}
	c.follow(in, time.Now(), true)
	c.nudge()
}

func (c *Checker) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
