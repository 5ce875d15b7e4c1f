package quota

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/muster-registry/muster/fault"
)

// fleet is some keepers that draw from the first one, or from whichever leads,
// over a line that takes a millisecond each way. It lives in a bubble, where
// time passes only when everybody waits.
type fleet struct {
	t        *testing.T
	keepers  []*Keeper
	leader   atomic.Int64 // -1: nobody leads
	calls    atomic.Int64
	document []byte
	stop     context.CancelFunc
}

func newFleet(t *testing.T, n int, document string) *fleet {
	t.Helper()
	f := &fleet{t: t}
	var err error
	if f.document, err = Canonical([]byte(document)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	f.stop = stop
	for range n {
		k := New(Options{
			Document: func() ([]byte, uint64) { return f.document, 1 },
			Nodes:    func() int { return n },
			Call: func(ctx context.Context, _ string, payload []byte) ([]byte, error) {
				f.calls.Add(1)
				time.Sleep(time.Millisecond)
				defer time.Sleep(time.Millisecond)
				at := f.leader.Load()
				if at < 0 {
					return nil, errors.New("nobody leads")
				}
				return f.keepers[at].Serve(ctx, "", payload)
			},
			Logger: slog.New(slog.DiscardHandler),
		})
		f.keepers = append(f.keepers, k)
	}
	f.keepers[0].Lead()
	for _, k := range f.keepers {
		go k.Run(ctx)
	}
	return f
}

// offer sends calls to one node at an even rate for a time, and counts those
// that are allowed.
func (f *fleet) offer(wg *sync.WaitGroup, node int, c Call, perSecond int, during time.Duration, allowed *atomic.Int64) {
	each := time.Second / time.Duration(perSecond)
	for i := range int(during / each) {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * each)
			r, err := f.keepers[node].Check(context.Background(), c)
			if err != nil {
				f.t.Error(err)
				return
			}
			if r.Allowed {
				allowed.Add(c.Hits)
			} else if r.RetryAfter <= 0 {
				f.t.Error("a refusal does not say when to try again")
			}
		})
	}
}

const fiveHundred = `{"quota_management":{"defaults":{"requests_per_second":500,"burst_capacity":1000}}}`

// TestLimitsHoldForTheWholeCluster offers three times the limit in various
// ways: what is allowed is the burst and 500 a second, within 10 %.
func TestLimitsHoldForTheWholeCluster(t *testing.T) {
	for name, load := range map[string][3]int{
		"all on the leader":   {1500, 0, 0},
		"all on one follower": {0, 1500, 0},
		"even":                {500, 500, 500},
		"uneven":              {100, 1300, 100},
		"just above":          {0, 520, 0},
		"far above":           {5000, 5000, 5000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 3, fiveHundred)
				defer f.stop()
				const seconds = 8
				var allowed atomic.Int64
				var wg sync.WaitGroup
				offered := 0
				for node, rate := range load {
					if rate > 0 {
						f.offer(&wg, node, Call{ServiceID: "a", Hits: 1}, rate, seconds*time.Second, &allowed)
						offered += rate * seconds
					}
				}
				wg.Wait()
				// A bank that has just opened holds one second's worth.
				most := min(500*seconds+500, offered)
				if got := int(allowed.Load()); got > most+most/20 || got < most*9/10 {
					t.Errorf("%d of %d are allowed, want %d", got, offered, most)
				}
				if per := f.calls.Load() / seconds; per > 400 {
					t.Errorf("%d peer calls a second", per)
				}
				t.Logf("%d of %d allowed, %d peer calls", allowed.Load(), offered, f.calls.Load())
			})
		})
	}
}

// TestBelowTheLimitNothingIsRefused offers less than the limit, in one hit or
// many a call.
func TestBelowTheLimitNothingIsRefused(t *testing.T) {
	for _, hits := range []int64{1, 10} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 3, fiveHundred)
			defer f.stop()
			var allowed atomic.Int64
			var wg sync.WaitGroup
			for node := range 3 {
				f.offer(&wg, node, Call{ServiceID: "a", Hits: hits}, 150/int(hits), 5*time.Second, &allowed)
			}
			wg.Wait()
			if allowed.Load() != 3*150*5 {
				t.Errorf("%d hits a call: %d of %d are allowed", hits, allowed.Load(), 3*150*5)
			}
		})
	}
}

