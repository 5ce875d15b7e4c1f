package rego

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	ndb "github.com/open-policy-agent/opa/v1/topdown/builtins"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

const (
	explainFactor = 40  // how much longer than a decision its explanation may take
	maxValue      = 160 // bytes of a value that is shown
	maxRules      = 500 // in one explanation
)

// Explain replays a decision by the revision that made it and gives, for the
// packages it reached, every rule with its outcome and the expression that
// each definition failed at. Every value and every line goes through hide
// first. All definitions are tried, also where the decision had no need to
// look at them; it is still the decision's own path that is told. The error
// says that the past cannot be read, or that the policy did not end in time.
func (e *Engine) Explain(ctx context.Context, rev *policy.Revision, past *policy.Past, hide func(string) string) (*policy.Explanation, error) {
	document, chance, err := restore(past)
	if err != nil {
		return nil, err
	}
	s, err := e.soon(ctx, rev)
	if err != nil {
		return nil, err
	}
	path, body, compiler := s.asked(past)
	out := &policy.Explanation{EntryPoint: path, Rules: []policy.Rule{}}
	if compiler == nil {
		return out, nil
	}
	x := &explainer{
		engine: e, set: s, path: path, body: body, compiler: compiler, now: past.Time, input: ast.NewTerm(document), chance: chance, hide: hide,
		rules: map[*ast.Rule]*seen{}, queries: map[uint64]*seen{}, sources: rev.Modules,
	}
	limit := max(explainFactor*e.options.Limit, time.Second)
	ended, err := e.superviseFor(ctx, e.queries, s, path, limit, func() any { return x.run(ctx, limit) })
	if cause, _ := ended.(error); err == nil {
		err = cause
	}
	if err != nil {
		return nil, fault.Wrap(fault.PolicyUnavailable, err, "the decision cannot be explained: %s", fault.From(err).Detail)
	}
	out.Rules = x.result
	return out, nil
}

// asked gives the query that was asked in the past; no compiler where there is
// none, since nothing is defined.
func (s *set) asked(past *policy.Past) (path string, body ast.Body, compiler ast.QueryCompiler) {
	if past.Document {
		doc := s.main
		if past.EntryPoint != mainPath {
			doc = s.place(past.EntryPoint)
		}
		if doc == nil || doc.err != nil {
			return past.EntryPoint, nil, nil
		}
		return past.EntryPoint, doc.query, doc.compiler
	}
	if path = past.EntryPoint; path == "" {
		path = s.entryPoints.For(action(past.Input))
	}
	entry := s.entry(path)
	if past.Response {
		entry = s.responding(path)
	}
	if !entry.defined || entry.err != nil {
		return path, nil, nil
	}
	return path, entry.query, entry.compiler
}

// mainPath is how the record of a decision names the revision's
// data.system.main.
const mainPath = "system/main"

// seen is what a definition did.
type seen struct {
	rule    *ast.Rule
	entered bool
	held    bool
	at      int // index of the expression it failed at, the furthest of all rounds
	failed  *policy.Failure
}

// explainer is OPA's tracer of one evaluation. It keeps what became of each
// definition, and no events.
type explainer struct {
	engine   *Engine
	set      *set
	path     string
	body     ast.Body
	compiler ast.QueryCompiler
	now      time.Time
	input    *ast.Term
	chance   ndb.NDBCache
	hide     func(string) string
	sources  map[string]string

	rules   map[*ast.Rule]*seen
	queries map[uint64]*seen // by the query that evaluates the definition
	errs    []topdown.Error
	result  []policy.Rule
}

// Enabled implements topdown.QueryTracer.
func (x *explainer) Enabled() bool { return true }

// Config implements topdown.QueryTracer.
func (x *explainer) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent implements topdown.QueryTracer.
func (x *explainer) TraceEvent(ev topdown.Event) {
	switch ev.Op {
	case topdown.EnterOp:
		if rule, ok := ev.Node.(*ast.Rule); ok {
			s := x.rules[rule]
			if s == nil {
				s = &seen{rule: rule, at: -1}
				x.rules[rule] = s
			}
			s.entered = true
			x.queries[ev.QueryID] = s
		}
	case topdown.ExitOp:
		if rule, ok := ev.Node.(*ast.Rule); ok {
			if s := x.rules[rule]; s != nil {
				s.held = true
			}
		}
	case topdown.FailOp:
		expr, ok := ev.Node.(*ast.Expr)
		s := x.queries[ev.QueryID]
		if ok && s != nil && expr.Index > s.at && !s.held {
			s.at, s.failed = expr.Index, x.failure(&ev, s.rule, expr)
		}
	}
}

// run evaluates on the worker's goroutine.
func (x *explainer) run(ctx context.Context, limit time.Duration) (err error) {
	defer func() {
		if p := recover(); p != nil {
			x.engine.options.Logger.ErrorContext(ctx, "the policy engine panicked", "entry_point", x.path, "panic", p)
			err = fault.New(fault.NotReady, "the policy engine failed on this decision; the node's log says why")
		}
	}()
	c := startClock(limit)
	defer c.stop()
	query := x.query(c, x.compiler, x.body).WithQueryTracer(x).WithIndexing(false).WithEarlyExit(false).WithBuiltinErrorList(&x.errs)
	// An error ends the evaluation, as it did then: what was reached is told.
	_ = query.Iter(ctx, func(topdown.QueryResult) error { return nil })
	if !c.Cancelled() {
		x.collect(ctx, c)
	}
	if c.Cancelled() {
		return fault.New(fault.NotReady, "the policy took longer than %v and was cut off", limit)
	}
	return nil
}

