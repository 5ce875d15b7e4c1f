package rest

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/trace"
)

// call is one request on its way through this edge. It is the response writer
// of its own handler, so that no answer leaves without the headers that every
// answer has.
type call struct {
	door.Call
	api    *API
	w      http.ResponseWriter
	r      *http.Request
	route  *Route // nil until matched
	status int    // 0 until the answer has begun

	// From the path; "" where the route has none.
	namespace, service, name string

	params  url.Values // see query
	headers [6]string  // backing of the header values
}

// answer serves one request from its first check to its last header.
func (a *API) answer(w http.ResponseWriter, r *http.Request) {
	c := &call{api: a, w: w, r: r}
	c.Begin(a.door, c, a.door.RequestID(r.Header["X-Request-Id"]))
	defer c.end()
	if err := checkPath(r.URL); err != nil {
		c.fail(err)
		return
	}
	// A browser may hold a client certificate, and any page can make it send.
	if err := a.origins.Check(r); err != nil {
		c.fail(fault.Wrap(fault.Forbidden, err, "a page of another origin may not make changes here"))
		return
	}
	if !isHealth(r.URL.Path) {
		defer c.Leave()
		if err := c.Arrive(r.RemoteAddr); err != nil {
			c.fail(err)
			return
		}
	}
	if namespace, service, ok := discoveryPath(r); ok {
		c.namespace, c.service = namespace, service
		c.serve(a.discover)
		return
	}
	a.mux.ServeHTTP(c, r)
}

// end turns a panic into a problem and reports the answer.
func (c *call) end() {
	v := recover()
	defer func() {
		operation := ""
		if c.route != nil {
			operation = c.route.ID
		}
		c.api.opt.Observe(operation, c.status, time.Since(c.Began))
		c.Answered(operation, c.action(), c.status)
	}()
	switch {
	case v == nil:
		return
	case v == http.ErrAbortHandler: //nolint:errorlint // a sentinel panic value
		panic(v)
	}
	c.api.opt.Logger.Error("panic in a handler", "request_id", c.ID, "method", c.r.Method, "path", c.r.URL.Path,
		"panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	c.fail(fault.New(fault.Internal, "the node failed to handle the request; its log says why"))
}

// serve does what stands before every handler: readiness, identity, names, role.
// Readiness comes first: a node that has not caught up may not know a token
// that is good.
func (c *call) serve(route *Route) {
	c.route = route
	if c.api.opt.Traced {
		trace.Name(c.r.Context(), route.ID, c.ID)
	}
	if err := c.admit(); err != nil {
		c.fail(err)
		return
	}
	if err := c.begin(); err != nil {
		c.fail(err)
		return
	}
	if err := route.handle(c); err != nil {
		c.fail(err)
	}
}

// context is the request's, for work whose log lines are to name the request.
func (c *call) context() context.Context { return trace.WithRequest(c.r.Context(), c.ID) }

func (c *call) admit() error {
	if c.route.Open {
		return nil
	}
	if err := c.Ready(c.route.decided()); err != nil {
		return err
	}
	if c.route.Webhook && fromWebhook(c.r.Header) {
		return nil
	}
	if err := c.Authenticate(); err != nil {
		return err
	}
	if err := c.names(); err != nil {
		return err
	}
	return c.Permit(c.route.Action, c.route.Kind, c.namespace)
}

// names takes the names out of the path and checks their form.
func (c *call) names() error {
	if c.route.ID != discoverID {
		c.namespace = c.r.PathValue("namespace")
		c.service = c.r.PathValue("service")
	}
	if c.namespace != "" {
		if err := checkName("/namespace", c.namespace, registry.ValidName); err != nil {
			return err
		}
	}
	if c.service != "" {
		if err := checkName("/service", c.service, registry.ValidName); err != nil {
			return err
		}
	}
	if v := c.r.PathValue("version"); v != "" {
		c.name = v
		return checkName("/version", v, registry.ValidVersion)
	}
	if id := c.r.PathValue("instance"); id != "" {
		c.name = id
		return checkName("/id", id, registry.ValidName)
	}
	return nil
}

func checkName(pointer, name string, valid func(string) error) error {
	err := valid(name)
	if err == nil {
		return nil
	}
	f := fault.From(err)
	if len(f.Fields) > 0 {
		return fault.Invalid(pointer, "%s", f.Fields[0].Message)
	}
	return fault.Invalid(pointer, "%s", f.Detail)
}

// action is what the call wants to do; of one that no route matched, "".
func (c *call) action() policy.Action {
	if c.route == nil {
		return ""
	}
	return c.route.Action
}

// changes reports whether the call is a change, or would be one if it had been
// understood.
func (c *call) changes() bool {
	if c.route == nil {
		return c.r.Method != http.MethodGet && c.r.Method != http.MethodHead && c.r.Method != http.MethodOptions
	}
	return c.route.Action.Changes()
}

// unmatched answers where the table has no route for path and method.
func (c *call) unmatched() {
	path := c.r.URL.Path
	if !printable(path) {
		c.fail(fault.New(fault.BadPath, "the path must be valid UTF-8 without control characters"))
		return
	}
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete} {
		probe := &http.Request{Method: method, URL: c.r.URL, Host: c.r.Host}
		if _, pattern := c.api.mux.Handler(probe); pattern != "/" {
			allowed = append(allowed, method)
		}
	}
	if len(allowed) == 0 {
		c.fail(fault.New(fault.NotFound, "there is nothing at this path; /openapi.json lists every call"))
		return
	}
	c.Header().Set("Allow", strings.Join(allowed, ", "))
	c.fail(fault.New(fault.MethodNotAllowed, "this path takes %s", strings.Join(allowed, ", ")))
}

