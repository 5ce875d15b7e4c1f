package opa

import (
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/trace"
)

// call is one request on its way through this edge. It is the response writer
// of its own handler.
type call struct {
	api    *API
	w      http.ResponseWriter
	r      *http.Request
	route  *route // nil until matched
	began  time.Time
	status int // 0 until the answer has begun

	visit flow.Visit
	state State
	age   time.Duration // of the state, when the call began
	who   *identity.Principal

	request  string    // see id
	decision string    // id of the decision that the answer tells; empty: none
	headers  [4]string // backing of the header values
}

// answer serves one request.
func (a *API) answer(w http.ResponseWriter, r *http.Request) {
	c := &call{api: a, w: w, r: r, began: time.Now()}
	// The age first: a state can only be younger than an age asked for before.
	c.age = a.backend.Staleness()
	c.state = a.backend.Policies()
	defer c.end()
	// A browser may hold a client certificate, and any page can make it send.
	if err := a.origins.Check(r); err != nil {
		c.fail(fault.Wrap(fault.Forbidden, err, "a page of another origin may not ask here"))
		return
	}
	if r.URL.Path != "/health" {
		defer c.visit.Leave()
		if err := c.visit.Arrive(a.opt.Flow, r.RemoteAddr); err != nil {
			c.fail(err)
			return
		}
	}
	if r.Method == http.MethodPost && simple(r) {
		c.serve(a.hot)
		return
	}
	if r.URL.Path != "/health" {
		// Who is not known does not get to learn which paths there are.
		if err := c.authenticate(); err != nil {
			c.fail(err)
			return
		}
	}
	switch {
	case r.Method == http.MethodHead: // as OPA has it
		c.WriteHeader(http.StatusMethodNotAllowed)
	case len(r.URL.Path) > 1 && strings.HasSuffix(r.URL.Path, "/") && !strings.HasPrefix(r.URL.Path, "//"): // that would lead to another host
		http.Redirect(c, r, strings.TrimSuffix(r.URL.Path, "/"), http.StatusMovedPermanently)
	default:
		a.mux.ServeHTTP(c, r)
	}
}

const dataPrefix = "/v1/data/"

// simple reports whether the path is one of the data API that every router
// reads alike, so that the mux has nothing to find out.
func simple(r *http.Request) bool {
	path, ok := strings.CutPrefix(r.URL.Path, dataPrefix)
	if !ok || r.URL.RawPath != "" {
		return false
	}
	before := byte('/')
	for i := range len(path) {
		b := path[i]
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', b == '_', b == '/' && before != '/':
		default:
			return false
		}
		before = b
	}
	return before != '/'
}

