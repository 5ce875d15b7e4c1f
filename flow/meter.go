package flow

import (
	"hash/maphash"
	"math"
	"sync/atomic"
	"time"

	"github.com/muster-registry/muster/fault"
)

// cells is how many counts a meter keeps, whoever there is to be counted.
const cells = 1 << 16

// meter holds callers to a rate each, in memory that does not grow: each is
// counted in two of its cells, which it shares with others by chance, and the
// emptier one decides. All cells together let through cells times the rate,
// more than a node can take, so somebody shares both with callers who fill them
// only where tens of thousands are over their rate at the same time. Which
// cells are whose is different on each node and after each start.
type meter struct {
	name  string
	rate  Rate
	seed  maphash.Seed
	began time.Time
	each  int64 // nanoseconds that one request stands for
	depth int64 // nanoseconds that the burst stands for
	cells []atomic.Int64
}

// newMeter gives nil where there is no limit.
func newMeter(name string, seed maphash.Seed, r Rate) *meter {
	if r.PerSecond <= 0 {
		return nil
	}
	if r.Burst <= 0 {
		r.Burst = int64(math.Ceil(r.PerSecond))
	}
	each := max(1, int64(float64(time.Second)/r.PerSecond))
	return &meter{name: name, rate: r, seed: seed, began: time.Now(), each: each, depth: each * r.Burst, cells: make([]atomic.Int64, cells)}
}

// at gives the two cells of a key.
func at[K comparable](m *meter, key K) (a, b *atomic.Int64) {
	h := maphash.Comparable(m.seed, key)
	return &m.cells[h%cells], &m.cells[(h>>32)%cells]
}

// count takes one request of a key into account, or refuses it.
func count[K comparable](m *meter, key K) error {
	a, b := at(m, key)
	now := m.now()
	if err := m.room(a, b, now); err != nil {
		return err
	}
	m.add(a, now)
	m.add(b, now)
	return nil
}

func (m *meter) now() int64 { return int64(time.Since(m.began)) }

// room refuses where both cells are full.
func (m *meter) room(a, b *atomic.Int64, now int64) error {
	over := m.over(a, b, now)
	if over <= 0 {
		return nil
	}
	return m.full(time.Duration(over))
}

// over is how long it takes until there is room; 0 or less: there is.
func (m *meter) over(a, b *atomic.Int64, now int64) int64 {
	return min(a.Load(), b.Load()) - now + m.each - m.depth
}

// add puts one request into a cell. It never holds more than what it takes to
// be full, or those who share it would wait for the sins of others.
func (m *meter) add(cell *atomic.Int64, now int64) {
	for {
		old := cell.Load()
		next := min(max(old, now)+m.each, now+m.depth)
		if cell.CompareAndSwap(old, next) {
			return
		}
	}
}

func (m *meter) full(retry time.Duration) error {
	window := time.Duration(m.depth)
	limit := &fault.Limit{Name: m.name, Quota: m.rate.Burst, Window: window, Reset: retry}
	switch m.name {
	case "failures":
		return refusal(limit, retry, "too many calls from your address did not prove who sent them; try again after Retry-After")
	case "address":
		return refusal(limit, retry, "more than %g requests a second come from your address; try again after Retry-After", m.rate.PerSecond)
	}
	return refusal(limit, retry, "you send more than %g requests a second to this node; try again after Retry-After", m.rate.PerSecond)
}
