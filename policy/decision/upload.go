package decision

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/klauspost/compress/gzip"

	"github.com/muster-registry/muster/trace"
)

// UploadOptions configure an upload. URL and SpillFile are needed; the zero
// value of any other field means its default.
type UploadOptions struct {
	URL       string        // of the log service, such as https://logs.example.com/logs
	TokenFile string        // holds a bearer token, read for each batch
	TLS       *tls.Config   //
	SpillFile string        // where refusals wait that do not fit into the memory
	Batch     int           // bytes of events in one call; 512 KiB
	Buffer    int           // bytes of events that wait in memory; 8 MiB
	Spill     int64         // bytes of refusals that wait on disk; 256 MiB
	Interval  time.Duration // a batch that is not full is sent after it; 1 s
	Timeout   time.Duration // of one call; 10 s
	Closing   time.Duration // for what is left when it is closed; 3 s
	Retry     time.Duration // the longest wait between two tries; 30 s
	Logger    *slog.Logger  // default: slog.Default
	Tracer    *trace.Tracer // nil: calls are not traced
}

func (o *UploadOptions) setDefaults() {
	or := func(n *int, d int) {
		if *n <= 0 {
			*n = d
		}
	}
	after := func(n *time.Duration, d time.Duration) {
		if *n <= 0 {
			*n = d
		}
	}
	or(&o.Batch, 512<<10)
	or(&o.Buffer, 8<<20)
	if o.Spill <= 0 {
		o.Spill = 256 << 20
	}
	after(&o.Interval, time.Second)
	after(&o.Timeout, 10*time.Second)
	after(&o.Closing, 3*time.Second)
	after(&o.Retry, 30*time.Second)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

// Upload is a sink that posts events to a log service as OPA does: arrays of
// events in JSON, compressed by gzip. While the service is away, events wait
// in a bounded memory; then allowed ones go first, oldest first, and refusals
// go to a file, which is sent when the service is back, also after a restart.
// An event may arrive twice, with the same decision_id.
type Upload struct {
	opt     UploadOptions
	metrics *Metrics
	client  *http.Client

	mu      sync.Mutex // guards all below
	allowed [][]byte
	refused [][]byte
	bytes   int // of both
	spill   *spill
	closed  bool

	urgent   chan struct{} // a batch is full
	ctx      context.Context
	giveUp   context.CancelFunc
	finished chan struct{}
}

// NewUpload begins to upload. The error says that the spill file cannot be
// used.
func NewUpload(o UploadOptions, m *Metrics) (*Upload, error) {
	o.setDefaults()
	u := &Upload{opt: o, metrics: m, urgent: make(chan struct{}, 1), finished: make(chan struct{})}
	u.client = &http.Client{
		Timeout: o.Timeout,
		Transport: &http.Transport{
			TLSClientConfig: o.TLS, TLSHandshakeTimeout: o.Timeout, ForceAttemptHTTP2: true, Proxy: http.ProxyFromEnvironment,
			MaxIdleConns: 2, IdleConnTimeout: time.Minute,
		},
		// A redirect would take the token and the events to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var err error
	if u.spill, err = openSpill(o.SpillFile); err != nil {
		return nil, err
	}
	u.ctx, u.giveUp = context.WithCancel(context.Background())
	u.wait()
	go u.run()
	return u, nil
}

// wait updates the figure of what waits. It is called with mu held.
func (u *Upload) wait() { u.metrics.waiting.Set(float64(int64(u.bytes) + u.spill.left())) }

// Write implements [Sink]. It never waits for the service.
func (u *Upload) Write(e *Event) error {
	b := bytes.Clone(e.JSON())
	u.mu.Lock()
	defer u.mu.Unlock()
	defer u.wait()
	if u.closed {
		return errClosed
	}
	for u.bytes+len(b) > u.opt.Buffer && len(u.allowed) > 0 {
		u.bytes -= len(u.allowed[0])
		u.allowed[0], u.allowed = nil, u.allowed[1:]
		u.metrics.dropped.WithLabelValues("buffer").Inc()
	}
	fits := u.bytes+len(b) <= u.opt.Buffer
	switch {
	case e.Refusal && (!fits || u.spill.left() > 0): // behind those that wait there
		return u.keep(b)
	case !fits:
		u.metrics.dropped.WithLabelValues("buffer").Inc()
		return nil
	case e.Refusal:
		u.refused = append(u.refused, b)
	default:
		u.allowed = append(u.allowed, b)
	}
	if u.bytes += len(b); u.bytes >= u.opt.Batch {
		select {
		case u.urgent <- struct{}{}:
		default:
		}
	}
	return nil
}

// Flush implements [Sink].
func (u *Upload) Flush() error { return nil }

// keep puts a refusal on disk. It is called with mu held.
func (u *Upload) keep(event []byte) error {
	err := error(nil)
	if u.spill.size+int64(len(event)) > u.opt.Spill {
		err = fmt.Errorf("the log service has been away too long: %s is full, and refusals are not sent to it any more", u.opt.SpillFile)
	} else {
		err = u.spill.add(event)
	}
	if err != nil {
		u.metrics.dropped.WithLabelValues("buffer").Inc()
	}
	return err
}

// batch are events that go together: refusals first.
type batch struct {
	refused, allowed [][]byte
	disk             int64 // where those that follow stand on disk; 0: this batch is not from there
}

func (b *batch) events() [][]byte { return slices.Concat(b.refused, b.allowed) }

// next takes a batch, from the disk first; an empty one when nothing waits.
func (u *Upload) next() (b batch, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.spill.left() > 0 {
		b.refused, b.disk, err = u.spill.read(u.opt.Batch)
		if err != nil {
			err = errors.Join(err, u.spill.reset())
		}
		return b, err
	}
	size := 0
	take := func(from *[][]byte) (taken [][]byte) {
		for len(*from) > 0 && (size == 0 || size+len((*from)[0]) <= u.opt.Batch) {
			e := (*from)[0]
			(*from)[0], *from = nil, (*from)[1:]
			size += len(e)
			taken = append(taken, e)
		}
		return taken
	}
	b.refused = take(&u.refused)
	b.allowed = take(&u.allowed)
	u.bytes -= size
	return b, nil
}

// end settles a batch: what was not sent of its refusals waits on disk.
func (u *Upload) end(b *batch, sent bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	defer u.wait()
	switch {
	case sent && b.disk > 0:
		if err := u.spill.done(b.disk); err != nil {
			u.opt.Logger.Error("decision log", "file", u.opt.SpillFile, "error", err)
		}
	case sent || b.disk > 0: // still there
	default:
		u.metrics.dropped.WithLabelValues("buffer").Add(float64(len(b.allowed)))
		for _, e := range b.refused {
			if err := u.keep(e); err != nil {
				u.opt.Logger.Error("decision log", "error", err)
			}
		}
	}
}

// run sends batch after batch, and what is left when the upload is closed.
func (u *Upload) run() {
	defer close(u.finished)
	t := time.NewTicker(u.opt.Interval)
	defer t.Stop()
	for u.ctx.Err() == nil {
		select {
		case <-t.C:
		case <-u.urgent:
		case <-u.ctx.Done():
		}
		u.drain(u.ctx)
	}
	ctx, cancel := context.WithTimeout(context.Background(), u.opt.Closing)
	defer cancel()
	u.drain(ctx)
}

// drain sends all that waits, until the context ends.
func (u *Upload) drain(ctx context.Context) {
	for ctx.Err() == nil {
		b, err := u.next()
		if err != nil {
			u.opt.Logger.Error("refusals that waited for the log service cannot be read and are lost to it", "file", u.opt.SpillFile, "error", err)
			u.metrics.errors.WithLabelValues("upload").Inc()
			continue
		}
		events := b.events()
		if len(events) == 0 {
			return
		}
		u.end(&b, u.send(ctx, events))
	}
}

// errTooLarge is the service's word that a batch is.
var errTooLarge = errors.New("the log service does not take as much at once")

// send posts the events until the service has taken them or the context ends,
// and reports whether it has.
func (u *Upload) send(ctx context.Context, events [][]byte) bool {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = min(200*time.Millisecond, u.opt.Retry), u.opt.Retry
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, u.post(ctx, events) },
		backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, next time.Duration) {
			u.metrics.errors.WithLabelValues("upload").Inc()
			u.opt.Logger.Warn("the log service did not take decisions", "error", err, "next_try", next.String())
		}))
	switch {
	case err == nil:
		u.metrics.sent.Add(float64(len(events)))
		return true
	case errors.Is(err, errTooLarge) && len(events) > 1:
		half := len(events) / 2
		return u.send(ctx, events[:half]) && u.send(ctx, events[half:])
	case errors.Is(err, errTooLarge):
		u.opt.Logger.Error("the log service does not take a decision, which is too large for it", "bytes", len(events[0]))
		u.metrics.dropped.WithLabelValues("too_large").Inc()
		return true
	}
	return false
}

