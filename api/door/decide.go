package door

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// Policed reports whether a policy will look at what is read at all; where it
// will not, its input need not be made.
func (c *Call) Policed() bool {
	return c.State.Policy.Active() != nil || c.State.Policy.Shadow() != nil
}

// Decide asks the active policy of the call's own state about a look-up. A
// refusal is policy_denied; it is made before anything is said about whether
// the record exists. One for want of an answer in time says when to ask again.
func (c *Call) Decide(res policy.Resource) (policy.Decision, error) {
	rev := c.State.Policy.Active()
	if !c.Policed() {
		return policy.Decision{Allow: true, Default: true}, nil
	}
	own, err := c.hold(flow.Quick)
	if err != nil {
		return policy.Decision{}, err
	}
	defer c.done(own)
	// Whoever watches decisions keeps their inputs: each has its own.
	if c.input == nil {
		c.input = c.newInput()
	} else {
		next := *c.input
		c.input = &next
	}
	in := c.input
	in.Action, in.Resource, in.Call.Revision = c.action, res, c.State.Revision
	d := c.door.backend.Decider().Decide(c.req.Context(), rev, in)
	c.decided(&d)
	if d.Allow {
		return d, nil
	}
	if d.Unavailable {
		return d, unavailable(&d)
	}
	f := fault.New(fault.PolicyDenied, "the policy refuses this %s; the reasons say why", in.Action)
	f.Reasons, f.DecisionID, f.PolicyRevision = d.Reasons, d.ID, d.PolicyRevision
	if d.Missed { // it is refused, and nobody has said no
		f.RetryAfter = time.Second
	}
	return d, f
}

// decided has the answer name the decision. Of a list, which takes one for each
// item, it names the last refusal, or else the last decision.
func (c *Call) decided(d *policy.Decision) {
	if !d.Allow || !c.refused {
		c.Decision, c.refused = d.ID, !d.Allow
	}
	c.Filtered = c.Filtered || d.Filtered != nil
}

// unavailable says that this node cannot decide by the policy.
func unavailable(d *policy.Decision) error {
	return fault.New(fault.PolicyUnavailable, "%s; ask another node", strings.Join(d.Reasons, "; "))
}

// Visible gives the JSON of one item of a list, nil where the policy refuses it.
func (c *Call) Visible(res policy.Resource, body []byte) ([]byte, error) {
	d, err := c.Decide(res)
	switch {
	case d.Missed:
		// Leaving it out would make the list look whole.
		return nil, fault.New(fault.PolicyUnavailable, "the policy gave no answer in time for an item of the list: %s", strings.Join(d.Reasons, "; "))
	case fault.Is(err, fault.PolicyDenied):
		return nil, c.Gone()
	case err != nil:
		return nil, err
	case d.Filtered != nil:
		return d.Filtered, nil
	}
	return body, nil
}

// Ask has the active policy decide on exactly the document given, as
// POST /v1/authorize does. A refusal is no error.
func (c *Call) Ask(entrypoint string, input []byte) (policy.Decision, error) {
	return c.ask(entrypoint, input, c.door.backend.Decider().DecideRaw)
}

// Respond is Ask for a proxy, which is to answer a request: the decision's
// Result shapes the answer; see [policy.Decider.DecideResponse]. Without an entry
// point it is the one of look-ups.
func (c *Call) Respond(entrypoint string, input []byte) (policy.Decision, error) {
	if entrypoint == "" {
		var points policy.EntryPoints
		if rev := c.State.Policy.Active(); rev != nil {
			points = rev.EntryPoints
		}
		entrypoint = points.For(policy.Lookup)
	}
	return c.ask(entrypoint, input, c.door.backend.Decider().DecideResponse)
}

func (c *Call) ask(entrypoint string, input []byte, decide func(context.Context, *policy.Revision, string, []byte) (policy.Decision, error)) (policy.Decision, error) {
	own, err := c.hold(flow.Quick)
	if err != nil {
		return policy.Decision{}, err
	}
	defer c.done(own)
	ctx := policy.WithCall(c.req.Context(), c.asked())
	d, err := decide(ctx, c.State.Policy.Active(), entrypoint, input)
	if err != nil {
		return d, err
	}
	c.Decision = d.ID
	if d.Unavailable {
		return d, unavailable(&d)
	}
	return d, nil
}

// Found is who provides a service, as this caller may see it.
type Found struct {
	Entry    *registry.Entry
	Query    registry.Query  // that was asked, complete: for Entry
	Body     []byte          // the discovery answer as JSON, with what the policy put in its place; nil where nothing did and none was needed
	Decision policy.Decision // Filtered says that Body is the policy's
}

// Discover looks up who provides a service and has the policy decide about it.
func (c *Call) Discover(namespace, service string, which registry.Query) (Found, error) {
	which.Share = c.door.opt.ZoneShare
	f := Found{Query: which}
	e, ok := c.State.Registry.Discover(namespace, service)
	if c.Policed() {
		res := policy.Resource{Kind: registry.KindService, Namespace: namespace, Name: service}
		if ok {
			f.Body = e.Answer(which)
			res.Payload = f.Body
			if s, ok := c.State.Registry.Service(namespace, service); ok {
				res.Holder = s.JSON
			}
		}
		var err error
		if f.Decision, err = c.Decide(res); err != nil {
			return f, err
		}
	}
	if !ok {
		return f, NoService(namespace, service)
	}
	if f.Entry = e; f.Decision.Filtered != nil {
		f.Body = f.Decision.Filtered
	}
	return f, nil
}

// Replaced gives the instances that a policy put in the place of those of a
// look-up's answer, each as T reads it. An answer without the member instances
// has not the form of one: to find nobody in it would be a wrong answer, so the
// error is policy_unavailable.
func Replaced[T any](body []byte) ([]T, error) {
	var d struct {
		Instances *[]*T `json:"instances"`
	}
	err := json.Unmarshal(body, &d)
	if err != nil || d.Instances == nil || slices.Contains(*d.Instances, nil) {
		return nil, fault.Wrap(fault.PolicyUnavailable, err, "what the policy put in the place of the answer has not its form, an object with a list of instances; correct the policy")
	}
	all := make([]T, len(*d.Instances))
	for i, one := range *d.Instances {
		all[i] = *one
	}
	return all, nil
}

// NoService is the refusal where there is no such service.
func NoService(namespace, service string) error {
	return fault.New(fault.ServiceNotFound, "there is no service %s in namespace %s", service, namespace)
}

func (c *Call) newInput() *policy.Input {
	f := new(c.req.Form())
	c.form = f
	return &policy.Input{
		Time:      time.Now().UTC(),
		Protocol:  f.Scheme,
		Method:    f.Method,
		Path:      f.Route,
		RawPath:   f.Path,
		Host:      f.Host,
		Scheme:    f.Scheme,
		Headers:   flatten(f.Headers),
		Token:     f.token(),
		Source:    f.Source,
		Principal: c.Role,
		Call:      c.named(f),
	}
}

// asked is the call as the record of a decision names it.
func (c *Call) asked() policy.Call {
	f := c.req.Form()
	return c.named(&f)
}

func (c *Call) named(f *Form) policy.Call {
	return policy.Call{RequestID: c.ID, Trace: f.header("Traceparent"), Source: f.Source, Principal: c.Role.ID, Revision: c.State.Revision}
}

// flatten joins repeated headers as HTTP reads them.
func flatten(h map[string][]string) map[string]string {
	out := make(map[string]string, len(h))
	for name, values := range h {
		out[name] = strings.Join(values, ", ")
	}
	return out
}
