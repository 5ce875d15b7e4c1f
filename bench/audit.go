package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// What of the audit trail is on, in the comparison of its cost.
const (
	auditOff      = "no trail"
	auditTrail    = "trail"
	auditMirrored = "trail, all look-ups, mirrored"
	auditPlain    = "the same, not compressed" // as to a collector beside the node
)

var auditModes = []string{auditOff, auditTrail, auditMirrored, auditPlain}

// auditWorkloads are what is measured in each.
var auditWorkloads = []workload{{kindWrite, 16, 0}, {kindWrite, 256, 0}, {kindLocal, 64, 0}}

// auditGoal is the least share of the rate without a trail. The processor time
// for an operation, which says more on a busy machine, is its reciprocal at most.
const auditGoal = 0.9

type auditRun struct {
	Mode     string  `json:"mode"`
	Workload string  `json:"workload"`
	Run      int     `json:"run"`
	CPU      float64 `json:"cpu_us_per_request"`           // of all nodes
	Load     float64 `json:"generator_cpu_us_per_request"` // of this process: the load and the sink
	sample
}

type auditReport struct {
	Machine machine    `json:"machine"`
	Runs    int        `json:"runs"`
	Span    string     `json:"duration"`
	Events  int64      `json:"bytes_at_the_sinks"`
	Lines   uint64     `json:"lines_at_the_sinks"`
	Results []auditRun `json:"results"`
}

// audits compares three nodes without an audit trail, with one, and with one
// that is mirrored to a sink in this process, look-ups too, by gzip and as it is.
// The clusters are there all the time and are loaded in turn, so that what else
// the machine does meets all alike.
func (s *settings) audits(ctx context.Context, m *muster) (*auditReport, error) {
	rep := &auditReport{Runs: s.runs, Span: s.span.String()}
	clusters, sinks := map[string]*muster{}, map[string]*auditSink{}
	for i, mode := range auditModes {
		sink, to := new(auditSink), ""
		if mode == auditMirrored || mode == auditPlain {
			l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(s.port+500+i))
			if err != nil {
				return nil, err
			}
			sink.nodes, to = map[string]*sunk{}, "http://"+l.Addr().String()
			sinks[mode] = sink
			server := &http.Server{Handler: sink}
			go func() { _ = server.Serve(l) }()
			defer server.Close()
		}
		c := &muster{binary: m.binary, dir: m.dir + "-audit-" + strconv.Itoa(i), port: m.port + i} // nodes are ten apart
		defer c.clear()
		defer c.stop()
		if err := c.auditStart(ctx, mode, to); err != nil {
			return nil, fmt.Errorf("%s: %w", mode, err)
		}
		clusters[mode] = c
	}
	for n := range s.runs {
		for _, w := range auditWorkloads {
			for i := range auditModes {
				mode := auditModes[(i+n)%len(auditModes)]
				if err := s.auditRun(ctx, clusters[mode], mode, w, n+1, rep); err != nil {
					return nil, fmt.Errorf("%s: %w", mode, err)
				}
				if sink := sinks[mode]; sink != nil {
					if err := sink.check(); err != nil {
						return nil, fmt.Errorf("%s: %w", mode, err)
					}
				}
			}
		}
	}
	for mode, sink := range sinks {
		lookups := 0
		for _, r := range rep.Results {
			if r.Mode == mode && strings.HasPrefix(r.Workload, kindLocal) {
				lookups += r.Ops
			}
		}
		lines, err := sink.whole(ctx, clusters[mode], lookups)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", mode, err)
		}
		rep.Lines, rep.Events = rep.Lines+lines, rep.Events+sink.bytes
	}
	return rep, nil
}

// auditStart starts nodes with what is looked up and written.
func (m *muster) auditStart(ctx context.Context, mode, sink string) error {
	if err := m.start(ctx); err != nil {
		return err
	}
	c := m.client(0)
	defer c.close()
	for _, svc := range []string{"svc-0", "one-0"} {
		if err := c.do(ctx, "PUT", "/v1/namespaces/bench/services/"+svc, serviceBody(0), http.StatusOK, nil); err != nil {
			return err
		}
	}
	if err := c.do(ctx, "PUT", instancePath("one-", 0, 0), instanceBody(0, "24h", "24h"), http.StatusOK, nil); err != nil {
		return err
	}
	return m.auditAs(ctx, mode, sink)
}

