package rego

import (
	"errors"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/fault"
)

// OPA's type checker gives every value a type that spells out all of its parts,
// and goes through whole types. In a line that names a value twice, its type
// doubles, and so forty lines keep the compiler busy until the memory is full;
// it cannot be interrupted. So what a type would spell out is counted first.
const maxTypes = 200_000 // parts of the type of one value

// tooManyTypes is what a module or a query that goes beyond is told.
const tooManyTypes = "the value has a type of more than %d parts, because one value stands in another many times; build it in a function or a comprehension, or make it smaller"

// weigher counts the parts that the types of values have at most. It is safe
// for concurrent use.
type weigher struct {
	compiler *ast.Compiler
	mu       sync.Mutex
	rules    map[*ast.Rule]int // 0 while it is being counted
}

func newWeigher(c *ast.Compiler) *weigher {
	return &weigher{compiler: c, rules: map[*ast.Rule]int{}}
}

// boundTypes is the stage of the compiler that comes before the types are
// checked.
func boundTypes(c *ast.Compiler) *ast.Error {
	w := newWeigher(c)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range c.Modules {
		for _, r := range m.Rules {
			if w.rule(r) > maxTypes {
				return ast.NewError(ast.CompileErr, r.Location, tooManyTypes, maxTypes)
			}
		}
	}
	return nil
}

// query refuses a query of which a type is too large.
func (w *weigher) query(c *ast.Compiler, b ast.Body) error {
	if len(b) == 0 {
		return nil // refused where it is evaluated
	}
	passed := errors.New("") // ends the compiler's work there
	_, err := c.QueryCompiler().WithStageAfterID(ast.StageCheckSafety, ast.QueryCompilerStageDefinition{
		Name: "BoundTypes", MetricName: "query_compile_stage_bound_types",
		Stage: func(_ ast.QueryCompiler, ordered ast.Body) (ast.Body, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.body(ordered).most > maxTypes {
				return nil, ast.Errors{ast.NewError(ast.CompileErr, b.Loc(), tooManyTypes, maxTypes)}
			}
			return nil, passed
		},
	}).Compile(b)
	if err == passed { //nolint:errorlint // it is this very one
		return nil
	}
	return err
}

// rule counts the parts of what a rule gives, or of the largest value in it
// where that is too many. A rule that is in terms of itself is refused elsewhere.
func (w *weigher) rule(r *ast.Rule) int {
	if n, ok := w.rules[r]; ok {
		return n
	}
	w.rules[r] = 0
	n := 1
	for one := r; one != nil; one = one.Else {
		d := w.body(one.Body)
		for _, t := range append([]*ast.Term{one.Head.Key, one.Head.Value}, one.Head.Reference...) {
			if t != nil {
				n += d.term(t)
			}
		}
		if d.most > maxTypes {
			n = d.most
		}
		n = clipped(n)
	}
	w.rules[r] = n
	return n
}

// clipped keeps counts from overflowing; beyond the bound they say no more.
func clipped(n int) int { return min(n, maxTypes+1) }

// weighed is a body: what its variables hold, each from where it first stands.
type weighed struct {
	*weigher
	sizes map[ast.Var]int
	most  int
}

func (w *weigher) body(b ast.Body) *weighed {
	d := &weighed{weigher: w, sizes: map[ast.Var]int{}}
	d.walk(b)
	return d
}

// walk goes through the expressions in the order in which they are checked.
func (d *weighed) walk(b ast.Body) {
	for _, e := range b {
		d.closures(e)
		with := 1
		for _, w := range e.With {
			with = clipped(with + d.term(w.Value))
		}
		terms, ok := e.Terms.([]*ast.Term)
		switch {
		case ok && len(terms) == 3 && (e.IsEquality() || e.IsAssignment()):
			d.bind(terms[1], terms[2], with)
			d.bind(terms[2], terms[1], with)
		case ok && len(terms) > 1 && e.IsCall():
			for _, t := range terms[1:] {
				d.term(t)
			}
			// The last one may be what the call gives.
			d.bind(terms[len(terms)-1], ast.CallTerm(terms[0]), with)
		}
	}
}

