package jepsen

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
)

// Outcome is what a caller knows about its operation.
type Outcome string

// The outcomes.
const (
	OK      Outcome = "ok"      // it happened
	Failed  Outcome = "failed"  // it did not happen and never will
	Unknown Outcome = "unknown" // it may have happened, or happen later
)

// Client calls one node, each time once: no retries, no other node, so that
// the history shows what each single answer claimed.
type Client struct {
	Node  string
	base  string
	token string
	http  *http.Client
}

// NewClient makes a client of the node that listens on addr, host:port.
func NewClient(node, addr, token string, roots *x509.CertPool) *Client {
	return &Client{Node: node, base: "https://" + addr, token: token, http: &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
			TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
			MaxIdleConnsPerHost: 64,
			DisableCompression:  true,
			// HTTP/1.1: a request that is given up takes its connection along.
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Answer is what became of one request.
type Answer struct {
	Invoke, Return time.Time
	Outcome        Outcome // of a change; a read without an answer is Failed as well
	Status         int     // 0: none came
	Code           string  // of a problem document
	Body           []byte
	Header         http.Header
	Err            error // why there is no whole answer
	Refused        bool  // nothing listened
}

// Call makes one request. body may be nil; header holds names and values in turn.
func (c *Client) Call(ctx context.Context, method, path string, body []byte, header ...string) *Answer {
	var sent atomic.Bool // a connection was there: bytes may have reached the node
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return &Answer{Outcome: Failed, Err: err}
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	a := &Answer{Invoke: time.Now()}
	res, err := c.http.Do(req)
	if err == nil {
		a.Status, a.Header = res.StatusCode, res.Header
		a.Body, err = io.ReadAll(res.Body)
		err = errors.Join(err, res.Body.Close())
	}
	a.Return = time.Now()
	a.judge(method, err, sent.Load())
	return a
}

// judge believes what the node says of the outcome, and nothing that is broken.
func (a *Answer) judge(method string, err error, sent bool) {
	read := method == http.MethodGet
	if err != nil {
		a.Err, a.Status = err, 0
		a.Refused = errors.Is(err, syscall.ECONNREFUSED)
		a.Outcome = Unknown
		if read || !sent {
			a.Outcome = Failed
		}
		return
	}
	if a.Status < 300 {
		a.Outcome = OK
		return
	}
	var problem struct {
		Code    string `json:"code"`
		Outcome string `json:"outcome"`
	}
	if json.Unmarshal(a.Body, &problem) != nil || problem.Code == "" {
		a.Err = fmt.Errorf("status %d without a problem document: %.200q", a.Status, a.Body)
		a.Outcome = Unknown
		return
	}
	a.Code, a.Outcome = problem.Code, Failed
	if problem.Outcome == "unknown" && !read {
		a.Outcome = Unknown
	}
}

// Took is how long the caller waited.
func (a *Answer) Took() time.Duration { return a.Return.Sub(a.Invoke) }

// Revision is the Muster-Revision, 0 where there is none.
func (a *Answer) Revision() uint64 {
	n, _ := strconv.ParseUint(a.Header.Get("Muster-Revision"), 10, 64)
	return n
}

// Staleness is the Muster-Staleness-Ms of a read; false where there is none.
func (a *Answer) Staleness() (time.Duration, bool) {
	ms, err := strconv.ParseInt(strings.TrimSpace(a.Header.Get("Muster-Staleness-Ms")), 10, 64)
	return time.Duration(ms) * time.Millisecond, err == nil
}

// String says in a line what the caller got.
func (a *Answer) String() string {
	what := a.Code
	if a.Err != nil {
		what = a.Err.Error()
	}
	return strings.TrimSpace(fmt.Sprintf("%s %d %s", a.Outcome, a.Status, what)) + " after " + a.Took().Round(time.Millisecond).String()
}
