package fsm

import (
	"github.com/prometheus/client_golang/prometheus"
	bolt "go.etcd.io/bbolt"
)

// Collectors give the state file's own figures: its size, what bbolt does with
// its pages, and what waits to be written.
func (m *Machine) Collectors() []prometheus.Collector {
	read := func(name, help string, counter bool, value func(s bolt.Stats, size int64) float64) prometheus.Collector {
		get := func() float64 {
			s, size := m.store.stats()
			return value(s, size)
		}
		if counter {
			return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, get)
		}
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, get)
	}
	return []prometheus.Collector{
		read("muster_state_file_bytes", "Size of the state file.", false, func(_ bolt.Stats, size int64) float64 { return float64(size) }),
		read("muster_bbolt_free_pages", "Free pages in the state file.", false, func(s bolt.Stats, _ int64) float64 { return float64(s.FreePageN) }),
		read("muster_bbolt_pending_pages", "Pages of the state file that readers still hold.", false, func(s bolt.Stats, _ int64) float64 { return float64(s.PendingPageN) }),
		read("muster_bbolt_read_transactions_total", "Read transactions on the state file.", true, func(s bolt.Stats, _ int64) float64 { return float64(s.TxN) }),
		read("muster_bbolt_writes_total", "Writes of pages to the state file.", true, func(s bolt.Stats, _ int64) float64 { return float64(s.TxStats.GetWrite()) }),
		read("muster_bbolt_write_seconds_total", "Time spent writing pages to the state file.", true, func(s bolt.Stats, _ int64) float64 { return s.TxStats.GetWriteTime().Seconds() }),
		compactions("compacted", func() float64 { done, _ := m.Compactions(); return float64(done) }),
		compactions("failed", func() float64 { _, failed := m.Compactions(); return float64(failed) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "muster_state_pending_bytes", Help: "Applied changes that are not in the state file yet."}, func() float64 { return float64(m.store.unwritten()) }),
	}
}

func compactions(outcome string, count func() float64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "muster_state_compactions_total", ConstLabels: prometheus.Labels{"outcome": outcome},
		Help: "Compactions of the state file, which give its free pages back to the disk, by outcome."}, count)
}

func (s *store) stats() (bolt.Stats, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var size int64
	if tx, err := s.db.Begin(false); err == nil {
		size = tx.Size()
		_ = tx.Rollback()
	}
	return s.db.Stats(), size
}

func (s *store) unwritten() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.pending.bytes
	if s.writing != nil {
		n += s.writing.bytes
	}
	return n
}
