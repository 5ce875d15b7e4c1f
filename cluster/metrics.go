package cluster

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are counted whether or not anyone collects them.
type metrics struct {
	calls    *prometheus.CounterVec
	rejected prometheus.Counter
	batch    prometheus.Histogram
	rounds   prometheus.Counter
	removed  *prometheus.CounterVec
	all      []prometheus.Collector
}

func newMetrics(c *Cluster, reg prometheus.Registerer) *metrics {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_peer_calls_total", Help: "Calls this node made to other nodes, by method.",
		}, []string{"method"}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_peer_rejected_handshakes_total", Help: "Connections the peer port refused.",
		}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_propose_batch_commands", Help: "Commands that shared one log entry.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}),
		rounds: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_read_rounds_total", Help: "Confirmed rounds begun by this leader for linearizable reads.",
		}),
	}
	m.removed = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "muster_cluster_removed_total", Help: "Members that are gone, as this node applied it, by reason: elsewhere where another node decided it.",
	}, []string{"reason"})
	for _, why := range []string{RemovedDead, RemovedOperator, RemovedReplaced, RemovedBefore, RemovedElsewhere} {
		m.removed.WithLabelValues(why)
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	m.all = []prometheus.Collector{m.calls, m.rejected, m.batch, m.rounds, m.removed,
		gauge("muster_staleness_seconds", "Upper bound on the age of this node's state; +Inf before it has caught up.", func() float64 {
			if s := c.Staleness(); s < math.MaxInt64 {
				return s.Seconds()
			}
			return math.Inf(1)
		}),
		gauge("muster_is_leader", "1 while this node leads.", func() float64 {
			if c.raft != nil && c.serving() != nil {
				return 1
			}
			return 0
		}),
		gauge("muster_applied_index", "Index of the last log entry this node has applied.", func() float64 { return float64(c.machine.AppliedIndex()) }),
		gauge("muster_feature_level", "Feature level of the cluster, as far as this node has applied.", func() float64 { return float64(c.machine.Level()) }),
		gauge("muster_cluster_members", "Members of the cluster this node knows of.", func() float64 { return float64(len(c.configuration())) }),
	}
	if reg != nil {
		reg.MustRegister(m.all...)
	}
	return m
}

func (m *metrics) unregister(reg prometheus.Registerer) {
	if reg != nil {
		for _, one := range m.all {
			reg.Unregister(one)
		}
	}
}
