package door

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/muster-registry/muster/fault"
)

// Edge is what an edge that answers over HTTP adds to a [Web].
type Edge interface {
	Request
	// Head sets the headers that every answer of the edge has. It is asked once,
	// when the answer begins.
	Head(h http.Header)
}

// Web is a call that came in by HTTP. It is the response writer of its own
// handler, so that no answer leaves without the headers that every answer has.
type Web struct {
	Call
	W      http.ResponseWriter // that the answer goes to, by Write and Send
	R      *http.Request
	Status int // 0 until the answer has begun

	edge Edge
}

// Open takes in a request. The edge is the call that the Web is a part of.
func (c *Web) Open(d *Door, edge Edge, w http.ResponseWriter, r *http.Request) {
	c.W, c.R, c.edge = w, r, edge
	c.Begin(d, edge, d.RequestID(r.Header["X-Request-Id"]))
}

// Context implements [Request].
func (c *Web) Context() context.Context { return c.R.Context() }

// Check refuses a path that can be read in two ways, and what a page of another
// origin makes a browser send: it may hold a client certificate.
func (c *Web) Check(origins *http.CrossOriginProtection) error {
	if err := CheckPath(c.R.URL); err != nil {
		return err
	}
	if err := origins.Check(c.R); err != nil {
		return fault.Wrap(fault.Forbidden, err, "a page of another origin may not make changes here")
	}
	return nil
}

// Scheme is https or http.
func (c *Web) Scheme() string {
	if c.R.TLS != nil {
		return "https"
	}
	return "http"
}

// Source is the caller's address, without a port.
func (c *Web) Source() string { return Host(c.R.RemoteAddr) }

// Host is an address without its port, where it has one.
func Host(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// Header, Write, WriteHeader and Unwrap make a call the response writer of its
// handler.
func (c *Web) Header() http.Header { return c.W.Header() }

// Unwrap serves [http.ResponseController].
func (c *Web) Unwrap() http.ResponseWriter { return c.W }

func (c *Web) Write(b []byte) (int, error) {
	if c.Status == 0 {
		c.WriteHeader(http.StatusOK)
	}
	return c.W.Write(b)
}

// WriteHeader begins the answer, once.
func (c *Web) WriteHeader(status int) {
	if c.Status != 0 {
		return
	}
	c.Status = status
	c.edge.Head(c.W.Header())
	c.W.WriteHeader(status)
}

// Send writes a whole answer. Its type is in the header already.
func (c *Web) Send(status int, body []byte) {
	c.W.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	c.WriteHeader(status)
	c.Pause()              // the caller may take its time
	_, _ = c.W.Write(body) // the caller has gone; nobody is left to tell
}

// Caught makes what a handler panicked with the error that answers, and nil of
// nothing. A panic that is to break the connection off goes on.
func (c *Web) Caught(v any, log *slog.Logger) error {
	switch {
	case v == nil:
		return nil
	case v == http.ErrAbortHandler: //nolint:errorlint // a sentinel panic value
		panic(v)
	}
	log.Error("panic in a handler", "request_id", c.ID, "method", c.R.Method, "path", c.R.URL.Path, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	return fault.New(fault.Internal, "the node failed to handle the request; its log says why")
}

// Refusing does what comes before the answer to a call that is refused or
// failed: what is still being sent is read, whoever keeps record is told, and
// the headers that go with the status are set. operation is what the edge calls
// it, changes whether it is a change. When the answer has begun already, there
// is no honest way to end it but to break the connection off.
func (c *Web) Refusing(err error, log *slog.Logger, operation string, changes bool) *fault.Error {
	e := fault.From(err)
	if e.Code == fault.Internal {
		log.Error("request failed", "request_id", c.ID, "method", c.R.Method, "path", c.R.URL.Path, "err", err)
	}
	if c.Status != 0 {
		panic(http.ErrAbortHandler)
	}
	status, h := e.Code.Status(), c.Header()
	Drain(c.W, c.R, status, c.Who != nil)
	if changes || status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusTooManyRequests {
		c.Refuse(operation, e)
	}
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="muster"`)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", RetryAfter(e.RetryAfter))
	default:
		if e.RetryAfter > 0 {
			h.Set("Retry-After", RetryAfter(e.RetryAfter))
		}
	}
	if e.Limit != nil {
		rates, rate := e.Limit.Fields()
		h.Set("RateLimit-Policy", rates)
		h.Set("RateLimit", rate)
	}
	if e.DecisionID != "" {
		c.Decision = e.DecisionID
	}
	return e
}

// RetryAfter is a header's value: whole seconds, at least one.
func RetryAfter(d time.Duration) string {
	return strconv.FormatInt(int64(max(1, (d+time.Second-1)/time.Second)), 10)
}

// Allowed gives the methods that a mux answers the path of the call by, beside
// its pattern for everything, "/".
func (c *Web) Allowed(mux *http.ServeMux) (methods []string) {
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete} {
		if _, pattern := mux.Handler(&http.Request{Method: method, URL: c.R.URL, Host: c.R.Host}); pattern != "/" {
			methods = append(methods, method)
		}
	}
	return methods
}

// NotAllowed refuses the method of the call, and says which are taken.
func (c *Web) NotAllowed(methods []string) error {
	all := strings.Join(methods, ", ")
	c.Header().Set("Allow", all)
	return fault.New(fault.MethodNotAllowed, "method %s not allowed; this path takes %s", Clip(c.R.Method), all)
}

// Clip keeps a caller's text from filling an error.
func Clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}
