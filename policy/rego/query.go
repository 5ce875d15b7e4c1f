package rego

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// Bounds of an explanation: each step of an evaluation is one event, and the
// policy may add notes by trace.
const (
	maxEvents = 100_000
	maxNotes  = 4 << 20 // bytes
)

// Query is a question that is not prepared: one in Rego, or one whose
// evaluation is to be looked at.
type Query struct {
	Body       ast.Body
	Input      ast.Value // nil: undefined
	Strict     bool      // an error of a built-in function is one of the query
	Explain    bool      // record every step
	Instrument bool
	Metrics    metrics.Metrics // never nil

	// Of partial evaluation only.
	Unknowns         []*ast.Term // nil: the input
	DisableInlining  []string
	Nondeterministic bool // evaluate what may differ, too
}

// Found is what a query came to.
type Found struct {
	Results rego.ResultSet
	Partial *rego.PartialQueries // of a partial evaluation
	Trace   []*topdown.Event
}

// Query evaluates within the limits that hold for every decision. Errors are
// those of OPA: ast.Errors where the query does not compile, topdown's where
// its evaluation fails; and forbidden for what belongs to the engine itself,
// not_ready and policy_unavailable where nobody answered.
func (e *Engine) Query(ctx context.Context, rev *policy.Revision, q *Query) (*Found, error) {
	return e.query(ctx, rev, q, (*set).evaluating, func(r *rego.Rego, options []rego.EvalOption, found *Found) error {
		prepared, err := r.PrepareForEval(ctx)
		if err == nil {
			found.Results, err = prepared.Eval(ctx, options...)
		}
		return err
	})
}

// Partial evaluates as far as is possible without the unknowns. Errors are
// those of [Engine.Query].
func (e *Engine) Partial(ctx context.Context, rev *policy.Revision, q *Query) (*Found, error) {
	return e.query(ctx, rev, q, (*set).asWritten, func(r *rego.Rego, options []rego.EvalOption, found *Found) error {
		prepared, err := r.PrepareForPartial(ctx)
		if err == nil {
			found.Partial, err = prepared.Partial(ctx, options...)
		}
		return err
	})
}

// Modules gives the parsed modules of a revision by file: those that decide as
// they were compiled, and its tests.
func (e *Engine) Modules(ctx context.Context, rev *policy.Revision) (map[string]*ast.Module, error) {
	s, err := e.forQuery(ctx, rev)
	if err != nil {
		return nil, err
	}
	all := maps.Clone(s.tests)
	maps.Copy(all, s.asWritten().Modules)
	return all, nil
}

func (e *Engine) query(ctx context.Context, rev *policy.Revision, q *Query, compiler func(*set) *ast.Compiler, eval func(*rego.Rego, []rego.EvalOption, *Found) error) (*Found, error) {
	s, err := e.forQuery(ctx, rev)
	if err != nil {
		return nil, err
	}
	if err := s.withinReach(q.Body); err != nil {
		return nil, err
	}
	result, err := e.supervise(ctx, e.queries, s, "a query", func() (result any) {
		defer e.recovered(&result)
		if err := s.weigher.query(s.compiler, q.Body); err != nil {
			return err
		}
		c := startClock(e.options.Limit)
		defer c.stop()
		found, steps := &Found{}, &steps{clock: c}
		options := []rego.EvalOption{rego.EvalExternalCancel(c), rego.EvalTransaction(s.txn), rego.EvalInterQueryBuiltinValueCache(e.tokens), rego.EvalQueryTracer(&watch{})}
		if q.Explain {
			options = append(options, rego.EvalQueryTracer(steps))
		}
		if err := eval(rego.New(s.options(q, compiler(s))...), q.options(options), found); err != nil {
			return e.queryError(c, steps, err)
		}
		if c.Cancelled() { // partial evaluation may end without a word
			return e.queryError(c, steps, nil)
		}
		found.Trace = steps.events
		return found
	})
	if err != nil {
		return nil, err
	}
	if err, failed := result.(error); failed {
		return nil, err
	}
	return result.(*Found), nil
}

func (e *Engine) queryError(c *clock, s *steps, err error) error {
	if s.full {
		return fault.New(fault.BadRequest, "the evaluation takes more than %d steps, or makes too many notes, to be explained; ask without explain, or for a smaller document", maxEvents)
	}
	return e.evaluationError(c, err)
}

// evaluating is the compiler of what decides. Queries alone need to know what
// depends on what they replace by the keyword with.
func (s *set) evaluating() *ast.Compiler {
	s.queried.Do(func() {
		c := *s.compiler
		if c.Graph == nil {
			c.Graph = ast.NewGraph(c.Modules, func(ref ast.Ref) []*ast.Rule {
				return c.GetRulesDynamicWithOpts(ref, ast.RulesOptions{IncludeHiddenModules: true})
			})
		}
		s.graphed = &c
	})
	return s.graphed
}