func (u *Upload) post(ctx context.Context, events [][]byte) (err error) {
	ctx, span := u.opt.Tracer.Begin(ctx, "upload decisions")
	defer func() { span.End(err) }()
	var body bytes.Buffer
	z, err := gzip.NewWriterLevel(&body, gzip.BestSpeed)
	if err != nil {
		return backoff.Permanent(err)
	}
	for i, e := range events {
		_, _ = z.Write([]byte{"[,"[min(i, 1)]}) // to memory: never fails
		_, _ = z.Write(e)
	}
	_, _ = z.Write([]byte{']'})
	_ = z.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.opt.URL, &body)
	if err != nil {
		return backoff.Permanent(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Content-Encoding", "gzip")
	trace.Inject(ctx, req.Header)
	if u.opt.TokenFile != "" {
		token, err := os.ReadFile(u.opt.TokenFile)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	res, err := u.client.Do(req)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		return failed.Err // without the URL, which may hold a key
	}
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, 64<<10) // so that the connection can be used again
	switch {
	case res.StatusCode/100 == 2:
		return nil
	case res.StatusCode == http.StatusRequestEntityTooLarge:
		return backoff.Permanent(errTooLarge)
	case res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusServiceUnavailable:
		if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
			return backoff.RetryAfter(min(s, int(u.opt.Retry/time.Second)+1))
		}
	}
	// Also what looks like a mistake of the sender's is tried again: refusals
	// are not lost because a token has run out.
	return fmt.Errorf("the log service answered %s", res.Status)
}

// Close implements [Sink]: refusals that cannot be delivered soon wait on disk
// for the next start.
func (u *Upload) Close() error {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.giveUp()
	<-u.finished
	u.client.CloseIdleConnections()
	u.mu.Lock()
	defer u.mu.Unlock()
	defer u.wait()
	u.metrics.dropped.WithLabelValues("buffer").Add(float64(len(u.allowed)))
	var errs []error
	for _, e := range u.refused {
		errs = append(errs, u.keep(e))
	}
	u.allowed, u.refused, u.bytes = nil, nil, 0
	return errors.Join(append(errs, u.spill.close())...)
}
