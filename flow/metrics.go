package flow

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the flow's own. The names of limits are few and fixed.
type metrics struct {
	refusals    *prometheus.CounterVec
	waits       *prometheus.HistogramVec
	connections *prometheus.CounterVec
	read        []prometheus.Collector
}

func newMetrics() *metrics {
	m := &metrics{
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_flow_refused_total", Help: "Requests that this node refused to protect itself, by the limit they reached.",
		}, []string{"limit"}),
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "muster_flow_wait_seconds", Help: "Time that requests waited for their turn or for memory, of those that had to, by the limit they waited for.",
			Buckets: []float64{.0001, .001, .01, .1, 1, 10},
		}, []string{"limit"}),
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_flow_connections_closed_total", Help: "Connections that this node closed since there were too many: refused ones, and those that gave way since they had not sent a request yet or had none under way.",
		}, []string{"cause"}),
	}
	// Each series is there before the first refusal, so that alerts can be written.
	for _, limit := range []string{"in-flight", "blocked", "streams", "bodies", "working", "changes", "caller", "address", "failures"} {
		m.refusals.WithLabelValues(limit)
	}
	for _, cause := range []string{"refused", "silent", "idle"} {
		m.connections.WithLabelValues(cause)
	}
	return m
}

func (m *metrics) refused(limit string) { m.refusals.WithLabelValues(limit).Inc() }

func (m *metrics) waited(limit string, d time.Duration) {
	m.waits.WithLabelValues(limit).Observe(d.Seconds())
}

// watch adds what is read when it is asked for.
func (m *metrics) watch(f *Flow) {
	gauge := func(name, help string, limit string, read func() float64) {
		opts := prometheus.GaugeOpts{Name: name, Help: help}
		if limit != "" {
			opts.ConstLabels = prometheus.Labels{"limit": limit}
		}
		m.read = append(m.read, prometheus.NewGaugeFunc(opts, read))
	}
	for _, p := range []*pool{f.inFlight, f.blocked, f.streams, f.turns[Quick], f.turns[Change]} {
		gauge("muster_flow_requests", "Requests that have a place under this limit.", p.name, func() float64 { n, _ := p.used(); return float64(n) })
	}
	for _, p := range []*pool{f.bodies, f.turns[Quick], f.turns[Change]} {
		gauge("muster_flow_waiting", "Requests that wait for a place under this limit.", p.name, func() float64 { _, n := p.used(); return float64(n) })
	}
	gauge("muster_flow_body_bytes", "Memory that is set aside for bodies above 16 KiB.", "", func() float64 { n, _ := f.bodies.used(); return float64(n) })
	gauge("muster_flow_connections", "Connections that are open, on all ports together, those between nodes left out.", "", func() float64 { return float64(f.connections()) })
}

// Collectors gives the metrics, to be registered once.
func (f *Flow) Collectors() []prometheus.Collector {
	return append([]prometheus.Collector{f.metrics.refusals, f.metrics.waits, f.metrics.connections}, f.metrics.read...)
}
