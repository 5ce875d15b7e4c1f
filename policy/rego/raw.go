package rego

import (
	"context"
	"errors"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// DecideRaw implements [policy.Decider]. Where nothing is defined at the entry
// point that the action selects, the built-in roles decide about the
// principal of the input; a named entry point that is not defined refuses.
func (e *Engine) DecideRaw(ctx context.Context, rev *policy.Revision, entrypoint string, input []byte) (policy.Decision, error) {
	return e.decideRaw(ctx, rev, entrypoint, input, (*set).entry)
}

// decideRaw asks the entry point that find gives.
func (e *Engine) decideRaw(ctx context.Context, rev *policy.Revision, entrypoint string, input []byte, find func(*set, string) *entry) (policy.Decision, error) {
	named := entrypoint != ""
	if named {
		path, err := policy.EntryPoint(entrypoint)
		if err != nil {
			return policy.Decision{}, err
		}
		entrypoint = path
	}
	release, err := e.Room(ctx, len(input))
	if err != nil {
		return policy.Decision{ID: newID(), Time: time.Now().UTC(), Reasons: []string{fault.From(err).Detail}, Missed: true}, nil
	}
	defer release()
	if err := policy.WellFormed(input); err != nil {
		return policy.Decision{}, err
	}
	document, err := inputJSON(input)
	if errors.Is(err, errValues) {
		return policy.Decision{ID: newID(), Time: time.Now(), Reasons: []string{errValues.Error()}}, nil
	}
	if err != nil {
		return policy.Decision{}, fault.Wrap(fault.BadRequest, err, "the input is not valid JSON")
	}
	d := policy.Decision{ID: newID(), Time: time.Now().UTC()}
	var s *set
	if rev != nil {
		d.PolicyRevision = rev.Number
		if s, err = e.soon(ctx, rev); err != nil {
			d.Reasons, d.Missed, d.Unavailable = []string{unavailable(rev, err)}, true, true
			return d, nil
		}
		if !named {
			entrypoint = s.entryPoints.For(action(input))
		}
		d.EntryPoint = entrypoint
		if entry := find(s, entrypoint); entry.defined || entry.err != nil {
			v := e.evaluateIn(ctx, e.asked, s, entry, d.Time, func() ast.Value { return document })
			v.fill(&d)
			e.tell(ctx, v, &d)
			return d, nil
		}
	}
	if named {
		d.Reasons = []string{"nothing is defined at data." + dotted(entrypoint)}
		return d, nil
	}
	d.Default = true
	if err := permit(input); err != nil {
		d.Reasons = []string{fault.From(err).Detail}
		return d, nil
	}
	d.Allow = true
	return d, nil
}

// action gives input.action; "" when the document has none.
func action(input []byte) policy.Action {
	var document struct {
		Action jsontext.Value `json:"action"`
	}
	var a policy.Action
	if json.Unmarshal(input, &document) != nil || json.Unmarshal(document.Action, &a) != nil {
		return ""
	}
	return a
}

// permit asks the built-in roles about the principal of the input. A part of
// another shape than the contract's is refused, not taken for absent: a list
// of namespaces that cannot be read must not mean all of them.
func permit(input []byte) error {
	var document struct {
		Action    policy.Action `json:"action"`
		Principal struct {
			Roles      []string `json:"roles"`
			Namespaces []string `json:"namespaces"`
		} `json:"principal"`
		Resource struct {
			Kind      string `json:"kind"`
			Namespace string `json:"namespace"`
		} `json:"resource"`
	}
	if err := json.Unmarshal(input, &document); err != nil {
		return fault.Wrap(fault.Forbidden, err, "no policy is defined for this, and the input's action, principal and resource cannot be read, so the built-in roles cannot decide either")
	}
	p := policy.Principal{Roles: document.Principal.Roles, Namespaces: document.Principal.Namespaces}
	return policy.Permit(p, document.Action, document.Resource.Kind, document.Resource.Namespace)
}
