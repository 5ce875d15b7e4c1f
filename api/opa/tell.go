package opa

import (
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
)

// ask has the engine answer, and tells of the decision.
func (c *call) ask(id string, ask *rego.Ask) (*rego.Answer, error) {
	began := time.Now()
	a, err := c.api.engine.Document(c.r.Context(), c.state.Policy.Active(), ask)
	c.tell(id, question(ask, a, err), a, err, began)
	return a, err
}

// question is what is on record of a document that was asked for.
func question(ask *rego.Ask, a *rego.Answer, err error) policy.Question {
	q := policy.Question{Entrypoint: strings.Trim(ask.Path, "/"), Document: true}
	if ask.Main {
		q.Entrypoint = "system/main"
	}
	if err == nil {
		q.Raw = a.Input
	} else {
		_, q.Raw, _ = ask.Envelope.Open(ask.Body) // it was read before
	}
	return q
}

// tell names the decision in the answer and hands it to whoever watches. A
// question that could not be asked is none.
func (c *call) tell(id string, q policy.Question, a *rego.Answer, err error, began time.Time) {
	took := time.Since(began)
	d := &policy.Decision{ID: id, PolicyRevision: c.revision(), Time: began.UTC(), EntryPoint: q.Entrypoint}
	switch {
	case err == nil:
		d.Allow, d.Result = a.Yes, a.Result
		if d.Chance = a.Chance; a.Time.After(began) { // not one that was remembered, for which no time matters
			d.Time = a.Time.UTC()
		}
		if !a.Yes {
			d.Reasons, d.Cause = []string{a.Why()}, policy.NotAllowed
		}
	case topdown.IsError(err):
		d.Reasons, d.Missed = []string{err.Error()}, topdown.IsCancel(err)
		if !d.Missed {
			d.Cause = policy.Failed
		}
	case fault.Is(err, fault.NotReady), fault.Is(err, fault.PolicyUnavailable):
		d.Reasons, d.Missed = []string{fault.From(err).Detail}, true
	default:
		return
	}
	q.Call = policy.Call{
		RequestID: c.known(), Trace: c.r.Header.Get("Traceparent"), Source: c.source(), Principal: c.who.ID,
		Revision: c.state.Revision,
	}
	c.decision = id
	if c.api.opt.Decided != nil {
		c.api.opt.Decided.Decided(c.state.Policy.Active(), &q, d, took)
	}
}

// known is the request's id where it has one already: making one for every
// question costs more than it is worth, since each has a decision id.
func (c *call) known() string {
	if c.request == "" {
		c.request = requestID(c.r.Header.Get("X-Request-Id"))
	}
	return c.request
}

// id is the request's id: the caller's or, where that sent none, one made now.
func (c *call) id() string {
	if c.known() == "" {
		c.request = rego.NewID()
	}
	return c.request
}

// requestID takes over what a caller names its request, where that is harmless
// in a log.
func requestID(given string) string {
	for i := range len(given) {
		if b := given[i]; i == 128 || b <= ' ' || b > '~' || b == '"' || b == '\\' {
			return ""
		}
	}
	return given
}
