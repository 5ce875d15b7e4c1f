package rest

import (
	"context"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/trace"
)

// call is one request on its way through this edge.
type call struct {
	door.Web
	api   *API
	route *Route // nil until matched

	// From the path; "" where the route has none.
	namespace, service, name string

	params  url.Values // see query
	headers [6]string  // backing of the header values
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
		c.api.opt.Observe(c.operation(), c.Status, time.Since(c.Began))
		c.Answered(c.operation(), c.action(), c.Status)
	}()
	if err := c.Caught(v, c.api.opt.Logger); err != nil {
		c.fail(err)
	}
}

// serve does what stands before every handler: readiness, identity, names, role.
// Readiness comes first: a node that has not caught up may not know a token
// that is good.
func (c *call) serve(route *Route) {
	c.route = route
	if c.api.opt.Traced {
		trace.Name(c.R.Context(), route.ID, c.ID)
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
func (c *call) context() context.Context { return trace.WithRequest(c.R.Context(), c.ID) }

func (c *call) admit() error {
	if c.route.Open {
		return nil
	}
	if err := c.Ready(c.route.decided()); err != nil {
		return err
	}
	if c.route.Webhook && fromWebhook(c.R.Header) {
		return nil
	}
	if err := c.Authenticate(); err != nil {
		return err
	}
	if err := c.names(); err != nil {
		return err
	}
	if err := c.Permit(c.route.Action, c.route.Kind, c.namespace); err != nil || !c.route.unsettled() {
		return err
	}
	// Nobody knows any more whether the credential is still good.
	return c.Young()
}

// names takes the names out of the path and checks their form.
func (c *call) names() error {
	if c.route.ID != discoverID {
		c.namespace = c.R.PathValue("namespace")
		c.service = c.R.PathValue("service")
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
	if v := c.R.PathValue("version"); v != "" {
		c.name = v
		return checkName("/version", v, registry.ValidVersion)
	}
	if id := c.R.PathValue("instance"); id != "" {
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

// operation names the call; of one that no route matched, "".
func (c *call) operation() string {
	if c.route == nil {
		return ""
	}
	return c.route.ID
}

// action is what the call wants to do; of one that no route matched, "".
func (c *call) action() policy.Action {
	if c.route == nil {
		return ""
	}
	return c.route.Action
}

// changes reports whether the call is a change, or would be one if it had been
// understood. Whoever asks for a certificate in vain is put on record as well.
func (c *call) changes() bool {
	if c.route == nil {
		return c.R.Method != http.MethodGet && c.R.Method != http.MethodHead && c.R.Method != http.MethodOptions
	}
	return c.route.Action.Changes() || c.route.Action == policy.Issue
}

// unmatched answers where the table has no route for path and method.
func (c *call) unmatched() {
	if !door.Printable(c.R.URL.Path) {
		c.fail(fault.New(fault.BadPath, "the path must be valid UTF-8 without control characters"))
		return
	}
	if allowed := c.Allowed(c.api.mux); len(allowed) > 0 {
		c.fail(c.NotAllowed(allowed))
		return
	}
	c.fail(fault.New(fault.NotFound, "there is nothing at this path; /openapi.json lists every call"))
}

// Head implements door.Edge.
func (c *call) Head(h http.Header) {
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
	h := c.W.Header()
	h["Content-Type"] = contentTypes[contentType]
	if h["Content-Type"] == nil {
		h.Set("Content-Type", contentType)
	}
	c.Send(status, body)
}

// contentTypes saves the hot path an allocation; the values are never changed.
var contentTypes = map[string][]string{
	mediaJSON:                  {mediaJSON},
	"application/problem+json": {"application/problem+json"},
}

const mediaJSON = "application/json"
