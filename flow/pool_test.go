package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
)

var (
	noisy    = flow.Caller{ID: "noisy"}
	modest   = flow.Caller{ID: "modest"}
	operator = flow.Who("sre", []string{"operator"})
)

// enter takes a request in as an edge does, up to its turn.
func enter(f *flow.Flow, v *flow.Visit, who flow.Caller, kind flow.Kind) error {
	if err := v.Arrive(f, "192.0.2.1:4000"); err != nil {
		return err
	}
	if err := v.Enter(who); err != nil {
		return err
	}
	return v.Begin(context.Background(), kind)
}

func refused(t *testing.T, err error, limit string) *fault.Error {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Code != fault.RateLimited || f.Limit == nil || f.Limit.Name != limit || f.RetryAfter <= 0 {
		t.Fatalf("not refused by the limit %s: %v", limit, err)
	}
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// One caller sends as fast as it is answered, on 200 connections; another
// sends one request after the other. However much the first has waiting, each
// request of the other comes next, and none of it is refused.
func TestANoisyCallerLeavesRoom(t *testing.T) {
	for name, kind := range map[string]flow.Kind{"quick": flow.Quick, "changes": flow.Change} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := flow.New(flow.Limits{Working: 8, Changes: 8})
				const each = time.Millisecond // what it takes to answer one
				stop := make(chan struct{})
				var answered atomic.Int64
				var all sync.WaitGroup
				for range 200 {
					all.Go(func() {
						for {
							select {
							case <-stop:
								return
							default:
							}
							var v flow.Visit
							if err := enter(f, &v, noisy, kind); err != nil {
								t.Errorf("the noisy caller is refused: %v", err)
							}
							time.Sleep(each)
							answered.Add(1)
							v.Leave()
						}
					})
				}
				time.Sleep(100 * each)
				before, began := answered.Load(), time.Now()
				const asks = 100
				for i := range asks {
					at := answered.Load()
					var v flow.Visit
					if err := enter(f, &v, modest, kind); err != nil {
						t.Fatalf("request %d of the modest caller is refused: %v", i, err)
					}
					// The noisy caller has 194 waiting; without turns they would all come first.
					if passed := answered.Load() - at; passed > 8 {
						t.Errorf("request %d waited for %d of the noisy caller's", i, passed)
					}
					time.Sleep(each)
					v.Leave()
				}
				// The noisy caller goes on at six eighths of the node, less nothing.
				took := time.Since(began)
				if n := answered.Load() - before; n < int64(took/each)*5 {
					t.Errorf("the noisy caller was answered %d times in %v: more was taken from it than it needed", n, took)
				}
				close(stop)
				all.Wait()
			})
		})
	}
}

// Two that want everything get the same, whatever they have waiting.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := flow.New(flow.Limits{Working: 4})
		var answered [2]atomic.Int64
		stop := time.After(time.Second)
		done := make(chan struct{})
		var all sync.WaitGroup
		for i, n := range []int{100, 4} {
			for range n {
				all.Go(func() {
					for {
						select {
						case <-done:
							return
						default:
						}
						var v flow.Visit
						if err := enter(f, &v, flow.Caller{ID: fmt.Sprint(i)}, flow.Quick); err != nil {
							t.Error(err)
						}
						time.Sleep(time.Millisecond)
						answered[i].Add(1)
						v.Leave()
					}
				})
			}
		}
		<-stop
		close(done)
		a, b := answered[0].Load(), answered[1].Load()
		all.Wait()
		if a < b*9/10 || b < a*9/10 {
			t.Errorf("100 connections were answered %d times, 4 of another caller %d times", a, b)
		}
	})
}

// With every place taken and lines before each, an operator is let in.
func TestOperatorsAlwaysGetIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := flow.New(flow.Limits{InFlight: 40, Working: 4})
		for i := range 40 {
			go func() {
				var v flow.Visit
				_ = enter(f, &v, flow.Caller{ID: fmt.Sprint(i)}, flow.Quick)
				time.Sleep(time.Minute)
				v.Leave()
			}()
		}
		synctest.Wait()
		began := time.Now()
		var v, w flow.Visit
		must(t, enter(f, &v, operator, flow.Quick))
		if took := time.Since(began); took != 0 {
			t.Errorf("the operator waited for %v", took)
		}
		refused(t, enter(f, &w, modest, flow.Quick), "in-flight")
		w.Leave()
		v.Leave()
		time.Sleep(time.Hour)
		must(t, enter(f, &v, modest, flow.Quick))
		v.Leave()
	})
}

