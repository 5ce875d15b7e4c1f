package feed_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/registry"
)

func event(ns, svc, id string, revision uint64) *feed.Event {
	return &feed.Event{Type: feed.Put, Kind: registry.KindInstance, Namespace: ns, Service: svc, ID: id, Revision: revision, Record: []byte(`{"id":"` + id + `"}`)}
}

// taken is one watcher and all it was told.
type taken struct {
	sub    *feed.Subscription
	events []*feed.Event
	after  uint64
}

// TestAWatcherMissesNothing publishes changes at random, of which some remove
// several records, to watchers of every scope that come, lag and resume at
// random, with a history that is short. Whatever a watcher was told is what
// happened in its scope, in order, once, and whole changes only; where it would
// not be, it was told to start anew.
func TestAWatcherMissesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := feed.New(feed.Options{Events: 12}, 100)
		var all []*feed.Event
		revision := uint64(100)
		names := []string{"a", "b"}
		scopes := []feed.Scope{{}, {Namespace: "a"}, {Namespace: "a", Service: "a"}, {Namespace: "b", Service: "b"}}
		watchers := map[feed.Scope]*taken{}
		stopped, cancel := context.WithCancel(context.Background())
		cancel()
		read := func(scope feed.Scope, w *taken) {
			for {
				n, err := w.sub.Next(stopped)
				switch {
				case fault.Is(err, fault.Compacted):
					w.sub.Close()
					delete(watchers, scope)
					return
				case err != nil:
					return // nothing is left
				}
				if k := len(n.Events); k > 0 && !n.Events[k-1].Last {
					t.Fatalf("%v: a change was split behind revision %d", scope, n.Events[k-1].Revision)
				}
				w.events = append(w.events, n.Events...)
				var want []*feed.Event
				for _, e := range all {
					if e.Revision > w.after && e.Revision <= n.Revision && (scope.Namespace == "" || scope.Namespace == e.Namespace) && (scope.Service == "" || scope.Service == e.Service) {
						want = append(want, e)
					}
				}
				if len(want) != len(w.events) {
					t.Fatalf("%v behind %d up to %d: told %d events of %d", scope, w.after, n.Revision, len(w.events), len(want))
				}
				for i := range want {
					if want[i] != w.events[i] {
						t.Fatalf("%v: event %d is not the one that happened", scope, i)
					}
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				var batch []*feed.Event
				for range rapid.IntRange(1, 3).Draw(t, "changes") {
					revision++
					ns, svc := rapid.SampledFrom(names).Draw(t, "ns"), rapid.SampledFrom(names).Draw(t, "svc")
					for i := range rapid.IntRange(1, 3).Draw(t, "records") {
						batch = append(batch, event(ns, svc, fmt.Sprint(i), revision))
					}
				}
				revision += uint64(rapid.IntRange(0, 1).Draw(t, "other changes"))
				all = append(all, batch...)
				f.Publish(revision, batch)
			},
			"subscribe": func(t *rapid.T) {
				scope := rapid.SampledFrom(scopes).Draw(t, "scope")
				after := rapid.Uint64Range(max(100, revision-8), revision).Draw(t, "after")
				if w, ok := watchers[scope]; ok {
					w.sub.Close()
					delete(watchers, scope)
				}
				sub, err := f.Subscribe(scope, after)
				if fault.Is(err, fault.Compacted) {
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				watchers[scope] = &taken{sub: sub, after: after}
			},
			"read": func(t *rapid.T) {
				scope := rapid.SampledFrom(scopes).Draw(t, "scope")
				if w, ok := watchers[scope]; ok {
					read(scope, w)
				}
			},
			"check":  func(*rapid.T) { f.Check() },
			"tick":   func(*rapid.T) { f.Tick() },
			"resume": func(*rapid.T) { /* the invariant below */ },
			"": func(t *rapid.T) {
				if sub, err := f.Subscribe(feed.Scope{}, revision); err != nil {
					t.Fatalf("cannot watch from now on: %v", err)
				} else {
					sub.Close()
				}
			},
		})
	})
}

// TestWatchersAtOnce has many watchers read while changes come, and holds each
// to the same sequence; the race detector looks on.
func TestWatchersAtOnce(t *testing.T) {
	const changes, watchers = 2000, 16
	f := feed.New(feed.Options{Events: 4 * changes}, 0)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for w := range watchers {
		scope := feed.Scope{Namespace: "shop", Service: fmt.Sprint(w % 2)}
		sub, err := f.Subscribe(scope, 0)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer sub.Close()
			for next := uint64(1 + w%2); next <= changes; {
				n, err := sub.Next(ctx)
				if err != nil {
					t.Errorf("watcher %d before revision %d: %v", w, next, err)
					return
				}
				for _, e := range n.Events {
					if e.Revision != next || e.Service != scope.Service {
						t.Errorf("watcher %d got revision %d of %s for %d", w, e.Revision, e.Service, next)
						return
					}
					next += 2
				}
			}
		})
	}
	for r := uint64(1); r <= changes; r++ {
		f.Publish(r, []*feed.Event{event("shop", fmt.Sprint((r-1)%2), "i", r)})
		if rand.IntN(100) == 0 {
			f.Check()
		}
	}
	wg.Wait()
}

