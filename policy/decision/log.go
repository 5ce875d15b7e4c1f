package decision

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/policy"
)

// Options configure a log. The zero value of a field means its default.
type Options struct {
	Node   string
	Engine string            // that decides, as "opa 1.22.2"
	Labels map[string]string // of every event
	Store  *Store            // needed: what is kept to be explained and replayed
	Sinks  []Sink            // that get every event as well
	Masker *Masker           // of events; default: the default masks

	// AllowedPerSecond is how many look-ups and questions that were allowed are
	// kept each second; the rest is counted. 0 means 1000, less than 0 all.
	// Refusals and changes are always kept.
	AllowedPerSecond int
	// MaxInput is how many bytes of an input are kept; 0 means 1 MiB. A
	// decision on a larger one is kept without it.
	MaxInput int
	// Queue is how many decisions may wait to be kept; 0 means 16384.
	Queue int
	// QueueBytes bounds what those that wait hold of payloads; 0 means 32 MiB.
	QueueBytes int

	Logger *slog.Logger // default: slog.Default
}

func (o *Options) setDefaults() {
	if o.Masker == nil {
		o.Masker = defaults
	}
	if o.AllowedPerSecond == 0 {
		o.AllowedPerSecond = 1000
	}
	if o.MaxInput == 0 {
		o.MaxInput = 1 << 20
	}
	if o.Queue == 0 {
		o.Queue = 16384
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = 32 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

// Sink takes the events of a log out of the node.
type Sink interface {
	// Write takes one event over, of which it keeps a copy or nothing. It is
	// called by one goroutine. What cannot be taken is given back as an error,
	// or counted by the sink itself.
	Write(e *Event) error
	// Flush says that no other event follows soon.
	Flush() error
	// Close delivers what can be delivered within a few seconds.
	Close() error
}

// refill is how often the budget of allowed look-ups is renewed.
const refill = 100 * time.Millisecond

// patience is how long a refusal waits for a place in the queue before its
// caller writes it down.
const patience = time.Second

// maxOwed bounds the refusals that the sinks still have to be given.
const maxOwed = 1 << 18

// maxRepaid is how many of them are read back before the queue is looked at
// again: while it is full, every refusal waits, and owes one more.
const maxRepaid = 64

// Log keeps decisions. It is a [policy.Observer], which costs the caller no
// more than a place in a queue; a refusal for which there is none in time is
// written to the store by its caller, and given to the sinks later.
type Log struct {
	opt     Options
	metrics *Metrics
	budget  atomic.Int64 // allowed look-ups that may still be kept

	mu     sync.Mutex // guards all below
	queue  []asked
	bytes  int
	owed   []string   // ids of refusals that are kept, and that the sinks do not have yet
	more   *sync.Cond // the queue is not empty, or the log is closed
	room   *sync.Cond // the queue has been taken
	taken  uint64     // decisions that ever left the queue
	stored uint64     // and are kept
	closed bool

	done sync.WaitGroup
	stop chan struct{}
}

var _ policy.Observer = (*Log)(nil)

// asked is one decision on its way. What it points to is immutable.
type asked struct {
	rev      *policy.Revision
	question policy.Question
	decision policy.Decision
	took     time.Duration
	bytes    int
}

// NewLog makes a log that runs until it is closed. It closes its store and its
// sinks then.
func NewLog(o Options, m *Metrics) *Log {
	o.setDefaults()
	l := &Log{opt: o, metrics: m, stop: make(chan struct{})}
	l.more, l.room = sync.NewCond(&l.mu), sync.NewCond(&l.mu)
	l.budget.Store(int64(max(1, o.AllowedPerSecond/int(time.Second/refill))))
	l.done.Go(l.run)
	l.done.Go(l.tick)
	return l
}

// Decided implements [policy.Observer].
func (l *Log) Decided(rev *policy.Revision, q *policy.Question, d *policy.Decision, took time.Duration) {
	l.metrics.observe(rev, q, d, took)
	if d.Allow && l.opt.AllowedPerSecond > 0 && (q.Input == nil || q.Input.Action.LookUp()) && l.budget.Add(-1) < 0 {
		l.metrics.dropped.WithLabelValues("rate").Inc()
		return
	}
	a := asked{rev: rev, question: *q, decision: *d, took: took, bytes: len(q.Raw) + len(q.Query) + len(d.Result)}
	if q.Input != nil {
		a.bytes = len(q.Input.Resource.Payload) + len(q.Input.Resource.Previous)
	}
	if l.enqueue(a) {
		return
	}
	if d.Allow {
		l.metrics.dropped.WithLabelValues("queue").Inc()
		return
	}
	l.spill(a)
}

// enqueue gives the decision a place, which a refusal waits for.
func (l *Log) enqueue(a asked) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.full(a) {
		l.push(a)
		return true
	}
	if a.decision.Allow || l.closed {
		return false
	}
	end := time.Now().Add(patience)
	wake := time.AfterFunc(patience, l.room.Broadcast)
	defer wake.Stop()
	for l.full(a) {
		if l.closed || !time.Now().Before(end) {
			return false
		}
		l.room.Wait()
	}
	l.push(a)
	return true
}

func (l *Log) full(a asked) bool {
	return l.closed || len(l.queue) >= l.opt.Queue || (len(l.queue) > 0 && l.bytes+a.bytes > l.opt.QueueBytes)
}

func (l *Log) push(a asked) {
	l.queue = append(l.queue, a)
	l.bytes += a.bytes
	if len(l.queue) == 1 {
		l.more.Signal()
	}
}

// spill keeps a refusal on its caller's goroutine.
func (l *Log) spill(a asked) {
	w := new(writer)
	l.record(w, &a)
	r := &w.record
	err := l.opt.Store.Append(r)
	if err == nil {
		err = l.opt.Store.Flush()
	}
	if err != nil {
		l.failed("store", err)
		return
	}
	l.metrics.kept.Inc()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.owed) >= maxOwed {
		l.metrics.dropped.WithLabelValues("sink").Inc()
		return
	}
	l.owed = append(l.owed, r.ID)
	l.more.Signal()
}

