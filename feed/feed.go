// Package feed owns who is told of changes, and when: one shared view per
// scope that somebody watches, woken by the changes in that scope and by no
// others, and a bounded history to resume from. Blocked reads, event streams
// and gRPC streams all hang on it.
//
// Watchers have a place in the history and no queue of their own, so one that
// is slow costs nothing; when what it has not read yet has left the history it
// is told to start anew. The feed refuses to leave out a change silently, to
// tell of one twice or out of order, and to split what one change did.
package feed

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// Scope is what is watched: one service, the services of a namespace where
// Service is empty, all where both are.
type Scope struct{ Namespace, Service string }

// Options bound the history. The zero value of a field means its default.
type Options struct {
	Events   int                   // that are kept; 16 384
	Bytes    int64                 // of what is kept; 16 MiB
	Registry prometheus.Registerer // nil: nothing is measured
}

// Feed is the feed of one node. It is safe for concurrent use; [Feed.Publish]
// and [Feed.Reset] are for one goroutine.
type Feed struct {
	opt     Options
	metrics *metrics

	revision atomic.Uint64 // all changes up to it were published
	checks   atomic.Uint64 // how often watchers were asked to look at their caller again
	ticks    atomic.Uint64
	resets   atomic.Uint64
	closed   atomic.Bool

	mu      sync.Mutex // guards what follows
	history []*Event   // in order of revision
	bytes   int64
	start   uint64 // what has not changed since may have changed then
	floor   uint64 // changes up to it may have left the history
	topics  map[Scope]*topic
	last    map[string]uint64 // of the last change since start in each namespace, and of all under ""
	extinct map[string]uint64 // of the last since start that took a service away in each namespace
}

// topic is the shared view of one scope. It is there while somebody holds it.
type topic struct {
	scope   Scope
	holders int // guarded by the feed's mu

	mu      sync.Mutex // guards what follows
	events  []*Event   // those of the history that are in scope
	floor   uint64     // changes up to it may be missing here
	changed chan struct{}
}

// New makes a feed whose history begins behind a revision.
func New(opt Options, revision uint64) *Feed {
	if opt.Events == 0 {
		opt.Events = 16_384
	}
	if opt.Bytes == 0 {
		opt.Bytes = 16 << 20
	}
	f := &Feed{opt: opt, topics: map[Scope]*topic{}, last: map[string]uint64{}, extinct: map[string]uint64{}}
	f.metrics = newMetrics(opt.Registry, f)
	f.begin(revision)
	return f
}

func (f *Feed) begin(revision uint64) {
	f.history, f.bytes, f.start, f.floor = nil, 0, revision, revision
	clear(f.last)
	clear(f.extinct)
	f.revision.Store(revision)
}

// Publish tells of changes, in order of their revisions; revision is that of
// the state that has them all, which is there already.
func (f *Feed) Publish(revision uint64, events []*Event) {
	for i, e := range events {
		e.Last = i == len(events)-1 || events[i+1].Revision != e.Revision
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		f.bytes += e.size()
		f.last[e.Namespace], f.last[""] = e.Revision, e.Revision
		if e.Kind == registry.KindService && e.Type == Delete {
			f.extinct[e.Namespace] = e.Revision
		}
	}
	f.history = append(f.history, events...)
	if len(f.topics) > 0 {
		f.tell(events)
	}
	f.trim()
	f.revision.Store(revision)
}

// tell brings the events to the topics they are in, each topic at once.
func (f *Feed) tell(events []*Event) {
	var woken []*topic
	for _, e := range events {
		for _, scope := range e.scopes() {
			t, ok := f.topics[scope]
			if !ok {
				continue
			}
			if !slices.Contains(woken, t) {
				t.mu.Lock() // until all of its events are there
				woken = append(woken, t)
			}
			t.events = append(t.events, e)
		}
	}
	for _, t := range woken {
		t.wake()
		t.mu.Unlock()
	}
}

// trim lets the oldest changes go, each with all of its events.
func (f *Feed) trim() {
	n := 0
	for n < len(f.history) && (len(f.history)-n > f.opt.Events || f.bytes > f.opt.Bytes) {
		revision := f.history[n].Revision
		for ; n < len(f.history) && f.history[n].Revision == revision; n++ {
			f.bytes -= f.history[n].size()
		}
		f.floor = revision
	}
	if n == 0 {
		return
	}
	for _, e := range f.history[:n] {
		for _, scope := range e.scopes() {
			if t, ok := f.topics[scope]; ok {
				t.mu.Lock()
				t.drop(f.floor)
				t.mu.Unlock()
			}
		}
	}
	clear(f.history[:n]) // the array outlives them
	f.history = f.history[n:]
}

// drop lets go what the feed's history has let go.
func (t *topic) drop(floor uint64) {
	n := 0
	for ; n < len(t.events) && t.events[n].Revision <= floor; n++ {
		t.floor = t.events[n].Revision
	}
	// Readers hold slices of the array: what is dropped stays as it is.
	t.events = t.events[n:]
}

func (t *topic) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// Reset tells all watchers to start anew: the whole state was replaced.
func (f *Feed) Reset(revision uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resets.Add(1) // before the revision: see poll
	f.begin(revision)
	for _, t := range f.topics {
		t.mu.Lock()
		t.events, t.floor = nil, revision
		t.wake()
		t.mu.Unlock()
	}
}

// Check has all watchers look at their caller again: a policy, a role or a
// credential may have changed.
func (f *Feed) Check() {
	f.checks.Add(1)
	f.wakeAll()
}

// Tick has all watchers look at their caller again and tell how far they are.
func (f *Feed) Tick() {
	f.ticks.Add(1)
	f.Check()
}

