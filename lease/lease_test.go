package lease_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/lease"
	"github.com/muster-registry/muster/registry"
)

// state is a registry that proposals change at once, as a cluster of one would.
type state struct {
	mu       sync.Mutex // guards the rest
	now      *registry.Snapshot
	revision uint64
	changed  func([]lease.Key, *registry.Snapshot)
}

func (s *state) Registry() *registry.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *state) stamp() registry.Stamp {
	s.revision++
	return registry.Stamp{Revision: s.revision, Time: time.Now(), By: "test"}
}

var changes = map[command.Leases_Change]registry.LeaseChange{
	command.Leases_EXPIRED: registry.Expired, command.Leases_BACK: registry.Back, command.Leases_DEREGISTER: registry.Deregister,
}

func (s *state) Propose(_ context.Context, c *command.Command) (*command.Receipt, error) {
	var keys []lease.Key
	s.change(func(x *registry.Txn) {
		for _, it := range c.GetLeases().Items {
			if x.Lease(s.stamp(), it.Namespace, it.Service, it.Name, changes[it.Change], it.Observed) {
				keys = append(keys, lease.Key{Namespace: it.Namespace, Service: it.Service, ID: it.Name})
			}
		}
	}, func() []lease.Key { return keys })
	return &command.Receipt{}, nil
}

func (s *state) change(do func(*registry.Txn), keys func() []lease.Key) {
	s.mu.Lock()
	x := s.now.Txn(nil)
	do(x)
	s.now = x.Commit()
	now := s.now
	s.mu.Unlock()
	if s.changed != nil {
		s.changed(keys(), now)
	}
}

func (s *state) register(t *testing.T, id string, ttl, deregister time.Duration) lease.Key {
	t.Helper()
	key := lease.Key{Namespace: "default", Service: "cart", ID: id}
	s.change(func(x *registry.Txn) {
		spec := fmt.Appendf(nil, `{"address":"10.0.0.1","port":80,"version":"","zone":"","weight":1,"tags":[],"metadata":{},"ttl":%q,"deregister_after":%q,"checks":[]}`, ttl, deregister)
		if _, _, err := x.PutInstance(s.stamp(), key.Namespace, key.Service, id, spec, 0, true); err != nil {
			t.Fatal(err)
		}
	}, func() []lease.Key { return []lease.Key{key} })
	return key
}

func (s *state) status(id string) string {
	if in, ok := s.Registry().Instance("default", "cart", id); ok {
		return in.Status
	}
	return "gone"
}

func keeper(t *testing.T, s *state) *lease.Keeper {
	t.Helper()
	k := lease.New(s, slog.New(slog.DiscardHandler))
	s.changed = k.Changed
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	go k.Run(ctx)
	synctest.Wait()
	return k
}

func want(t *testing.T, s *state, id, status string) {
	t.Helper()
	synctest.Wait()
	if got := s.status(id); got != status {
		t.Errorf("after %s %s is %s, not %s", time.Since(start), id, got, status)
	}
}

// start is when virtual time begins.
var start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// The stated time: a silent instance is critical within TTL + 1 s, and removed
// deregister_after later; one that beats stays.
func TestSilenceIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &state{now: registry.New()}
		k := keeper(t, s)
		s.register(t, "silent", 10*time.Second, time.Minute)
		loud := s.register(t, "loud", 10*time.Second, time.Minute)
		beat := func(d time.Duration) {
			for range d / time.Second {
				time.Sleep(time.Second)
				if unknown, err := k.Beat(t.Context(), []lease.Key{loud}); err != nil || len(unknown) > 0 {
					t.Fatalf("beat: unknown %v, error %v", unknown, err)
				}
			}
		}
		beat(9 * time.Second)
		want(t, s, "silent", registry.Passing)
		beat(2 * time.Second)
		want(t, s, "silent", registry.Critical)
		want(t, s, "loud", registry.Passing)
		beat(55 * time.Second)
		want(t, s, "silent", registry.Critical)
		beat(7 * time.Second)
		want(t, s, "silent", "gone")
		want(t, s, "loud", registry.Passing)
	})
}

func TestHeartbeatBringsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &state{now: registry.New()}
		k := keeper(t, s)
		key := s.register(t, "i", 10*time.Second, time.Hour)
		time.Sleep(11 * time.Second)
		want(t, s, "i", registry.Critical)
		if _, err := k.Beat(t.Context(), []lease.Key{key}); err != nil {
			t.Fatal(err)
		}
		want(t, s, "i", registry.Passing)
		unknown, err := k.Beat(t.Context(), []lease.Key{key, {Namespace: "default", Service: "cart", ID: "nobody"}})
		if err != nil || len(unknown) != 1 || unknown[0] != 1 {
			t.Errorf("unknown %v, error %v", unknown, err)
		}
	})
}

// A status the caller has set lasts until the next heartbeat; maintenance
// outlives heartbeats and silence.
func TestCallersStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &state{now: registry.New()}
		k := keeper(t, s)
		for _, id := range []string{registry.Warning, registry.Critical, registry.Maintenance} {
			key := s.register(t, id, 10*time.Second, time.Minute)
			s.change(func(x *registry.Txn) {
				in, _ := s.now.Instance("default", "cart", id)
				if _, err := x.SetStatus(s.stamp(), "default", "cart", id, id, "caller", in.Revision); err != nil {
					t.Fatal(err)
				}
			}, func() []lease.Key { return []lease.Key{key} })
		}
		key := func(id string) lease.Key { return lease.Key{Namespace: "default", Service: "cart", ID: id} }
		if _, err := k.Beat(t.Context(), []lease.Key{key(registry.Warning), key(registry.Maintenance)}); err != nil {
			t.Fatal(err)
		}
		want(t, s, registry.Warning, registry.Passing)
		want(t, s, registry.Maintenance, registry.Maintenance)
		time.Sleep(2 * time.Minute)
		want(t, s, registry.Maintenance, registry.Maintenance)
		want(t, s, registry.Critical, "gone")
	})
}

// An election or a restore never empties the registry: whoever begins to hold
// the deadlines gives every instance a full TTL.
func TestNewLeaderExtends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &state{now: registry.New()}
		s.register(t, "i", 10*time.Second, time.Hour)
		time.Sleep(time.Hour) // nobody led
		k := keeper(t, s)
		time.Sleep(9 * time.Second)
		want(t, s, "i", registry.Passing)
		k.Reset()
		time.Sleep(9 * time.Second)
		want(t, s, "i", registry.Passing)
		time.Sleep(3 * time.Second)
		want(t, s, "i", registry.Critical)
	})
}

// Heartbeats that wait together travel together, and each gets its own answer.
func TestBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &state{now: registry.New()}
		k := keeper(t, s)
		known := s.register(t, "i", 10*time.Second, time.Hour)
		var calls int
		b := lease.NewBatch(func(ctx context.Context, method string, payload []byte) ([]byte, error) {
			calls++
			time.Sleep(time.Millisecond)
			return k.Serve(ctx, payload)
		})
		go b.Run(t.Context())
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				key, code := known, fault.Code("")
				if i%2 == 1 {
					key.ID, code = "nobody", fault.InstanceNotFound
				}
				if err := b.Beat(t.Context(), key); (err != nil) != (code != "") || (err != nil && !fault.Is(err, code)) {
					t.Errorf("beat %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if calls > 3 {
			t.Errorf("200 heartbeats took %d calls", calls)
		}
	})
}
