package quota

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	creditLife = 200 * time.Millisecond // of hits that were drawn and not used
	demandSpan = 100 * time.Millisecond // hits are drawn for as long
	maxPause   = 20 * time.Millisecond  // between two draws on an empty bucket
	leaveAlone = 200 * time.Millisecond // a leader that could not be reached is left alone for as long
	idle       = 10 * time.Second       // a count that nobody asked for is forgotten
	attempts   = 3
)

// Options are what a Keeper needs.
type Options struct {
	// Document gives the stored quotas and their revision; nil: none are set.
	// It is asked at every call and must be cheap.
	Document func() (document []byte, revision uint64)
	// Call reaches the leader.
	Call func(ctx context.Context, method string, payload []byte) ([]byte, error)
	// Nodes counts the nodes of the cluster.
	Nodes func() int
	// Static is what this node alone holds every limit to while the Redis of
	// the quotas is away; nil: the limits themselves, kept by the embedded backend.
	Static *Rate
	// Password is that of the Redis.
	Password string
	Logger   *slog.Logger
}

// Keeper keeps the count on one node. It is safe for concurrent use.
type Keeper struct {
	opt     Options
	metrics *metrics
	bank    bank
	store   store
	current atomic.Pointer[current]
	wake    chan struct{}

	mu      sync.Mutex // guards what follows
	counts  map[Key]*count
	next    *round
	contact time.Time // when the leader last answered
	away    time.Time // until then it is not asked
	alone   time.Time // since when this node grants a part of its own; zero: it does not
}

// current is the stored document as it was last read.
type current struct {
	revision uint64
	spec     *Spec
}

// count is what this node knows of one limit.
type count struct {
	credit  int64
	expires time.Time // of the credit
	barred  time.Time // the bucket at the leader holds too little before
	left    float64   // what it held when the leader last said so
	demand  int64     // hits asked for since window
	last    int64     // and in the window before
	window  time.Time

	local  bucket    // without the leader
	alone  time.Time // what local began with: see Keeper
	static bucket    // without the Redis
}

// New makes a keeper. [Keeper.Run] must run for it to answer.
func New(opt Options) *Keeper {
	k := &Keeper{opt: opt, metrics: newMetrics(), wake: make(chan struct{}, 1), counts: map[Key]*count{}, contact: time.Now()}
	k.store = store{password: opt.Password, logger: opt.Logger, up: k.metrics.up, patience: storeTimeout}
	return k
}

// Collectors are the keeper's metrics.
func (k *Keeper) Collectors() []prometheus.Collector { return k.metrics.all() }

// Connected is false while the Redis that the quotas name does not answer, as
// the last call found it or [Keeper.Run], which looks whether it is back.
func (k *Keeper) Connected() bool {
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	return !k.store.down
}

// Lead is to be called when this node begins to lead.
func (k *Keeper) Lead() { k.bank.open(time.Now()) }

// Run draws credit until the context ends, and finds a Redis that is back.
func (k *Keeper) Run(ctx context.Context) {
	defer k.store.close()
	var look sync.WaitGroup
	look.Go(func() { k.look(ctx) })
	defer look.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
			k.mu.Lock()
			r := k.next
			k.next = nil
			k.mu.Unlock()
			if r != nil {
				k.draw(ctx, r)
			}
		}
	}
}

// look finds out whether a Redis that was away is back, or is not named any
// more, where no call does.
func (k *Keeper) look(ctx context.Context) {
	tick := time.NewTicker(storeRetry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if k.Connected() {
			continue
		}
		switch spec, err := k.spec(); {
		case err != nil:
		case spec == nil || spec.Backend != Redis:
			k.store.found()
		default:
			k.store.ping(ctx, spec.Connection)
		}
	}
}

// spec gives the quotas in force; nil: none.
func (k *Keeper) spec() (*Spec, error) {
	document, revision := k.opt.Document()
	if document == nil {
		return nil, nil
	}
	if c := k.current.Load(); c != nil && c.revision == revision {
		return c.spec, nil
	}
	s, err := Read(document)
	if err != nil {
		return nil, err
	}
	k.current.Store(&current{revision, s})
	return s, nil
}

// Check counts a call that passed [Call.Check]: all of its hits against all of
// its limits, or none against any. It waits for the leader or the Redis at most
// for a fraction of a second, and then answers by what this node may grant on
// its own. Errors say that the count cannot be settled; the call is then to be
// refused.
func (k *Keeper) Check(ctx context.Context, c Call) (*Result, error) {
	spec, err := k.spec()
	if err != nil {
		return nil, err
	}
	if spec == nil {
		return &Result{Allowed: true}, nil
	}
	limits := spec.limits(c)
	if len(limits) == 0 {
		return &Result{Allowed: true}, nil
	}
	for _, l := range limits {
		if c.Hits > l.Rate.BurstCapacity {
			return nil, tooMany(c.Hits, l)
		}
	}
	r, err := k.count(ctx, spec, limits, c.Hits)
	if err == nil {
		k.metrics.tell(r)
	}
	return r, err
}

