package consul

import (
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/trace"
)

// call is one request on its way through this edge.
type call struct {
	door.Web
	api   *API
	route *Route // nil until matched

	q         query
	namespace string
	body      []byte

	// What the call would be in REST, for policies; "" where it has no like.
	verb, path string
}

// answer serves one request from its first check to its last header.
func (a *API) answer(w http.ResponseWriter, r *http.Request) {
	c := &call{api: a}
	c.Open(a.door, c, w, r)
	defer c.end()
	if err := c.Check(a.origins); err != nil {
		c.fail(err)
		return
	}
	defer c.Leave()
	if err := c.Arrive(r.RemoteAddr); err != nil {
		c.fail(err)
		return
	}
	a.mux.ServeHTTP(c, r)
}

func (c *call) end() {
	v := recover()
	defer func() {
		operation, action := c.operation()
		c.api.opt.Observe(operation, c.Status, time.Since(c.Began))
		c.Answered(operation, action, c.Status)
	}()
	if err := c.Caught(v, c.api.opt.Logger); err != nil {
		c.fail(err)
	}
}

// operation names the call, and says what it wants to do; of one that no route
// matched, nothing.
func (c *call) operation() (string, policy.Action) {
	if c.route == nil {
		return "", ""
	}
	return c.route.ID, c.route.Action
}

// serve does what stands before every handler.
func (c *call) serve(route *Route) {
	c.route = route
	if c.api.opt.Traced {
		trace.Name(c.R.Context(), route.ID, c.ID)
	}
	err := c.admit()
	if err == nil {
		kind := flow.Change
		if route.reads {
			kind = flow.Quick
		}
		err = c.Turn(kind)
	}
	if err == nil && route.reads {
		err = c.q.compile()
	}
	if err == nil {
		err = route.handle(c)
	}
	if err != nil {
		c.fail(err)
	}
}

// admit finds out who calls, what it is about, and whether the role allows it.
// A body is read first where the namespace may stand in it.
func (c *call) admit() error {
	if err := c.Ready(c.route.Kind != "cluster"); err != nil {
		return err
	}
	if err := c.Authenticate(); err != nil {
		return err
	}
	if err := c.readQuery(); err != nil {
		return err
	}
	if c.route.body {
		if err := c.readBody(); err != nil {
			return err
		}
	}
	if c.namespace == "" {
		c.namespace = namespaceIn(c.body)
	}
	if err := registry.ValidName(c.namespace); err != nil {
		return fault.Invalid("/Namespace", "%s", fault.From(err).Fields[0].Message)
	}
	if err := c.Permit(c.route.Action, c.route.Kind, c.namespace); err != nil {
		return err
	}
	return c.q.err
}

// like says what the call would be in REST, before a policy or the leader gets
// to see it.
func (c *call) like(verb, path string) { c.verb, c.path = verb, path }

// Credentials implements door.Request: Consul's clients send the token by
// itself.
func (c *call) Credentials() ([]string, *tls.ConnectionState) {
	return c.authorization(), c.R.TLS
}

// authorization gives what would stand in the header Authorization. Two places
// that say different things are both shown, and so refused.
func (c *call) authorization() []string {
	all := c.R.Header["Authorization"]
	for _, token := range append(c.R.Header["X-Consul-Token"], tokenParam(c.R.URL)...) {
		if bearer := "Bearer " + token; token != "" && (len(all) == 0 || all[0] != bearer) {
			all = append(all[:len(all):len(all)], bearer)
		}
	}
	return all
}

func tokenParam(u *url.URL) []string {
	if !strings.Contains(u.RawQuery, "token=") {
		return nil
	}
	return u.Query()["token"]
}

// Form implements door.Request.
func (c *call) Form() door.Form {
	f := door.Form{Method: c.verb, Path: c.path, Scheme: c.Scheme(), Host: c.R.Host, Source: c.Source(), Headers: map[string][]string{}}
	if c.path == "" {
		f.Method, f.Path = c.R.Method, c.target()
	}
	path, _, _ := strings.Cut(f.Path, "?")
	f.Route = strings.Split(strings.Trim(path, "/"), "/")
	for name, values := range c.R.Header {
		if name != "X-Consul-Token" {
			f.Headers[name] = values
		}
	}
	if all := c.authorization(); len(all) > 0 {
		f.Headers["Authorization"] = all
	}
	return f
}

