package main

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestQuantile(t *testing.T) {
	var v []time.Duration
	for i := range 100 {
		v = append(v, time.Duration(i+1))
	}
	for q, want := range map[float64]time.Duration{0.5: 50, 0.99: 99, 1: 100, 0: 1} {
		if got := quantile(v, q); got != want {
			t.Errorf("quantile %v of 1…100 is %d, want %d", q, got, want)
		}
	}
	if quantile(nil, 0.5) != 0 || quantile(v[:1], 0.99) != 1 {
		t.Error("the quantile of none or one value")
	}
}

// What is counted adds up: nothing of the warm-up, every failure. Time is
// virtual: a machine that stands still counts as much.
func TestRunCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, failed, before int
		begin := time.Now()
		do := func(context.Context, int) error {
			calls++
			if calls%1000 == 0 {
				failed++
				return errors.New("every thousandth")
			}
			if time.Since(begin) < 20*time.Millisecond {
				before++
			}
			time.Sleep(10 * time.Microsecond)
			return nil
		}
		got := run(context.Background(), []op{do}, 20*time.Millisecond, 40*time.Millisecond)
		if got.Ops == 0 || got.Ops != calls-failed-before || failed == 0 || got.Errors != failed || got.First != "every thousandth" {
			t.Errorf("%d calls, %d before the count began, %d failed; sample %+v", calls, before, failed, got)
		}
		if want := float64(got.Ops) / 0.04; math.Abs(got.Rate-want) > 0.01 {
			t.Errorf("rate %v, want %v", got.Rate, want)
		}
	})
}

func TestEachStopsAtTheFirstError(t *testing.T) {
	bad := errors.New("bad")
	err := each(context.Background(), 1000, []func(context.Context, int) error{func(_ context.Context, i int) error {
		if i == 7 {
			return bad
		}
		if i > 7 {
			t.Errorf("went on to %d", i)
		}
		return nil
	}})
	if !errors.Is(err, bad) {
		t.Error(err)
	}
}

// Both systems store records of the size the table speaks of.
func TestBodies(t *testing.T) {
	for _, stamp := range []int{0, 1, 41_000, 255<<20 + 99_999} {
		if b := instanceBody(stamp, "24h", "24h"); len(b) != bodySize || !json.Valid(b) {
			t.Errorf("stamp %d: %d bytes: %s", stamp, len(b), b)
		}
	}
	if b := serviceBody(3); !json.Valid(b) {
		t.Errorf("%s", b)
	}
	if k := etcdKey(services+readable, instances); len(k) != 32 {
		t.Errorf("key %q has %d bytes", k, len(k))
	}
}

func TestProc(t *testing.T) {
	used, err := parseStat("42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20")
	if err != nil || used != 2*time.Second {
		t.Errorf("150 + 50 ticks are %v, %v", used, err)
	}
	if _, err := parseStat("42 (short) S"); err == nil {
		t.Error("a short line was taken")
	}
	// user nice system idle iowait irq softirq steal guest guest_nice
	if busy := parseBusy("cpu  100 1 50 9999 777 2 3 4 60 0\ncpu0 1 1 1 1"); busy != 1600*time.Millisecond {
		t.Errorf("160 busy ticks are %v", busy)
	}
	if m, err := memoryOf(os.Getpid()); err != nil || m.RSS < m.Anon || m.Anon == 0 {
		t.Errorf("own memory %+v, %v", m, err)
	}
}

// The table takes the better variant's median of runs, and says what is wrong.
func TestTable(t *testing.T) {
	w := workload{kindWrite, 256, 1.3}
	r := &report{Workloads: []workload{w}}
	add := func(system string, variants map[string]sample) {
		m := []memory{{RSS: 100 << 20}, {RSS: 90 << 20}}
		r.Results = append(r.Results, result{System: system, Memory: m, MemoryAfter: m, Samples: map[string]map[string]sample{w.key(): variants}})
	}
	for _, rate := range []float64{900, 100, 1000} {
		add("etcd", map[string]sample{"a": {Rate: rate}, "b": {Rate: rate / 2, Errors: 7}})
		add("muster", map[string]sample{"only": {Rate: 2 * rate, Errors: 1, Others: 0.5}})
	}
	table := r.table()
	for _, want := range []string{"900/s", "1800/s", "2.00", "≥ 1.3", "100 MiB", "muster, write, 256: 3 requests failed", "0.5 cores were busy"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
	}
	if strings.Contains(table, "7 requests") || strings.Contains(table, "etcd, write, 256") {
		t.Errorf("the table speaks of the variant that does not count:\n%s", table)
	}
	if r.Lines[0].Etcd.Variant != "a" {
		t.Errorf("chose %+v", r.Lines[0].Etcd)
	}
}
