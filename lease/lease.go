// Package lease owns the deadlines of instances, and of their checks of type
// ttl, about which somebody must report. Heartbeats and reports do not go through
// Raft: the leader keeps each instance's deadline in memory and proposes only
// what changed, many instances in one command.
//
// A deadline is soft state. A new leader gives every instance a full TTL, and up
// to a tenth more so that they do not all end at once: an election or a restore
// never empties the registry. An instance that stops is noticed after its TTL
// plus at most a second, counted anew from an election.
//
// Silence counts only while the leader listens. Time in which it stood still is
// not counted, and where next to nobody is heard of, the silence is taken to be
// on the way here, once: see wave.
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
	"sync/atomic"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/registry"
)

// Tick is how often the leader looks for deadlines that have passed.
const Tick = 250 * time.Millisecond

// patience is how much of the time between two passes counts. What is above it
// the leader spent standing still, or waiting for the log: it may have heard
// nobody then.
const patience = 4 * Tick

// retry is when a change is proposed again that did not come back.
const retry = 5 * time.Second

// maxItems bounds one command of lease changes.
const maxItems = 2048

// Key names one instance, or one of its checks.
type Key struct {
	Namespace, Service, ID string
	Check                  string // empty: the instance itself
}

// State is what the keeper needs of the node it runs on.
type State interface {
	Registry() *registry.Snapshot
	Propose(ctx context.Context, c *command.Command) (*command.Receipt, error)
}

// deadline is when the next thing happens to an instance that stays silent. Its
// times are those of the keeper's clock.
type deadline struct {
	key     Key
	at      time.Time
	queued  time.Time     // where it stands in the queue: at or earlier
	removal bool          // what comes next is not expiry but removal
	renewed uint64        // see registry.Instance.Renewed
	beaten  bool          // it was renewed by a sign of life, or held before this node led
	spared  bool          // given more time since the last one
	last    time.Time     // sign of life; as good as one: registered, or held when this node began to lead
	every   time.Duration // between its signs of life, rather too long than too short
	pos     int
}

// Keeper holds the deadlines while this node leads. All methods may be called
// from any goroutine.
type Keeper struct {
	state     State
	threshold float64
	log       *slog.Logger
	spared    atomic.Uint64

	mu    sync.Mutex // guards the rest
	on    bool
	byKey map[Key]*deadline
	queue queue
	last  time.Time     // pass
	stood time.Duration // still, in all: the clock is behind by as much
}

