package flow

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/muster-registry/muster/fault"
)

// pool shares a capacity out among callers. While there is enough, whoever
// asks is served at once. Where there is not, each caller has a line of its
// own, and the lines are served in turn, so that who asks for little waits for
// one request of each of the others and no longer. No caller has more than its
// share, which leaves room for who comes next, and a reserve is for operators
// alone.
type pool struct {
	name    string
	most    int64         // the general part
	reserve int64         // what only operators may have
	share   int64         // one caller's most of the general part
	wait    time.Duration // the longest in a line; 0: there are no lines
	metrics *metrics

	mu       sync.Mutex // guards what follows
	free     int64      // of the general part
	reserved int64      // free of the reserve
	waiting  int64
	callers  map[Caller]*caller // those who hold something or wait
	spare    []*caller          // forgotten ones, to be used again
	lines    [2]list.List       // callers who wait: all others, operators
}

// caller is one who holds something of a pool or waits for it.
type caller struct {
	who     Caller
	held    int64         // of the general part
	extra   int64         // of the reserve
	place   *list.Element // in its line; nil: does not wait
	waiters list.List     // of *waiter, oldest first
}

type waiter struct {
	n       int64
	place   *list.Element
	granted chan struct{}
	got     part
}

// part is what a request holds of a pool. The zero part is nothing.
type part struct {
	pool    *pool
	caller  *caller
	n       int64
	reserve bool
}

// maxSpare bounds the callers kept for use again.
const maxSpare = 256

func newPool(name string, most, share int64, wait time.Duration, m *metrics) *pool {
	reserve := max(1, most/8)
	p := &pool{name: name, most: most, reserve: reserve, share: max(1, min(share, most)), wait: wait, metrics: m,
		free: most, reserved: reserve, callers: map[Caller]*caller{}}
	return p
}

// take gets n of the pool for a caller, at once or when its turn has come. More
// than a share can never be had, so that counts as a share.
func (p *pool) take(ctx context.Context, who Caller, n int64) (part, error) {
	p.mu.Lock()
	c := p.callers[who]
	if c == nil {
		c = p.enter(who)
	}
	n = min(n, p.share)
	if got, ok := p.grant(c, n); ok {
		p.mu.Unlock()
		return got, nil
	}
	if p.wait == 0 {
		capped := c.held+n > p.share
		p.leave(c)
		p.mu.Unlock()
		p.metrics.refused(p.name)
		return part{}, p.full(capped)
	}
	w := &waiter{n: n, granted: make(chan struct{})}
	w.place = c.waiters.PushBack(w)
	if c.place == nil {
		c.place = p.line(c).PushBack(c)
	}
	p.waiting++
	p.serve() // others may wait only because they have their share
	p.mu.Unlock()
	return p.await(ctx, c, w)
}

func (p *pool) await(ctx context.Context, c *caller, w *waiter) (part, error) {
	began := time.Now()
	timer := time.NewTimer(p.wait)
	defer timer.Stop()
	var err error
	select {
	case <-w.granted:
	case <-ctx.Done():
		err = fault.Wrap(fault.NotReady, ctx.Err(), "the request was cancelled while it waited for its turn; try again, or another node")
	case <-timer.C:
		err = p.full(false)
	}
	p.metrics.waited(p.name, time.Since(began))
	if err == nil {
		return w.got, nil
	}
	p.mu.Lock()
	if w.place == nil { // granted in the same moment
		p.mu.Unlock()
		return w.got, nil
	}
	p.forget(c, w)
	p.leave(c)
	p.serve() // what was too large a piece may have stood in the way of others
	p.mu.Unlock()
	if fault.Is(err, fault.RateLimited) {
		p.metrics.refused(p.name)
	}
	return part{}, err
}

// release gives a part back, once.
func (t *part) release() {
	p, c := t.pool, t.caller
	if p == nil {
		return
	}
	p.mu.Lock()
	if t.reserve {
		p.reserved += t.n
		c.extra -= t.n
	} else {
		p.free += t.n
		c.held -= t.n
	}
	*t = part{}
	p.leave(c)
	if p.waiting > 0 {
		p.serve()
	}
	p.mu.Unlock()
}

// The methods below are called with mu held.