func (x *explainer) query(c *clock, compiler ast.QueryCompiler, body ast.Body) *topdown.Query {
	return topdown.NewQuery(body).
		WithQueryCompiler(compiler).
		WithCompiler(x.set.compiler).
		WithStore(x.set.store).
		WithTransaction(x.set.txn).
		WithBuiltins(x.set.catalog.functions).
		WithMetrics(noMetrics).
		WithCancel(c).
		WithTime(x.now).
		WithInput(x.input).
		WithNDBuiltinCache(x.chance)
}

// collect makes the list of all rules of the packages that were reached.
func (x *explainer) collect(ctx context.Context, c *clock) {
	x.placeErrors()
	reached := map[string]bool{dotted(x.path): true}
	for rule := range x.rules {
		reached[packageName(rule)] = true
	}
	byName := map[string]*policy.Rule{}
	refs := map[string]ast.Ref{}
	for _, file := range slices.Sorted(maps.Keys(x.set.compiler.Modules)) {
		for _, rule := range x.set.compiler.Modules[file].Rules {
			pkg := packageName(rule)
			if !reached[pkg] || len(byName) >= maxRules {
				continue
			}
			ref := rule.Ref().GroundPrefix()
			key := ref.String()
			r := byName[key]
			if r == nil {
				r = &policy.Rule{Package: pkg, Name: strings.TrimPrefix(strings.TrimPrefix(key, rule.Module.Package.Path.String()), ".")}
				byName[key] = r
			}
			if len(rule.Head.Args) == 0 {
				refs[key] = ref
			}
			for ; rule != nil; rule = rule.Else {
				r.Definitions = append(r.Definitions, x.definition(rule))
			}
		}
	}
	for key, r := range byName {
		x.outcome(ctx, c, r, refs[key])
		x.result = append(x.result, *r)
	}
	entry := dotted(x.path)
	rank := func(r policy.Rule) int {
		if i := slices.Index(answers, r.Name); i >= 0 && r.Package == entry {
			return i
		} else if r.Package == entry {
			return len(answers)
		}
		return len(answers) + 1
	}
	slices.SortFunc(x.result, func(a, b policy.Rule) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Package, b.Package),
			cmp.Compare(a.Definitions[0].File, b.Definitions[0].File), cmp.Compare(a.Definitions[0].Row, b.Definitions[0].Row), cmp.Compare(a.Name, b.Name))
	})
}

func packageName(rule *ast.Rule) string {
	return strings.TrimPrefix(rule.Module.Package.Path.String(), "data.")
}

// outcome says what a rule came to: its value where it has one of its own, and
// for a function whether any call of it held.
func (x *explainer) outcome(ctx context.Context, c *clock, r *policy.Rule, ref ast.Ref) {
	entered, held := false, false
	for i, d := range r.Definitions {
		entered = entered || d.Outcome != policy.NotReached
		held = held || d.Outcome == policy.True
		if d.Default && d.Outcome == policy.False { // it is not wrong, it was not needed
			r.Definitions[i].Outcome = policy.NotReached
		}
	}
	r.Outcome = policy.NotReached
	if !entered {
		return
	}
	r.Outcome = policy.Undefined
	if ref == nil {
		if held {
			r.Outcome = policy.True
		}
		return
	}
	v := x.value(ctx, c, ref)
	if v == nil {
		return
	}
	r.Value, r.Outcome = x.show(v), policy.True
	switch v := v.(type) {
	case ast.Boolean:
		if !v {
			r.Outcome = policy.False
		}
	case ast.Set:
		if v.Len() == 0 {
			r.Outcome = policy.False
		}
	}
}

// value evaluates one rule; nil where it is undefined or fails.
func (x *explainer) value(ctx context.Context, c *clock, ref ast.Ref) ast.Value {
	compiler := x.set.compiler.QueryCompiler()
	body, err := compiler.Compile(ast.NewBody(ast.Equality.Expr(ast.NewTerm(resultVar), ast.NewTerm(ref))))
	if err != nil {
		return nil
	}
	var v ast.Value
	err = x.query(c, compiler, body).Iter(ctx, func(r topdown.QueryResult) error {
		v = r[resultVar].Value
		return nil
	})
	if err != nil {
		return nil
	}
	return v
}

func (x *explainer) definition(rule *ast.Rule) policy.Definition {
	d := policy.Definition{Default: rule.Default, Outcome: policy.NotReached}
	if at := rule.Loc(); at != nil {
		d.File, d.Row, d.Text = at.File, at.Row, x.line(at)
	}
	s := x.rules[rule]
	switch {
	case s == nil || !s.entered:
	case s.held:
		d.Outcome = policy.True
	default:
		d.Outcome, d.Failed = policy.False, s.failed
	}
	return d
}

// line is the first line at a place, as it stands in the module.
func (x *explainer) line(at *ast.Location) string {
	lines := strings.Split(x.sources[at.File], "\n")
	if at.Row < 1 || at.Row > len(lines) {
		return x.hide(clip(strings.TrimSpace(string(at.Text))))
	}
	return x.hide(clip(strings.TrimSpace(lines[at.Row-1])))
}

// placeErrors tells the errors of built-ins where they came up.
func (x *explainer) placeErrors() {
	for _, err := range x.errs {
		if err.Location == nil {
			continue
		}
		for _, s := range x.rules {
			if f := s.failed; f != nil && f.File == err.Location.File && f.Row == err.Location.Row {
				f.Error = x.hide(clip(strings.Join(strings.Fields(err.Message), " ")))
			}
		}
	}
}
