// Package lease owns the deadlines of instances. Heartbeats do not go through
// Raft: the leader keeps each instance's deadline in memory and proposes only
// what changed, many instances in one command.
//
// A deadline is soft state. A new leader gives every instance a full TTL, and up
// to a tenth more so that they do not all end at once: an election or a restore
// never empties the registry. An instance that stops is noticed after its TTL
// plus at most a second, counted anew from an election.
//
// The room refuses to touch records itself: it proposes, and Apply drops what
// an instance's newer change has overtaken.
package lease

import (
	"container/heap"
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/registry"
)

// Tick is how often the leader looks for deadlines that have passed.
const Tick = 250 * time.Millisecond

// maxItems bounds one command of lease changes.
const maxItems = 2048

// Key names one instance.
type Key struct{ Namespace, Service, ID string }

// State is what the keeper needs of the node it runs on.
type State interface {
	Registry() *registry.Snapshot
	Propose(ctx context.Context, c *command.Command) (*command.Receipt, error)
}

// deadline is when the next thing happens to an instance that stays silent.
type deadline struct {
	key     Key
	at      time.Time
	queued  time.Time // where it stands in the queue: at or earlier
	expired bool      // the TTL has passed; what comes next is removal
	pos     int
}

// Keeper holds the deadlines while this node leads. All methods may be called
// from any goroutine.
type Keeper struct {
	state State
	log   *slog.Logger

	mu    sync.Mutex // guards the rest
	on    bool
	byKey map[Key]*deadline
	queue queue
}

// New makes a keeper that holds nothing until Run.
func New(state State, log *slog.Logger) *Keeper {
	return &Keeper{state: state, log: log, byKey: map[Key]*deadline{}}
}

// Run holds the deadlines and proposes what follows from them until the
// context ends, which it does when the node no longer leads.
func (k *Keeper) Run(ctx context.Context) {
	k.rebuild(time.Now())
	defer k.forget()
	tick := time.NewTicker(Tick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			k.pass(ctx, now)
		}
	}
}

// Reset gives every instance a full TTL again: after a restore.
func (k *Keeper) Reset() {
	k.mu.Lock()
	on := k.on
	k.mu.Unlock()
	if on {
		k.rebuild(time.Now())
	}
}

func (k *Keeper) rebuild(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.on = true
	clear(k.byKey)
	k.queue = nil
	k.state.Registry().EachInstance(func(in *registry.Instance) bool {
		k.follow(in, now, true)
		return true
	})
}

func (k *Keeper) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.on = false
	clear(k.byKey)
	k.queue = nil
}

// Changed follows changes of instances: called with the registry as it is
// after them.
func (k *Keeper) Changed(keys []Key, now *registry.Snapshot) {
	at := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.on {
		return
	}
	for _, key := range keys {
		if in, ok := now.Instance(key.Namespace, key.Service, key.ID); ok {
			k.follow(in, at, false)
		} else if d, held := k.byKey[key]; held {
			heap.Remove(&k.queue, d.pos)
			delete(k.byKey, key)
		}
	}
}

// follow sets the deadline that belongs to the instance as it is now.
func (k *Keeper) follow(in *registry.Instance, now time.Time, spread bool) {
	key := Key{in.Namespace, in.Service, in.ID}
	expired := in.Status == registry.Critical && in.StatusBy == registry.ByLease
	at := now.Add(time.Duration(in.TTL))
	if expired {
		at = now.Add(time.Duration(in.DeregisterAfter))
	}
	if spread {
		at = at.Add(time.Duration(rand.Int64N(max(int64(in.TTL)/10, 0) + 1)))
	}
	k.set(key, at, expired)
}

func (k *Keeper) set(key Key, at time.Time, expired bool) {
	d, ok := k.byKey[key]
	if !ok {
		d = &deadline{key: key, at: at, queued: at, expired: expired}
		k.byKey[key] = d
		heap.Push(&k.queue, d)
		return
	}
	d.at, d.expired = at, expired
	// A later deadline stays where it is queued and is put back when it comes
	// up: a heartbeat then costs a map look-up, not a walk through the queue.
	if at.Before(d.queued) {
		d.queued = at
		heap.Fix(&k.queue, d.pos)
	}
}

// Beat renews the leases and gives the positions of the keys that are unknown:
// those instances must register again. Instances that were critical or warning
// pass again before it returns.
func (k *Keeper) Beat(ctx context.Context, keys []Key) (unknown []int, err error) {
	now, reg := time.Now(), k.state.Registry()
	var back []*command.Leases_Item
	k.mu.Lock()
	for i, key := range keys {
		in, ok := reg.Instance(key.Namespace, key.Service, key.ID)
		if !ok {
			unknown = append(unknown, i)
			continue
		}
		if k.on {
			k.set(key, now.Add(time.Duration(in.TTL)), false)
		}
		if in.Status == registry.Critical || in.Status == registry.Warning {
			back = append(back, item(in, command.Leases_BACK))
		}
	}
	k.mu.Unlock()
	return unknown, k.propose(ctx, back)
}

// pass proposes what the deadlines before now lead to.
func (k *Keeper) pass(ctx context.Context, now time.Time) {
	reg := k.state.Registry()
	var items []*command.Leases_Item
	k.mu.Lock()
	for len(k.queue) > 0 && !k.queue[0].queued.After(now) && len(items) < maxItems {
		d := k.queue[0]
		if d.at.After(now) {
			d.queued = d.at
			heap.Fix(&k.queue, 0)
			continue
		}
		in, ok := reg.Instance(d.key.Namespace, d.key.Service, d.key.ID)
		if !ok {
			heap.Pop(&k.queue)
			delete(k.byKey, d.key)
			continue
		}
		if it := due(in, d.expired); it != nil {
			items = append(items, it)
		}
		// Asked again after a while, in case the proposal gets lost; the change
		// itself comes back through Changed and sets the deadline that follows.
		d.at = now.Add(5 * time.Second)
		if in.Status == registry.Maintenance {
			d.at = now.Add(time.Duration(in.TTL))
		}
		d.queued = d.at
		heap.Fix(&k.queue, 0)
	}
	k.mu.Unlock()
	if err := k.propose(ctx, items); err != nil && ctx.Err() == nil {
		k.log.Warn("lease changes were not proposed; they will be again", "items", len(items), "error", err)
	}
}

// due says what happens to a silent instance whose deadline has passed. An
// instance in maintenance is left alone: its operator said so.
func due(in *registry.Instance, expired bool) *command.Leases_Item {
	switch {
	case in.Status == registry.Maintenance:
		return nil
	case expired:
		return item(in, command.Leases_DEREGISTER)
	default:
		return item(in, command.Leases_EXPIRED)
	}
}

func item(in *registry.Instance, change command.Leases_Change) *command.Leases_Item {
	return &command.Leases_Item{
		Namespace: in.Namespace, Service: in.Service, Name: in.ID, Change: change, Observed: in.Revision,
	}
}

func (k *Keeper) propose(ctx context.Context, items []*command.Leases_Item) error {
	if len(items) == 0 {
		return nil
	}
	_, err := k.state.Propose(ctx, &command.Command{
		Principal: "muster", Time: time.Now().UnixNano(),
		Op: &command.Command_Leases{Leases: &command.Leases{Items: items}},
	})
	return err
}

type queue []*deadline

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].queued.Before(q[j].queued) }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i]; q[i].pos, q[j].pos = i, j }
func (q *queue) Push(x any)        { d := x.(*deadline); d.pos = len(*q); *q = append(*q, d) }
func (q *queue) Pop() any {
	old := *q
	d := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return d
}