// grant serves a caller at once where nobody's turn is passed over.
func (p *pool) grant(c *caller, n int64) (part, bool) {
	switch {
	case p.lines[0].Len() == 0 && n <= p.free && c.held+n <= p.share && c.place == nil:
		return p.hand(c, n, false), true
	case c.who.Operator && n <= p.reserved && c.place == nil && p.lines[1].Len() == 0:
		return p.hand(c, n, true), true
	}
	return part{}, false
}

func (p *pool) hand(c *caller, n int64, reserve bool) part {
	if reserve {
		p.reserved -= n
		c.extra += n
	} else {
		p.free -= n
		c.held += n
	}
	return part{p, c, n, reserve}
}

// serve hands out what is free to those who wait, one piece to each caller in
// turn. A piece that is too large for what is free is waited for: going on to
// smaller ones could keep it waiting for ever.
func (p *pool) serve() {
	others, operators := &p.lines[0], &p.lines[1]
	blocked := false
	for capped := 0; capped < others.Len() && !blocked; {
		c := others.Front().Value.(*caller)
		w := c.waiters.Front().Value.(*waiter)
		switch {
		case c.held+w.n > p.share:
			others.MoveToBack(c.place)
			capped++
		case w.n > p.free:
			blocked = true
		default:
			p.settle(c, w, false)
			capped = 0
		}
	}
	for capped := 0; capped < operators.Len(); {
		c := operators.Front().Value.(*caller)
		w := c.waiters.Front().Value.(*waiter)
		switch {
		case w.n <= p.reserved:
			p.settle(c, w, true)
			capped = 0
		case !blocked && w.n <= p.free && c.held+w.n <= p.share:
			p.settle(c, w, false)
			capped = 0
		default:
			operators.MoveToBack(c.place)
			capped++
		}
	}
}

// settle grants what is waited for, and puts the caller at the end of its line.
func (p *pool) settle(c *caller, w *waiter, reserve bool) {
	w.got = p.hand(c, w.n, reserve)
	p.forget(c, w)
	if c.place != nil {
		p.line(c).MoveToBack(c.place)
	}
	close(w.granted)
}

// forget takes a waiter out of its line.
func (p *pool) forget(c *caller, w *waiter) {
	c.waiters.Remove(w.place)
	w.place = nil
	p.waiting--
	if c.waiters.Len() == 0 {
		p.line(c).Remove(c.place)
		c.place = nil
	}
}

func (p *pool) line(c *caller) *list.List {
	if c.who.Operator {
		return &p.lines[1]
	}
	return &p.lines[0]
}

func (p *pool) enter(who Caller) (c *caller) {
	if last := len(p.spare) - 1; last >= 0 {
		c, p.spare = p.spare[last], p.spare[:last]
	} else {
		c = &caller{}
	}
	c.who = who
	p.callers[who] = c
	return c
}

// leave forgets a caller who holds nothing and waits for nothing.
func (p *pool) leave(c *caller) {
	if c.held != 0 || c.extra != 0 || c.place != nil {
		return
	}
	delete(p.callers, c.who)
	if len(p.spare) < maxSpare {
		c.who = Caller{}
		p.spare = append(p.spare, c)
	}
}

// used tells how much is handed out, and how many wait.
func (p *pool) used() (n, waiting int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.most - p.free + p.reserve - p.reserved, p.waiting
}

// full is the refusal, in the words of what was asked for. mine says that the
// caller itself has all of it that one may have.
func (p *pool) full(mine bool) error {
	limit := &fault.Limit{Name: p.name, Quota: p.most, Unit: "concurrent-requests", Reset: time.Second}
	what := "requests in flight"
	switch p.name {
	case "blocked":
		what = "reads that wait for a change"
	case "streams":
		what = "streams"
	case "bodies":
		limit.Unit = "content-bytes"
		return refusal(limit, time.Second, "the bodies that this node is reading take all of its %d bytes for them; try again, or another node", p.most)
	case "working", "changes":
		return refusal(limit, time.Second, "this node is busy: the request's turn did not come within %v; try again, or another node", p.wait)
	}
	if mine {
		limit.Quota = p.share
		return refusal(limit, time.Second, "you have %d %s on this node, the most that one caller may have; wait for one of them, or ask another node", p.share, what)
	}
	return refusal(limit, time.Second, "this node has %d %s, the most it takes; try again, or another node", p.most, what)
}
