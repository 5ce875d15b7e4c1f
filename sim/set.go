package sim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/jepsen"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// instance is the put of one, with a lease.
func instance(of, id, value, ttl string) *command.Command {
	spec, err := registry.CanonicalInstance(namespace, of, id, fmt.Appendf(nil, `{"address":"192.0.2.1","port":80,"ttl":%q,"metadata":{"value":%q}}`, ttl, value))
	if err != nil {
		panic(err)
	}
	return put(&command.Put{Kind: command.Kind_INSTANCE, Namespace: namespace, Service: of, Name: id, Spec: spec, CreateService: true})
}

// grow adds an instance to the set of an episode.
func (c *caller) grow(ctx context.Context, n *Node, set string) {
	op := jepsen.Op{Worker: c.worker, Node: n.ID, Kind: jepsen.Write, Invoke: c.h.now()}
	op.Key = fmt.Sprintf("%s-%d-%d", set, c.worker, op.Invoke)
	op.Value = op.Key
	receipt, err := n.Submit(ctx, &command.Intent{Principal: operator(), Command: instance(set, op.Key, op.Value, "24h")})
	if err == nil {
		op.Revision = receipt.Revision
	}
	c.h.add(op, err)
}

// complete demands all of the set that was acknowledged, and nothing that was
// refused.
func (w *World) complete(set string) error {
	v, err := w.read(w.Nodes()[0])
	if err != nil {
		return err
	}
	found := map[string]uint64{}
	items, _ := v.Registry.Instances(namespace, set, "", 1<<20)
	for _, in := range items {
		found[in.ID] = in.Revision
	}
	var ops []jepsen.Op
	for _, op := range w.h.all() {
		if strings.HasPrefix(op.Key, set+"-") {
			ops = append(ops, op)
		}
	}
	_, err = jepsen.CheckSet(ops, found)
	return err
}

// look reads what a node has, as it is, and holds it to how old the node says
// it is: every change acknowledged longer ago must be there.
func (c *caller) look(ctx context.Context, n *Node) {
	now := time.Now()
	v, age, err := n.Local(ctx)
	if err != nil {
		return
	}
	if most := c.h.before(now.Add(-age)); v.Revision < most {
		c.blame("%s showed revision %d and said it was %s old at most, when %d had been acknowledged before", n.ID, v.Revision, age, most)
	}
	c.looks.Add(1)
}

// session reads its own write at another node by the write's revision.
func (c *caller) session(ctx context.Context, n *Node, key string) {
	op := jepsen.Op{Kind: jepsen.Write, Key: key, Value: fmt.Sprintf("s%d-%d", c.worker, c.h.now())}
	c.set(ctx, n, op, func(*command.Intent) {})
	revision, other := c.h.of(op.Value), c.anybody(c.r)
	if revision == 0 || other == nil {
		return
	}
	if v, err := other.Await(ctx, revision); err == nil {
		if s, ok := v.Registry.Service(namespace, key); !ok || s.Revision < revision {
			c.blame("%s waited for revision %d and does not show %s", other.ID, revision, key)
		}
		c.looks.Add(1)
	}
}

// revoke refuses a credential from now on, and asks everywhere that it is refused.
func (c *caller) revoke(ctx context.Context, n *Node) {
	rev := &identity.Revocation{Kind: identity.RevokeToken, Value: fmt.Sprintf("t%d-%d", c.worker, c.h.now())}
	spec, err := json.Marshal(rev, json.Deterministic(true), jsontext.Multiline(false))
	if err != nil {
		panic(err)
	}
	in := &command.Intent{Principal: operator(), Command: put(&command.Put{Kind: command.Kind_SETTING, Service: string(setting.Revocation), Name: rev.ID(), Spec: spec})}
	if _, err := n.Submit(ctx, in); err != nil {
		return
	}
	done := time.Now()
	for range 6 {
		time.Sleep(time.Duration(c.r.Int64N(int64(700 * time.Millisecond))))
		if n := c.anybody(c.r); n != nil {
			c.enter(ctx, n, rev.ID(), done)
		}
	}
}

// enter asks a node to let in what was revoked at a moment. A node that hears a
// leader may do so for a second; one that is cut off says how old its state is.
func (c *caller) enter(ctx context.Context, n *Node, revoked string, done time.Time) {
	now := time.Now()
	_, before := n.cluster.Leader()
	let, age, err := n.Enter(ctx, revoked)
	_, after := n.cluster.Leader()
	if err != nil || !let {
		c.denied.Add(1)
		return
	}
	if since := now.Sub(done); before && after && since > 1100*time.Millisecond || age < since {
		c.blame("%s let in what was revoked %s before; its state was %s old, and it knew a leader: %t", n.ID, since, age, before && after)
	}
}

// Enter tells whether a credential of the name is let in, as an edge decides it.
func (n *Node) Enter(ctx context.Context, revocation string) (let bool, age time.Duration, err error) {
	let, err = alive(n, func() (bool, error) {
		if err := errors.Join(n.cluster.Ready(), n.cluster.Current(ctx)); err != nil {
			return false, err
		}
		age = n.cluster.Staleness()
		_, revoked := n.machine.View().Settings.Get(setting.Revocation, "", revocation)
		return !revoked, nil
	})
	return let, age, err
}

// tenant keeps instances by heartbeats. One that is kept must not expire, and
// one that falls silent must.
type tenant struct {
	*World
	set  string
	mu   sync.Mutex // guards last
	last map[string]time.Time
}

const ttl = 20 * time.Second

// keep registers an instance and beats for as long as its time lasts. Another
// one is registered and never heard of again.
func (t *tenant) keep(ctx context.Context, c *caller, id string) {
	for registered := false; ctx.Err() == nil; time.Sleep(time.Second + time.Duration(c.r.Int64N(int64(3*time.Second)))) {
		n := c.anybody(c.r)
		if n == nil {
			continue
		}
		now := time.Now()
		try, cancel := context.WithTimeout(ctx, 3*time.Second)
		var err error
		if registered {
			err = n.Beat(try, t.set, id)
		} else {
			_, err = n.Submit(try, &command.Intent{Principal: operator(), Command: instance(t.set, id, "", ttl.String())})
		}
		cancel()
		if fault.Is(err, fault.InstanceNotFound) {
			t.blame("%s does not know instance %s, which it was told of", n.ID, id)
		}
		if err != nil {
			continue
		}
		t.beaten(id, now)
		if !registered {
			registered, now = true, time.Now()
			if _, err := n.Submit(ctx, &command.Intent{Principal: operator(), Command: instance(t.set, id+"-mute", "", ttl.String())}); err == nil {
				t.beaten(id+"-mute", now)
			}
		}
	}
}

// beaten notes a heartbeat that was confirmed, and that the one before it held
// for as long as it should.
func (t *tenant) beaten(id string, at time.Time) {
	t.mu.Lock()
	was := t.last[id]
	t.last[id] = at
	t.mu.Unlock()
	if was.IsZero() {
		return
	}
	if gone := t.ledger.expired(t.set, id, was); !gone.IsZero() && gone.Before(was.Add(ttl-time.Second)) {
		t.blame("instance %s was beaten at %s and expired %s later", id, was.Format(time.TimeOnly), gone.Sub(was))
	}
}

// silent demands that those who are not heard of any more are given up, in the
// time that a lease and one election take.
func (t *tenant) silent() error {
	time.Sleep(2*ttl + 3*time.Second)
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, last := range t.last {
		if t.ledger.expired(t.set, id, last).IsZero() {
			return fmt.Errorf("instance %s has been silent since %s and has not expired", id, time.Since(last))
		}
	}
	return nil
}