// Nobody waits longer than is said, and who goes away leaves no place behind.
func TestWaitingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := flow.New(flow.Limits{Working: 1, QueueWait: 3 * time.Second})
		var first, second, third flow.Visit
		must(t, enter(f, &first, noisy, flow.Quick))
		began := time.Now()
		e := refused(t, enter(f, &second, modest, flow.Quick), "working")
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("waited for %v, want 3s", took)
		}
		if rates, rate := e.Limit.Fields(); rates != `"working";q=1;qu="concurrent-requests"` || rate != `"working";r=0;t=1` {
			t.Errorf("%s %s", rates, rate)
		}
		second.Leave()
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		must(t, third.Arrive(f, ""))
		must(t, third.Enter(modest))
		if err := third.Begin(ctx, flow.Quick); !fault.Is(err, fault.NotReady) {
			t.Errorf("a request that was cancelled: %v", err)
		}
		third.Leave()
		first.Leave()
		must(t, enter(f, &second, modest, flow.Quick))
		second.Leave()
	})
}

// Reads that wait for a change take neither places in flight nor turns.
func TestBlockedReads(t *testing.T) {
	f := flow.New(flow.Limits{InFlight: 8, Working: 2, Blocked: 20, BlockedPerCaller: 15})
	blocked := make([]flow.Visit, 15)
	for i := range blocked {
		must(t, enter(f, &blocked[i], noisy, flow.Quick))
		must(t, blocked[i].Block())
	}
	var v flow.Visit
	must(t, enter(f, &v, noisy, flow.Quick))
	refused(t, v.Block(), "blocked")
	v.Leave()
	must(t, enter(f, &v, modest, flow.Quick))
	must(t, v.Block())
	must(t, v.Resume(t.Context()))
	v.Leave()
	for i := range blocked {
		blocked[i].Leave()
	}
	must(t, enter(f, &v, noisy, flow.Quick))
	must(t, v.Block())
	v.Leave()
}

// A caller's bodies take no more than its share of the memory for bodies; what
// is only announced takes none.
func TestBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := flow.New(flow.Limits{Bodies: 1 << 20, QueueWait: time.Second})
		body := func(n int) io.Reader { return strings.NewReader(strings.Repeat("x", n)) }
		var slow flow.Visit
		must(t, slow.Arrive(f, ""))
		must(t, slow.Enter(noisy))
		var wait [4]flow.Visit
		for i := range wait { // four who announce everything and send nothing
			must(t, wait[i].Arrive(f, ""))
			must(t, wait[i].Enter(noisy))
			r, w := io.Pipe()
			go wait[i].Read(t.Context(), r, 1<<20)
			defer w.CloseWithError(io.ErrUnexpectedEOF)
		}
		synctest.Wait()
		b, err := slow.Read(t.Context(), iotest.OneByteReader(body(700<<10)), 700<<10)
		if err != nil || len(b) != 700<<10 {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		// It has what one caller may have, and waits; another does not.
		var more, other flow.Visit
		must(t, more.Arrive(f, ""))
		must(t, more.Enter(noisy))
		_, err = more.Read(t.Context(), body(200<<10), -1)
		refused(t, err, "bodies")
		must(t, other.Arrive(f, ""))
		must(t, other.Enter(modest))
		if b, err = other.Read(t.Context(), body(200<<10), -1); err != nil || len(b) != 200<<10 {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		slow.Leave()
		if _, err = more.Read(t.Context(), body(200<<10), 200<<10); err != nil {
			t.Error(err)
		}
		more.Leave()
		other.Leave()
	})
}