// TestAChangeWakesItsOwnWatchersOnly waits in virtual time: nobody is woken by
// another service.
func TestAChangeWakesItsOwnWatchersOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := feed.New(feed.Options{}, 0)
		woken := map[string]int{}
		var mu sync.Mutex
		ctx, cancel := context.WithCancel(t.Context())
		for _, svc := range []string{"a", "b"} {
			changed, release := f.Watch(feed.Scope{Namespace: "shop", Service: svc})
			go func() {
				defer release()
				select {
				case <-changed:
					mu.Lock()
					woken[svc]++
					mu.Unlock()
				case <-ctx.Done():
				}
			}()
		}
		synctest.Wait()
		f.Publish(1, []*feed.Event{event("shop", "a", "i", 1)})
		synctest.Wait()
		mu.Lock()
		if woken["a"] != 1 || woken["b"] != 0 {
			t.Errorf("woken: %v", woken)
		}
		mu.Unlock()
		cancel()
		synctest.Wait()
	})
}

// TestProgressIsABookmark resumes from where a watcher was told it is, though
// nothing happened in its scope.
func TestProgressIsABookmark(t *testing.T) {
	f := feed.New(feed.Options{Events: 4}, 0)
	sub, err := f.Subscribe(feed.Scope{Namespace: "shop", Service: "quiet"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for r := uint64(1); r <= 20; r++ {
		f.Publish(r, []*feed.Event{event("shop", "busy", "i", r)})
	}
	f.Tick()
	n, err := sub.Next(t.Context())
	if err != nil || !n.Progress || !n.Check || n.Revision != 20 || len(n.Events) != 0 {
		t.Fatalf("%+v, %v", n, err)
	}
	sub.Close()
	if sub, err = f.Subscribe(feed.Scope{Namespace: "shop", Service: "quiet"}, n.Revision); err != nil {
		t.Fatalf("the bookmark is of no use: %v", err)
	}
	sub.Close()
	if _, err := f.Subscribe(feed.Scope{Namespace: "shop", Service: "busy"}, 1); !fault.Is(err, fault.Compacted) {
		t.Errorf("what has left the history: %v", err)
	}
}

func TestAReplacedStateIsAReset(t *testing.T) {
	f := feed.New(feed.Options{}, 5)
	sub, err := f.Subscribe(feed.Scope{}, 5)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	f.Reset(9)
	if _, err := sub.Next(t.Context()); !fault.Is(err, fault.Compacted) {
		t.Errorf("after the reset: %v", err)
	}
	if _, err := f.Subscribe(feed.Scope{}, 8); !fault.Is(err, fault.Compacted) {
		t.Errorf("resumed from before the reset: %v", err)
	}
	if f.Changed("shop") != 9 {
		t.Errorf("a list may have changed with the reset, at %d", f.Changed("shop"))
	}
}

func TestAStoppingNodeSendsWatchersOn(t *testing.T) {
	f := feed.New(feed.Options{}, 5)
	sub, err := f.Subscribe(feed.Scope{}, 5)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	changed, release := f.Watch(feed.Scope{})
	defer release()
	f.Close()
	if _, err := sub.Next(t.Context()); !fault.Is(err, fault.NotReady) {
		t.Errorf("%v", err)
	}
	<-changed
}

// TestHistoryIsBounded by the bytes of the records, also while somebody watches
// a service that does not change any more.
func TestHistoryIsBounded(t *testing.T) {
	f := feed.New(feed.Options{Events: 1 << 20, Bytes: 64 << 10}, 0)
	sub, err := f.Subscribe(feed.Scope{Namespace: "shop", Service: "quiet"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	f.Publish(1, []*feed.Event{event("shop", "quiet", "i", 1)})
	if n, err := sub.Next(t.Context()); err != nil || len(n.Events) != 1 {
		t.Fatalf("%+v %v", n, err)
	}
	for r := uint64(2); r < 1000; r++ {
		e := event("shop", "busy", "i", r)
		e.Record = make([]byte, 1024)
		f.Publish(r, []*feed.Event{e})
	}
	for _, c := range []struct {
		after uint64
		ok    bool
	}{{1, false}, {900, false}, {960, true}, {999, true}} {
		s, err := f.Subscribe(feed.Scope{Namespace: "shop", Service: "busy"}, c.after)
		if (err == nil) != c.ok {
			t.Errorf("behind %d: %v", c.after, err)
		}
		if err == nil {
			s.Close()
		}
	}
	// Who was told everything is not thrown out by what others do.
	f.Publish(1000, []*feed.Event{event("shop", "quiet", "i", 1000)})
	if n, err := sub.Next(t.Context()); err != nil || len(n.Events) != 1 || n.Events[0].Revision != 1000 {
		t.Fatalf("%+v %v", n, err)
	}
}