// asWritten compiles the modules once more when it is first asked for, for what
// shows rules to users: partial evaluation answers with parts of them.
func (s *set) asWritten() *ast.Compiler {
	s.once.Do(func() {
		s.written = s.plainCompiler()
		s.written.Compile(s.modules)
	})
	return s.written
}

// options are those of everything that is not prepared.
func (s *set) options(q *Query, compiler *ast.Compiler) []func(*rego.Rego) {
	return []func(*rego.Rego){
		rego.Compiler(compiler),
		rego.Store(s.store),
		rego.Transaction(s.txn),
		rego.ParsedQuery(q.Body),
		rego.ParsedInput(q.Input),
		rego.ParsedUnknowns(q.Unknowns),
		rego.DisableInlining(q.DisableInlining),
		rego.NondeterministicBuiltins(q.Nondeterministic),
		rego.StrictBuiltinErrors(q.Strict),
		rego.Metrics(q.Metrics),
		rego.Capabilities(s.catalog.capabilities),
		rego.Function1(&rego.Function{Name: schemaBuiltin, Decl: s.catalog.declaration.Decl}, s.catalog.valid1),
		rego.GenerateJSON(generateJSON),
		rego.StackTraces(true),
	}
}

func (q *Query) options(o []rego.EvalOption) []rego.EvalOption {
	o = append(o, rego.EvalMetrics(q.Metrics), rego.EvalInstrument(q.Instrument), rego.EvalTime(time.Now()))
	if q.Input != nil {
		o = append(o, rego.EvalParsedInput(q.Input))
	}
	return o
}

func generateJSON(t *ast.Term, _ *rego.EvalContext) (any, error) {
	if err := writable(t); err != nil {
		return nil, err
	}
	return ast.JSON(t.Value)
}

func (l *catalog) valid1(bctx rego.BuiltinContext, document *ast.Term) (*ast.Term, error) {
	if c, ok := bctx.Cancel.(*clock); ok {
		c.pause()
		defer c.resume()
	}
	return ast.BooleanTerm(l.accepts(document)), nil
}

// withinReach refuses a query that names what belongs to the engine itself, or
// might reach it through a variable.
func (s *set) withinReach(body ast.Body) error {
	any := s.defines("system")
	var err error
	ast.WalkRefs(body, func(r ast.Ref) bool {
		if !r.HasPrefix(ast.DefaultRootRef) {
			return false
		}
		open := len(r) == 1
		if !open {
			_, named := r[1].Value.(ast.String)
			open = !named
		}
		if r.HasPrefix(systemRef) || (any && open) {
			err = errSystem
		}
		return err != nil
	})
	return err
}

var errSystem = fault.New(fault.Forbidden, "data.system belongs to the engine; it can be neither read nor changed here")

var systemRef = ast.Ref{ast.DefaultRootDocument, systemKey}

// steps records an evaluation, and ends one that has too many steps.
type steps struct {
	clock  *clock
	events []*topdown.Event
	notes  int // bytes
	full   bool
}

// Enabled implements topdown.QueryTracer.
func (s *steps) Enabled() bool { return s != nil }

// Config implements topdown.QueryTracer.
func (s *steps) Config() topdown.TraceConfig { return topdown.TraceConfig{PlugLocalVars: true} }

// TraceEvent implements topdown.QueryTracer.
func (s *steps) TraceEvent(event topdown.Event) {
	if s.notes += len(event.Message); len(s.events) >= maxEvents || s.notes > maxNotes {
		s.full = true
		s.clock.Cancel()
		return
	}
	s.events = append(s.events, &event)
}

// Compile says whether the content compiles; it runs no tests. The error is
// invalid_policy, with OPA's own ast.Errors as its cause where those are known.
func (e *Engine) Compile(ctx context.Context, c *policy.Content) error {
	_, err := e.compiled(ctx, c.Digest(), c)
	return err
}

// ParseModule reads one module as a revision would. The error is OPA's.
func ParseModule(file, source string) (*ast.Module, error) {
	caps := ast.CapabilitiesForThisVersion()
	module, err := ast.ParseModuleWithOpts(file, source, ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: caps})
	if err == nil {
		if module == nil {
			return nil, errors.New("empty module")
		}
		return module, nil
	}
	if v0, err0 := ast.ParseModuleWithOpts(file, source, ast.ParserOptions{RegoVersion: ast.RegoV0, Capabilities: caps}); err0 == nil && v0 != nil {
		return v0, nil
	}
	return nil, err
}
