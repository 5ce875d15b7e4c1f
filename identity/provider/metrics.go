package provider

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counters are what came of the tokens of one provider.
type counters struct {
	cached, accepted, refused, unavailable prometheus.Counter
}

// metrics implement prometheus.Collector for a Set. Providers are few, and
// named by operators: their names are good labels.
type metrics struct {
	set      *Set
	results  *prometheus.CounterVec
	nobody   prometheus.Counter
	up       *prometheus.Desc
	age      *prometheus.Desc
	sessions *prometheus.Desc
}

func newMetrics(s *Set) *metrics {
	m := &metrics{
		set: s,
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_identity_authentications_total",
			Help: "Bearer tokens of identity providers on this node, by provider (empty: of none that is configured) and by what came of them: cached, accepted, refused, unavailable.",
		}, []string{"provider", "result"}),
		up: prometheus.NewDesc("muster_identity_provider_up",
			"1 while the last call to the identity provider succeeded; of a key set in a file, while it could be read.", []string{"provider"}, nil),
		age: prometheus.NewDesc("muster_identity_keys_age_seconds",
			"Time since the identity provider's keys were last confirmed.", []string{"provider"}, nil),
		sessions: prometheus.NewDesc("muster_identity_sessions",
			"Tokens of identity providers that this node remembers as proven.", nil, nil),
	}
	m.nobody = m.results.WithLabelValues("", "refused")
	return m
}

func (m *metrics) of(name string) counters {
	return counters{
		cached: m.results.WithLabelValues(name, "cached"), accepted: m.results.WithLabelValues(name, "accepted"),
		refused: m.results.WithLabelValues(name, "refused"), unavailable: m.results.WithLabelValues(name, "unavailable"),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	m.results.Describe(ch)
	ch <- m.up
	ch <- m.age
	ch <- m.sessions
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.results.Collect(ch)
	for _, p := range m.set.all {
		up := false
		if p.keys != nil {
			up = p.keys.up.Load()
			if k := p.keys.current.Load(); k != nil {
				ch <- prometheus.MustNewConstMetric(m.age, prometheus.GaugeValue, time.Since(k.at).Seconds(), p.Name)
			}
		} else {
			up = p.asks.up.Load()
		}
		value := 0.0
		if up {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(m.up, prometheus.GaugeValue, value, p.Name)
	}
	ch <- prometheus.MustNewConstMetric(m.sessions, prometheus.GaugeValue, float64(m.set.sessions.len()))
}
