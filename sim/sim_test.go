package sim

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/muster-registry/muster/cluster"
	"github.com/muster-registry/muster/jepsen"
)

var (
	seed    = flag.Uint64("seed", 0, "live through this seed alone, and log what happens")
	first   = flag.Uint64("first", 1, "the first seed")
	seconds = flag.Int("seconds", 4, "real time to begin new schedules in")
	long    = flag.Bool("long", false, "schedules of an hour instead of ten minutes")
	side    = flag.Int("side", 1, "schedules side by side; 0: one for each processor")
)

// patient are Raft's clocks as one might set them for nodes on three
// continents: a tenth of the messages of the defaults, so about ten times the
// hours.
var patient = cluster.Timing{Heartbeat: 5 * time.Second, Election: 5 * time.Second, Lease: 4 * time.Second, Commit: 700 * time.Millisecond, Poll: 2500 * time.Millisecond}

// options are what is simulated for a seed: each sixteenth with the default
// clocks and faults close to each other.
func options(seed uint64) Options {
	o := Options{Seed: seed, Nodes: 3 + int(seed%3), Restores: seed%5 == 0}
	if seed%16 != 0 {
		o.Timing, o.Length, o.Calm = patient, 10*time.Minute, 2*time.Minute
		o.Membership = cluster.Membership{MaxContact: patient.Heartbeat, Every: 3 * time.Second}
		if *long {
			o.Length, o.Calm = time.Hour, 8*time.Minute
		}
	}
	return o
}

// folder is where the nodes' files are: in memory, where the system has such a place.
func folder(t *testing.T) string {
	if dir, err := os.MkdirTemp("/dev/shm", "muster-sim-"); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	return t.TempDir()
}

// live lives through the schedule of a seed.
func live(t *testing.T, seed uint64, log *slog.Logger) (rep *Report) {
	o := options(seed)
	o.Folder, o.Logger = folder(t), log
	var err error
	synctest.Test(t, func(*testing.T) { rep, err = Run(o) })
	if err == nil {
		err = jepsen.CheckRegisters(rep.Registers, time.Minute, o.Folder)
	}
	if err != nil {
		o.fill()
		t.Errorf("seed %d: %v\nits faults:\n%sagain: go test ./sim -run TestSchedules -args -seed %d -long=%t", seed, err, draw(&o), seed, *long)
	}
	return rep
}

// TestSchedules lives through schedules of faults, one for each seed, and asks
// after each whether every promise was kept to every caller.
func TestSchedules(t *testing.T) {
	if *seed != 0 {
		rep := live(t, *seed, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		rep.Registers = nil
		t.Logf("%+v", *rep)
		return
	}
	if *side == 0 {
		*side = runtime.GOMAXPROCS(0)
	}
	var next atomic.Uint64
	next.Store(*first - 1)
	var sum Totals
	began := time.Now()
	var all sync.WaitGroup
	for range *side {
		all.Go(func() {
			for time.Since(began) < time.Duration(*seconds)*time.Second && !t.Failed() {
				s := next.Add(1)
				t.Run(fmt.Sprint(s), func(t *testing.T) { sum.Add(live(t, s, nil), options(s).Timing != patient) })
			}
		})
	}
	all.Wait()
	t.Logf("%s in %s of real time", strings.TrimSpace(sum.String()), time.Since(began).Round(time.Second))
}