// TestWithoutALeader: each node grants its part, and what was spent before is
// not granted again.
func TestWithoutALeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, fiveHundred)
		defer f.stop()
		var before, during, after atomic.Int64
		var wg sync.WaitGroup
		f.offer(&wg, 1, Call{ServiceID: "a", Hits: 1}, 1500, 4*time.Second, &before)
		wg.Wait()
		f.leader.Store(-1)
		for node := range 3 {
			f.offer(&wg, node, Call{ServiceID: "a", Hits: 1}, 1000, 4*time.Second, &during)
		}
		wg.Wait()
		if got := during.Load(); got > 2400 || got < 1800 {
			t.Errorf("without a leader %d are allowed in 4 s, want 2000 and at most a second's more", got)
		}
		f.leader.Store(2)
		f.keepers[2].Lead()
		f.offer(&wg, 1, Call{ServiceID: "a", Hits: 1}, 1500, 4*time.Second, &after)
		wg.Wait()
		if got := after.Load(); got > 2800 || got < 2250 {
			t.Errorf("with a new leader %d are allowed in 4 s, want 2000 and at most a second's more", got)
		}
	})
}

// TestAllLimitsOrNone: a call that one of its limits refuses counts against none.
func TestAllLimitsOrNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1, `{"quota_management":{"overrides":[{"principal":"ann","requests_per_second":10},{"service_id":"a","requests_per_second":2}]}}`)
		defer f.stop()
		var allowed, other atomic.Int64
		var wg sync.WaitGroup
		f.offer(&wg, 0, Call{ServiceID: "a", Principal: "ann", Hits: 1}, 50, 10*time.Second, &allowed)
		f.offer(&wg, 0, Call{ServiceID: "b", Principal: "ann", Hits: 1}, 50, 10*time.Second, &other)
		wg.Wait()
		if a, b := allowed.Load(), other.Load(); a > 23 || a < 10 || a+b > 116 || a+b < 95 {
			t.Errorf("%d of the service, want up to 22; %d of the principal, want up to 110", a, a+b)
		}
		r, err := f.keepers[0].Check(context.Background(), Call{ServiceID: "c", Hits: 1})
		if err != nil || !r.Allowed || len(r.Limits) != 0 {
			t.Errorf("what no limit concerns: %+v %v", r, err)
		}
		if _, err := f.keepers[0].Check(context.Background(), Call{ServiceID: "a", Hits: 3}); !fault.Is(err, fault.InvalidField) {
			t.Errorf("more hits than the burst: %v", err)
		}
	})
}

// TestCountsAreBounded asks about more services than there is room for.
func TestCountsAreBounded(t *testing.T) {
	b := &bank{}
	now := time.Now()
	b.open(now)
	limit := Limit{Rate: Rate{1, 10}}
	for i := range maxKeys {
		limit.Key = Key(fmt.Sprint("service/default/", i))
		if got, _ := b.draw(now, limit, 1, 1); got != 1 {
			t.Fatalf("%d: %d", i, got)
		}
	}
	limit.Key = "service/default/more"
	if got, _ := b.draw(now, limit, 1, 1); got != 0 {
		t.Error("a call is allowed without being counted")
	}
	// Once the others are full again, there is room.
	if got, _ := b.draw(now.Add(time.Minute), limit, 1, 1); got != 1 || len(b.buckets) != 1 {
		t.Errorf("%d allowed, %d buckets", got, len(b.buckets))
	}
}

func BenchmarkCheck(b *testing.B) {
	document, err := Canonical([]byte(`{"quota_management":{"defaults":{"requests_per_second":10000000,"burst_capacity":100000000}}}`))
	if err != nil {
		b.Fatal(err)
	}
	var k *Keeper
	k = New(Options{
		Document: func() ([]byte, uint64) { return document, 1 }, Nodes: func() int { return 1 }, Logger: slog.New(slog.DiscardHandler),
		Call: func(ctx context.Context, _ string, p []byte) ([]byte, error) { return k.Serve(ctx, "", p) },
	})
	go k.Run(b.Context())
	for b.Loop() {
		if r, err := k.Check(b.Context(), Call{ServiceID: "a", Hits: 1}); err != nil || len(r.Limits) != 1 {
			b.Fatal(r, err)
		}
	}
}