// Close ends all watches; there are no new ones.
func (f *Feed) Close() {
	f.closed.Store(true)
	f.wakeAll()
}

func (f *Feed) wakeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.topics {
		t.mu.Lock()
		t.wake()
		t.mu.Unlock()
	}
}

// Changed is the revision of the last change in a namespace, or anywhere where
// it is empty; never older than the truth.
func (f *Feed) Changed(namespace string) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r, ok := f.last[namespace]; ok {
		return r
	}
	return f.start
}

// Extinct is the revision of the last change that took a service away in a
// namespace; never older than the truth.
func (f *Feed) Extinct(namespace string) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r, ok := f.extinct[namespace]; ok {
		return r
	}
	return f.start
}

// hold gives the topic of a scope, and makes it out of the history for the
// first who wants it.
func (f *Feed) hold(scope Scope) *topic {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.topics[scope]
	if !ok {
		t = &topic{scope: scope, floor: f.floor, changed: make(chan struct{})}
		for _, e := range f.history {
			if scope.has(e) {
				t.events = append(t.events, e)
			}
		}
		f.topics[scope] = t
	}
	t.holders++
	return t
}

func (f *Feed) release(t *topic) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.holders--; t.holders == 0 {
		delete(f.topics, t.scope)
	}
}

func (e *Event) scopes() [3]Scope {
	return [...]Scope{{e.Namespace, e.Service}, {e.Namespace, ""}, {}}
}

func (s Scope) has(e *Event) bool {
	return (s.Namespace == "" || s.Namespace == e.Namespace) && (s.Service == "" || s.Service == e.Service)
}

// Watch gives a channel that is closed at the next change in scope, and at any
// time without one, and a function that gives it back. It is taken before the
// state is read that it is to follow.
func (f *Feed) Watch(scope Scope) (changed <-chan struct{}, release func()) {
	t := f.hold(scope)
	t.mu.Lock()
	changed = t.changed
	t.mu.Unlock()
	if f.closed.Load() {
		changed = gone
	}
	return changed, sync.OnceFunc(func() { f.release(t) })
}

var gone = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Subscription is one watcher's place in the history. It is for one goroutine.
type Subscription struct {
	feed   *Feed
	topic  *topic
	cursor uint64 // everything up to it was handed out
	checks uint64
	ticks  uint64
	resets uint64
}

// Notice is what a watcher is told at once: whole changes, in order, or that it
// is to look at its caller again, or how far it is.
type Notice struct {
	Events   []*Event // must not be modified
	Revision uint64   // everything in scope up to it was handed out, with Events
	Check    bool     // look at the caller again, before anything else
	Progress bool     // tell the caller the revision
}

// Subscribe begins a watch behind a revision. What is refused: compacted, when
// changes behind it may be lost; not_ready, when the node stops.
func (f *Feed) Subscribe(scope Scope, after uint64) (*Subscription, error) {
	s := &Subscription{feed: f, cursor: after, checks: f.checks.Load(), ticks: f.ticks.Load(), resets: f.resets.Load()}
	s.topic = f.hold(scope)
	s.topic.mu.Lock()
	floor := s.topic.floor
	s.topic.mu.Unlock()
	if after < floor {
		f.release(s.topic)
		return nil, fault.New(fault.Compacted, "the changes behind revision %d are not all kept here any more, only those behind %d: read anew, and watch from there", after, floor)
	}
	f.metrics.watching(1)
	return s, nil
}

// Close ends the watch.
func (s *Subscription) Close() {
	s.feed.metrics.watching(-1)
	s.feed.release(s.topic)
}

// Next waits until there is something to tell. The error is the context's, or
// compacted where the watcher has to start anew, or not_ready when the node
// stops.
func (s *Subscription) Next(ctx context.Context) (Notice, error) {
	for {
		n, changed, err := s.poll()
		if err != nil || len(n.Events) > 0 || n.Check || n.Progress {
			return n, err
		}
		select {
		case <-changed:
			s.feed.metrics.woken()
		case <-ctx.Done():
			return n, ctx.Err()
		}
	}
}

func (s *Subscription) poll() (n Notice, changed <-chan struct{}, err error) {
	f := s.feed
	if f.closed.Load() {
		return n, nil, fault.New(fault.NotReady, "this node is shutting down; go on at another from revision %d", s.cursor)
	}
	// Before the events: all up to it are in the topic.
	upTo := f.revision.Load()
	s.topic.mu.Lock()
	defer s.topic.mu.Unlock()
	// A reset is counted before the new revision can be seen.
	if f.resets.Load() != s.resets {
		f.metrics.lost()
		return n, nil, fault.New(fault.Compacted, "the state was replaced: read anew, and watch from there")
	}
	if s.cursor < s.topic.floor {
		f.metrics.lost()
		return n, nil, fault.New(fault.Compacted, "this watcher was too slow: changes behind revision %d are not kept any more; read anew, and watch from there", s.cursor)
	}
	if c := f.checks.Load(); c != s.checks {
		s.checks, n.Check = c, true
	}
	at, _ := slices.BinarySearchFunc(s.topic.events, s.cursor+1, func(e *Event, r uint64) int {
		switch {
		case e.Revision < r:
			return -1
		case e.Revision > r:
			return 1
		}
		return 0
	})
	if at < len(s.topic.events) {
		n.Events = s.topic.events[at:len(s.topic.events):len(s.topic.events)]
		upTo = max(upTo, n.Events[len(n.Events)-1].Revision)
	}
	s.cursor = max(s.cursor, upTo)
	n.Revision = s.cursor
	if t := f.ticks.Load(); t != s.ticks {
		s.ticks, n.Progress = t, true
	}
	return n, s.topic.changed, nil
}
