package mirror

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what becomes of the lines.
type Metrics struct {
	sent    prometheus.Counter
	dropped *prometheus.CounterVec
	errors  prometheus.Counter
	waiting prometheus.Gauge
	up      prometheus.Gauge
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_audit_mirror_sent_total", Help: "Lines of the audit trail that the sink of the mirror has taken.",
		}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_audit_mirror_dropped_total", Help: "Lines that the sink of the audit mirror did not get, by reason: the spool was full or not writable, the line was too large, the sink rejected it.",
		}, []string{"reason"}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_audit_mirror_errors_total", Help: "Attempts to send lines of the audit trail that failed.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_audit_mirror_waiting_bytes", Help: "Lines of the audit trail that wait for the sink of the mirror.",
		}),
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_audit_mirror_up", Help: "1 when the sink of the audit mirror took what was sent last; 0: it does not, or nothing was sent yet.",
		}),
	}
	reg.MustRegister(m.sent, m.dropped, m.errors, m.waiting, m.up)
	for _, reason := range []string{"spool", "too_large", "rejected"} {
		m.dropped.WithLabelValues(reason)
	}
	return m
}
