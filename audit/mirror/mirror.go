// Package mirror owns the copy of a node's audit trail that goes to a SIEM: each
// line of the trail, with the method, path and headers of the call behind it
// where this node took that, in the order of the trail. Lines wait in a bounded
// spool, in memory while the sink keeps up and else on disk, until the sink has
// taken them; a sink that comes back, and a node that starts again, go on where
// they were. A line may arrive twice, with the same number. After the end of a
// process that had no time to say goodbye, the lines of its last two seconds may
// arrive as they are in the trail, without their requests.
//
// It refuses to carry bodies, queries and credentials, and to slow down whoever
// writes the trail: what does not fit is counted, and [Mirror.Full] tells in
// time.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/muster-registry/muster/audit"
)

// Sink is where the events go. Its methods are called one at a time.
type Sink interface {
	// Send hands the events over, JSON without line ends, in their order. The
	// error [ErrTooLarge] asks for fewer at once; after any other, and where the
	// context ends, all of them are sent again. rejected is how many of them the
	// sink has said that it does not take.
	Send(ctx context.Context, events [][]byte) (rejected int, err error)
	// Settle is how long after Send the events count as taken, as long as Check
	// gives no error: 0 where the sink answers.
	Settle() time.Duration
	// Check tells of a connection that has ended since.
	Check() error
	Close() error
}

// ErrTooLarge is a sink's word that it does not take as much at once.
var ErrTooLarge = errors.New("the sink does not take as much at once")

// Options configure a mirror. The zero value of a duration or size means its
// default.
type Options struct {
	Sink  Sink
	Dir   string // of the spool
	Bound int64  // bytes that wait there; 1 GiB
	Batch int    // bytes that are sent at once; 512 KiB

	Gather  time.Duration // fewer than a batch wait so long for others; 500 ms
	Timeout time.Duration // of one Send; 10 s
	Retry   time.Duration // the longest wait between two tries; 30 s
	Closing time.Duration // for what waits when it is closed; 3 s
	Logger  *slog.Logger
}

