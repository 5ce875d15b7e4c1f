// Package flow owns the question who may use how much of this node: its
// connections, its places for requests in flight, its processors, the memory
// for bodies. One caller, however loud, leaves room for all others; where
// callers have to wait, they wait in turn, one request of each after the other,
// and operators have a share of their own, so that they always get in.
//
// It counts and queues, and knows no protocol: an edge tells it when a request
// arrives, who has sent it, and when it is done with each part ([Visit]). It
// holds nothing about callers who have nothing under way, so that a million of
// them cost no memory, and starts no goroutine. It refuses with rate_limited,
// and says how long to wait. What a caller may do is not its business, and
// neither are the quotas of services.
package flow

import (
	"hash/maphash"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/muster-registry/muster/fault"
)

// Limits bound what is under way on one node at one time. The zero value of a
// field means its default.
type Limits struct {
	Connections           int // open at one time, on one port; 20 000
	ConnectionsPerAddress int // 5 000

	InFlight          int // requests, those that wait for a place to work in among them; 10 000
	InFlightPerCaller int // three quarters of InFlight

	Working   int           // requests that are being answered from memory; 4 for each processor, at least 8
	Changes   int           // requests that take the disk or other nodes; 1024
	QueueWait time.Duration // the longest that a request waits for its turn; 10 s

	Blocked          int // reads that wait for a change; 10 000
	BlockedPerCaller int // 1000

	Streams          int // that follow changes, or last as long as their caller likes; 20 000
	StreamsPerCaller int // three quarters of Streams

	Bodies int64 // bytes of all bodies together; 256 MiB

	Caller  Rate // requests of one caller; none
	Address Rate // requests from one address, whoever sends them; none
	Failed  Rate // calls from one address whose sender did not prove who it is; 1000 a second, 5000 at one time
}

// Rate is a number of requests in a second and how many may come at one time.
// The zero Rate is no limit.
type Rate struct {
	PerSecond float64
	Burst     int64 // 0: those of one second
}

func (l *Limits) setDefaults() {
	def := func(v *int, fallback int) {
		if *v == 0 {
			*v = fallback
		}
	}
	def(&l.Connections, 20_000)
	def(&l.ConnectionsPerAddress, 5_000)
	def(&l.InFlight, 10_000)
	def(&l.InFlightPerCaller, max(1, l.InFlight*3/4))
	def(&l.Working, max(8, 4*runtime.GOMAXPROCS(0)))
	def(&l.Changes, 1024)
	def(&l.Blocked, 10_000)
	def(&l.BlockedPerCaller, 1000)
	def(&l.Streams, 20_000)
	def(&l.StreamsPerCaller, max(1, l.Streams*3/4))
	if l.QueueWait == 0 {
		l.QueueWait = 10 * time.Second
	}
	if l.Bodies == 0 {
		l.Bodies = 256 << 20
	}
	if l.Failed == (Rate{}) {
		l.Failed = Rate{PerSecond: 1000, Burst: 5000}
	}
}

// Caller is who sends a request, as identity has found out.
type Caller struct {
	ID       string // of the principal
	Operator bool   // runs the cluster: has the reserved share
}

// Who makes a caller of a principal.
func Who(id string, roles []string) Caller {
	for _, r := range roles {
		if r == "operator" || r == "break-glass" {
			return Caller{ID: id, Operator: true}
		}
	}
	return Caller{ID: id}
}

// Kind says what a request takes.
type Kind uint8

// The kinds of request.
const (
	Quick  Kind = iota // is answered from memory, and takes a processor
	Change             // takes the disk, other nodes, or another program
)

// Flow keeps the limits of one node, on all of its ports together. It may be
// used from many goroutines.
type Flow struct {
	limits Limits

	arriving atomic.Int64 // requests whose sender is not known yet
	inFlight *pool
	blocked  *pool
	streams  *pool
	bodies   *pool
	turns    [2]*pool // by Kind

	callers, addresses, failed *meter // nil: no limit

	metrics *metrics

	mu    sync.Mutex // guards what follows
	conns []*conns
}

// New makes the flow of a node.
func New(l Limits) *Flow {
	l.setDefaults()
	f := &Flow{limits: l, metrics: newMetrics()}
	seed := maphash.MakeSeed()
	f.callers, f.addresses, f.failed = newMeter("caller", seed, l.Caller), newMeter("address", seed, l.Address), newMeter("failures", seed, l.Failed)
	make := func(name string, capacity, share int64, wait time.Duration) *pool {
		return newPool(name, capacity, share, wait, f.metrics)
	}
	f.inFlight = make("in-flight", int64(l.InFlight), int64(l.InFlightPerCaller), 0)
	f.blocked = make("blocked", int64(l.Blocked), int64(l.BlockedPerCaller), 0)
	f.streams = make("streams", int64(l.Streams), int64(l.StreamsPerCaller), 0)
	f.bodies = make("bodies", l.Bodies, l.Bodies*3/4, l.QueueWait)
	f.turns[Quick] = make("working", int64(l.Working), int64(l.Working)*3/4, l.QueueWait)
	f.turns[Change] = make("changes", int64(l.Changes), int64(l.Changes)*3/4, l.QueueWait)
	f.metrics.watch(f)
	return f
}

// refusal is the answer where a limit is reached.
func refusal(limit *fault.Limit, retry time.Duration, format string, args ...any) error {
	e := fault.New(fault.RateLimited, format, args...)
	e.RetryAfter, e.Limit = retry, limit
	return e
}
