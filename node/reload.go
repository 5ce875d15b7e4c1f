package node

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// lookEvery is how often the files of certificates are looked at. Their content
// is compared: Kubernetes and others replace folders and links, which watchers
// of files miss.
const lookEvery = 5 * time.Second

// followCertificates takes new certificates into use until the context ends:
// soon after the files have changed. SIGHUP does so at once, see follow.
func (n *Node) followCertificates(ctx context.Context, c *certificates) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_ = c.reload() // it has been logged
		c.warn()
	}
}

var (
	notAfterDesc = prometheus.NewDesc("muster_tls_certificate_not_after_seconds",
		"When the certificate of the listener, or the authority that ends first, is over, in seconds since 1970.", []string{"listener"}, nil)
	reloadsDesc = prometheus.NewDesc("muster_tls_certificate_reloads_total", "How often new certificates were taken into use.", nil, nil)
	refusedDesc = prometheus.NewDesc("muster_tls_certificate_refused", "1 while the files hold certificates that are not used, since they are broken; else 0.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *certificates) Describe(to chan<- *prometheus.Desc) {
	to <- notAfterDesc
	to <- reloadsDesc
	to <- refusedDesc
}

// Collect implements prometheus.Collector.
func (c *certificates) Collect(to chan<- prometheus.Metric) {
	for _, l := range c.list() {
		to <- prometheus.MustNewConstMetric(notAfterDesc, prometheus.GaugeValue, float64(l.cert.NotAfter.Unix()), l.listener)
	}
	c.mu.Lock()
	reloads, refused := c.reloads, map[bool]float64{true: 1}[c.refused != nil]
	c.mu.Unlock()
	to <- prometheus.MustNewConstMetric(reloadsDesc, prometheus.CounterValue, float64(reloads))
	to <- prometheus.MustNewConstMetric(refusedDesc, prometheus.GaugeValue, refused)
}