func (o *Options) setDefaults() {
	after := func(n *time.Duration, d time.Duration) {
		if *n <= 0 {
			*n = d
		}
	}
	after(&o.Gather, 500*time.Millisecond)
	after(&o.Timeout, 10*time.Second)
	after(&o.Retry, 30*time.Second)
	after(&o.Closing, 3*time.Second)
	if o.Bound <= 0 {
		o.Bound = 1 << 30
	}
	if o.Batch <= 0 {
		o.Batch = 512 << 10
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

// Mirror sends a trail to a sink. Safe for concurrent use.
type Mirror struct {
	opt     Options
	metrics *Metrics

	room atomic.Int32 // whether there is any, for who must not wait; see Full

	mu      sync.Mutex // guards spool, dropped, failed and away
	spool   *spool
	dropped uint64    // lines since the last one that waits
	failed  error     // of the last write to the spool
	away    time.Time // since when the sink takes nothing; zero: it does

	more     chan struct{}
	ctx      context.Context
	stop     context.CancelFunc
	finished chan struct{}
	closed   sync.Once
}

// Open goes on with what waits in the spool. The error says that the folder
// cannot be used.
func Open(o Options, m *Metrics) (*Mirror, error) {
	o.setDefaults()
	s, err := openSpool(o.Dir, o.Bound)
	if err != nil {
		return nil, err
	}
	x := &Mirror{opt: o, metrics: m, spool: s, more: make(chan struct{}, 1), finished: make(chan struct{})}
	x.ctx, x.stop = context.WithCancel(context.Background())
	x.measure()
	go x.run()
	return x, nil
}

// Mirrored implements [audit.Mirror]: the number of the last line that was taken.
func (x *Mirror) Mirrored() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.spool.last
}

// Mirror implements [audit.Mirror]. It returns when the lines are in the spool,
// as far as they fit. What is only in its memory is in the trail as well.
func (x *Mirror) Mirror(lines []audit.Mirrored) {
	x.mu.Lock()
	defer x.mu.Unlock()
	full := x.dropped > 0
	for _, l := range lines {
		if !x.spool.add(l, x.dropped) {
			x.dropped++
			x.metrics.dropped.WithLabelValues("spool").Inc()
			continue
		}
		x.dropped = 0
	}
	err := x.spool.write()
	if err != nil && x.failed == nil {
		x.opt.Logger.Error("lines of the audit trail cannot be kept for the mirror", "error", err)
	}
	x.failed = err
	if x.dropped > 0 && !full && err == nil {
		x.opt.Logger.Error("the spool of the audit mirror is full: lines are dropped there, and are in the trail only", "bytes", x.spool.waiting())
	}
	x.measure()
	select {
	case x.more <- struct{}{}:
	default:
	}
}

// event appends a line with what the mirror adds behind its own members.
func event(to []byte, l audit.Mirrored, dropped uint64) []byte {
	to = append(to, l.Line[:len(l.Line)-1]...)
	if l.Request != nil {
		to = l.Request.AppendJSON(append(to, `,"request":`...))
	}
	if dropped > 0 {
		to = strconv.AppendUint(append(to, `,"dropped":`...), dropped, 10)
	}
	return append(to, '}')
}

// The states of a spool.
const (
	hasRoom int32 = iota
	hasFailed
	hasFilled
)

// measure says what waits, and whether there is room, with mu held.
func (x *Mirror) measure() {
	waiting := x.spool.waiting()
	x.metrics.waiting.Set(float64(waiting))
	switch {
	case x.failed != nil:
		x.room.Store(hasFailed)
	case waiting > x.opt.Bound/10*9:
		x.room.Store(hasFilled)
	default:
		x.room.Store(hasRoom)
	}
}

// Full says why changes should not be taken: nine tenths of the spool are in
// use, or it cannot be written. nil: they can. It waits for nobody: every change
// asks.
func (x *Mirror) Full() error {
	switch x.room.Load() {
	case hasFailed:
		return errors.New("the spool of the audit mirror cannot be written")
	case hasFilled:
		return errors.New("the sink of the audit mirror has not taken lines for too long, and their spool is full")
	}
	return nil
}

// Health gives a line for /readyz?verbose.
func (x *Mirror) Health() string {
	full := x.Full()
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case full != nil:
		return "[!] " + full.Error()
	case !x.away.IsZero():
		return fmt.Sprintf("[!] the sink of the audit mirror has been away for %s; %d bytes wait", time.Since(x.away).Round(time.Second), x.spool.waiting())
	}
	return fmt.Sprintf("[+] the audit trail is mirrored; %d bytes wait", x.spool.waiting())
}

// Close hands over what it can within a few seconds; the rest waits for the next
// start.
func (x *Mirror) Close() (err error) {
	x.closed.Do(func() {
		x.stop()
		<-x.finished
		x.mu.Lock()
		defer x.mu.Unlock()
		err = errors.Join(x.opt.Sink.Close(), x.spool.close())
	})
	return err
}

// sent is a batch that counts as taken when some time has gone by.
type sent struct {
	*batch
	at     time.Time
	events int
}

// sender is what the goroutine that sends knows.
type sender struct {
	*Mirror
	unsettled []sent
	wait      *backoff.ExponentialBackOff
	batch     int       // bytes; fewer after ErrTooLarge
	kept      place     // how far the disk knows that it has come
	keptAt    time.Time // when it was told
}

// keepEvery is how often the disk is told how far the mirror has come: what was
// sent since is sent again after a crash.
const keepEvery = time.Second

func (x *Mirror) run() {
	defer close(x.finished)
	s := &sender{Mirror: x, wait: backoff.NewExponentialBackOff(), batch: x.opt.Batch, kept: x.spool.at}
	defer func() { s.keep(0) }()
	s.wait.InitialInterval, s.wait.MaxInterval = min(200*time.Millisecond, x.opt.Retry), x.opt.Retry
	for x.ctx.Err() == nil {
		pause := s.round(x.ctx)
		select {
		case <-x.ctx.Done():
		case <-time.After(pause):
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), x.opt.Closing)
	defer cancel()
	for ctx.Err() == nil {
		x.mu.Lock()
		leave := x.spool.waiting() == 0 || !x.away.IsZero()
		x.mu.Unlock()
		if leave {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(s.round(ctx)):
		}
	}
}