// Rates hold for each caller and each address, and an address that brings
// nobody who can prove anything is refused.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := flow.New(flow.Limits{
			Caller: flow.Rate{PerSecond: 10}, Address: flow.Rate{PerSecond: 100, Burst: 30}, Failed: flow.Rate{PerSecond: 1, Burst: 3},
		})
		ask := func(from string, who flow.Caller) error {
			var v flow.Visit
			defer v.Leave()
			if err := v.Arrive(f, from); err != nil {
				return err
			}
			return v.Enter(who)
		}
		for range 10 {
			must(t, ask("192.0.2.1:1", noisy))
		}
		e := refused(t, ask("192.0.2.1:2", noisy), "caller")
		if rates, rate := e.Limit.Fields(); rates != `"caller";q=10;w=1` || rate != `"caller";r=0;t=1` {
			t.Errorf("%s %s", rates, rate)
		}
		must(t, ask("192.0.2.1:3", modest))
		must(t, ask("192.0.2.1:3", operator))
		time.Sleep(100 * time.Millisecond)
		must(t, ask("192.0.2.1:4", noisy))
		refused(t, ask("192.0.2.1:4", noisy), "caller")

		time.Sleep(time.Minute)
		for i := range 30 { // an IPv6 host has as many addresses as it likes
			must(t, ask(fmt.Sprintf("[2001:db8::%x]:1", i), flow.Caller{ID: fmt.Sprint(i)}))
		}
		refused(t, ask("[2001:db8::ffff]:1", modest), "address")
		must(t, ask("[2001:db8:0:1::1]:1", modest))

		fail := func(from string) error {
			var v flow.Visit
			defer v.Leave()
			err := v.Arrive(f, from)
			if err == nil {
				v.Failed()
			}
			return err
		}
		for range 3 {
			must(t, fail("192.0.2.9:1"))
		}
		if e := refused(t, fail("192.0.2.9:1"), "failures"); e.RetryAfter > time.Second {
			t.Errorf("to be tried again after %v", e.RetryAfter)
		}
		must(t, ask("192.0.2.10:1", modest))
		time.Sleep(time.Second)
		must(t, ask("192.0.2.9:1", modest))
	})
}

// A million callers and addresses cost no memory once they are gone, and do
// not keep anybody from the rate that is theirs.
func TestAMillionCallers(t *testing.T) {
	f := flow.New(flow.Limits{Caller: flow.Rate{PerSecond: 1000}, Address: flow.Rate{PerSecond: 1000}})
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, kept := heap(), 0
	for i := range 1_000_000 {
		var v flow.Visit
		if err := v.Arrive(f, fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255)); err != nil {
			kept++
		} else if err := v.Enter(flow.Caller{ID: fmt.Sprint("caller-", i)}); err != nil {
			kept++
		} else if err := v.Begin(t.Context(), flow.Quick); err != nil {
			t.Fatal(err)
		}
		v.Leave()
	}
	if kept > 0 {
		t.Errorf("%d of a million who sent one request were refused", kept)
	}
	if after := heap(); after > before+1<<20 {
		t.Errorf("a million callers left %d KiB behind", (after-before)>>10)
	}
	runtime.KeepAlive(f)
}

// What the limits cost a request when there is nobody else.
func BenchmarkVisit(b *testing.B) {
	for name, l := range map[string]flow.Limits{
		"default": {},
		"rates":   {Caller: flow.Rate{PerSecond: 1e9}, Address: flow.Rate{PerSecond: 1e9}},
	} {
		b.Run(name, func(b *testing.B) {
			f := flow.New(l)
			b.ReportAllocs()
			for b.Loop() {
				var v flow.Visit
				if err := enter(f, &v, modest, flow.Quick); err != nil {
					b.Fatal(err)
				}
				v.Pause()
				v.Leave()
			}
		})
	}
}

// The same with several callers on all processors.
func BenchmarkVisitParallel(b *testing.B) {
	f := flow.New(flow.Limits{Working: 1000})
	var n atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		who := flow.Caller{ID: fmt.Sprint(n.Add(1))}
		for pb.Next() {
			var v flow.Visit
			if err := enter(f, &v, who, flow.Quick); err != nil {
				b.Fatal(err)
			}
			v.Leave()
		}
	})
}