// closures goes through the bodies within an expression or a term.
func (d *weighed) closures(x any) {
	ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case *ast.ArrayComprehension:
			d.walk(x.Body)
			d.closures(x.Term)
		case *ast.SetComprehension:
			d.walk(x.Body)
			d.closures(x.Term)
		case *ast.ObjectComprehension:
			d.walk(x.Body)
			d.closures(x.Key)
			d.closures(x.Value)
		case *ast.Every:
			d.closures(x.Domain)
			for _, v := range []*ast.Term{x.Key, x.Value} {
				if v != nil {
					d.bind(v, x.Domain, 1)
				}
			}
			d.walk(x.Body)
		default:
			return false
		}
		return true
	}).Walk(x)
}

// bind gives the variables of the pattern that hold nothing yet what they are
// equal to, or part of. Documents are replaced by values of that many parts.
func (d *weighed) bind(pattern, t *ast.Term, with int) {
	switch v := pattern.Value.(type) {
	case ast.Var:
		n := clipped(d.term(t) * with)
		d.most = max(d.most, n)
		if _, held := d.sizes[v]; !held {
			d.sizes[v] = n
		}
	case *ast.Array:
		other, ok := t.Value.(*ast.Array)
		for i := range v.Len() {
			if ok && other.Len() == v.Len() {
				d.bind(v.Elem(i), other.Elem(i), with)
			} else {
				d.bind(v.Elem(i), t, with)
			}
		}
	case ast.Object:
		v.Foreach(func(_, value *ast.Term) { d.bind(value, t, with) })
	}
}

func (d *weighed) term(t *ast.Term) (n int) {
	n = 1
	add := func(t *ast.Term) bool {
		n = clipped(n + d.term(t))
		return n > maxTypes
	}
	switch v := t.Value.(type) {
	case ast.Var:
		n = max(1, d.sizes[v])
	case *ast.Array:
		v.Until(add)
	case ast.Set:
		v.Until(add)
	case ast.Object:
		v.Until(func(key, value *ast.Term) bool { return add(key) || add(value) })
	case *ast.ArrayComprehension:
		add(v.Term)
	case *ast.SetComprehension:
		add(v.Term)
	case *ast.ObjectComprehension:
		_ = add(v.Key) || add(v.Value)
	case ast.Call:
		if f, ok := v[0].Value.(ast.Ref); ok {
			n = d.ref(f)
		}
	case ast.Ref:
		n = d.ref(v)
	}
	d.most = max(d.most, n)
	return n
}

// ref counts what a reference leads to: all of the rules that it may be.
func (d *weighed) ref(r ast.Ref) int {
	if r[0].Equal(ast.DefaultRootDocument) {
		n := 1
		for _, rule := range d.compiler.GetRulesDynamicWithOpts(r, ast.RulesOptions{IncludeHiddenModules: true}) {
			n = clipped(n + d.rule(rule))
		}
		return n
	}
	if r[0].Equal(ast.InputRootDocument) {
		return 1
	}
	return d.term(r[0])
}

// Bounds of a query in Rego that callers send.
const (
	maxQuery        = 64 << 10 // bytes of text
	maxQueryNesting = 100      // levels of brackets
	maxQueryExprs   = 250      // the compiler puts them in order in the square of that time
)

// ParseQuery reads a query in Rego that a caller sends. The errors are bad_request for one that
// would take the compiler too long, and OPA's own.
func ParseQuery(text string, o ast.ParserOptions) (ast.Body, error) {
	if err := QueryText(text); err != nil {
		return nil, err
	}
	b, err := ast.ParseBodyWithOpts(text, o)
	if err != nil {
		return nil, err
	}
	n := 0
	ast.WalkExprs(b, func(*ast.Expr) bool {
		n++
		return false
	})
	if n > maxQueryExprs {
		return nil, fault.New(fault.BadRequest, "the query has %d expressions, and %d is the most; put them into the policy", n, maxQueryExprs)
	}
	return b, nil
}

// QueryText says whether texts in Rego that a caller sends are short and flat
// enough, all together, to be parsed and compiled. The error is bad_request.
func QueryText(texts ...string) error {
	bytes := 0
	for _, t := range texts {
		if bytes += len(t); bytes > maxQuery {
			return fault.New(fault.BadRequest, "the query has more than %d bytes; put what is constant in the input or in the policy", maxQuery)
		}
		if nesting(t) > maxQueryNesting {
			return fault.New(fault.BadRequest, "the query is nested deeper than %d levels", maxQueryNesting)
		}
	}
	return nil
}
