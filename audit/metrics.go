package audit

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what becomes of a trail.
type Metrics struct {
	byType *prometheus.CounterVec
	lines  map[Type]prometheus.Counter // of byType, those of the types
	lost   prometheus.Counter
	flood  prometheus.Counter
	errors prometheus.Counter
	state  prometheus.Gauge
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	lines := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "muster_audit_lines_total", Help: "Lines of the audit trail, by type.",
	}, []string{"type"})
	m := &Metrics{
		byType: lines, lines: map[Type]prometheus.Counter{},
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_audit_lost_total", Help: "Lines that are missing in the audit trail, since it could not be written for too long.",
		}),
		flood: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_audit_suppressed_total", Help: "Refusals, and decisions that said no, that were counted in the audit trail instead of getting a line each, since their caller had too many.",
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_audit_errors_total", Help: "Attempts to write the audit trail that failed.",
		}),
		state: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_audit_failing", Help: "1 while the audit trail cannot be written.",
		}),
	}
	reg.MustRegister(lines, m.lost, m.flood, m.errors, m.state)
	for _, t := range []Type{Change, Refusal, Connection, Lookup, Decision, Issued, Membership, Begin, Gap, Alarmed} {
		m.lines[t] = lines.WithLabelValues(string(t))
	}
	return m
}

func (m *Metrics) line(t Type) {
	c, ok := m.lines[t]
	if !ok {
		c = m.byType.WithLabelValues(string(t))
	}
	c.Inc()
}

func (m *Metrics) failing(yes bool) {
	v := 0.0
	if yes {
		v = 1
	}
	m.state.Set(v)
}
