package lease

import (
	"time"

	"github.com/muster-registry/muster/registry"
)

// Next to nobody is heard of where at least fewBeats leases should have been
// renewed and less than the share hush of them were, each service counting as
// much as any other. So the end of one service, however large, is no sign of
// trouble on the way here, and a few who come through are no sign of none.
const (
	fewBeats = 3
	hush     = 0.25
)

// wave is what one pass over the deadlines knows of the services it touches, and
// of who was heard of lately.
type wave struct {
	reg   *registry.Snapshot
	now   time.Time
	left  map[registry.Key]int   // passing, without those that this pass gives up
	all   map[registry.Key]int   // not in maintenance
	hush  map[time.Duration]bool // whether next to nobody was heard of within a time
	spare int                    // how many were given more time
}

func newWave(reg *registry.Snapshot, now time.Time) *wave {
	return &wave{reg: reg, now: now, left: map[registry.Key]int{}, all: map[registry.Key]int{}, hush: map[time.Duration]bool{}}
}

// spare says whether an instance that has fallen silent is given its TTL once
// more, because that so many are silent at once says more of the way to here than
// of them: giving it up would leave too few of its service, or next to nobody is
// heard of any more. Only who was heard of before is spared. The caller holds
// the lock.
func (k *Keeper) spare(d *deadline, in *registry.Instance, ttl registry.Duration, w *wave) bool {
	if in.Status != registry.Passing {
		return false // it is not found as it is
	}
	key := registry.Key{Namespace: in.Namespace, Service: in.Service}
	if _, known := w.all[key]; !known {
		e, _ := w.reg.Discover(in.Namespace, in.Service)
		w.left[key] = e.Passing()
		for _, other := range e.Instances() {
			if other.Status != registry.Maintenance {
				w.all[key]++
			}
		}
	}
	few := w.all[key] > 1 && float64(w.left[key]-1) < k.threshold*float64(w.all[key])
	if k.threshold > 0 && d.beaten && !d.spared && (few || k.hushed(w, time.Duration(ttl)-d.every)) {
		d.spared = true
		d.at = w.now.Add(time.Duration(ttl))
		w.spare++
		return true
	}
	w.left[key]--
	return false
}

// hushed says whether next to nobody was heard of within a time. Who falls silent
// together does so within the time between two signs of life: without it, a TTL
// is how long the others have been silent, too. The time is made a round one, so
// that all leases are looked at a few times in a pass at most, whatever TTLs
// there are. The caller holds the lock.
func (k *Keeper) hushed(w *wave, within time.Duration) bool {
	round := Tick
	for 2*round <= within {
		round *= 2
	}
	hushed, known := w.hush[round]
	if !known {
		hushed = k.listen(w.now, round)
		w.hush[round] = hushed
	}
	return hushed
}

// listen is hushed without a memory.
func (k *Keeper) listen(now time.Time, within time.Duration) bool {
	type pulse struct{ leases, expected, heard float64 }
	services := map[registry.Key]pulse{}
	for _, d := range k.queue {
		if !d.beaten || d.removal {
			continue
		}
		key := registry.Key{Namespace: d.key.Namespace, Service: d.key.Service}
		p := services[key]
		p.leases++
		p.expected += min(1, float64(within)/float64(max(d.every, 1)))
		if now.Sub(d.last) < within {
			p.heard++
		}
		services[key] = p
	}
	var leases, expected, heard float64
	for _, p := range services {
		leases += p.expected
		expected += p.expected / p.leases
		heard += p.heard / p.leases
	}
	return leases >= fewBeats && heard < hush*expected
}

// beat notes a sign of life. It comes after the deadline was set by it.
func (d *deadline) beat(now time.Time) {
	ttl := d.at.Sub(now)
	switch gap := now.Sub(d.last); {
	case d.last.IsZero():
		d.every = ttl / 3 // as documented, until it is known better
	case gap < ttl: // else it was an interruption, and says nothing of how often it beats
		d.every = max(gap, d.every-d.every/8)
	}
	d.last, d.beaten, d.spared = now, true, false
}

// Spared is how many times a silent instance or check was given more time.
func (k *Keeper) Spared() uint64 { return k.spared.Load() }
