package decision

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/policy"
)

// slow is how long a decision may take before it is counted as slow.
const slow = 50 * time.Millisecond

// Metrics count decisions. Their labels are bounded: entry points that a
// revision does not name itself are all "other".
type Metrics struct {
	seconds *prometheus.HistogramVec
	denials *prometheus.CounterVec
	slow    prometheus.Counter
	kept    prometheus.Counter
	dropped *prometheus.CounterVec
	errors  *prometheus.CounterVec
	sent    prometheus.Counter
	waiting prometheus.Gauge
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "muster_policy_evaluation_seconds", Help: "Time to a decision, also of those from memory, by entry point.",
			Buckets: []float64{.000001, .00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, 1},
		}, []string{"entry_point"}),
		denials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_policy_denials_total", Help: "Refusals, by entry point and kind of reason.",
		}, []string{"entry_point", "reason"}),
		slow: prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_policy_slow_total", Help: "Decisions that took longer than 50 ms."}),
		kept: prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_decision_log_kept_total", Help: "Decisions kept to be explained."}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_decision_log_dropped_total", Help: "Decisions that were not kept or not sent, by reason.",
		}, []string{"reason"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_decision_log_errors_total", Help: "Failures to keep or to send decisions, by where.",
		}, []string{"where"}),
		sent:    prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_decision_log_sent_total", Help: "Events that the log service has taken."}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_decision_log_waiting_bytes", Help: "Events that wait for the log service, in memory and on disk."}),
	}
	for _, reason := range []string{"rate", "queue", "store", "sink", "buffer"} {
		m.dropped.WithLabelValues(reason)
	}
	for _, where := range []string{"store", "sink", "upload"} {
		m.errors.WithLabelValues(where)
	}
	m.seconds.WithLabelValues("none")
	m.denials.WithLabelValues("none", string(policy.ByRole))
	reg.MustRegister(m.seconds, m.denials, m.slow, m.kept, m.dropped, m.errors, m.sent, m.waiting)
	return m
}

func (m *Metrics) observe(rev *policy.Revision, _ *policy.Question, d *policy.Decision, took time.Duration) {
	label := "other"
	if rev == nil || d.EntryPoint == "" {
		label = "none"
	} else if d.EntryPoint == rev.EntryPoints.For(policy.Register) || d.EntryPoint == rev.EntryPoints.For(policy.Lookup) {
		label = d.EntryPoint
	}
	if d.Cause != policy.ByWebhook { // the time of endpoints has figures of its own
		m.seconds.WithLabelValues(label).Observe(took.Seconds())
		if took > slow {
			m.slow.Inc()
		}
	}
	if why := d.Why(); why != "" {
		m.denials.WithLabelValues(label, string(why)).Inc()
	}
}