// New makes a keeper that holds nothing until Run. Threshold is the share of a
// service's instances that is not given up on their first silence; 0: none.
func New(state State, threshold float64, log *slog.Logger) *Keeper {
	return &Keeper{state: state, threshold: threshold, log: log, byKey: map[Key]*deadline{}}
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
		case <-tick.C:
			k.pass(ctx, time.Now()) // a tick may have waited
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
	k.on, k.last, k.stood = true, now, 0
	reg := k.state.Registry()
	n := reg.Counts().Instances // most of which have a lease
	k.byKey, k.queue = make(map[Key]*deadline, n), make(queue, 0, n)
	reg.EachInstance(func(in *registry.Instance) bool {
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

// clock is the time now without that in which this node stood still. The caller
// holds the lock.
func (k *Keeper) clock(now time.Time) time.Time {
	return now.Add(-k.stood - max(0, now.Sub(k.last)-patience))
}

// advance is clock at a pass, after which the time counts again. The caller holds
// the lock.
func (k *Keeper) advance(now time.Time) time.Time {
	if still := now.Sub(k.last) - patience; still > 0 {
		k.stood += still
		k.log.Warn("this node stood still, or waited for the log; silence in that time is not counted", "seconds", still.Seconds())
	}
	k.last = now
	return k.clock(now)
}

// Changed follows changes of instances: called with the registry as it is
// after them.
func (k *Keeper) Changed(keys []Key, now *registry.Snapshot) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.on {
		return
	}
	at := k.clock(time.Now())
	for _, key := range keys {
		if in, ok := now.Instance(key.Namespace, key.Service, key.ID); ok {
			k.follow(in, at, false)
		} else if d, held := k.byKey[key]; held {
			k.drop(d) // those of its checks go when they come up
		}
	}
}

// follow sets the deadlines that belong to the instance as it is now. What only
// a check's result changed leaves those that run as they are.
func (k *Keeper) follow(in *registry.Instance, now time.Time, spread bool) {
	after, removal := next(in)
	k.begin(Key{Namespace: in.Namespace, Service: in.Service, ID: in.ID}, in.Renewed(), now, after, removal, spread)
	for i := range in.Checks {
		c := &in.Checks[i]
		if c.Type != registry.CheckTTL {
			continue
		}
		after := c.TTL
		if in.States[i].Status == registry.Critical {
			after = 0
		}
		k.begin(Key{in.Namespace, in.Service, in.ID, c.ID}, in.Renewed(), now, after, false, spread)
	}
}

// next says what happens to the instance if nobody is heard of it, and when; 0:
// nothing. Who has no lease is removed once its checks have failed for as long.
func next(in *registry.Instance) (after registry.Duration, removal bool) {
	own, by := in.Own()
	switch {
	case own == registry.Critical && by == registry.ByLease,
		in.TTL == 0 && in.Status == registry.Critical && in.StatusBy == registry.ByChecks:
		return in.DeregisterAfter, true
	}
	return in.TTL, false
}

func (k *Keeper) begin(key Key, renewed uint64, now time.Time, after registry.Duration, removal, spread bool) {
	d, held := k.byKey[key]
	if after == 0 {
		if held {
			k.drop(d)
		}
		return
	}
	if held && !spread && d.removal == removal && d.renewed == renewed {
		return
	}
	at := now.Add(time.Duration(after))
	if spread {
		at = at.Add(time.Duration(rand.Int64N(max(int64(after)/10, 0) + 1)))
	}
	again := held && !removal && d.renewed != renewed // registering again is a sign of life, too
	d = k.set(key, at, removal)
	d.renewed, d.spared = renewed, false
	if !held {
		d.last, d.every, d.beaten = now, time.Duration(after)/3, spread // as documented, until it is known better
	} else if again {
		d.beat(now)
	}
}

func (k *Keeper) drop(d *deadline) {
	heap.Remove(&k.queue, d.pos)
	delete(k.byKey, d.key)
}

func (k *Keeper) set(key Key, at time.Time, removal bool) *deadline {
	d, ok := k.byKey[key]
	if !ok {
		d = &deadline{key: key, at: at, queued: at, removal: removal}
		k.byKey[key] = d
		heap.Push(&k.queue, d)
		return d
	}
	d.at, d.removal = at, removal
	// A later deadline stays where it is queued and is put back when it comes
	// up: a heartbeat then costs a map look-up, not a walk through the queue.
	if at.Before(d.queued) {
		d.queued = at
		heap.Fix(&k.queue, d.pos)
	}
	return d
}

// Beat renews the leases and gives the positions of the keys that are unknown:
// those instances must register again. Instances that were critical or warning,
// and not by their checks, pass again before it returns.
func (k *Keeper) Beat(ctx context.Context, keys []Key) (unknown []int, err error) {
	reg := k.state.Registry()
	var back []*command.Leases_Item
	k.mu.Lock()
	now := k.clock(time.Now())
	for i, key := range keys {
		in, ok := reg.Instance(key.Namespace, key.Service, key.ID)
		if !ok {
			unknown = append(unknown, i)
			continue
		}
		if k.on && in.TTL > 0 {
			k.set(key, now.Add(time.Duration(in.TTL)), false).beat(now)
		}
		if own, _ := in.Own(); own == registry.Critical || own == registry.Warning {
			back = append(back, item(in, command.Leases_BACK))
		}
	}
	k.mu.Unlock()
	return unknown, k.propose(ctx, back)
}

// pass proposes what the deadlines before now lead to.
func (k *Keeper) pass(ctx context.Context, now time.Time) {
	reg := k.state.Registry()
	// A lease's change is dropped when the record has changed, a check's is not.
	var items, checks []*command.Leases_Item
	k.mu.Lock()
	now = k.advance(now)
	if len(k.queue) == 0 || k.queue[0].queued.After(now) {
		k.mu.Unlock()
		return
	}
	w := newWave(reg, now)
	for len(k.queue) > 0 && !k.queue[0].queued.After(now) && len(items)+len(checks) < maxItems {
		d := k.queue[0]
		in, ok := reg.Instance(d.key.Namespace, d.key.Service, d.key.ID)
		switch {
		case !ok:
			k.drop(d)
			continue
		case d.at.After(now):
		case d.key.Check != "":
			it, ttl := silent(in, d.key.Check)
			if it == nil {
				k.drop(d)
				continue
			}
			if !k.spare(d, in, ttl, w) {
				checks = append(checks, it)
				d.at = now.Add(retry)
			}
		case in.Status == registry.Maintenance:
			d.at = now.Add(max(time.Duration(in.TTL), retry))
			d.beaten = false // nobody expects to hear of it
		case d.removal || !k.spare(d, in, in.TTL, w):
			items = append(items, due(in, d.removal))
			// Asked again after a while, in case the proposal gets lost; the change
			// itself comes back through Changed and sets the deadline that follows.
			d.at = now.Add(retry)
		}
		d.queued = d.at
		heap.Fix(&k.queue, 0)
	}
	k.mu.Unlock()
	if w.spare > 0 {
		k.spared.Add(uint64(w.spare))
		k.log.Warn("so many have fallen silent at once that they are given their TTL once more", "instances", w.spare)
	}
	if err := k.propose(ctx, append(items, checks...)); err != nil && ctx.Err() == nil {
		k.log.Warn("lease changes were not proposed; they will be again", "items", len(items)+len(checks), "error", err)
	}
}

// due says what happens to a silent instance whose deadline has passed.
func due(in *registry.Instance, removal bool) *command.Leases_Item {
	if removal {
		return item(in, command.Leases_DEREGISTER)
	}
	return item(in, command.Leases_EXPIRED)
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
