package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
)

// The comparison of watches: many watchers on one node, and a change each
// second of what they all watch.
const (
	watchers     = 10_000
	watchStreams = 100 // of gRPC, over watchConns connections
	watchConns   = 10
	watchPuts    = 15
)

// watched is what watchers of one kind cost, and how soon a change reached them.
type watched struct {
	System  string        `json:"system"`
	Case    string        `json:"case"`
	Goal    time.Duration `json:"goal_ns,omitempty"` // for the 99th percentile
	Memory  int64         `json:"bytes_per_watcher"` // resident, of the one node, beside what it had before
	Total   int64         `json:"bytes"`
	P50     time.Duration `json:"p50_ns"`
	P99     time.Duration `json:"p99_ns"`
	Slowest time.Duration `json:"slowest_ns"`
	Missed  int           `json:"missed"`
	Woken   string        `json:"woken_by_another_service,omitempty"`
}

type watchReport struct {
	Machine  machine   `json:"machine"`
	Watchers int       `json:"watchers"`
	Puts     int       `json:"puts"`
	Cases    []watched `json:"cases"`
}

// board collects when each watcher saw each put. Watchers are told of every put
// once; the time is taken from before the put was sent.
type board struct {
	begun atomic.Int64
	seen  atomic.Int64
	mu    sync.Mutex // guards what follows
	sent  time.Time
	took  []time.Duration
	err   error // the first that kept a watcher from beginning
}

func (b *board) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
}

func (b *board) see(n int) {
	now := time.Now()
	b.mu.Lock()
	for range n {
		b.took = append(b.took, now.Sub(b.sent))
	}
	b.mu.Unlock()
	b.seen.Add(int64(n))
}

