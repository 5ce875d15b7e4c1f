package spiffe

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	refreshes *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "muster_spiffe_bundle_refreshes_total", Help: "Looks at the bundles of other trust domains, by domain and result.",
	}, []string{"trust_domain", "result"})}
}

func (m *metrics) refreshed(domain string, ok bool) {
	m.refreshes.WithLabelValues(domain, map[bool]string{true: "ok", false: "failed"}[ok]).Inc()
}

var (
	authoritiesDesc = prometheus.NewDesc("muster_spiffe_bundle_authorities", "Authorities of another trust domain that are believed, by kind; 0 until its bundle is there.",
		[]string{"trust_domain", "kind"}, nil)
	confirmedDesc = prometheus.NewDesc("muster_spiffe_bundle_confirmed_timestamp_seconds", "When the bundle of another trust domain was last confirmed, in seconds since 1970; 0: never.",
		[]string{"trust_domain"}, nil)
)

// Describe implements prometheus.Collector.
func (t *Trust) Describe(to chan<- *prometheus.Desc) {
	t.metrics.refreshes.Describe(to)
	to <- authoritiesDesc
	to <- confirmedDesc
}

// Collect implements prometheus.Collector.
func (t *Trust) Collect(to chan<- prometheus.Metric) {
	t.metrics.refreshes.Collect(to)
	v := t.current.Load()
	for _, s := range t.sources {
		x, j, at := 0, 0, int64(0)
		if b, ok := v.bundles[s.td]; ok {
			x, j, at = len(b.X509Authorities()), len(b.JWTAuthorities()), b.at.Load()
		}
		to <- prometheus.MustNewConstMetric(authoritiesDesc, prometheus.GaugeValue, float64(x), s.Name, "x509")
		to <- prometheus.MustNewConstMetric(authoritiesDesc, prometheus.GaugeValue, float64(j), s.Name, "jwt")
		to <- prometheus.MustNewConstMetric(confirmedDesc, prometheus.GaugeValue, float64(at), s.Name)
	}
}
