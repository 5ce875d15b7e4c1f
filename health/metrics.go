package health

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/registry"
)

// Metrics is what is measured of checks on one node.
type Metrics struct {
	checks, failing prometheus.Gauge
	probes          *prometheus.CounterVec
	took            *prometheus.HistogramVec
	late            prometheus.Histogram
	changes         *prometheus.CounterVec
	held            *prometheus.CounterVec
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		checks:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_health_checks", Help: "Active checks that this node runs."}),
		failing: prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_health_checks_failing", Help: "Active checks that this node runs and whose last probe failed."}),
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_health_probes_total", Help: "Probes that this node made, by type of check and what they found.",
		}, []string{"type", "status"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "muster_health_probe_seconds", Help: "Time that probes took, by type of check.",
			Buckets: []float64{.001, .005, .025, .1, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"type"}),
		late: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_health_probe_delay_seconds", Help: "How long after their time probes began.",
			Buckets: []float64{.005, .05, .25, 1, 5, 30, 120},
		}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_health_changes_total", Help: "Changes of checks that this node, as the leader, passed on to the log, by status.",
		}, []string{"status"}),
		held: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_health_held_total", Help: "Changes of checks that this node, as the leader, held back because they would have left too few instances, by why.",
		}, []string{"reason"}),
	}
	for _, kind := range []string{registry.CheckHTTP, registry.CheckTCP, registry.CheckGRPC} {
		m.took.WithLabelValues(kind)
		for _, status := range []string{registry.Passing, registry.Warning, registry.Critical} {
			m.probes.WithLabelValues(kind, status)
			m.changes.WithLabelValues(status)
		}
	}
	for _, why := range []string{contradicted, unconfirmed} {
		m.held.WithLabelValues(why)
	}
	reg.MustRegister(m.checks, m.failing, m.probes, m.took, m.late, m.changes, m.held)
	return m
}

func (m *Metrics) hold(checks, failing int) {
	m.checks.Set(float64(checks))
	m.failing.Set(float64(failing))
}

func (m *Metrics) probed(kind, status string, took time.Duration) {
	switch kind {
	case registry.CheckHTTP, registry.CheckTCP, registry.CheckGRPC:
		m.probes.WithLabelValues(kind, status).Inc()
		m.took.WithLabelValues(kind).Observe(took.Seconds())
	}
}
