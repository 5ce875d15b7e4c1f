package node

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	armon "github.com/armon/go-metrics"
	sink "github.com/armon/go-metrics/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/time/rate"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/git"
)

// metrics are the node's own; the cluster registers its own beside them.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	unmapped *prometheus.CounterVec

	unmappedTold rate.Sometimes // the lines about them in the log
	reg          prometheus.Registerer
}

func newMetrics(reg *prometheus.Registry) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_http_requests_total", Help: "Answers of the control port, by operation and status.",
		}, []string{"operation", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "muster_http_request_duration_seconds", Help: "Time from the request to its answer, by operation.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"operation"}),
		unmappedTold: rate.Sometimes{First: 20, Interval: time.Second},

		unmapped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_identity_unmapped_total", Help: "Calls by somebody who has proved who it is and has no role, by identity provider, or certificate or token.",
		}, []string{"provider"}),
		reg: reg,
	}
	for _, own := range []string{"certificate", "token"} {
		m.unmapped.WithLabelValues(own)
	}
	reg.MustRegister(m.unmapped, m.requests, m.seconds, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m, raftMetrics(reg)
}

// raftMetrics sends what raft and memberlist measure, under their own names,
// to the registry. Their timings are in milliseconds.
func raftMetrics(reg prometheus.Registerer) error {
	s, err := sink.NewPrometheusSinkFrom(sink.PrometheusOpts{Registerer: reg, Expiration: 0})
	if err != nil {
		return fmt.Errorf("metrics of raft: %w", err)
	}
	cfg := armon.DefaultConfig("")
	cfg.EnableHostname, cfg.EnableRuntimeMetrics = false, false
	_, err = armon.NewGlobal(cfg, s)
	return err
}

// gitSynced registers what is counted of the Git source, and gives what counts.
func (m *metrics) gitSynced() func(git.Outcome) {
	syncs := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "muster_git_syncs_total", Help: "Pulls from the Git source that this node made while it led, by outcome.",
	}, []string{"outcome"})
	last := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "muster_git_last_success_timestamp_seconds", Help: "When this node last found the newest commit taken, or took it, in seconds since 1970; 0: never since its start.",
	})
	m.reg.MustRegister(syncs, last)
	for _, o := range git.Outcomes() {
		syncs.WithLabelValues(string(o))
	}
	return func(o git.Outcome) {
		syncs.WithLabelValues(string(o)).Inc()
		if o == git.Accepted || o == git.Unchanged {
			last.SetToCurrentTime()
		}
	}
}

// engineWatched registers what is measured of compiling policies, and gives
// what measures. The names with opa_ are those that operators of an OPA watch.
func (m *metrics) engineWatched() func(took time.Duration, err error) {
	seconds := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "muster_policy_compile_seconds", Help: "Time to compile a policy revision.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
	})
	last := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "opa_perf_timer_rego_query_compile_ns", Help: "Time that the last compilation of a policy took, in nanoseconds.",
	})
	failures := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "opa_policy_checkpoint_failure", Help: "Policies that did not compile on this node, pushed or active.",
	})
	m.reg.MustRegister(seconds, last, failures)
	return func(took time.Duration, err error) {
		seconds.Observe(took.Seconds())
		last.Set(float64(took.Nanoseconds()))
		if err != nil {
			failures.Inc()
		}
	}
}

// revisions counts the policy revisions of the local state by their state.
type revisions struct {
	policies func() *policy.Table
	desc     *prometheus.Desc
}

var revisionsDesc = prometheus.NewDesc("muster_policy_revisions", "Policy revisions in the local state, by their state.", []string{"state"}, nil)

// Describe implements prometheus.Collector.
func (r *revisions) Describe(to chan<- *prometheus.Desc) { to <- r.desc }

// Collect implements prometheus.Collector.
func (r *revisions) Collect(to chan<- prometheus.Metric) {
	count := map[policy.State]int{policy.Staged: 0, policy.Shadow: 0, policy.Active: 0, policy.Retired: 0}
	for after, more := uint64(0), true; more; {
		var items []*policy.Revision
		items, after = r.policies().List(after, 1000)
		for _, rev := range items {
			count[rev.State]++
		}
		more = after != 0
	}
	for state, n := range count {
		to <- prometheus.MustNewConstMetric(r.desc, prometheus.GaugeValue, float64(n), string(state))
	}
}

// watch registers the figures that are read when they are asked for.
func (m *metrics) watch(n *Node) {
	gauge := func(name, help string, read func() float64) {
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
	}
	gauge("muster_revision", "Revision of the newest change in the local state.", func() float64 { return float64(n.machine.View().Revision) })
	gauge("muster_services", "Services in the local state.", func() float64 { return float64(n.machine.View().Registry.Counts().Services) })
	gauge("muster_versions", "Versions in the local state.", func() float64 { return float64(n.machine.View().Registry.Counts().Versions) })
	gauge("muster_instances", "Instances in the local state.", func() float64 { return float64(n.machine.View().Registry.Counts().Instances) })
	gauge("muster_policy_active_revision", "Number of the active policy revision; 0 without one.", func() float64 {
		if a := n.machine.View().Policy.Active(); a != nil {
			return float64(a.Number)
		}
		return 0
	})
	gauge("muster_state_diverged", "1 when this node's state differs from the cluster's, and it is out of service.", func() float64 {
		return map[bool]float64{true: 1}[n.diverged.is()]
	})
	gauge("muster_state_split", "1 while this leader sees nodes with different states and no majority for one of them.", func() float64 {
		return map[bool]float64{true: 1}[n.split.Load()]
	})
	gauge("muster_policy_unavailable", "1 when the active policy does not compile on this node, which is then out of service; else 0.", func() float64 {
		if n.broken() != nil {
			return 1
		}
		return 0
	})
	counter := func(name, help string, read func() uint64) {
		m.reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(read()) }))
	}
	counter("muster_policy_cache_hits_total", "Decisions that were answered from memory.", func() uint64 { hits, _ := n.engine.Remembered(); return hits })
	counter("muster_policy_cache_misses_total", "Decisions that could have been answered from memory and were not there.", func() uint64 { _, misses := n.engine.Remembered(); return misses })
	counter("muster_leases_spared_total", "Silent instances and checks that were given their TTL once more on this node while it led, because so many were silent at once.", n.leases.Spared)
	gauge("muster_decision_log_store_bytes", "Size of the store of decisions on disk.", func() float64 { return float64(n.decisions.Bytes()) })
	m.reg.MustRegister(&revisions{policies: func() *policy.Table { return n.machine.View().Policy }, desc: revisionsDesc})
	m.reg.MustRegister(n.machine.Collectors()...)
	m.reg.MustRegister(n.shadow.Collectors()...)
}

// observe counts one answer.
func (m *metrics) observe(operation string, status int, elapsed time.Duration) {
	if operation == "" {
		operation = "none"
	}
	m.requests.WithLabelValues(operation, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(operation).Observe(elapsed.Seconds())
}

// handler answers on the metrics port: /metrics and the health checks, and
// the profiles where they are wanted.
func (m *metrics) handler(reg *prometheus.Registry, health http.Handler, profiles bool) http.Handler {
	mux := http.NewServeMux()
	if profiles {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	mux.Handle("/", health)
	return mux
}