func (l *Log) failed(where string, err error) {
	l.metrics.errors.WithLabelValues(where).Inc()
	if lost, ok := errors.AsType[*lostError](err); ok {
		l.metrics.dropped.WithLabelValues("store").Add(float64(lost.records))
	}
	l.opt.Logger.Error("decisions could not be kept", "where", where, "error", err)
}

// tick renews the budget and writes down what waits in the store.
func (l *Log) tick() {
	t := time.NewTicker(refill)
	defer t.Stop()
	share := float64(l.opt.AllowedPerSecond) * refill.Seconds()
	saved := 0.0
	for n := 1; ; n++ {
		select {
		case <-l.stop:
			return
		case <-t.C:
		}
		// What is below one is saved up, so that a small budget is one at all.
		if saved += share; saved >= 1 {
			l.budget.Store(int64(saved))
			saved -= float64(int64(saved))
		}
		if n%10 == 0 {
			if err := l.opt.Store.Flush(); err != nil {
				l.failed("store", err)
			}
		}
	}
}

// run takes the queue, again and again, until the log is closed and it is
// empty.
func (l *Log) run() {
	var batch []asked
	w := new(writer)
	for {
		l.mu.Lock()
		for len(l.queue) == 0 && len(l.owed) == 0 && !l.closed {
			l.more.Wait()
		}
		if len(l.queue) == 0 && len(l.owed) == 0 {
			l.mu.Unlock()
			return
		}
		batch, l.queue, l.bytes = l.queue, batch[:0], 0
		owed := l.owed[:min(len(l.owed), maxRepaid)]
		if l.owed = l.owed[len(owed):]; len(l.owed) == 0 {
			l.owed = nil // gives the memory back
		}
		l.taken += uint64(len(batch))
		l.room.Broadcast()
		l.mu.Unlock()
		l.keep(w, batch)
		l.mu.Lock()
		l.stored = l.taken
		l.mu.Unlock()
		l.repay(w, owed)
		clear(batch)
	}
}

// writer is what one goroutine keeps decisions with, again and again.
type writer struct {
	record Record
	input  []byte // of the record, where the log renders it
	event  Event
}

