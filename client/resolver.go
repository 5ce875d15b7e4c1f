package client

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/muster-registry/muster/fault"
)

// ResolverOptions say what a [Resolver] looks for, and for how long it relies
// on what it has. The zero value of a field means its default.
type ResolverOptions struct {
	// Filter narrows every look-up. Its Read is not used: a resolver never goes
	// back behind an answer that it has given.
	Filter Filter
	// MaxAge is how old an answer may grow that no node confirms: 1 h; negative:
	// any age. While the cluster cannot be reached, this is how long callers go on
	// with the instances they know.
	MaxAge time.Duration
	// Idle is after how long a service that nobody asks for is let go: 10 min.
	Idle time.Duration
	// Wait is how long one look-up waits for the next change: 30 s. It bounds how
	// long a confirmation takes where nothing changes.
	Wait time.Duration
}

// Resolver finds instances from memory. It follows each service that it was
// asked for with look-ups that wait for the next change, and survives the loss
// of the cluster with the last good answer. It is safe for concurrent use.
type Resolver struct {
	client *Client
	opt    ResolverOptions
	ctx    context.Context
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu       sync.Mutex // guards services
	services map[serviceName]*followed
}

type serviceName struct{ namespace, service string }

// Answer is what a [Resolver] knows of a service.
type Answer struct {
	Discovery
	// AsOf is when the answer was known to be the newest, by this machine's
	// clock; what the node that gave it did not know itself is taken off.
	AsOf time.Time
	// Problem is why no node has confirmed the answer since; nil: it is followed.
	Problem error
}

// NewResolver makes a resolver, which does nothing until it is asked. Close it.
func (c *Client) NewResolver(opt ResolverOptions) *Resolver {
	if opt.MaxAge == 0 {
		opt.MaxAge = time.Hour
	}
	if opt.Idle <= 0 {
		opt.Idle = 10 * time.Minute
	}
	if opt.Wait <= 0 {
		opt.Wait = 30 * time.Second
	}
	if opt.MaxAge > 0 {
		opt.Wait = min(opt.Wait, max(opt.MaxAge/3, time.Millisecond))
	}
	r := &Resolver{client: c, opt: opt, services: map[serviceName]*followed{}}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// Close ends following. What was answered stays usable.
func (r *Resolver) Close() {
	r.stop()
	r.done.Wait()
}

// Resolve gives the instances of a service: from memory, unless it is asked
// for the first time. The answer is shared and must not be modified.
//
// A definite refusal by the cluster (service_not_found, policy_denied, …) is
// returned, also where there was a good answer before. An error of any other
// kind, what a proxy in between says among them, is returned only where there is
// no answer, or none that is young enough.
func (r *Resolver) Resolve(ctx context.Context, namespace, service string) (*Answer, error) {
	f := r.hold(namespace, service)
	defer r.release(f)
	for {
		answer, changed, problem := f.look(r.opt.MaxAge)
		if answer != nil || problem != nil {
			return answer, problem
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-r.ctx.Done():
			return nil, errClosed
		}
	}
}

// Follow tells of a service now and whenever what Resolve would answer has
// changed, until ctx ends, whose error it returns. tell gets an answer or an
// error, and is not called again before it has returned.
func (r *Resolver) Follow(ctx context.Context, namespace, service string, tell func(*Answer, error)) error {
	f := r.hold(namespace, service)
	defer r.release(f)
	var old *Answer
	var oldProblem error
	for {
		answer, changed, problem := f.look(r.opt.MaxAge)
		if (answer != nil || problem != nil) && (!answer.as(old) || !same(problem, oldProblem)) {
			tell(answer, problem)
			old, oldProblem = answer, problem
		}
		var late <-chan time.Time
		if answer != nil && r.opt.MaxAge > 0 {
			late = time.After(time.Until(answer.AsOf.Add(r.opt.MaxAge)) + time.Millisecond)
		}
		select {
		case <-changed:
		case <-late:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.ctx.Done():
			return errClosed
		}
	}
}

// as tells whether two answers say the same.
func (a *Answer) as(b *Answer) bool {
	if a == nil || b == nil {
		return a == b
	}
	return bytes.Equal(a.JSON, b.JSON) && same(a.Problem, b.Problem)
}

var errClosed = errors.New("the resolver was closed")

func same(a, b error) bool {
	return a == b || a != nil && b != nil && a.Error() == b.Error()
}

// Refresh has the service looked up at once rather than after the pause that
// follows a failure.
func (r *Resolver) Refresh(namespace, service string) {
	r.mu.Lock()
	f := r.services[serviceName{namespace, service}]
	r.mu.Unlock()
	if f == nil {
		return
	}
	select {
	case f.hurry <- struct{}{}:
	default:
	}
}

// followed is one service that is looked up again and again.
type followed struct {
	name  serviceName
	hurry chan struct{}

	holders int       // guarded by the resolver's mu
	used    time.Time // guarded by the resolver's mu; when the last holder went

	mu      sync.Mutex // guards what follows
	answer  *Answer    // the last good one
	problem error      // of the newest look-up, where it failed
	state   uint64     // the revision of the newest state that answered
	changed chan struct{}
}

func (r *Resolver) hold(namespace, service string) *followed {
	if namespace == "" {
		namespace = "default"
	}
	name := serviceName{namespace, service}
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.services[name]
	if !ok {
		f = &followed{name: name, hurry: make(chan struct{}, 1), changed: make(chan struct{})}
		r.services[name] = f
		r.done.Go(func() { r.follow(f) })
	}
	f.holders++
	return f
}

func (r *Resolver) release(f *followed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f.holders--
	f.used = time.Now()
}

// idle lets go of a service that nobody wants any more.
func (r *Resolver) idle(f *followed) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.holders > 0 || time.Since(f.used) < r.opt.Idle {
		return false
	}
	delete(r.services, f.name)
	return true
}

