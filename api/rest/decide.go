package rest

import (
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
)

// principal is who as policy sees it.
func principal(who *identity.Principal) policy.Principal {
	return policy.Principal{ID: who.ID, Kind: who.Kind, Roles: who.Roles, Namespaces: who.Namespaces, Claims: claims(who)}
}

func claims(who *identity.Principal) []byte {
	if len(who.Claims) == 0 {
		return nil
	}
	b, err := json.Marshal(who.Claims, json.Deterministic(true))
	if err != nil { // claims came from JSON
		return nil
	}
	return b
}

// decide asks the active policy of the call's own state about a look-up. A
// refusal is policy_denied; it is made before anything is said about whether
// the record exists.
func (c *call) decide(res policy.Resource) (policy.Decision, error) {
	rev := c.state.Policy.Active()
	if !c.policed() {
		return policy.Decision{Allow: true, Default: true}, nil
	}
	// Whoever watches decisions keeps their inputs: each has its own.
	if c.input == nil {
		c.input = c.newInput()
	} else {
		next := *c.input
		c.input = &next
	}
	in := c.input
	in.Action, in.Resource, in.Call.Revision = c.route.Action, res, c.state.Revision
	d := c.api.backend.Decider().Decide(c.r.Context(), rev, in)
	c.decided(&d)
	if d.Allow {
		return d, nil
	}
	if d.Unavailable {
		return d, unavailable(&d)
	}
	f := fault.New(fault.PolicyDenied, "the policy refuses this %s; the reasons say why", in.Action)
	f.Reasons, f.DecisionID, f.PolicyRevision = d.Reasons, d.ID, d.PolicyRevision
	return d, f
}

// decided has the answer name the decision. Of a list, which takes one for each
// item, it names the last refusal, or else the last decision.
func (c *call) decided(d *policy.Decision) {
	if !d.Allow || !c.refused {
		c.decision, c.refused = d.ID, !d.Allow
	}
	c.filtered = c.filtered || d.Filtered != nil
}

// policed reports whether a policy will look at what is read at all; where it
// will not, its input need not be made.
func (c *call) policed() bool {
	return c.state.Policy.Active() != nil || c.state.Policy.Shadow() != nil
}

// unavailable says that this node cannot decide by the policy.
func unavailable(d *policy.Decision) error {
	return fault.New(fault.PolicyUnavailable, "%s; ask another node", strings.Join(d.Reasons, "; "))
}

func (c *call) newInput() *policy.Input {
	return &policy.Input{
		Time:      time.Now().UTC(),
		Protocol:  c.scheme(),
		Method:    c.r.Method,
		Path:      strings.Split(strings.Trim(c.r.URL.Path, "/"), "/"),
		RawPath:   c.target(),
		Host:      c.r.Host,
		Scheme:    c.scheme(),
		Headers:   flatten(c.r.Header),
		Token:     c.token(),
		Source:    c.source(),
		Principal: c.role,
		Call:      c.asked(),
	}
}

// asked is the call as the record of a decision names it.
func (c *call) asked() policy.Call {
	return policy.Call{RequestID: c.id, Trace: c.r.Header.Get("Traceparent"), Source: c.source(), Principal: c.role.ID, Revision: c.state.Revision}
}

// target is the path and the query in the one form that policies see, however
// the caller escaped the path: a rule must not miss what the mux has matched.
func (c *call) target() string {
	u := *c.r.URL
	u.RawPath = ""
	return u.RequestURI()
}

func (c *call) scheme() string {
	if c.r.TLS != nil {
		return "https"
	}
	return "http"
}

func (c *call) token() string {
	token, _ := identity.Bearer(c.r.Header.Get("Authorization"))
	return token
}

func (c *call) source() string {
	host, _, err := net.SplitHostPort(c.r.RemoteAddr)
	if err != nil {
		return c.r.RemoteAddr
	}
	return host
}

// flatten joins repeated headers as HTTP reads them.
func flatten(h http.Header) map[string]string {
	out := make(map[string]string, len(h))
	for name, values := range h {
		out[name] = strings.Join(values, ", ")
	}
	return out
}

// pairs is flatten as names and values that follow upon each other.
func pairs(h http.Header) []string {
	out := make([]string, 0, 2*len(h))
	for name, values := range h {
		out = append(out, name, strings.Join(values, ", "))
	}
	return out
}

// intent is the call as the leader gets to see it, without a command. The digest
// of call and body tells a repeat from another use of its Idempotency-Key.
func (c *call) intent(body []byte) (*command.Intent, error) {
	in := &command.Intent{
		Principal: &command.Principal{Id: c.who.ID, Kind: c.who.Kind, Roles: c.who.Roles, Namespaces: c.who.Namespaces, Claims: claims(c.who)},
		Request: &command.Request{
			Method: c.r.Method, Path: c.target(), Host: c.r.Host, Scheme: c.scheme(),
			Headers: pairs(c.r.Header), SourceAddress: c.source(), Token: c.token(),
		},
		RequestId: c.id,
	}
	if err := c.preconditions(in); err != nil {
		return nil, err
	}
	if in.IdempotencyKey != "" {
		in.RequestDigest = c.digest(body)
	}
	return in, c.hops()
}
