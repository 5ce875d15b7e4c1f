package audit

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Options configure a trail.
type Options struct {
	Path string // of the file that is written
	Node string
	Size int64         // bytes after which the file is replaced; 0: never
	Age  time.Duration // after which it is; 0: never
	Keep int           // replaced files that stay; 0: all

	// PerSecond is how many refusals of one caller get a line each, after a
	// burst of ten seconds' worth; the others are counted. 0: all of them.
	PerSecond int

	// HeadFile keeps where the chain has come to, apart from the trail: a
	// trail that was cut while the node was down is noticed.
	HeadFile string
	// Asked says that Holds will be asked: until it was, replaced files stay.
	Asked bool
	// What the node's state has at the start.
	ClusterID string
	Revision  uint64

	Mirror Mirror // gets all lines; nil: nobody does

	Logger *slog.Logger
}

const (
	maxQueue   = 1 << 16  // entries that wait; those who bring more write them
	maxSpare   = 1 << 12  // entries that a queue has room for, and is used again
	maxPending = 64 << 20 // bytes that wait for a file that cannot be written
	retryEvery = time.Second
	gather     = 50 * time.Millisecond // changes and look-ups wait so long for others
)

// Trail is a node's trail while it is written. Safe for concurrent use.
type Trail struct {
	opt     Options
	metrics *Metrics
	failing atomic.Bool
	flood   *flood

	mu    sync.Mutex // guards queue
	queue []Entry
	more  chan struct{}

	writing  sync.Mutex // guards all below; is taken before mu
	file     *os.File
	size     int64
	begun    time.Time // of the file
	head     Head      // of what was encoded
	saved    Head      // of what stands in HeadFile
	anchored uint64    // line that Anchor gave last
	asked    bool      // Holds was, or will not be: old files may go
	pending  []byte    // encoded, not written
	clock    clock
	spans    []span     // of pending, for the mirror
	told     []Mirrored // room for what the mirror is told
	spare    []Entry    // an empty queue with room, for the next
	gap      *Entry     // of what could not even wait; nil: nothing
	closed   bool

	stop    chan struct{}
	stopped chan struct{}
}

// Open goes on with the trail in the file, or begins it. The error says that
// the file cannot be read or written.
func Open(o Options, m *Metrics) (*Trail, error) {
	t := &Trail{opt: o, metrics: m, flood: newFlood(o.PerSecond), more: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{})}
	if err := os.MkdirAll(filepath.Dir(o.Path), 0o700); err != nil {
		return nil, err
	}
	missing, err := t.resume()
	if err != nil {
		return nil, err
	}
	if err := t.open(); err != nil {
		return nil, err
	}
	if err := t.catchUp(); err != nil {
		return nil, errors.Join(err, t.file.Close())
	}
	fresh := t.head.Seq == 0
	t.anchored, t.asked = t.head.Seq, !o.Asked
	t.encode(&Entry{Time: time.Now(), Type: Begin, Cause: Start, ClusterID: t.head.ClusterID, Revision: t.head.Revision})
	if missing > 0 {
		t.encode(&Entry{Time: time.Now(), Type: Gap, Cause: Missing, Lines: missing})
	}
	if g := (Entry{Time: time.Now(), Type: Gap, Cause: Missing, ClusterID: o.ClusterID, To: o.Revision}); o.Revision > 0 {
		if fresh {
			g.Cause = New
		}
		t.encode(&g)
	}
	if err := t.write(true); err != nil {
		return nil, errors.Join(err, t.file.Close())
	}
	go t.run()
	return t, nil
}

// Changed takes changes over, in their order. They are written soon, and on
// disk after the next Sync.
func (t *Trail) Changed(changes []Entry) {
	t.mu.Lock()
	t.queue = append(t.queue, changes...)
	full := len(t.queue) > maxQueue
	t.mu.Unlock()
	t.soon(full)
}

// soon has what waits written, at once by who brings too much.
func (t *Trail) soon(full bool) {
	if full {
		t.drain(false)
		return
	}
	select {
	case t.more <- struct{}{}:
	default:
	}
}

// Replaced says that this node took over a state at the revision without
// applying the changes up to it.
func (t *Trail) Replaced(clusterID string, revision uint64) {
	t.Changed([]Entry{{Time: time.Now(), Type: Gap, Cause: Snapshot, ClusterID: clusterID, To: revision}})
}

// Looked takes a look-up over that was answered. It is written soon.
func (t *Trail) Looked(e *Entry) {
	t.mu.Lock()
	t.queue = append(t.queue, *e)
	full := len(t.queue) > maxQueue
	t.mu.Unlock()
	t.soon(full)
}