// look is what there is to say; nothing, until the first look-up is over.
func (f *followed) look(maxAge time.Duration) (a *Answer, changed <-chan struct{}, problem error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answer == nil {
		return nil, f.changed, f.problem
	}
	if maxAge < 0 || time.Since(f.answer.AsOf) <= maxAge {
		return f.answer, f.changed, nil
	}
	if f.problem == nil {
		return nil, f.changed, fault.New(fault.TooStale, "no node has confirmed the instances of %s for %s", f.name.service, maxAge)
	}
	return nil, f.changed, f.problem
}

// follow looks a service up until nobody wants it any more.
func (r *Resolver) follow(f *followed) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, 5*time.Second
	for !r.idle(f) {
		err := r.again(f)
		if err == nil {
			pause.Reset()
			continue
		}
		select {
		case <-time.After(max(pause.NextBackOff(), min(fault.From(err).RetryAfter, 5*time.Second))):
		case <-f.hurry:
		case <-r.ctx.Done():
			return
		}
	}
}

// again makes one look-up and takes note of what came of it.
func (r *Resolver) again(f *followed) error {
	f.mu.Lock()
	var after, least uint64
	if f.answer != nil && f.problem == nil {
		after = f.answer.Revision
	}
	if f.answer != nil && (r.opt.MaxAge < 0 || time.Since(f.answer.AsOf) <= r.opt.MaxAge) {
		// Never behind an answer that was given. Past its age it is void, and a
		// cluster that was made anew is believed.
		least = f.state
	}
	f.mu.Unlock()
	answer, state, err := r.client.follow(r.ctx, f.name, r.opt, after, least)
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	news := true
	switch {
	case err == nil:
		if old := f.answer; old != nil && bytes.Equal(old.JSON, answer.JSON) {
			answer.Discovery = old.Discovery
			news = f.problem != nil // else the same is only confirmed
		}
		f.answer, f.problem, f.state = answer, nil, state
	case definite(err) && !errors.Is(err, errForeign):
		f.answer, f.problem, f.state = nil, err, 0
	default:
		if f.answer != nil {
			older := *f.answer
			older.Problem = err
			f.answer = &older
		}
		news = !same(f.problem, err)
		f.problem = err
	}
	if news {
		close(f.changed)
		f.changed = make(chan struct{})
	}
	return err
}

// definite tells whether the cluster has said no, rather than nothing, or that
// it is to be asked again.
func definite(err error) bool {
	e, ok := errors.AsType[*fault.Error](err)
	return ok && e.Code.Status() >= 400 && e.Code.Status() < 500 && e.Code != fault.RateLimited && e.RetryAfter == 0
}

// follow looks a service up in a state of revision least or later; where after
// is not 0, as soon as the service has changed behind it or the wait is over.
func (c *Client) follow(ctx context.Context, name serviceName, opt ResolverOptions, after, least uint64) (*Answer, uint64, error) {
	filter := opt.Filter
	filter.Read = Read{MinRevision: least}
	q := filter.values()
	k := call{method: http.MethodGet, path: []string{"v1", "discovery", name.namespace, name.service}, query: q, rounds: 1}
	if after > 0 {
		k.wait = opt.Wait
		q.Set("index", strconv.FormatUint(after, 10))
		q.Set("wait", opt.Wait.String())
	}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, 0, err
	}
	answer := Answer{AsOf: time.Now().Add(-a.staleness)}
	if answer.Discovery, err = readDiscovery(a.body); err != nil {
		return nil, 0, err
	}
	return &answer, a.revision, nil
}
