package door

import (
	"context"
	"strings"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// Changed gives a channel that is closed at the next change in scope, and at
// any time without one, and a function that gives it back. It is taken before
// the state is looked at that it is to follow. It is safe for concurrent use.
func (c *Call) Changed(scope feed.Scope) (changed <-chan struct{}, release func()) {
	return c.door.backend.Feed().Watch(scope)
}

// Renew is for a call that goes on: it looks at the newest state and asks again
// who the caller is, before it decides again. The caller is to be permitted anew.
func (c *Call) Renew() error {
	if err := c.Ready(true); err != nil {
		return err
	}
	if err := c.Anew(); err != nil {
		return err
	}
	c.input = nil // its time and its caller are of the past
	return c.Young()
}

// Item is one event as the caller may see it.
type Item struct {
	*feed.Event
	Record []byte // JSON; the event's own, unless the policy put another in its place
}

// JSON is the event as the caller may see it.
func (i *Item) JSON() []byte {
	if same(i.Record, i.Event.Record) {
		return i.Event.JSON()
	}
	return i.Event.With(i.Record)
}

func same(a, b []byte) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// Told is what a watcher is told at once: whole changes, in order.
type Told struct {
	Items    []Item // valid until the next
	Revision uint64 // everything up to it was told
	Progress bool   // tell it even without an item
	Begun    bool   // the first: the watch begins behind the revision
}

// Follow tells of the changes in a scope behind a revision, 0 being the one of
// now, until the caller goes, tell fails, the caller may not see them any more,
// or a change would be missed. It always returns an error. The call has been
// admitted for policy.Watch, and from here on is a stream to the limits.
//
// What a policy says of watching one service holds for its changes until the
// policy, the settings or the caller change. Where it filters, and where the
// watch is on many services, it is asked about each change.
func (c *Call) Follow(scope feed.Scope, after uint64, tell func(Told) error) error {
	if after == 0 {
		after = c.State.Revision
	}
	if after > c.State.Revision {
		ctx, cancel := context.WithTimeout(c.req.Context(), WaitRevision)
		defer cancel()
		if err := c.await(ctx, after); err != nil {
			return err
		}
	}
	w := watcher{Call: c, scope: scope}
	if err := w.check(); err != nil {
		return err
	}
	s, err := c.door.backend.Feed().Subscribe(scope, after)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := c.visit.Follow(); err != nil {
		return err
	}
	w.input = nil // it may be long until the next decision
	if err := tell(Told{Revision: after, Begun: true}); err != nil {
		return err
	}
	for {
		n, err := s.Next(c.req.Context())
		if err != nil {
			if gone := c.Gone(); gone != nil {
				return gone
			}
			return err
		}
		if n.Check || w.over() {
			if err := w.recheck(); err != nil {
				return err
			}
		}
		if err := w.tell(n, tell); err != nil {
			return err
		}
	}
}

// watcher is a call that follows a scope.
type watcher struct {
	*Call
	scope feed.Scope
	each  bool // the policy is asked about each event
	items []Item

	// What the last decision was made by.
	policies *policy.Table
	settings any
}

// check asks whether the caller may watch.
func (w *watcher) check() error {
	if err := w.Young(); err != nil {
		return err
	}
	w.each = w.scope.Service == ""
	w.policies, w.settings = w.State.Policy, w.State.Settings
	if w.each || !w.Policed() {
		return nil
	}
	res := policy.Resource{Kind: registry.KindService, Namespace: w.scope.Namespace, Name: w.scope.Service}
	if e, ok := w.State.Registry.Discover(w.scope.Namespace, w.scope.Service); ok {
		res.Payload = e.Answer(registry.Query{})
		if s, ok := w.State.Registry.Service(w.scope.Namespace, w.scope.Service); ok {
			res.Holder = s.JSON
		}
	}
	d, err := w.Decide(res)
	w.each = d.Filtered != nil
	if d.Missed && fault.Is(err, fault.PolicyDenied) {
		// A watcher that was refused does not come back.
		return fault.New(fault.PolicyUnavailable, "the policy gave no answer in time about the watch: %s", strings.Join(d.Reasons, "; "))
	}
	return err
}

// over says that the caller's credential has ended: nothing more is told by it.
func (w *watcher) over() bool {
	end := w.Who.Credential.ExpiresAt
	return !end.IsZero() && !time.Now().Before(end)
}

// recheck asks again who the caller is and what it may do, and the policy where
// its answer may be another one.
func (w *watcher) recheck() error {
	before := w.Who
	if err := w.Ready(true); err != nil {
		return err
	}
	if err := w.Anew(); err != nil {
		return err
	}
	if err := w.Permit(policy.Watch, registry.KindService, w.scope.Namespace); err != nil {
		return err
	}
	if w.Who == before && w.State.Policy == w.policies && w.State.Settings == w.settings {
		return w.Young()
	}
	w.input = nil // its time and its caller are of the past
	return w.check()
}

func (w *watcher) tell(n feed.Notice, tell func(Told) error) error {
	w.items = w.items[:0]
	if w.each && len(n.Events) > 0 {
		w.Look()
	}
	for _, e := range n.Events {
		record, err := w.visible(e)
		if err != nil {
			return err
		}
		if record != nil {
			w.items = append(w.items, Item{e, record})
		}
	}
	if len(w.items) == 0 && !n.Progress {
		return nil
	}
	err := tell(Told{Items: w.items, Revision: n.Revision, Progress: n.Progress})
	clear(w.items)
	return err
}

// visible is the event's record as the caller may see it; nil: not at all.
func (w *watcher) visible(e *feed.Event) ([]byte, error) {
	if !w.Role.Sees(e.Namespace) {
		return nil, nil
	}
	if !w.each || !w.Policed() {
		return e.Record, nil
	}
	res := policy.Resource{Kind: e.Kind, Namespace: e.Namespace, Name: e.ID, Payload: e.Record, Holder: e.Record}
	if e.Kind == registry.KindVersion {
		if s, ok := w.State.Registry.Service(e.Namespace, e.Service); ok {
			res.Holder = s.JSON
		}
	}
	w.input = nil // each event has its own time
	return w.Visible(res, e.Record)
}

// Progress is how often every watcher is told how far it is.
const Progress = 15 * time.Second
