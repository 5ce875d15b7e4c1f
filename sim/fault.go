package sim

import (
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// faults begin; [World.mend] ends them.
var faults = map[string]func(w *World, r *rand.Rand) error{
	"leader":   isolateLeader,
	"minority": minority,
	"one-way":  oneWay,
	"drop":     drop,
	"delay":    delay,
	"double":   double,
	"crash":    crashOne,
	"hold":     hold,
	"ring":     ring,
	"flap":     flap,
	"slow":     slow,
	"skew":     skew,
	"replace":  replace,
	"disk":     loseDisk,
	"reboots":  reboots,
	"crash-all": func(w *World, _ *rand.Rand) error {
		return w.down(w.ids()...)
	},
}

// kinds are their names, in an order that does not change.
var kinds = slices.Sorted(maps.Keys(faults))

// cut parts a group from the others, both ways.
func (w *World) cut(group ...string) {
	for _, a := range w.ids() {
		for _, b := range w.ids() {
			if slices.Contains(group, a) != slices.Contains(group, b) {
				w.Net.Set(a, b, Weather{Cut: true})
			}
		}
	}
}

// everywhere gives all ways one weather.
func (w *World) everywhere(weather Weather) {
	for _, a := range w.ids() {
		for _, b := range w.ids() {
			if a != b {
				w.Net.Set(a, b, weather)
			}
		}
	}
}

// some draws n of the nodes.
func (w *World) some(r *rand.Rand, n int) []string {
	ids := w.ids()
	r.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	return ids[:n]
}

func isolateLeader(w *World, _ *rand.Rand) error {
	w.cut(w.leader())
	return nil
}

func minority(w *World, r *rand.Rand) error {
	w.cut(w.some(r, 1+r.IntN((len(w.ids())-1)/2))...)
	return nil
}

func oneWay(w *World, r *rand.Rand) error {
	from := w.some(r, 1)[0]
	if r.IntN(2) == 0 {
		from = w.leader()
	}
	out := r.IntN(2) == 0
	for _, id := range w.ids() {
		if id == from {
			continue
		}
		if out {
			w.Net.Set(from, id, Weather{Cut: true})
		} else {
			w.Net.Set(id, from, Weather{Cut: true})
		}
	}
	return nil
}

func drop(w *World, r *rand.Rand) error {
	w.everywhere(Weather{Drop: 0.05 + 0.4*r.Float64()})
	return nil
}

func delay(w *World, r *rand.Rand) error {
	w.everywhere(Weather{Delay: time.Duration(r.Int64N(int64(2500 * time.Millisecond)))})
	return nil
}

func double(w *World, r *rand.Rand) error {
	w.everywhere(Weather{Duplicate: 0.5, Delay: time.Duration(r.Int64N(int64(500 * time.Millisecond))), Drop: 0.1 * r.Float64()})
	return nil
}

func crashOne(w *World, r *rand.Rand) error {
	id := w.some(r, 1)[0]
	if r.IntN(2) == 0 {
		id = w.leader()
	}
	return w.down(id)
}

// hold keeps the answers to the leader back for as long as it waits for them.
func hold(w *World, r *rand.Rand) error {
	to := w.leader()
	for _, id := range w.ids() {
		if id != to {
			w.Net.Set(id, to, Weather{Delay: time.Second + time.Duration(r.Int64N(int64(2*time.Second)))})
		}
	}
	return nil
}

// ring leaves each node a majority, and each another one. Of three nodes two
// hear each other through the third alone.
func ring(w *World, r *rand.Rand) error {
	ids := w.some(r, len(w.ids()))
	n := len(ids)
	for i, a := range ids {
		for j, b := range ids {
			apart := min((i-j+n)%n, (j-i+n)%n)
			if apart > 1 || n == 3 && i+j == 1 {
				w.Net.Set(a, b, Weather{Cut: true})
			}
		}
	}
	return nil
}

// flap cuts whoever leads off, again and again.
func flap(w *World, r *rand.Rand) error {
	for range 2 + r.IntN(5) {
		w.cut(w.leader())
		time.Sleep(time.Duration(r.Int64N(int64(8 * time.Second))))
		w.Net.Clear()
		time.Sleep(time.Duration(r.Int64N(int64(3 * time.Second))))
	}
	return nil
}

// slow makes the disks of some nodes slow, the leader's among them.
func slow(w *World, r *rand.Rand) error {
	for _, id := range append(w.some(r, 1), w.leader()) {
		w.seat(id).paper.pace(time.Duration(r.Int64N(int64(1500 * time.Millisecond))))
	}
	return nil
}

// skew sets the clocks of nodes wrong by up to a minute.
func skew(w *World, r *rand.Rand) error {
	for _, id := range w.ids() {
		w.seat(id).skew.Store(r.Int64N(int64(2*time.Minute)) - int64(time.Minute))
	}
	return w.down(w.leader()) // another clock stamps what comes next
}
