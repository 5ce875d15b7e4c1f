package webhook

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
)

// metrics count what came of questions. Webhooks are few, and set by operators:
// their names are good labels.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	breaker  *prometheus.GaugeVec
}

func newMetrics() *metrics {
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_webhook_requests_total",
			Help: "Questions to webhooks on this node while it led, by what came of them: allowed, denied, failed_closed, failed_open.",
		}, []string{"webhook", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "muster_webhook_duration_seconds", Help: "Time from a question to a webhook to its answer or failure, with all attempts.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"webhook"}),
		breaker: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_webhook_breaker_state", Help: "State of a webhook's circuit breaker on this node: 0 closed, 1 half open, 2 open.",
		}, []string{"webhook"}),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.seconds, m.breaker}
}

func (m *metrics) count(webhook, outcome string, took time.Duration) {
	m.requests.WithLabelValues(webhook, outcome).Inc()
	m.seconds.WithLabelValues(webhook).Observe(took.Seconds())
}

func (m *metrics) state(webhook string, s gobreaker.State) {
	m.breaker.WithLabelValues(webhook).Set(map[gobreaker.State]float64{
		gobreaker.StateClosed: 0, gobreaker.StateHalfOpen: 1, gobreaker.StateOpen: 2,
	}[s])
}

// forget drops the figures of a webhook that is no more.
func (m *metrics) forget(webhook string) {
	only := prometheus.Labels{"webhook": webhook}
	m.requests.DeletePartialMatch(only)
	m.seconds.DeletePartialMatch(only)
	m.breaker.DeletePartialMatch(only)
}