// round sends what waits, batch after batch, and says when to look again.
func (s *sender) round(ctx context.Context) time.Duration {
	s.mu.Lock()
	stop := s.spool.last // what comes meanwhile waits for more
	s.mu.Unlock()
	for reached := uint64(0); reached < stop && ctx.Err() == nil; {
		if err := s.settle(); err != nil {
			return s.again(err)
		}
		s.mu.Lock()
		events, b, err := s.spool.read(s.batch)
		s.mu.Unlock()
		if err != nil {
			s.opt.Logger.Error("the spool of the audit mirror cannot be read", "error", err)
			return s.opt.Retry
		}
		if len(events) == 0 {
			break
		}
		sent, err := s.send(ctx, events, b)
		if err != nil {
			return s.again(err)
		}
		if sent {
			reached = b.seq
		}
	}
	s.keep(keepEvery)
	if len(s.unsettled) > 0 {
		return min(s.opt.Gather, max(time.Millisecond, s.opt.Sink.Settle()/4))
	}
	idle := time.NewTimer(time.Second)
	defer idle.Stop()
	select {
	case <-ctx.Done():
	case <-s.more:
	case <-idle.C:
	}
	return s.opt.Gather
}

// send hands a batch over. It has not, where the sink wants less at once.
func (s *sender) send(ctx context.Context, events [][]byte, b *batch) (done bool, _ error) {
	try, cancel := context.WithTimeout(ctx, s.opt.Timeout)
	rejected, err := s.opt.Sink.Send(try, events)
	cancel()
	if errors.Is(err, ErrTooLarge) && len(events) == 1 {
		s.opt.Logger.Error("the sink of the audit mirror does not take a line, which is too large for it", "bytes", len(events[0]))
		s.metrics.dropped.WithLabelValues("too_large").Inc()
		rejected, err = 0, nil
	} else if errors.Is(err, ErrTooLarge) {
		s.batch = max(1, s.batch/2)
		s.rewind()
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if rejected > 0 {
		s.metrics.dropped.WithLabelValues("rejected").Add(float64(rejected))
	}
	s.batch = min(s.opt.Batch, 2*s.batch)
	s.unsettled = append(s.unsettled, sent{b, time.Now(), len(events) - rejected})
	return true, s.settle()
}

// rewind goes back to what is not settled.
func (s *sender) rewind() {
	s.unsettled = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.spool.rewind(); err != nil {
		s.failed = err
		s.measure()
	}
}

// settle takes off the spool what counts as taken.
func (s *sender) settle() error {
	if len(s.unsettled) == 0 {
		return nil
	}
	if err := s.opt.Sink.Check(); err != nil {
		return err
	}
	after := s.opt.Sink.Settle()
	for len(s.unsettled) > 0 && time.Since(s.unsettled[0].at) >= after {
		done := s.unsettled[0]
		s.unsettled = s.unsettled[1:]
		s.mu.Lock()
		err := s.spool.done(done.batch)
		if !s.away.IsZero() {
			s.opt.Logger.Info("the sink of the audit mirror takes lines again", "away", time.Since(s.away).Round(time.Second).String())
		}
		s.away = time.Time{}
		s.metrics.sent.Add(float64(done.events))
		s.metrics.up.Set(1)
		s.measure() // last: who sees that nothing waits sees what became of it
		s.mu.Unlock()
		if err != nil {
			s.opt.Logger.Error("a file of the audit mirror's spool that was sent cannot be removed: its lines will be sent again after a restart", "error", err)
		}
		s.wait.Reset()
	}
	return nil
}

// keep tells the disk how far the mirror has come, unless it was told within the
// time. Nobody waits for it meanwhile.
func (s *sender) keep(within time.Duration) {
	s.mu.Lock()
	at := s.spool.at
	s.mu.Unlock()
	if at == s.kept || time.Since(s.keptAt) < within {
		return
	}
	if err := s.spool.save(at); err != nil {
		s.opt.Logger.Error("how far the audit mirror has come cannot be kept: lines will be sent again after a restart", "error", err)
		return
	}
	s.kept, s.keptAt = at, time.Now()
}

// again goes back to what is not settled, and gives the wait before the next try.
func (s *sender) again(err error) time.Duration {
	s.rewind()
	s.metrics.errors.Inc()
	s.metrics.up.Set(0)
	s.mu.Lock()
	if s.away.IsZero() {
		s.away = time.Now()
		s.opt.Logger.Warn("the sink of the audit mirror does not take lines; they wait", "error", err)
	}
	s.mu.Unlock()
	return s.wait.NextBackOff()
}
