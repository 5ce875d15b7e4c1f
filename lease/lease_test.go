package lease_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
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
	stall    atomic.Int64 // how long the next proposal takes
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
	time.Sleep(time.Duration(s.stall.Swap(0)))
	var keys []lease.Key
	s.change(func(x *registry.Txn) {
		for _, it := range c.GetLeases().Items {
			if it.Change == command.Leases_CHECK {
				if x.SetCheck(s.stamp(), it.Namespace, it.Service, it.Name, registry.CheckResult{Check: it.Check, Status: it.Status, Output: it.Output, Observed: it.Observed}) {
					keys = append(keys, lease.Key{Namespace: it.Namespace, Service: it.Service, ID: it.Name})
				}
				continue
			}
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
	k := lease.New(s, 0.5, slog.New(slog.DiscardHandler))
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

// Without a TTL an instance needs no heartbeats, and a heartbeat gives it no
// deadline; with deregister_after 0 a silent one stays, critical. Either can be
// changed while the deadline runs.
func TestNoDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &state{now: registry.New()}
		k := keeper(t, s)
		still := s.register(t, "still", 0, time.Hour)
		s.register(t, "kept", 10*time.Second, 0)
		time.Sleep(time.Minute)
		want(t, s, "still", registry.Passing)
		want(t, s, "kept", registry.Critical)
		if unknown, err := k.Beat(t.Context(), []lease.Key{still}); err != nil || len(unknown) > 0 {
			t.Fatalf("beat: unknown %v, error %v", unknown, err)
		}
		time.Sleep(30 * time.Hour) // more than any TTL
		want(t, s, "still", registry.Passing)
		want(t, s, "kept", registry.Critical)
		k.Reset()
		time.Sleep(30 * time.Hour) // more than any TTL
		want(t, s, "still", registry.Passing)
		want(t, s, "kept", registry.Critical)
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

func (s *state) put(t *testing.T, id, body string) lease.Key {
	t.Helper()
	key := lease.Key{Namespace: "default", Service: "cart", ID: id}
	s.change(func(x *registry.Txn) {
		spec, err := registry.CanonicalInstance(key.Namespace, key.Service, id, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		var observed uint64
		if in, ok := s.now.Instance(key.Namespace, key.Service, id); ok {
			observed = in.Revision
		}
		if _, _, err := x.PutInstance(s.stamp(), key.Namespace, key.Service, id, spec, observed, true); err != nil {
			t.Fatal(err)
		}
	}, func() []lease.Key { return []lease.Key{key} })
	return key
}

// A check of type ttl is critical when nobody reported for its TTL, and the
// instance with it; an instance without a lease needs nothing else, and is
// removed when its checks have been critical for deregister_after.
func TestReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &state{now: registry.New()}
		k := keeper(t, s)
		a := s.put(t, "a", `{"address":"10.0.0.1","port":80,"ttl":"0s","deregister_after":"1m","checks":[{"type":"ttl","id":"alive","ttl":"10s","initial_status":"critical"},{"type":"ttl","id":"once","ttl":"0s"}]}`)
		s.put(t, "b", `{"address":"10.0.0.1","port":80,"ttl":"0s","deregister_after":"0s","checks":[{"type":"ttl","id":"alive","ttl":"10s"}]}`)
		report := func(check, status, output string) {
			t.Helper()
			key := a
			key.Check = check
			if absent, err := k.Report(t.Context(), []lease.Report{{Key: key, Status: status, Output: output}}); err != nil || len(absent) > 0 {
				t.Fatalf("absent %v, error %v", absent, err)
			}
		}
		want(t, s, "a", registry.Critical)
		report("alive", registry.Passing, "up")
		want(t, s, "a", registry.Passing)
		for range 12 {
			time.Sleep(5 * time.Second)
			// Another check's results renew nothing of this one's.
			report("once", registry.Warning, "")
			want(t, s, "a", registry.Warning)
			report("once", registry.Passing, "")
			report("alive", registry.Passing, "the status is the same")
		}
		want(t, s, "a", registry.Passing)
		want(t, s, "b", registry.Critical)
		if in, _ := s.Registry().Instance("default", "cart", "a"); in.States[0].Output != "up" {
			t.Errorf("the output is %q", in.States[0].Output)
		}
		time.Sleep(21 * time.Second) // twice its TTL: it is the last one that passes
		want(t, s, "a", registry.Critical)
		if in, _ := s.Registry().Instance("default", "cart", "a"); in.StatusBy != registry.ByChecks || in.States[0].Output == "up" {
			t.Errorf("critical by %s: %q", in.StatusBy, in.States[0].Output)
		}
		time.Sleep(62 * time.Second)
		want(t, s, "a", "gone")
		time.Sleep(30 * time.Hour)
		want(t, s, "b", registry.Critical) // deregister_after: never
	})
}

// What checks say neither renews a lease nor ends its silence.
func TestChecksDoNotRenewTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &state{now: registry.New()}
		k := keeper(t, s)
		a := s.put(t, "a", `{"address":"10.0.0.1","port":80,"ttl":"10s","checks":[{"type":"ttl","id":"c","ttl":"0s"}]}`)
		check := a
		check.Check = "c"
		for i := range 11 {
			time.Sleep(time.Second)
			status := []string{registry.Warning, registry.Passing}[i%2]
			if _, err := k.Report(t.Context(), []lease.Report{{Key: check, Status: status}}); err != nil {
				t.Fatal(err)
			}
		}
		want(t, s, "a", registry.Critical)
		if _, err := k.Beat(t.Context(), []lease.Key{a}); err != nil {
			t.Fatal(err)
		}
		want(t, s, "a", registry.Warning)
		var absences int
		for _, key := range []lease.Key{{Namespace: "default", Service: "cart", ID: "nobody", Check: "c"}, {Namespace: "default", Service: "cart", ID: "a", Check: "d"}} {
			absent, err := k.Report(t.Context(), []lease.Report{{Key: key, Status: registry.Passing}})
			if err != nil {
				t.Fatal(err)
			}
			absences += len(absent)
		}
		if absences != 2 {
			t.Errorf("%d of 2 reports were about nothing", absences)
		}
	})
}

