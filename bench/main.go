// Command bench measures muster and etcd side by side: the same machine, the
// same run, the same data, the same load generator, three nodes each with TLS
// and fsync, one system at a time. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	kindWrite  = "write"
	kindLocal  = "local read"
	kindLinear = "linearizable read"
)

// workload is one line of the table. Goal is the ratio muster wants to reach.
type workload struct {
	Kind    string  `json:"kind"`
	Clients int     `json:"clients"`
	Goal    float64 `json:"goal,omitempty"`
}

var workloads = []workload{
	{kindLocal, 64, 2.5}, {kindLinear, 64, 0},
	{kindWrite, 1, 1}, {kindWrite, 16, 1.3}, {kindWrite, 256, 1.3},
}

// system is one of the two that are compared. stop may be called at any time.
type system interface {
	name() string
	start(ctx context.Context) error
	stop()
	clear() // removes the data of a stopped system
	pids() []int
	load(ctx context.Context) error
	variants(workers int) []string
	ops(kind string, workers int, variant string) ([]op, func(), error)
}

type settings struct {
	muster, etcd, etcdutl, opa, dir, systems, out string
	port, runs                                    int
	span, warm, settle                            time.Duration
}

func main() {
	args := os.Args[1:]
	if len(args) == 4 && args[0] == "bare" { // this program again, as what muster is compared with
		fmt.Fprintln(os.Stderr, "bench:", bare(args[1], args[2], args[3]))
		os.Exit(1)
	}
	what := ""
	if len(args) > 0 && (slices.Contains([]string{"heartbeats", "decisions", "pushes", "watches", "lookups", "failover", "audit", "restore", "steady"}, args[0])) {
		what, args = args[0], args[1:]
	}
	var s settings
	f := flag.NewFlagSet("bench [heartbeats|decisions|pushes|watches|lookups|failover|audit|restore|steady]", flag.ExitOnError)
	f.StringVar(&s.muster, "muster", "../bin/muster", "the muster `binary`")
	f.StringVar(&s.etcd, "etcd", "../bin/etcd", "the etcd `binary`")
	f.StringVar(&s.etcdutl, "etcdutl", "../bin/etcdutl", "the etcdutl `binary`, of etcd's version")
	f.StringVar(&s.opa, "opa", "../bin/opa", "the opa `binary`")
	f.StringVar(&s.dir, "dir", "results/data", "`directory` for the data of both; on a disk, not in memory")
	f.StringVar(&s.out, "out", "results", "`directory` for the JSON report")
	f.StringVar(&s.systems, "systems", "etcd,muster", "which to run; of watches also net/http, which runs with muster")
	f.IntVar(&s.port, "port-base", 24443, "first `port`")
	f.IntVar(&s.runs, "runs", 3, "how often each; medians are shown")
	f.DurationVar(&s.span, "duration", 4*time.Second, "of each measurement (heartbeats: at least 40s)")
	f.DurationVar(&s.warm, "warmup", time.Second, "before each measurement")
	f.DurationVar(&s.settle, "settle", 5*time.Second, "between loading and reading the memory")
	_ = f.Parse(args)
	if f.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "bench: unknown argument %q\n", f.Arg(0))
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := s.main(ctx, what)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (s *settings) main(ctx context.Context, what string) error {
	dir, err := filepath.Abs(s.dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	m := &muster{binary: s.muster, dir: filepath.Join(dir, "bench-muster"), port: s.port}
	switch what {
	case "decisions":
		got, err := s.decisions(ctx, m, &opa{binary: s.opa, dir: filepath.Join(dir, "bench-opa"), port: s.port + 500})
		if err != nil {
			return err
		}
		m.clear()
		got.Machine = describe(dir, s)
		return publish(s.out, "decisions", got, got.table())
	case "pushes":
		got, err := s.pushes(ctx, m, 5*s.runs)
		if err != nil {
			return err
		}
		m.clear()
		got.Machine = describe(dir, s)
		return publish(s.out, "pushes", got, got.table())
	case "watches":
		got, err := s.watches(ctx, m, &etcd{binary: s.etcd, dir: filepath.Join(dir, "bench-etcd"), port: s.port + 500})
		if err != nil {
			return err
		}
		got.Machine = describe(dir, s)
		return publish(s.out, "watches", got, got.table())
	case "failover":
		got, err := s.failover(ctx, &etcd{binary: s.etcd, dir: filepath.Join(dir, "bench-etcd"), port: s.port + 500}, m)
		if err != nil {
			return err
		}
		got.Machine = describe(dir, s)
		return publish(s.out, "failover", got, got.table())
	case "restore":
		got, err := s.restore(ctx, &etcd{binary: s.etcd, dir: filepath.Join(dir, "bench-etcd"), port: s.port + 500}, m)
		if err != nil {
			return err
		}
		got.Machine = describe(dir, s)
		return publish(s.out, "restore", got, got.table())
	case "steady":
		got, err := s.steady(ctx, m)
		if err != nil {
			return err
		}
		m.clear()
		got.Machine = describe(dir, s)
		if err := publish(s.out, "steady", got, got.table()); err != nil || got.Elections == 0 {
			return err
		}
		return fmt.Errorf("%d elections without a fault", got.Elections)
	case "audit":
		got, err := s.audits(ctx, m)
		if err != nil {
			return err
		}
		got.Machine = describe(dir, s)
		return publish(s.out, "audit", got, got.table())
	case "lookups":
		got, err := s.lookups(ctx, m)
		if err != nil {
			return err
		}
		got.Machine = describe(dir, s)
		return publish(s.out, "lookups", got, got.table())
	case "heartbeats":
		got, err := heartbeats(ctx, m, max(s.span, 40*time.Second))
		if err != nil {
			return err
		}
		m.clear()
		got.Machine = describe(dir, s)
		return publish(s.out, "heartbeats", got, got.table())
	}
	systems, err := s.choose(m, &etcd{binary: s.etcd, dir: filepath.Join(dir, "bench-etcd"), port: s.port})
	if err != nil {
		return err
	}
	rep := &report{Machine: describe(dir, s), Runs: s.runs, Span: s.span.String(), Workloads: workloads}
	for n := range s.runs {
		for _, sys := range systems {
			say("run %d of %d: %s", n+1, s.runs, sys.name())
			r, err := s.measure(ctx, sys)
			if err != nil {
				return fmt.Errorf("%s: %w", sys.name(), err)
			}
			r.Run = n + 1
			rep.Results = append(rep.Results, *r)
			sys.clear()
		}
		slices.Reverse(systems)
	}
	return publish(s.out, "bench", rep, rep.table())
}

func (s *settings) choose(all ...system) ([]system, error) {
	var chosen []system
	for name := range strings.SplitSeq(s.systems, ",") {
		i := slices.IndexFunc(all, func(sys system) bool { return sys.name() == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no system %q", name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// measure starts a fresh cluster, loads it, takes its memory, runs all
// workloads, and stops it.
func (s *settings) measure(ctx context.Context, sys system) (*result, error) {
	defer sys.stop()
	if err := sys.start(ctx); err != nil {
		return nil, err
	}
	r := &result{System: sys.name(), Samples: map[string]map[string]sample{}}
	from := time.Now()
	if err := sys.load(ctx); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	r.Loaded = time.Since(from)
	if err := pause(ctx, s.settle); err != nil {
		return nil, err
	}
	var err error
	if r.Memory, err = memoryOfAll(sys.pids()); err != nil {
		return nil, err
	}
	for _, w := range workloads {
		r.Samples[w.key()] = map[string]sample{}
		for _, variant := range sys.variants(w.Clients) {
			ops, done, err := sys.ops(w.Kind, w.Clients, variant)
			if err != nil {
				return nil, err
			}
			meter := newMeter(sys.pids())
			got := run(ctx, ops, s.warm, s.span)
			got.Others = meter.others()
			done()
			if ctx.Err() != nil {
				return nil, errors.New("interrupted")
			}
			say("  %-22s %-24s %8.0f/s  p50 %s  p99 %s  others %.2f cores%s", w.key(), variant, got.Rate, ms(got.P50), ms(got.P99), got.Others, got.trouble())
			r.Samples[w.key()][variant] = got
		}
	}
	if r.MemoryAfter, err = memoryOfAll(sys.pids()); err != nil {
		return nil, err
	}
	return r, nil
}

func (w workload) key() string { return fmt.Sprintf("%s, %d", w.Kind, w.Clients) }

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