// target is path and query in the one form that policies see, without a token.
func (c *call) target() string {
	u := *c.R.URL
	u.RawPath = ""
	if len(tokenParam(&u)) > 0 {
		q := u.Query()
		q.Del("token")
		u.RawQuery = q.Encode()
	}
	return u.RequestURI()
}

// readBody reads a body of at most MaxBody bytes.
func (c *call) readBody() error {
	b, err := door.Body(c.W, c.R, c.Visit(), c.api.opt.MaxBody, c.api.opt.BodyTimeout)
	c.body = b
	return err
}

// Head implements door.Edge.
func (c *call) Head(h http.Header) {
	h.Set("X-Request-Id", c.ID)
	h.Set("Muster-Node", c.api.backend.NodeID())
	if c.Decision != "" {
		h.Set("Muster-Decision-Id", c.Decision)
	}
}

// json answers a read with a value, index being that of its last change.
func (c *call) json(index uint64, v any) error {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return err
	}
	c.read(index)
	c.Header().Set("X-Consul-Contenthash", contentHash(b))
	c.send(http.StatusOK, "application/json", b)
	return nil
}

// read sets the headers of the answer to a read.
func (c *call) read(index uint64) {
	h := c.Header()
	h.Set("X-Consul-Index", strconv.FormatUint(max(index, 1), 10))
	h.Set("X-Consul-KnownLeader", strconv.FormatBool(c.knowsLeader()))
	h.Set("X-Consul-LastContact", strconv.FormatInt(int64((c.Staleness()+time.Millisecond-1)/time.Millisecond), 10))
	h.Set("X-Consul-Effective-Consistency", c.q.mode)
	if c.q.cached {
		h.Set("X-Cache", "HIT")
		h.Set("Age", strconv.FormatInt(int64(c.Staleness()/time.Second), 10))
	}
}

func (c *call) knowsLeader() bool {
	_, leader := c.api.backend.Peers()
	return leader != ""
}

// contentHash tells equal answers, for clients that wait for another one.
func contentHash(b []byte) string {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return strconv.FormatUint(h.Sum64(), 16)
}

// done answers a change, as Consul does: with 200 and nothing.
func (c *call) done() error {
	c.send(http.StatusOK, "", nil)
	return nil
}

func (c *call) send(status int, media string, body []byte) {
	if media != "" {
		c.Header().Set("Content-Type", media)
	}
	c.Send(status, body)
}

// unmatched answers where there is no such call.
func (c *call) unmatched() {
	if answered, _ := owned(c.R.URL.Path); answered {
		if allowed := c.Allowed(c.api.mux); len(allowed) > 0 {
			c.fail(c.NotAllowed(allowed))
			return
		}
	}
	door.Drain(c.W, c.R, http.StatusNotFound, c.Who != nil)
	c.send(http.StatusNotImplemented, mediaText, []byte("muster does not offer this part of Consul's API; it has agent services and checks, catalog, health and status, "+
		"as docs/services.md says\n"))
}

const mediaText = "text/plain; charset=utf-8"

// fail answers with a line of text, as Consul does.
func (c *call) fail(err error) {
	operation, action := c.operation()
	e := c.Refusing(err, c.api.opt.Logger, operation, c.route == nil || action.Changes())
	status, text := e.Code.Status(), e.Detail
	switch {
	case e.Code == fault.NoLeader:
		status, text = http.StatusInternalServerError, "No cluster leader: "+text
	case errors.Is(err, errNoPath):
		status = http.StatusInternalServerError
	case status == http.StatusForbidden:
		text = "Permission denied: " + text
	}
	var b strings.Builder
	b.WriteString(text)
	for _, f := range e.Fields {
		fmt.Fprintf(&b, "\n%s %s", f.Pointer, f.Message)
	}
	for _, r := range e.Reasons {
		b.WriteString("\n" + r)
	}
	if e.Outcome == fault.Unknown {
		b.WriteString("\nthe change may have happened all the same")
	}
	b.WriteByte('\n')
	c.send(status, mediaText, []byte(b.String()))
}