func (l *Log) keep(w *writer, batch []asked) {
	refusals := false
	for i := range batch {
		l.record(w, &batch[i])
		r := &w.record
		if err := l.opt.Store.Append(r); err != nil {
			l.failed("store", err)
		} else {
			l.metrics.kept.Inc()
		}
		refusals = refusals || !r.Result.Allow
		l.send(w, r)
	}
	l.flush()
	if refusals {
		if err := l.opt.Store.Flush(); err != nil {
			l.failed("store", err)
		}
	}
}

// repay gives the sinks the refusals that went to the store alone.
func (l *Log) repay(w *writer, ids []string) {
	for _, id := range ids {
		r, err := l.opt.Store.Get(id)
		if err != nil {
			l.metrics.dropped.WithLabelValues("sink").Inc()
			l.failed("store", err)
			continue
		}
		l.send(w, r)
	}
	l.flush()
}

func (l *Log) send(w *writer, r *Record) {
	if len(l.opt.Sinks) == 0 {
		return
	}
	e := w.event.of(r, l.opt.Masker)
	for _, s := range l.opt.Sinks {
		if err := s.Write(e); err != nil {
			l.failed("sink", err)
		}
	}
}

func (l *Log) flush() {
	for _, s := range l.opt.Sinks {
		if err := s.Flush(); err != nil {
			l.failed("sink", err)
		}
	}
}

// record renders a decision into the writer's record, which holds until the
// next one.
func (l *Log) record(w *writer, a *asked) {
	r, d := &w.record, &a.decision
	*r = Record{
		ID: d.ID, Time: d.Time.UTC(), Node: l.opt.Node, PolicyRevision: d.PolicyRevision, Revision: a.question.Call.Revision, Engine: l.opt.Engine,
		EntryPoint: d.EntryPoint, Named: a.question.Entrypoint != "", Document: a.question.Document, Response: a.question.Response, Query: a.question.Query, TookNS: a.took.Nanoseconds(), RequestedBy: a.question.Call.Source,
		Principal: a.question.Call.Principal, RequestID: a.question.Call.RequestID, Trace: ParseTrace(a.question.Call.Trace), Labels: l.opt.Labels,
		Result: Result{Allow: d.Allow, Reasons: d.Reasons, Filtered: d.Filtered, Missed: d.Missed, Default: d.Default, BreakGlass: d.BreakGlass, Cause: d.Why(), Value: d.Result},
	}
	if a.rev != nil {
		r.PolicyDigest = a.rev.Digest
	}
	if len(d.Result) > l.opt.MaxInput {
		r.Result.Value, r.Result.ValueBytes = nil, len(d.Result)
	}
	input := a.question.Raw
	if in := a.question.Input; in != nil {
		l.fill(r, in)
		var err error
		if input, err = in.AppendDocument(w.input[:0]); err != nil {
			l.opt.Logger.Error("the input of a decision cannot be kept", "decision_id", r.ID, "error", err)
		}
		if w.input = input; cap(w.input) > maxKept {
			w.input = nil
		}
	}
	// What nobody came to read may be anything; a record has to stay JSON.
	readable := len(input) > 0 && (a.question.Input != nil || !d.Missed || jsontext.Value(input).IsValid(lax))
	if r.InputBytes = len(input); r.InputBytes <= l.opt.MaxInput && readable {
		r.Input, r.InputBytes = input, 0
	}
	if d.Chance != nil {
		chance, err := d.Chance.MarshalJSON()
		if err != nil {
			l.opt.Logger.Error("the results of built-ins cannot be kept", "decision_id", r.ID, "error", err)
		}
		r.Chance = chance
	}
}

// fill takes from an input of the registry what its call does not say.
func (l *Log) fill(r *Record, in *policy.Input) {
	if r.RequestedBy == "" {
		r.RequestedBy = in.Source
	}
	if r.Principal == "" {
		r.Principal = in.Principal.ID
	}
	if r.Trace == (Trace{}) {
		r.Trace = ParseTrace(in.Headers["Traceparent"])
	}
	if r.RequestID == "" {
		r.RequestID = in.Headers["X-Request-Id"]
	}
}

// Close keeps what waits, and closes the sinks and the store. Decisions that
// come later are counted as dropped.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.more.Broadcast()
	l.room.Broadcast()
	l.mu.Unlock()
	close(l.stop)
	l.done.Wait()
	var errs []error
	for _, s := range l.opt.Sinks {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, l.opt.Store.Close())...)
}
