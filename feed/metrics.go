package feed

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	watchers prometheus.Gauge
	wakeups  prometheus.Counter
	resets   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, f *Feed) *metrics {
	m := &metrics{
		watchers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_feed_watchers", Help: "Streams that wait for changes on this node.",
		}),
		wakeups: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_feed_wakeups_total", Help: "How often a watcher was woken, by a change in its scope or to look at its caller again.",
		}),
		resets: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_feed_resets_total", Help: "Watchers that were told to start anew, since they were too slow or the state was replaced.",
		}),
	}
	if reg == nil {
		return m
	}
	reg.MustRegister(m.watchers, m.wakeups, m.resets,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "muster_feed_history_events", Help: "Changes that a watcher can still resume from.",
		}, func() float64 {
			f.mu.Lock()
			defer f.mu.Unlock()
			return float64(len(f.history))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "muster_feed_history_floor_revision", Help: "The oldest revision that every watcher can resume from.",
		}, func() float64 {
			f.mu.Lock()
			defer f.mu.Unlock()
			return float64(f.floor)
		}))
	return m
}

func (m *metrics) watching(n float64) { m.watchers.Add(n) }
func (m *metrics) woken()             { m.wakeups.Inc() }
func (m *metrics) lost()              { m.resets.Inc() }