// Decided takes a decision over that refused no call. It is written soon. One that
// said no to a caller who is told so more often than the trail takes is only
// counted.
func (t *Trail) Decided(e Entry) {
	if e.Outcome == Refused && !t.flood.take(&e) {
		t.metrics.flood.Inc()
		return
	}
	t.Changed([]Entry{e})
}

// Issued writes a line about a certificate, and is on disk when it returns,
// unless the trail is failing.
func (t *Trail) Issued(e Entry) {
	t.Changed([]Entry{e})
	t.Sync()
}

// Refused writes a line about what was refused, before it returns. The line
// is safe from the end of the process then. Of a caller that is refused more
// often than the trail takes, it is only counted.
func (t *Trail) Refused(e Entry) {
	if !t.flood.take(&e) {
		t.metrics.flood.Inc()
		return
	}
	t.mu.Lock()
	t.queue = append(t.queue, e)
	t.mu.Unlock()
	t.drain(false)
}

// Sync returns when everything told so far is on disk, or cannot be put there.
func (t *Trail) Sync() { t.drain(true) }

// Failing reports whether the trail cannot be written at present.
func (t *Trail) Failing() bool { return t.failing.Load() }

// Head is where the chain has come to.
func (t *Trail) Head() Head {
	t.writing.Lock()
	defer t.writing.Unlock()
	return t.head
}

// Close writes what waits.
func (t *Trail) Close() error {
	t.writing.Lock()
	if t.closed {
		t.writing.Unlock()
		return nil
	}
	t.closed = true
	t.writing.Unlock()
	close(t.stop)
	<-t.stopped
	t.suppressed(true)
	t.Sync()
	t.writing.Lock()
	defer t.writing.Unlock()
	return t.file.Close()
}

// run writes what waits, and tries again what could not be written.
func (t *Trail) run() {
	defer close(t.stopped)
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-t.more:
			// The log has the changes: many at once cost less than each by itself.
			select {
			case <-t.stop:
				return
			case <-time.After(gather):
			}
		case <-retry.C:
			if !t.suppressed(false) && !t.Failing() {
				continue
			}
		}
		t.drain(false)
	}
}

// suppressed queues the counts of what had no line of its own, and reports
// whether there are any.
func (t *Trail) suppressed(all bool) bool {
	lines := t.flood.counts(time.Now(), all)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue = append(t.queue, lines...)
	return len(lines) > 0
}

// drain encodes and writes what waits.
func (t *Trail) drain(sync bool) {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	queue := t.queue
	t.queue, t.spare = t.spare, nil
	t.mu.Unlock()
	for i := range queue {
		if len(t.pending) > maxPending {
			t.lose(&queue[i])
			continue
		}
		t.encode(&queue[i])
	}
	if clear(queue); cap(queue) <= maxSpare {
		t.spare = queue[:0]
	}
	err := t.rotate()
	if err == nil {
		err = t.write(sync)
	}
	if err != nil {
		t.metrics.errors.Inc()
		if !t.failing.Swap(true) {
			t.opt.Logger.Error("the audit trail cannot be written", "path", t.opt.Path, "error", err)
		}
	} else if t.failing.Swap(false) {
		t.opt.Logger.Info("the audit trail is written again", "path", t.opt.Path)
	}
	t.metrics.failing(t.Failing())
}

// lose keeps count of what cannot be kept.
func (t *Trail) lose(e *Entry) {
	if t.gap == nil {
		t.gap = &Entry{Time: e.Time, Type: Gap, Cause: Lost}
	}
	switch e.Type {
	case Change:
		t.gap.To = max(t.gap.To, e.Revision)
	case Gap:
		t.gap.To = max(t.gap.To, e.To)
	default:
		t.gap.Lines++
	}
	t.metrics.lost.Inc()
}

// encode makes the next line of the chain, of an entry that is the trail's own
// from here on. What stands in the trail already is left out.
func (t *Trail) encode(e *Entry) {
	if g := t.gap; g != nil {
		t.gap = nil
		t.encode(g)
	}
	known := t.head.Revision
	if e.ClusterID != "" && e.ClusterID != t.head.ClusterID {
		known = 0
	}
	switch e.Type {
	case Change:
		if e.Revision <= known {
			return
		}
	case Gap:
		if e.From = known + 1; e.To < e.From {
			e.From, e.To = 0, 0
		}
		if e.To == 0 && e.Lines == 0 {
			return
		}
	}
	e.Seq, e.Node, e.Time = t.head.Seq+1, t.opt.Node, e.Time.UTC()
	if e.DecisionID != "" {
		e.Event = Evaluated
	}
	from := len(t.pending)
	var hash string
	t.pending, hash = link(e.render(t.pending, &t.clock), from, t.head.Hash)
	if t.opt.Mirror != nil {
		t.spans = append(t.spans, span{e.Seq, from, len(t.pending) - 1, e.Request})
	}
	t.head.after(e, hash)
	t.metrics.line(e.Type)
}
