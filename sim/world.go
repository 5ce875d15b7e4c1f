package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/muster-registry/muster/cluster"
)

// Options say what is simulated. The zero value of a field means the default
// named beside it.
type Options struct {
	Seed       uint64
	Nodes      int           // 3
	Length     time.Duration // of the schedule, in virtual time; 10 min
	Calm       time.Duration // between two faults, on the average; 1 min
	Restores   bool          // a third of the events are restores, and no policies are published
	Folder     string        // for the nodes' files; required
	Timing     cluster.Timing
	Membership cluster.Membership
	Logger     *slog.Logger  // default: nothing is logged
	Patience   time.Duration // for the cluster to be whole again after a fault; 2 min

	SnapshotThreshold uint64        // 40
	SnapshotInterval  time.Duration // 20 s
	TrailingLogs      uint64        // 10
}

func (o *Options) fill() {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.SnapshotThreshold == 0 {
		o.SnapshotThreshold, o.TrailingLogs = 40, 10
	}
	set(&o.Length, 10*time.Minute)
	set(&o.Calm, time.Minute)
	set(&o.Patience, 2*time.Minute)
	set(&o.SnapshotInterval, 20*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// World is one simulated cluster.
type World struct {
	Net  *Net
	opts Options
	log  *slog.Logger

	mu        sync.Mutex // guards what follows
	seats     map[string]*seat
	folders   int
	joined    int // nodes that came later
	stretches []*stretch

	h      *history
	ledger *ledger

	leaders, crashes, looks, denied, watched, restores atomic.Int64
}

// blame notes a promise that was broken.
func (w *World) blame(format string, args ...any) {
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	w.ledger.blame(format, args...)
}

// anybody draws one of the running nodes; nil: none runs.
func (w *World) anybody(r *rand.Rand) *Node {
	nodes := w.Nodes()
	if len(nodes) == 0 {
		return nil
	}
	return nodes[r.IntN(len(nodes))]
}

// seat is where one node lives: what outlives its processes.
type seat struct {
	id, address string
	dir         string
	paper       *paper
	skew        atomic.Int64 // ns by which its clock is wrong
	node        *Node        // nil: down
}

func newWorld(opts Options) *World {
	return &World{Net: newNet(opts.Seed), opts: opts, log: opts.Logger, seats: map[string]*seat{}, h: &history{began: time.Now()}, ledger: newLedger()}
}

// seat gives the place of a node, a new one where there was none.
func (w *World) seat(id string) *seat {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seats[id]
}

// place makes room for a node with an empty disk.
func (w *World) place(id string) error {
	dir := w.folder(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seats[id] = &seat{id: id, address: id + ":" + strconv.Itoa(w.folders), dir: dir, paper: newPaper(w.opts.Seed + uint64(w.folders))}
	return os.MkdirAll(dir, 0o700)
}

// folder names a folder that is not there yet.
func (w *World) folder(id string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.folders++
	return filepath.Join(w.opts.Folder, fmt.Sprintf("%s-%d", id, w.folders))
}

// up starts a node's process.
func (w *World) up(id string, expect int) error {
	n, err := w.begin(id, expect)
	if err != nil {
		return fmt.Errorf("node %s does not start: %w", id, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seats[id].node = n
	return nil
}

// down crashes a node where it runs.
func (w *World) down(ids ...string) error {
	var errs []error
	for _, id := range ids {
		w.mu.Lock()
		s := w.seats[id]
		n := s.node
		s.node = nil
		w.mu.Unlock()
		if n == nil {
			continue
		}
		old := n.dir
		errs = append(errs, w.crash(n, synctest.Wait), os.RemoveAll(old))
		w.crashes.Add(1)
	}
	return errors.Join(errs...)
}

// Nodes are the running ones, ordered by id.
func (w *World) Nodes() []*Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	var nodes []*Node
	for _, id := range slices.Sorted(maps.Keys(w.seats)) {
		if n := w.seats[id].node; n != nil {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// ids are all nodes', ordered.
func (w *World) ids() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.seats))
}

// leader is the node that leads now, or the first one where none does.
func (w *World) leader() string {
	for _, n := range w.Nodes() {
		if n.cluster.IsLeader() {
			return n.ID
		}
	}
	return w.ids()[0]
}

// form founds the cluster.
func (w *World) form() error {
	for i := range w.opts.Nodes {
		id := "n" + strconv.Itoa(i+1)
		if err := errors.Join(w.place(id), w.up(id, w.opts.Nodes)); err != nil {
			return err
		}
	}
	return w.whole()
}

// mend ends all faults and waits until the cluster is whole.
func (w *World) mend() error {
	w.Net.Clear()
	for _, id := range w.ids() {
		s := w.seat(id)
		s.paper.pace(0)
		s.skew.Store(0)
		if s.node == nil {
			if err := w.up(id, 0); err != nil {
				return err
			}
		}
	}
	return w.whole()
}

// whole waits until every node is ready and has what the others have.
func (w *World) whole() error {
	var why error
	for end := time.Now().Add(w.opts.Patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if why = w.ready(); why == nil {
			return nil
		}
	}
	return fmt.Errorf("not whole again %s after the faults have ended: %w", w.opts.Patience, why)
}

func (w *World) ready() error {
	nodes := w.Nodes()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, n := range nodes {
		if err := n.cluster.Ready(); err != nil {
			return fmt.Errorf("%s: %w", n.ID, err)
		}
		if _, err := n.Read(ctx); err != nil {
			return fmt.Errorf("%s: %w", n.ID, err)
		}
	}
	return nil
}

// close ends all nodes.
func (w *World) close() error {
	var errs []error
	for _, n := range w.Nodes() {
		w.Net.Detach(n.ID)
		errs = append(errs, n.halt())
	}
	time.Sleep(time.Minute) // messages are on their way, and time ends with this goroutine
	return errors.Join(errs...)
}