// pool is instances that send heartbeats every 3 s, with a TTL of 10 s.
type pool struct {
	keys []lease.Key

	mu   sync.Mutex // guards mute
	mute int        // how many of the keys are silent
}

func (p *pool) silence(n int) { p.mu.Lock(); defer p.mu.Unlock(); p.mute = n }

func newPool(t *testing.T, s *state, k *lease.Keeper) *pool {
	p := &pool{}
	add := func(service, id string) {
		key := lease.Key{Namespace: "default", Service: service, ID: id}
		s.change(func(x *registry.Txn) {
			spec, err := registry.CanonicalInstance("default", service, id, []byte(`{"address":"10.0.0.1","port":80,"ttl":"10s"}`))
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := x.PutInstance(s.stamp(), "default", service, id, spec, 0, true); err != nil {
				t.Fatal(err)
			}
		}, func() []lease.Key { return []lease.Key{key} })
		p.keys = append(p.keys, key)
	}
	for i := range 10 {
		add("many", fmt.Sprintf("i%d", i))
	}
	for _, one := range []string{"one", "two", "three"} {
		add(one, "i")
	}
	go func() {
		tick := time.NewTicker(3 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-t.Context().Done():
				return
			case <-tick.C:
				p.mu.Lock()
				loud := p.keys[p.mute:]
				p.mu.Unlock()
				_, _ = k.Beat(t.Context(), loud)
			}
		}
	}()
	return p
}

// empty lists the services of which nothing is found.
func (s *state) empty() (names []string) {
	all, _ := s.Registry().Entries("", "", 0)
	for _, e := range all {
		if e.Passing() == 0 {
			names = append(names, e.Service())
		}
	}
	return names
}

// All heartbeats come one TTL late: no service is dropped as a whole, not one of
// a single instance. When they do not come at all, all is dropped one TTL later.
func TestLateHeartbeatsEmptyNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &state{now: registry.New()}
		k := keeper(t, s)
		p := newPool(t, s, k)
		time.Sleep(7 * time.Second)
		p.silence(len(p.keys))
		for range 12 {
			time.Sleep(time.Second)
			if empty := s.empty(); len(empty) > 0 {
				t.Fatalf("%s of silence, and %v are empty", time.Since(start), empty)
			}
		}
		p.silence(0)
		time.Sleep(4 * time.Second)
		if e, _ := s.Registry().Discover("default", "many"); e.Passing() != 10 || len(s.empty()) > 0 {
			t.Errorf("when they are back %d of 10 pass, and %v are empty", e.Passing(), s.empty())
		}
		if k.Spared() == 0 {
			t.Error("nothing was counted")
		}
		p.silence(len(p.keys))
		time.Sleep(25 * time.Second)
		if empty := s.empty(); len(empty) != 4 {
			t.Errorf("silent for two TTLs, and only %v are empty", empty)
		}
	})
}

// A service whose instances are all silent while others are heard keeps half of
// them for one TTL more; a single one is given up in time.
func TestHalfIsGivenUpInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &state{now: registry.New()}
		k := keeper(t, s)
		p := newPool(t, s, k)
		time.Sleep(10 * time.Second)
		p.silence(11) // of "many" and "one" nothing is heard any more
		time.Sleep(11 * time.Second)
		if e, _ := s.Registry().Discover("default", "many"); e.Passing() != 5 {
			t.Errorf("%d of 10 are left after a TTL", e.Passing())
		}
		if empty := s.empty(); len(empty) != 1 || empty[0] != "one" {
			t.Errorf("%v are empty", empty)
		}
		time.Sleep(10 * time.Second)
		if empty := s.empty(); len(empty) != 2 {
			t.Errorf("%v are empty after two TTLs", empty)
		}
	})
}