// Header, Write, WriteHeader and Unwrap make a call the response writer of its
// handler.
func (c *call) Header() http.Header { return c.w.Header() }

// Unwrap serves http.ResponseController.
func (c *call) Unwrap() http.ResponseWriter { return c.w }

func (c *call) Write(b []byte) (int, error) {
	if c.status == 0 {
		c.WriteHeader(http.StatusOK)
	}
	return c.w.Write(b)
}

// WriteHeader begins the answer with the headers that every answer has.
func (c *call) WriteHeader(status int) {
	if c.status != 0 {
		return
	}
	c.status = status
	h := c.w.Header()
	h["Muster-Node"] = c.api.nodeValue
	c.header(h, 0, "X-Request-Id", c.ID)
	c.header(h, 1, "Muster-Consistency", c.Consistency)
	c.header(h, 2, "Muster-Staleness-Ms", c.staleness())
	if _, ok := h["Muster-Revision"]; !ok {
		c.header(h, 3, "Muster-Revision", strconv.FormatUint(c.State.Revision, 10))
	}
	if c.Decision != "" {
		c.header(h, 5, "Muster-Decision-Id", c.Decision)
	}
	if c.Filtered {
		h["Muster-Filtered"] = yes
	}
	c.w.WriteHeader(status)
}

var yes = []string{"true"} // never changed

func (c *call) header(h http.Header, i int, name, value string) {
	c.headers[i] = value
	h[name] = c.headers[i : i+1 : i+1]
}

// staleness is the age of the answer now, in whole milliseconds, rounded up.
func (c *call) staleness() string {
	age := c.Staleness()
	if age < math.MaxInt64-time.Millisecond {
		age += time.Millisecond - 1
	}
	return strconv.FormatInt(int64(age/time.Millisecond), 10)
}

// send writes a whole answer.
func (c *call) send(status int, contentType string, body []byte) {
	h := c.w.Header()
	h["Content-Type"] = contentTypes[contentType]
	if h["Content-Type"] == nil {
		h.Set("Content-Type", contentType)
	}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	c.WriteHeader(status)
	c.Pause()              // the caller may take its time
	_, _ = c.w.Write(body) // the caller has gone; nobody is left to tell
}

// contentTypes saves the hot path an allocation; the values are never changed.
var contentTypes = map[string][]string{
	mediaJSON:                  {mediaJSON},
	"application/problem+json": {"application/problem+json"},
}

const mediaJSON = "application/json"