// await waits until a count has come to n.
func await(ctx context.Context, count *atomic.Int64, n int64, limit time.Duration) bool {
	for end := time.Now().Add(limit); count.Load() < n; {
		if ctx.Err() != nil || time.Now().After(end) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

// watching is one kind of watchers: open starts all of them and returns when it
// has asked for all; it may go on to use the context until that ends.
type watching struct {
	system, name string
	goal         time.Duration
	pid          func() int
	open         func(ctx context.Context, b *board) error
	put          func(ctx context.Context, n int) error
	woken        func() (string, error)
}

func (w *watching) measure(ctx context.Context) (*watched, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := pause(ctx, 2*time.Second); err != nil {
		return nil, err
	}
	before, err := memoryOf(w.pid())
	if err != nil {
		return nil, err
	}
	b := &board{}
	if err := w.open(ctx, b); err != nil {
		return nil, err
	}
	if !await(ctx, &b.begun, watchers, 2*time.Minute) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return nil, fmt.Errorf("%s: only %d watchers have begun: %w", w.name, b.begun.Load(), b.err)
	}
	if err := pause(ctx, 5*time.Second); err != nil {
		return nil, err
	}
	after, err := memoryOf(w.pid())
	if err != nil {
		return nil, err
	}
	out := &watched{System: w.system, Case: w.name, Goal: w.goal, Total: after.Anon - before.Anon}
	out.Memory = out.Total / watchers
	for n := range watchPuts {
		b.mu.Lock()
		b.sent = time.Now()
		b.mu.Unlock()
		next := time.After(time.Second)
		if err := w.put(ctx, n); err != nil {
			return nil, err
		}
		await(ctx, &b.seen, int64(n+1)*watchers, 20*time.Second)
		<-next
	}
	b.mu.Lock()
	took := b.took
	b.mu.Unlock()
	all := summarize(took, time.Second, &failures{})
	out.P50, out.P99, out.Missed = all.P50, all.P99, watchers*watchPuts-all.Ops
	if len(took) > 0 {
		out.Slowest = took[len(took)-1]
	}
	if w.woken != nil {
		if out.Woken, err = w.woken(); err != nil {
			return nil, err
		}
	}
	say("  %-7s %-40s %5.1f kB a watcher  p50 %s  p99 %s  missed %d %s", w.system, w.name, float64(out.Memory)/1000, ms(out.P50), ms(out.P99), out.Missed, out.Woken)
	return out, nil
}

// watches measures muster's kinds of watchers, and etcd's.
func (s *settings) watches(ctx context.Context, m *muster, e *etcd) (*watchReport, error) {
	rep := &watchReport{Watchers: watchers, Puts: watchPuts}
	for _, kinds := range []struct {
		system  string
		measure func() ([]watched, error)
	}{
		{"etcd", func() ([]watched, error) { return etcdWatches(ctx, e) }},
		{"muster", func() ([]watched, error) { return musterWatches(ctx, m) }},
		{"net/http", func() ([]watched, error) { return bareWatches(ctx, m) }},
	} {
		if !strings.Contains(s.systems, kinds.system) && (kinds.system != "net/http" || !strings.Contains(s.systems, "muster")) {
			continue
		}
		got, err := kinds.measure()
		if err != nil {
			return nil, err
		}
		rep.Cases = append(rep.Cases, got...)
	}
	return rep, nil
}

func etcdWatches(ctx context.Context, e *etcd) ([]watched, error) {
	defer e.clear()
	defer e.stop()
	if err := e.start(ctx); err != nil {
		return nil, err
	}
	key := etcdKey(1, 1)
	put, err := e.dial(e.endpoints[0])
	if err != nil {
		return nil, err
	}
	defer put.Close()
	w := watching{system: "etcd", name: "100 gRPC streams", pid: func() int { return e.pids()[0] },
		put: func(ctx context.Context, n int) error {
			_, err := put.Put(ctx, key, string(instanceBody(n, "24h", "24h")))
			return err
		},
		open: func(ctx context.Context, b *board) error {
			for range watchConns {
				c, err := e.dial(e.endpoints[0])
				if err != nil {
					return err
				}
				context.AfterFunc(ctx, func() { c.Close() })
				for s := range watchStreams / watchConns {
					// Streams are told apart by their metadata.
					stream := metadata.AppendToOutgoingContext(ctx, "stream", fmt.Sprint(s))
					for range watchers / watchStreams {
						events := c.Watch(stream, key, clientv3.WithCreatedNotify())
						go func() {
							for res := range events {
								if res.Created {
									b.begun.Add(1)
								}
								if n := len(res.Events); n > 0 {
									b.see(n)
								}
							}
						}()
					}
				}
			}
			return nil
		}}
	got, err := w.measure(ctx)
	if err != nil {
		return nil, err
	}
	return []watched{*got}, nil
}

const (
	sharedStreams = "event streams, 100 on each connection"
	ownStreams    = "event streams, a connection each"
)

// bareWatches has net/http alone send the same events over the same TLS: what
// is left for a registry to add.
func bareWatches(ctx context.Context, m *muster) ([]watched, error) {
	defer m.clear()
	var out []watched
	for _, shared := range []bool{true, false} {
		if err := m.start(ctx); err != nil { // for its certificates
			return nil, err
		}
		m.stop()
		server, err := m.startBare(ctx)
		if err != nil {
			return nil, err
		}
		c := m.client(0)
		w := watching{system: "net/http", name: ownStreams, pid: func() int { return server.cmd.Process.Pid },
			open: func(ctx context.Context, b *board) error { return m.watchSSE(ctx, b, shared) },
			put: func(ctx context.Context, n int) error {
				return c.do(ctx, "PUT", "/v1/event", instanceBody(n, "24h", "24h"), http.StatusOK, nil)
			}}
		if shared {
			w.name = sharedStreams
		}
		got, err := w.measure(ctx)
		c.close()
		server.stop()
		if err != nil {
			return nil, err
		}
		out = append(out, *got)
	}
	return out, nil
}

func (r *watchReport) table() string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "%d watchers of one key on one node of three, a change each second, %d times.\n%s\n", r.Watchers, r.Puts, r.Machine)
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "system\twatchers\tmemory\ta watcher\tp50\tp99\tslowest\tmissed\tgoal\twoken by another service\t")
	for _, c := range r.Cases {
		goal := ""
		if c.Goal > 0 {
			goal = "p99 < " + c.Goal.String()
		}
		fmt.Fprintf(t, "%s\t%s\t%.0f MB\t%.1f kB\t%s\t%s\t%s\t%d\t%s\t%s\t\n", c.System, c.Case, float64(c.Total)/1e6, float64(c.Memory)/1e3, ms(c.P50), ms(c.P99), ms(c.Slowest), c.Missed, goal, c.Woken)
	}
	_ = t.Flush()
	return out.String()
}