// end turns a panic into an error and reports the answer.
func (c *call) end() {
	v := recover()
	defer func() {
		handler := "catchall"
		if c.route != nil {
			handler = c.route.handler
		}
		elapsed := time.Since(c.began)
		c.api.opt.Observe(handler, c.r.Method, c.status, elapsed)
		if told := c.api.opt.Answered; told != nil {
			told(c.r, &Answered{
				Principal: c.who, Operation: handler, Action: c.action(), RequestID: c.id(), DecisionID: c.decision,
				Status: c.status, Elapsed: elapsed,
			})
		}
	}()
	switch {
	case v == nil:
		return
	case v == http.ErrAbortHandler: //nolint:errorlint // a sentinel panic value
		panic(v)
	}
	c.api.opt.Logger.Error("panic in a handler", "request_id", c.id(), "method", c.r.Method, "path", c.r.URL.Path, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	c.fail(fault.New(fault.Internal, "the node failed to handle the request; its log says why"))
}

// action is what the call wants to do; of one that no route matched, "".
func (c *call) action() policy.Action {
	if c.route == nil {
		return ""
	}
	return c.route.action
}

// changes reports whether the call is a change, or would be one if it had been
// understood.
func (c *call) changes() bool {
	if c.route == nil {
		return c.r.Method == http.MethodPut || c.r.Method == http.MethodPatch || c.r.Method == http.MethodDelete
	}
	return c.route.action.Changes()
}

// serve does what stands before every handler: readiness, identity, role.
func (c *call) serve(r *route) {
	c.route = r
	if c.api.opt.Traced {
		trace.Name(c.r.Context(), r.handler, c.id())
	}
	if err := c.admit(); err != nil {
		c.fail(err)
		return
	}
	if err := c.begin(); err != nil {
		c.fail(err)
		return
	}
	if err := r.handle(c); err != nil {
		c.fail(err)
	}
}

func (c *call) admit() error {
	if c.route.open {
		return nil
	}
	if err := c.api.backend.Ready(); err != nil {
		return err
	}
	if err := c.authenticate(); err != nil {
		return err
	}
	if err := c.permit(); err != nil {
		return err
	}
	return c.young()
}

// permit asks the caller's role.
func (c *call) permit() error {
	return policy.Permit(c.role(), c.route.action, c.route.kind, "")
}

// young refuses a state that is older than the node's own limit on isolation.
func (c *call) young() error {
	if most := c.api.opt.MaxStaleness; most >= 0 && c.age > most {
		return fault.New(fault.TooStale, "this node has not heard from its leader for longer than %v, so it may not know the policy that is active; ask another node", most)
	}
	return nil
}

func (c *call) authenticate() error {
	if c.who != nil {
		return nil
	}
	header := ""
	if values := c.r.Header["Authorization"]; len(values) > 0 {
		if header = values[0]; len(values) > 1 || header == "" {
			return fault.New(fault.Unauthenticated, "send one Authorization header: Bearer TOKEN")
		}
	}
	who, err := c.api.auth.Authenticate(c.r.Context(), c.state.Tokens, header, c.r.TLS, c.began)
	c.who = who
	return c.proven(err)
}

// role is the caller as policy sees it.
func (c *call) role() policy.Principal {
	return door.Principal(c.who)
}

// path is what follows upon the two segments that a call of the API begins
// with, escaped as it was sent.
func (c *call) path() string {
	path := c.r.URL.EscapedPath()
	for range 3 {
		_, path, _ = strings.Cut(path, "/")
	}
	return path
}

// source is the caller's address.
func (c *call) source() string {
	if host, _, err := net.SplitHostPort(c.r.RemoteAddr); err == nil {
		return host
	}
	return c.r.RemoteAddr
}

// intent is the call as the leader gets to see it, without a command. It holds
// only if that policy revision is the active one; 0: if none is.
func (c *call) intent(active uint64) *command.Intent {
	headers := make([]string, 0, 2*len(c.r.Header))
	for name, values := range c.r.Header {
		headers = append(headers, name, strings.Join(values, ", "))
	}
	scheme := "http"
	if c.r.TLS != nil {
		scheme = "https"
	}
	target := *c.r.URL
	target.RawPath = ""
	token, _ := identity.Bearer(c.r.Header.Get("Authorization"))
	return &command.Intent{
		Principal: door.Sent(c.who),
		Request: &command.Request{
			Method: c.r.Method, Path: target.RequestURI(), Host: c.r.Host, Scheme: scheme,
			Headers: headers, SourceAddress: c.source(), Token: token,
		},
		Match: active, HasMatch: true,
	}
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

// WriteHeader begins the answer with what every answer says: which node, which
// policy revision, and how old its state may be.
func (c *call) WriteHeader(status int) {
	if c.status != 0 {
		return
	}
	c.status = status
	if status >= http.StatusBadRequest {
		door.Drain(c.w, c.r, status, c.who != nil)
	}
	h := c.w.Header()
	h["Muster-Node"] = c.api.nodeValue
	c.header(h, 0, "Muster-Policy-Revision", strconv.FormatUint(c.revision(), 10))
	if c.decision != "" {
		c.header(h, 2, "Muster-Decision-Id", c.decision)
	}
	if c.age < 1<<62 {
		c.header(h, 1, "Muster-Staleness-Ms", strconv.FormatInt(int64((c.age+time.Since(c.began)+time.Millisecond-1)/time.Millisecond), 10))
	}
	c.w.WriteHeader(status)
}

func (c *call) header(h http.Header, i int, name, value string) {
	c.headers[i] = value
	h[name] = c.headers[i : i+1 : i+1]
}

// revision is the number of the policy revision that answers; 0: none.
func (c *call) revision() uint64 { return active(c.state) }

// active is the number of the policy revision that is active in the state; 0: none.
func active(s State) uint64 {
	if r := s.Policy.Active(); r != nil {
		return r.Number
	}
	return 0
}
