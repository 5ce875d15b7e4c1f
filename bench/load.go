package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// op does one request and returns nil when it did what it should. seq counts
// the worker's requests. It is called by one goroutine only.
type op func(ctx context.Context, seq int) error

// sample is what one timed phase gave.
type sample struct {
	Rate   float64       `json:"rate"` // acknowledged requests a second
	P50    time.Duration `json:"p50_ns"`
	P99    time.Duration `json:"p99_ns"`
	Ops    int           `json:"ops"`
	Errors int           `json:"errors"`
	First  string        `json:"first_error,omitempty"`
	Others float64       `json:"others_cores"` // busy with neither the system nor the generator
}

// run drives the ops in a closed loop, one goroutine each: first for warm, which
// is not counted, then for span. Counted is what begins and ends within span.
func run(ctx context.Context, ops []op, warm, span time.Duration) sample {
	ctx, cancel := context.WithTimeout(ctx, warm+span+20*time.Second)
	defer cancel()
	begin := time.Now().Add(warm)
	end := begin.Add(span)
	var failures failures
	latencies := make([][]time.Duration, len(ops))
	var wg sync.WaitGroup
	for i, do := range ops {
		wg.Go(func() {
			own := make([]time.Duration, 0, 1<<14)
			for seq := 0; ctx.Err() == nil; seq++ {
				from := time.Now()
				if !from.Before(end) {
					break
				}
				err := do(ctx, seq)
				to := time.Now()
				switch {
				case err != nil:
					failures.add(err)
				case !from.Before(begin) && !to.After(end):
					own = append(own, to.Sub(from))
				}
			}
			latencies[i] = own
		})
	}
	wg.Wait()
	return summarize(slices.Concat(latencies...), span, &failures)
}

// failures counts errors and keeps the first. A failing target must not be
// hammered in a tight loop, so add waits a little.
type failures struct {
	n     atomic.Int64
	once  sync.Once
	first string
}

func (f *failures) add(err error) {
	f.n.Add(1)
	f.once.Do(func() { f.first = err.Error() })
	time.Sleep(5 * time.Millisecond)
}

func summarize(all []time.Duration, span time.Duration, f *failures) sample {
	slices.Sort(all)
	return sample{
		Rate: float64(len(all)) / span.Seconds(), P50: quantile(all, 0.50), P99: quantile(all, 0.99),
		Ops: len(all), Errors: int(f.n.Load()), First: f.first,
	}
}

// quantile expects sorted values; the smallest one that at least q of all do
// not exceed. 0 when there are none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// each spreads n jobs over the workers and stops at the first error.
func each(ctx context.Context, n int, workers []func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for _, do := range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := do(ctx, i); err != nil {
					cancel(fmt.Errorf("record %d: %w", i, err))
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// dice gives each worker its own cheap sequence of choices, the same in every
// run and for every system.
type dice uint64

func (d *dice) roll(n int) int {
	*d = *d*6364136223846793005 + 1442695040888963407
	return int(uint64(*d) >> 33 % uint64(n))
}