func (k *Keeper) count(ctx context.Context, spec *Spec, limits []Limit, hits int64) (*Result, error) {
	if spec.Backend == Redis {
		if r, ok := k.store.check(ctx, spec.Connection, limits, hits); ok {
			return r, nil
		}
		if k.opt.Static != nil {
			return k.own(limits, hits, func(c *count, l *Limit, _ time.Time) *bucket {
				l.Rate = Rate{k.opt.Static.RequestsPerSecond, max(k.opt.Static.BurstCapacity, hits)}
				return &c.static
			}), nil
		}
	} else {
		k.store.found() // nothing hangs on a Redis any more
	}
	for range attempts {
		r, wait := k.spend(limits, hits)
		if r != nil {
			return r, nil
		}
		select {
		case <-wait.done:
		case <-ctx.Done():
			return nil, unsettled(ctx.Err())
		}
	}
	// Others have been quicker at every attempt.
	return refusal(limits, 0, 0, maxPause), nil
}

// spend answers from the credit at hand, or gives the round that may bring more.
func (k *Keeper) spend(limits []Limit, hits int64) (*Result, *round) {
	now := time.Now()
	k.mu.Lock()
	if now.Before(k.away) {
		k.mu.Unlock()
		return k.own(limits, hits, k.share), nil
	}
	defer k.mu.Unlock()
	counts := make([]*count, len(limits))
	short := false
	for i, l := range limits {
		c := k.of(l.Key, now)
		if c == nil {
			return refusal(limits, i, 0, time.Second), nil
		}
		counts[i] = c
		if c.credit >= hits && now.Before(c.expires) {
			continue
		}
		if now.Before(c.barred) {
			c.demand += hits
			return refusal(limits, i, int64(c.left), max(l.Rate.refill(float64(hits)-c.left), c.barred.Sub(now))), nil
		}
		short = true
	}
	if short {
		return nil, k.ask(limits, counts, hits, now)
	}
	for _, c := range counts {
		c.credit -= hits
		c.demand += hits
	}
	return granted(limits, counts), nil
}

// of gives the count for a key; nil when there is room for no more. The caller
// holds the lock.
func (k *Keeper) of(key Key, now time.Time) *count {
	c := k.counts[key]
	if c == nil {
		if len(k.counts) >= maxKeys {
			for other, c := range k.counts {
				if now.Sub(c.window) > idle && !time.Time(c.local).After(now) && !time.Time(c.static).After(now) {
					delete(k.counts, other)
				}
			}
		}
		if len(k.counts) >= maxKeys {
			return nil
		}
		c = &count{window: now}
		k.counts[key] = c
	}
	if past := now.Sub(c.window); past >= demandSpan {
		c.last, c.demand, c.window = c.demand, 0, now
		if past >= 2*demandSpan {
			c.last = 0
		}
	}
	return c
}

// own answers by the buckets of this node only. which gives the bucket of a
// count, and changes the rate of the limit to what this node may grant.
func (k *Keeper) own(limits []Limit, hits int64, which func(*count, *Limit, time.Time) *bucket) *Result {
	now := time.Now()
	limits = slices.Clone(limits)
	k.mu.Lock()
	defer k.mu.Unlock()
	buckets := make([]*bucket, len(limits))
	r := &Result{Allowed: true, Limits: limits}
	least := -1.0
	for i := range limits {
		c := k.of(limits[i].Key, now)
		if c == nil {
			return refusal(limits, i, 0, time.Second)
		}
		buckets[i] = which(c, &limits[i], now)
		left := buckets[i].left(limits[i].Rate, now)
		if left < float64(hits) {
			return refusal(limits, i, int64(left), limits[i].Rate.refill(float64(hits)-left))
		}
		if share := left / float64(limits[i].Rate.BurstCapacity); least < 0 || share < least {
			least, r.Tightest, r.Remaining = share, i, int64(left)-hits
		}
	}
	for i, b := range buckets {
		*b = b.take(limits[i].Rate, now, hits)
	}
	r.Reset = limits[r.Tightest].Rate.refill(float64(limits[r.Tightest].Rate.BurstCapacity - r.Remaining))
	return r
}

// share is the part of a limit that this node may grant when it cannot reach
// the leader: an equal one. It begins empty when the leader was last heard, but
// not long ago, so that what was spent before is not granted again.
func (k *Keeper) share(c *count, l *Limit, _ time.Time) *bucket {
	n := max(1, k.opt.Nodes())
	l.Rate = Rate{l.Rate.RequestsPerSecond / float64(n), max(1, l.Rate.BurstCapacity/int64(n))}
	if !c.alone.Equal(k.alone) {
		c.alone, c.local = k.alone, filling(l.Rate, k.alone)
	}
	return &c.local
}

func refusal(limits []Limit, i int, left int64, after time.Duration) *Result {
	left = min(max(left, 0), limits[i].Rate.BurstCapacity)
	return &Result{
		Limits: limits, Tightest: i, Remaining: left, RetryAfter: after,
		Reset: limits[i].Rate.refill(float64(limits[i].Rate.BurstCapacity - left)),
	}
}

// granted tells of the limit that is nearest to its end.
func granted(limits []Limit, counts []*count) *Result {
	r := &Result{Allowed: true, Limits: limits}
	least := -1.0
	for i, c := range counts {
		left := min(int64(c.left)+c.credit, limits[i].Rate.BurstCapacity)
		if share := float64(left) / float64(limits[i].Rate.BurstCapacity); least < 0 || share < least {
			least, r.Tightest, r.Remaining = share, i, left
		}
	}
	l := limits[r.Tightest].Rate
	r.Reset = l.refill(float64(l.BurstCapacity - r.Remaining))
	return r
}
