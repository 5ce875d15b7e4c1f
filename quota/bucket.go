package quota

import (
	"sync"
	"time"
)

// maxKeys bounds the counts that are kept at one place.
const maxKeys = 200_000

// headStart is what a bucket holds at most, in time of its rate, when its
// keeper has only just begun: what was spent before it is not known.
const headStart = time.Second

// bucket is a generic cell rate: the time at which it is full again. The zero
// bucket is full.
type bucket time.Time

// left is how many hits the bucket holds.
func (b bucket) left(r Rate, now time.Time) float64 {
	debt := time.Time(b).Sub(now)
	if debt <= 0 {
		return float64(r.BurstCapacity)
	}
	return max(0, float64(r.BurstCapacity)-debt.Seconds()*r.RequestsPerSecond)
}

// take gives the bucket without n hits. A bucket is never further from full
// than empty: its rate may have changed.
func (b bucket) take(r Rate, now time.Time, n int64) bucket {
	full := time.Time(b)
	if full.Before(now) {
		full = now
	}
	full = full.Add(r.refill(float64(n)))
	if most := now.Add(r.refill(float64(r.BurstCapacity))); full.After(most) {
		full = most
	}
	return bucket(full)
}

// filling gives a bucket that began, empty, to fill at a time.
func filling(r Rate, since time.Time) bucket {
	return bucket(since.Add(r.refill(float64(r.BurstCapacity))))
}

// bank holds the buckets of the whole cluster while this node leads.
type bank struct {
	mu      sync.Mutex // guards what follows
	since   time.Time
	buckets map[Key]bucket
}

// open forgets what was kept under an earlier leadership.
func (b *bank) open(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.since, b.buckets = now, map[Key]bucket{}
}

// draw takes up to want hits out of a bucket, if it holds at least the least.
// It gives what it took, and what is left.
func (b *bank) draw(now time.Time, l Limit, least, want int64) (granted int64, left float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buckets == nil {
		b.since, b.buckets = now, map[Key]bucket{}
	}
	at, known := b.buckets[l.Key]
	if !known {
		if len(b.buckets) >= maxKeys {
			b.sweep(now)
		}
		if len(b.buckets) >= maxKeys {
			return 0, 0
		}
		at = filling(l.Rate, b.since.Add(-headStart))
	}
	if left = at.left(l.Rate, now); left < float64(least) {
		return 0, left
	}
	granted = min(want, int64(left))
	b.buckets[l.Key] = at.take(l.Rate, now, granted)
	return granted, left - float64(granted)
}

// sweep forgets the buckets that are full again: a new one is like them.
func (b *bank) sweep(now time.Time) {
	for k, at := range b.buckets {
		if !time.Time(at).After(now) {
			delete(b.buckets, k)
		}
	}
}
