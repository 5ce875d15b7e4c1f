package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Event is one fault of a schedule.
type Event struct {
	At    time.Duration // since the cluster was whole for the first time
	Lasts time.Duration
	Kind  string // a name of faults
	Draw  uint64 // what the fault draws its particulars from
}

// restoring is the kind of an event that is a restore with one of the faults in
// its midst.
const restoring = "restore"

// Schedule is drawn from a seed alone: the same seed gives the same faults at
// the same times. Who leads when a fault begins is not in it.
type Schedule []Event

// draw makes the schedule of the options.
func draw(o *Options) (s Schedule) {
	r := rand.New(rand.NewPCG(o.Seed, 3))
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(r.Int64N(int64(most-least)))
	}
	for at := between(0, o.Calm); at < o.Length; {
		e := Event{At: at, Lasts: between(time.Second, 25*time.Second), Kind: kinds[r.IntN(len(kinds))], Draw: r.Uint64()}
		if o.Restores && r.IntN(3) == 0 {
			e.Kind = restoring
		}
		s = append(s, e)
		at += e.Lasts + between(o.Calm/2, o.Calm*3/2)
	}
	return s
}

func (s Schedule) String() string {
	var b strings.Builder
	for _, e := range s {
		fmt.Fprintf(&b, "%10s %-12s for %s\n", e.At.Round(time.Millisecond), e.Kind, e.Lasts.Round(time.Millisecond))
	}
	return b.String()
}
