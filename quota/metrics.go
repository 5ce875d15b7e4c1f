package quota

import "github.com/prometheus/client_golang/prometheus"

// metrics are the keeper's own.
type metrics struct {
	checks *prometheus.CounterVec
	draws  *prometheus.CounterVec
	up     prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_quota_checks_total", Help: "Calls that were counted against a quota on this node, by outcome and the kind of the limit that was nearest to its end.",
		}, []string{"outcome", "limit"}),
		draws: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_quota_draws_total", Help: "Peer calls by which this node drew credit from the leader, by outcome.",
		}, []string{"outcome"}),
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_quota_backend_up", Help: "0 while the Redis that the quotas name does not answer and local limits apply; else 1.",
		}),
	}
	m.up.Set(1)
	// Each series is there before the first call, so that alerts can be written.
	for _, outcome := range []string{"allowed", "refused"} {
		m.checks.WithLabelValues(outcome, string(OfService))
	}
	for _, outcome := range []string{"answered", "failed"} {
		m.draws.WithLabelValues(outcome)
	}
	return m
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.checks, m.draws, m.up}
}

func (m *metrics) tell(r *Result) {
	outcome := "refused"
	if r.Allowed {
		outcome = "allowed"
	}
	m.checks.WithLabelValues(outcome, string(r.Limits[r.Tightest].Key.Kind())).Inc()
}
