package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/muster-registry/muster/fault"
)

// maxAnswer bounds what is read of an answer that is not a stream.
const maxAnswer = 64 << 20

// call is one request as the API has it, apart from where it goes.
type call struct {
	method string
	path   []string // segments, unescaped
	query  url.Values
	header http.Header
	body   []byte
	// stream is sent instead of body, once: it cannot be repeated.
	stream io.Reader
	// keyed calls change something under an idempotency key: safe to repeat.
	keyed bool
	// safe says that doing it twice is the same as doing it once.
	safe bool
	// wait is how long the node may keep the call on purpose.
	wait time.Duration
	// rounds bounds how often each address is tried; 0: as often as time allows.
	rounds int
	// anyStatus returns answers other than 2xx as they are.
	anyStatus bool
}

// answer is a response whose body was read.
type answer struct {
	status   int
	header   http.Header
	body     []byte
	revision uint64
	// staleness is how old the state may have been that answered.
	staleness time.Duration
}

// do runs a call with retries until it has a definite answer or time is up.
func (c *Client) do(ctx context.Context, k call) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout+k.wait)
	defer cancel()
	res, err := c.open(ctx, k)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		if k.reads() {
			return nil, fault.Wrap(fault.NotReady, err, "the answer broke off; try again")
		}
		return nil, fault.Lost(fault.NotReady, err, "the answer broke off; look whether the change was made before trying again")
	}
	if len(b) > maxAnswer {
		return nil, fault.New(fault.TooLarge, "the answer is larger than %d MiB; ask for less at a time", maxAnswer>>20)
	}
	rev, _ := strconv.ParseUint(res.Header.Get("Muster-Revision"), 10, 64)
	age, _ := strconv.ParseInt(res.Header.Get("Muster-Staleness-Ms"), 10, 64)
	return &answer{status: res.StatusCode, header: res.Header, body: b, revision: rev, staleness: time.Duration(max(age, 0)) * time.Millisecond}, nil
}

func (k call) reads() bool { return k.method == http.MethodGet }

// again tells whether the call may be repeated after it reached a node.
func (k call) again() bool { return k.reads() || k.keyed || k.safe }

// open runs a call up to the headers of its answer. The caller closes the body.
func (c *Client) open(ctx context.Context, k call) (*http.Response, error) {
	if k.header == nil {
		k.header = http.Header{}
	}
	if k.keyed && k.header.Get("Idempotency-Key") == "" {
		k.header.Set("Idempotency-Key", rand.Text())
	}
	if c.session && k.reads() && c.seen.Load() > 0 {
		if k.query == nil {
			k.query = url.Values{}
		}
		if !k.query.Has("min_revision") && !k.query.Has("consistency") {
			k.query.Set("min_revision", strconv.FormatUint(c.seen.Load(), 10))
		}
	}
	end := time.Now().Add(c.timeout + k.wait)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 50*time.Millisecond, time.Second
	for at, tried := int(c.last.Load()), 1; ; at, tried = at+1, tried+1 {
		at %= len(c.addresses)
		res, err := c.try(ctx, c.addresses[at], k)
		if err == nil {
			c.last.Store(int64(at))
			return res, nil
		}
		if k.stream != nil || !k.repeatable(err) || ctx.Err() != nil || tried == k.rounds*len(c.addresses) {
			return nil, err
		}
		pause := time.Duration(0)
		if tried%len(c.addresses) == 0 { // every address had its turn
			pause = max(wait.NextBackOff(), min(fault.From(err).RetryAfter, time.Second))
		}
		if time.Until(end) <= pause {
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// patience is how long a node may keep a call that another could answer.
func (c *Client) patience(k call) time.Duration {
	if len(c.addresses) > 1 && k.stream == nil && k.again() {
		return c.timeout/2 + k.wait
	}
	return 0
}

// repeatable tells whether the same call may be made again after err.
func (k call) repeatable(err error) bool {
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return false
	}
	if e.Outcome == fault.Unknown && !k.again() {
		return false
	}
	switch e.Code {
	case fault.NoLeader, fault.NotReady, fault.TooStale, fault.RateLimited:
		return true
	}
	return false
}

// try makes one request to one node.
func (c *Client) try(ctx context.Context, node *url.URL, k call) (*http.Response, error) {
	target, err := k.target(node)
	if err != nil {
		return nil, err
	}
	body := k.stream
	if body == nil && k.body != nil {
		body = bytes.NewReader(k.body)
	}
	ctx, cancel := context.WithCancel(ctx)
	if d := c.patience(k); d > 0 {
		defer time.AfterFunc(d, cancel).Stop() // until the headers are here
	}
	req, err := http.NewRequestWithContext(ctx, k.method, target, body)
	if err != nil {
		cancel()
		return nil, err
	}
	req.Header = k.header.Clone()
	req.Header.Set("User-Agent", c.agent)
	if body != nil && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		cancel()
		return nil, k.lost(node, err)
	}
	res.Body = &closer{res.Body, cancel}
	if rev, err := strconv.ParseUint(res.Header.Get("Muster-Revision"), 10, 64); err == nil {
		for old := c.seen.Load(); rev > old && !c.seen.CompareAndSwap(old, rev); old = c.seen.Load() {
		}
	}
	if k.anyStatus || res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return nil, problem(res, b)
}

// lost says what a failed exchange means for the change it carried.
func (k call) lost(node *url.URL, err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if advice := distrust(node, err); advice != nil {
		return advice
	}
	op, dial := errors.AsType[*net.OpError](err)
	if k.reads() || dial && op.Op == "dial" {
		return fault.Wrap(fault.NotReady, err, "no answer from %s", node.Host)
	}
	return fault.Lost(fault.NotReady, err, "no answer from %s; look whether the change was made before trying again", node.Host)
}

// distrust explains errors of TLS, which no retry mends.
func distrust(node *url.URL, err error) error {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("%s presents a certificate of an authority that is not trusted here; name its CA with --cacert or MUSTER_CACERT, and see what it presents with: muster tls verify %s", node.Host, node.Host)
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Errorf("%s presents a certificate for another host: %w", node.Host, e)
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return fmt.Errorf("%s presents a certificate that is not valid: %w; see: muster tls verify %s", node.Host, e, node.Host)
	}
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Errorf("%s does not speak TLS: %w", node.Host, e)
	}
	if e, ok := errors.AsType[tls.AlertError](err); ok {
		return fault.Wrap(fault.Unauthenticated, e, "%s does not accept the client certificate", node.Host)
	}
	return nil
}

// target is the call's URL. Names keep their segment whatever they hold.
func (k call) target(node *url.URL) (string, error) {
	u := *node
	for _, s := range k.path {
		if s == "" || s == "." || s == ".." {
			return "", fault.New(fault.BadPath, "%q is not a name", s)
		}
		u.Path += "/" + s
		u.RawPath += "/" + url.PathEscape(s)
	}
	u.RawQuery = k.query.Encode()
	return u.String(), nil
}

// closer ends a call's context with its body.
type closer struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *closer) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}