func (s *settings) auditRun(ctx context.Context, m *muster, mode string, w workload, n int, rep *auditReport) error {
	var ops []op
	for i := range w.Clients {
		c := m.client(i)
		defer c.close()
		ops = append(ops, auditOp(c, w.Kind, i))
	}
	run(ctx, ops, 0, s.warm) // connections, and what the last run left to do
	all := [][]int{m.pids(), {os.Getpid()}}
	var used [2]time.Duration
	for i, pids := range all {
		before, err := cpuOfAll(pids)
		if err != nil {
			return err
		}
		used[i] = before
	}
	meter := newMeter(m.pids())
	got := run(ctx, ops, 0, s.span)
	got.Others = meter.others()
	var each [2]float64
	for i, pids := range all {
		after, err := cpuOfAll(pids)
		if err != nil {
			return err
		}
		each[i] = float64((after - used[i]).Microseconds()) / float64(max(1, got.Ops))
	}
	r := auditRun{Mode: mode, Workload: w.key(), Run: n, sample: got, CPU: each[0], Load: each[1]}
	say("run %d: %-30s %-16s %7.0f/s  %5.1f µs and %5.1f of the load generator  p99 %s%s", n, mode, w.key(), r.Rate, r.CPU, r.Load, ms(r.P99), got.trouble())
	rep.Results = append(rep.Results, r)
	return nil
}

func auditOp(c *client, kind string, worker int) op {
	if kind == kindWrite {
		return func(ctx context.Context, seq int) error {
			return c.do(ctx, "PUT", instancePath("svc-", 0, worker), instanceBody(worker<<20+seq, "24h", "24h"), http.StatusOK, nil)
		}
	}
	return func(ctx context.Context, _ int) error {
		return c.do(ctx, "GET", "/v1/discovery/bench/one-0", nil, http.StatusOK, func(n int) bool { return n > 250 })
	}
}

// auditAs starts the nodes again with another audit trail.
func (m *muster) auditAs(ctx context.Context, mode, sink string) error {
	m.stop()
	for _, n := range m.cluster.Nodes {
		file := filepath.Join(m.dir, n.ID, "muster.yaml")
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		with := map[string]string{
			auditOff: "path: \"off\"\n", auditTrail: "path: audit.log\n",
			auditMirrored: "path: audit.log\n  lookups: all\n  mirror: {type: http, url: \"" + sink + "\", insecure: true, allow: [127.0.0.1]}\n",
			auditPlain:    "path: audit.log\n  lookups: all\n  mirror: {type: http, url: \"" + sink + "\", insecure: true, allow: [127.0.0.1], compression: none}\n",
		}[mode]
		if !bytes.Contains(b, []byte("path: audit.log\n")) {
			return errors.New("muster dev writes another configuration")
		}
		if err := os.WriteFile(file, []byte(strings.Replace(string(b), "path: audit.log\n", with, 1)), 0o600); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(m.dir, "cluster.json")); err != nil {
		return err
	}
	return m.spawn(ctx)
}

func (r *auditReport) table() string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "Three nodes, median of %d runs of %s; the sinks in the load generator got %d lines, none of them missing, in %d kB.\n%s\n", r.Runs, r.Span, r.Lines, r.Events/1000, r.Machine)
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "workload, clients\taudit\trate\tof it without\tp99\tCPU of all nodes\tof it without\tgoal\tCPU of load and sink")
	for _, w := range auditWorkloads {
		without, idle := 0.0, 0.0
		for _, mode := range auditModes {
			var rates, cpu, load []float64
			var p99 []time.Duration
			for _, got := range r.Results {
				if got.Mode == mode && got.Workload == w.key() {
					rates, cpu, load, p99 = append(rates, got.Rate), append(cpu, got.CPU), append(load, got.Load), append(p99, got.P99)
				}
			}
			if len(rates) == 0 {
				continue
			}
			if mode == auditOff {
				without, idle = median(rates), median(cpu)
			}
			fmt.Fprintf(t, "%s\t%s\t%.0f/s\t%.2f\t%s\t%.1f µs\t%.2f\t%.2f\t%.1f µs\n", w.key(), mode, median(rates), median(rates)/without, ms(median(p99)), median(cpu), median(cpu)/idle, 1/auditGoal, median(load))
		}
	}
	_ = t.Flush()
	return out.String()
}