// services registers n services of one instance each, and sends their
// heartbeats at times that are spread over the interval, until silenced.
func (s *state) services(t *testing.T, k *lease.Keeper, n int, ttl, every time.Duration) (silenced *atomic.Bool) {
	silenced = new(atomic.Bool)
	for i := range n {
		key := s.single(t, fmt.Sprint("s", i), ttl)
		go func() {
			for next := every * time.Duration(i) / time.Duration(n); ; next = every {
				select {
				case <-t.Context().Done():
					return
				case <-time.After(next):
				}
				if !silenced.Load() {
					_, _ = k.Beat(t.Context(), []lease.Key{key})
				}
			}
		}()
	}
	return silenced
}

func (s *state) single(t *testing.T, service string, ttl time.Duration) lease.Key {
	t.Helper()
	key := lease.Key{Namespace: "default", Service: service, ID: "i"}
	s.change(func(x *registry.Txn) {
		spec, err := registry.CanonicalInstance("default", service, "i", fmt.Appendf(nil, `{"address":"10.0.0.1","port":80,"ttl":%q}`, ttl))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := x.PutInstance(s.stamp(), "default", service, "i", spec, 0, true); err != nil {
			t.Fatal(err)
		}
	}, func() []lease.Key { return []lease.Key{key} })
	return key
}

// Services of one instance each, whose heartbeats do not come in step, and are
// all one TTL late: not one is dropped, though the first is due when the last
// was heard of not long ago, though somebody who was never heard of expires
// meanwhile, and though one comes through. One that falls silent alone is given
// up in time.
func TestLateHeartbeatsOutOfStepEmptyNothing(t *testing.T) {
	for _, every := range []time.Duration{3 * time.Second, 5 * time.Second, 6 * time.Second} { // of a TTL of 10 s
		t.Run(every.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &state{now: registry.New()}
				k := keeper(t, s)
				silenced := s.services(t, k, 20, 10*time.Second, every)
				loud := s.single(t, "loud", 10*time.Second)
				beat := func(d time.Duration) (lost []string) {
					t.Helper()
					for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
						_, _ = k.Beat(t.Context(), []lease.Key{loud})
						lost = append(lost, s.empty()...)
					}
					return lost
				}
				beat(time.Minute)
				silenced.Store(true)
				beat(4 * time.Second)
				s.single(t, "fresh", time.Second) // and never heard of
				if lost := beat(6 * time.Second); slices.ContainsFunc(lost, func(one string) bool { return one != "fresh" }) {
					t.Fatalf("%v were dropped", lost)
				}
				silenced.Store(false)
				if lost := beat(20 * time.Second); slices.ContainsFunc(lost, func(one string) bool { return one != "fresh" }) {
					t.Fatalf("%v were dropped", lost)
				}
				spared := k.Spared()
				if spared == 0 {
					t.Error("nothing was counted")
				}
				alone := s.single(t, "alone", 10*time.Second)
				_, _ = k.Beat(t.Context(), []lease.Key{alone})
				beat(11 * time.Second)
				if empty := s.empty(); !slices.Contains(empty, "alone") || k.Spared() != spared {
					t.Errorf("silent alone for a TTL and a second, and found: %v are empty, and %d were spared", empty, k.Spared()-spared)
				}
			})
		})
	}
}

// While the leader stands still it hears nobody, and what it did not hear in
// that time is no silence: also not of the only instance there is.
func TestStandingStillIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &state{now: registry.New()}
		k := keeper(t, s)
		alone := s.single(t, "alone", 10*time.Second)
		for range 4 {
			time.Sleep(3 * time.Second)
			_, _ = k.Beat(t.Context(), []lease.Key{alone})
		}
		s.stall.Store(int64(time.Minute)) // the next proposal takes as long
		s.single(t, "fresh", time.Second)
		time.Sleep(time.Minute)
		want := func(what string, names ...string) {
			t.Helper()
			synctest.Wait()
			if got := s.empty(); !slices.Equal(got, names) {
				t.Errorf("%s: %v are empty, not %v", what, got, names)
			}
		}
		time.Sleep(5 * time.Second)
		want("5 s after the leader goes on", "fresh")
		_, _ = k.Beat(t.Context(), []lease.Key{alone})
		time.Sleep(9 * time.Second)
		want("before its TTL", "fresh")
		time.Sleep(2 * time.Second)
		want("after its TTL and a second", "alone", "fresh")
	})
}
