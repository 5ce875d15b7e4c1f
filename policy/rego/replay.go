package rego

import (
	"context"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	ndb "github.com/open-policy-agent/opa/v1/topdown/builtins"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// Replay makes a decision again, by the revision given: at the same time, on
// the same input, and with the same results where built-ins may differ. Only a
// decision that was not answered in time can come out otherwise by the same
// revision. The error says that the past cannot be read.
func (e *Engine) Replay(ctx context.Context, rev *policy.Revision, past *policy.Past) (policy.Decision, error) {
	d := policy.Decision{ID: newID(), Time: past.Time, PolicyRevision: rev.Number}
	document, chance, err := restore(past)
	if err != nil {
		return d, err
	}
	if past.Document {
		return e.documentAgain(ctx, d, rev, past, document, chance)
	}
	s, entry, err := e.pastEntry(ctx, rev, past)
	if err != nil {
		d.Reasons, d.Missed, d.Unavailable = []string{unavailable(rev, err)}, true, true
		return d, nil
	}
	d.EntryPoint = entry.path
	if !entry.defined && entry.err == nil {
		return e.undefined(d, entry, past), nil
	}
	if entry.err != nil {
		d.Reasons = []string{fmt.Sprintf("the entry point data.%s cannot be asked: %s", dotted(entry.path), fault.From(entry.err).Detail)}
		return d, nil
	}
	v, err := e.supervise(ctx, e.queries, s, entry.path, func() any {
		return e.ask(ctx, s, entry, past.Time, chance, func() ast.Value { return document })
	})
	if err != nil {
		v = missed("%s", fault.From(err).Detail)
	}
	v.(*verdict).fill(&d)
	return d, nil
}

// documentAgain asks for a document again, as of then.
func (e *Engine) documentAgain(ctx context.Context, d policy.Decision, rev *policy.Revision, past *policy.Past, input ast.Value, chance ndb.NDBCache) (policy.Decision, error) {
	d.EntryPoint = past.EntryPoint
	refused := func(err error) (policy.Decision, error) {
		d.Reasons, d.Missed = []string{err.Error()}, fault.Is(err, fault.NotReady) || fault.Is(err, fault.PolicyUnavailable)
		return d, nil
	}
	s, err := e.forQuery(ctx, rev)
	if err != nil {
		return refused(err)
	}
	doc := s.main
	if past.EntryPoint != mainPath {
		doc = s.place(past.EntryPoint)
	}
	if doc.err != nil {
		return refused(doc.err)
	}
	result, err := e.supervise(ctx, e.queries, s, doc.name, func() any { return e.fetch(ctx, s, doc, past.Time, chance, input, false) })
	if failed, ok := result.(error); ok {
		err = failed
	}
	if err != nil {
		return refused(err)
	}
	a := result.(*Answer)
	a.Name = doc.name
	if d.Allow, d.Result = a.Yes, a.Result; !a.Yes {
		d.Reasons = []string{a.Why()}
	}
	return d, nil
}

func (e *Engine) pastEntry(ctx context.Context, rev *policy.Revision, past *policy.Past) (*set, *entry, error) {
	s, err := e.soon(ctx, rev)
	if err != nil {
		return nil, nil, err
	}
	path := past.EntryPoint
	if path == "" {
		path = s.entryPoints.For(action(past.Input))
	}
	if past.Response {
		return s, s.responding(path), nil
	}
	return s, s.entry(path), nil
}

// undefined is the answer where nothing is defined at the entry point.
func (e *Engine) undefined(d policy.Decision, entry *entry, past *policy.Past) policy.Decision {
	if past.EntryPoint != "" {
		d.Reasons = []string{"nothing is defined at data." + dotted(entry.path)}
		return d
	}
	d.Default = true
	if err := permit(past.Input); err != nil {
		d.Reasons = []string{fault.From(err).Detail}
		return d
	}
	d.Allow = true
	return d
}

// restore reads what a replay needs.
func restore(past *policy.Past) (ast.Value, ndb.NDBCache, error) {
	document, err := inputJSON(past.Input)
	if err != nil {
		return nil, nil, fault.Wrap(fault.BadRequest, err, "the input of the decision cannot be read")
	}
	chance := ndb.NDBCache{}
	if len(past.Chance) == 0 {
		return document, chance, nil
	}
	v, err := fromJSON(past.Chance)
	results, ok := v.(ast.Object)
	if err != nil || !ok {
		return nil, nil, fault.Wrap(fault.BadRequest, err, "the results of built-ins cannot be read")
	}
	err = results.Iter(func(name, calls *ast.Term) error {
		of, ok := calls.Value.(ast.Object)
		builtin, named := name.Value.(ast.String)
		if !ok || !named {
			return fault.New(fault.BadRequest, "the results of built-ins cannot be read")
		}
		return of.Iter(func(arguments, result *ast.Term) error {
			// JSON has no names that are arrays: they stand there as text.
			text, _ := arguments.Value.(ast.String)
			list, err := ast.ValueFromReader(strings.NewReader(string(text)))
			if err != nil {
				return fault.Wrap(fault.BadRequest, err, "the arguments of %s cannot be read", builtin)
			}
			chance.Put(string(builtin), list, result.Value)
			return nil
		})
	})
	return document, chance, err
}
