package node

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/api/xds"
)

// xdsWatched registers what is counted of xDS, and gives what counts.
func (m *metrics) xdsWatched(logger *slog.Logger) xds.Options {
	streams := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "muster_xds_streams", Help: "ADS streams of Envoy and of gRPC clients that are open.",
	})
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "muster_xds_rejected_total", Help: "Answers that an xDS client did not take, by kind of resource.",
	}, []string{"kind"})
	for _, kind := range xds.Kinds() {
		rejected.WithLabelValues(kind)
	}
	m.reg.MustRegister(streams, rejected)
	return xds.Options{Logger: logger, Stream: func(delta int) { streams.Add(float64(delta)) }, Rejected: func(kind string) { rejected.WithLabelValues(kind).Inc() }}
}
