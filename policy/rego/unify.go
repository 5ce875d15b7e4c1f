package rego

import (
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/types"
)

// OPA unifies two documents by recursing once for each of their parts, not for
// each level: two equal documents of a few million parts, which a dozen lines
// build out of shared ones, overflow the stack of the goroutine, and that ends
// the process. So the compiled rules are rewritten. Where both sides are
// already known when they meet, "=" becomes the comparison that the built-in
// equal makes, which recurses by level. Where a known document meets a pattern
// or an element that is still to be found, its size is looked at first.
const (
	boundedName = "internal.bounded"
	maxParts    = 100_000 // of one document that is unified with a pattern
)

var errParts = fmt.Errorf("a document of more than %d parts is compared with a pattern; compare it as a whole, or a part of it", maxParts)

var boundedBuiltin = &ast.Builtin{Name: boundedName, Decl: types.NewFunction(types.Args(types.A), types.B)}

func init() {
	ast.RegisterBuiltin(boundedBuiltin)
	topdown.RegisterBuiltinFunc(boundedName, func(_ topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
		n := 0
		if manyParts(operands[0], &n) {
			return errParts
		}
		return iter(ast.InternedTerm(true))
	})
}

// manyParts counts the parts of a value, each as often as it is reached, up to
// maxParts.
func manyParts(t *ast.Term, n *int) bool {
	if *n++; *n > maxParts {
		return true
	}
	switch v := t.Value.(type) {
	case *ast.Array:
		return v.Until(func(t *ast.Term) bool { return manyParts(t, n) })
	case ast.Set:
		return v.Until(func(t *ast.Term) bool { return manyParts(t, n) })
	case ast.Object:
		return v.Until(func(_, t *ast.Term) bool { return manyParts(t, n) })
	}
	return false
}

// boundUnification is the stage of the compiler that rewrites the rules. It
// comes after the checks, so that users never see what it writes.
func boundUnification(c *ast.Compiler) *ast.Error {
	u := &unifications{compiler: c}
	for _, m := range c.Modules {
		for _, top := range m.Rules {
			for r := top; r != nil; r = r.Else {
				u.rule(r)
			}
		}
	}
	return nil
}

type unifications struct {
	compiler *ast.Compiler
	fresh    int
}

func (u *unifications) variable() *ast.Term {
	u.fresh++
	return ast.VarTerm(fmt.Sprintf("__bound%d__", u.fresh))
}

// known are the variables that have a value where a body has got to.
type known map[ast.Var]bool

func (k known) with(vars ast.VarSet) known {
	next := make(known, len(k)+len(vars))
	for v := range k {
		next[v] = true
	}
	for v := range vars {
		next[v] = true
	}
	return next
}

func (u *unifications) rule(r *ast.Rule) {
	k := known{}
	var repeated []*ast.Expr
	for i := range r.Head.Args {
		r.Head.Args[i] = u.argument(r.Head.Args[i], k, func(v, other *ast.Term) {
			repeated = append(repeated, written(ast.Equal.Ref(), r.Location, v, other))
		})
	}
	r.Body = u.body(r.Body, k, repeated)
	for _, t := range []*ast.Term{r.Head.Key, r.Head.Value} {
		if t != nil {
			u.closures(t, k.with(r.Body.Vars(ast.VarVisitorParams{SkipClosures: true})))
		}
	}
}

// argument gives an argument in which no variable stands that is in another
// place of the arguments already: OPA would unify the two.
func (u *unifications) argument(t *ast.Term, k known, again func(v, other *ast.Term)) *ast.Term {
	switch v := t.Value.(type) {
	case ast.Var:
		if !k[v] {
			k[v] = true
			return t
		}
		other := u.variable()
		k[other.Value.(ast.Var)] = true
		again(t, other)
		return other
	case *ast.Array:
		items := make([]*ast.Term, 0, v.Len())
		v.Foreach(func(t *ast.Term) { items = append(items, u.argument(t, k, again)) })
		return ast.ArrayTerm(items...).SetLocation(t.Location)
	case ast.Object:
		items := make([][2]*ast.Term, 0, v.Len())
		v.Foreach(func(key, t *ast.Term) { items = append(items, [2]*ast.Term{key, u.argument(t, k, again)}) })
		return ast.ObjectTerm(items...).SetLocation(t.Location)
	}
	return t
}

// body rewrites the expressions, in the order in which they are evaluated.
func (u *unifications) body(b ast.Body, k known, first []*ast.Expr) ast.Body {
	out := make(ast.Body, 0, len(b)+len(first))
	for _, e := range first {
		out.Append(e)
	}
	for _, e := range b {
		u.closures(e, k)
		for _, x := range u.expr(e, k) {
			out.Append(x)
		}
		if !e.Negated {
			k = k.with(varsOf(e))
		}
	}
	return out
}

// closures rewrites the bodies within an expression or a term.
func (u *unifications) closures(x any, k known) {
	ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case *ast.ArrayComprehension:
			x.Body = u.body(x.Body, k, nil)
			u.closures(x.Term, k.with(varsOf(x.Body)))
		case *ast.SetComprehension:
			x.Body = u.body(x.Body, k, nil)
			u.closures(x.Term, k.with(varsOf(x.Body)))
		case *ast.ObjectComprehension:
			x.Body = u.body(x.Body, k, nil)
			u.closures(x.Key, k.with(varsOf(x.Body)))
			u.closures(x.Value, k.with(varsOf(x.Body)))
		case *ast.Every:
			inner := k.with(varsOf(x.Value))
			if x.Key != nil {
				inner = inner.with(varsOf(x.Key))
			}
			x.Body = u.body(x.Body, inner, nil)
		default:
			return false
		}
		return true
	}).Walk(x)
}

// expr gives what stands in place of one expression.
func (u *unifications) expr(e *ast.Expr, k known) []*ast.Expr {
	terms, ok := e.Terms.([]*ast.Term)
	if !ok || !e.IsEquality() || len(terms) != 3 {
		return append(u.guards(e, k), e)
	}
	a, b := terms[1], terms[2]
	if small(a) || small(b) {
		return append(u.guards(e, k), e)
	}
	if !k.all(a) || !k.all(b) {
		if !isRef(a) || !isRef(b) || e.Negated {
			return append(u.guards(e, k), e)
		}
		// The element of one is looked up first, and then for in the other.
		if k.all(b) {
			a, b = b, a
		}
		v := u.variable()
		out := append(u.guards(like(e, a), k), like(e, v, a), written(boundedBuiltin.Ref(), e.Location, v))
		return append(append(out, u.guards(like(e, b), k)...), like(e, v, b))
	}
	if !e.Negated {
		var out []*ast.Expr
		for _, side := range []**ast.Term{&a, &b} {
			if !operand(*side) {
				v := u.variable()
				out = append(out, u.guards(like(e, *side), k)...)
				out = append(out, like(e, v, *side))
				*side = v
			}
		}
		same := written(ast.Equal.Ref(), e.Location, a, b)
		same.With = e.With
		return append(out, same)
	}
	if operand(a) && operand(b) {
		e.Terms = []*ast.Term{ast.NewTerm(ast.Equal.Ref()).SetLocation(terms[0].Location), a, b}
		return []*ast.Expr{e}
	}
	// What is undefined makes the negation true, so both sides are looked up
	// where that does no harm: [true | x = a; y = b; equal(x, y)] = [].
	x, y := u.variable(), u.variable()
	inner := ast.Body{}
	for _, i := range u.guards(like(e, a, b), k) {
		inner.Append(i)
	}
	for _, i := range []*ast.Expr{like(e, x, a), like(e, y, b), written(ast.Equal.Ref(), e.Location, x, y)} {
		i.With = e.With
		inner.Append(i)
	}
	list := ast.ArrayComprehensionTerm(ast.BooleanTerm(true), inner).SetLocation(e.Location)
	none := written(ast.Equality.Ref(), e.Location, ast.ArrayTerm().SetLocation(e.Location), list)
	return []*ast.Expr{none}
}

// like is an equality of the terms with the modifiers of e. With one term it
// is only something to look for references in.
func like(e *ast.Expr, terms ...*ast.Term) *ast.Expr {
	x := written(ast.Equality.Ref(), e.Location, terms...)
	x.With = e.With
	return x
}

func written(operator ast.Ref, at *ast.Location, terms ...*ast.Term) *ast.Expr {
	e := &ast.Expr{Generated: true, Location: at}
	e.Terms = append([]*ast.Term{ast.NewTerm(operator).SetLocation(at)}, terms...)
	return e
}

// guards look at the sizes of what an expression unifies: its known variables
// where they meet a pattern, an element or a result, and where they are keys
// that select a rule's own.
func (u *unifications) guards(e *ast.Expr, k known) (out []*ast.Expr) {
	seen := map[ast.Var]bool{}
	guard := func(t *ast.Term) {
		ast.WalkVars(t, func(v ast.Var) bool {
			if k[v] && !seen[v] {
				seen[v] = true
				out = append(out, written(boundedBuiltin.Ref(), e.Location, ast.NewTerm(v)))
			}
			return false
		})
	}
	if terms, ok := e.Terms.([]*ast.Term); ok {
		switch {
		case e.IsEquality() && len(terms) == 3 && !small(terms[1]) && !small(terms[2]):
			// A variable without a value takes any in one step.
			if !u.takes(terms[1], k) && !u.takes(terms[2], k) {
				for _, t := range terms[1:] {
					if !isRef(t) {
						guard(t)
					}
				}
			}
		case e.IsCall() && !e.IsEquality():
			if n := u.compiler.GetArity(e.Operator()); n >= 0 && len(terms)-1 > n {
				guard(terms[len(terms)-1])
			}
		}
	}
	ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension, *ast.Every:
			return true
		case ast.Ref:
			if !x[0].Equal(ast.DefaultRootDocument) {
				return false
			}
			for i, t := range x[1:] {
				if _, constant := t.Value.(ast.String); !constant && u.rules(x[:i+1]) {
					guard(t)
				}
			}
		}
		return false
	}).Walk(e)
	return out
}

// rules says whether a key that follows may select something of a rule.
func (u *unifications) rules(prefix ast.Ref) bool {
	return len(u.compiler.GetRulesDynamicWithOpts(prefix, ast.RulesOptions{IncludeHiddenModules: true})) > 0
}

func (u *unifications) takes(t *ast.Term, k known) bool {
	v, ok := t.Value.(ast.Var)
	return ok && !k[v]
}

func (k known) all(t *ast.Term) bool {
	for v := range varsOf(t) {
		if !k[v] {
			return false
		}
	}
	return true
}

func varsOf(x any) ast.VarSet {
	vis := ast.NewVarVisitor().WithParams(ast.VarVisitorParams{SkipClosures: true, SkipRefCallHead: true})
	vis.Walk(x)
	vars := vis.Vars()
	delete(vars, ast.DefaultRootDocument.Value.(ast.Var))
	delete(vars, ast.InputRootDocument.Value.(ast.Var))
	return vars
}

func isRef(t *ast.Term) bool {
	_, ok := t.Value.(ast.Ref)
	return ok
}

// operand says whether the term can be given to a built-in as it stands.
func operand(t *ast.Term) bool {
	switch t.Value.(type) {
	case ast.Ref, *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension, ast.Call:
		return false
	}
	return true
}

// small says whether the term is one that unifies in one step, or a constant
// of the module's text that is not long.
func small(t *ast.Term) bool {
	switch v := t.Value.(type) {
	case ast.Null, ast.Boolean, ast.Number, ast.String:
		return true
	case *ast.Array, ast.Object, ast.Set:
		return v.IsGround() && size(t) < 64<<10
	}
	return false
}

// watch ends the evaluation of a query that is not a rule of the revision, and
// so was not rewritten, before it recurses too far. It is a tracer of OPA's.
type watch struct{ successive int }

// Enabled implements topdown.QueryTracer.
func (w *watch) Enabled() bool { return w != nil }

// Config implements topdown.QueryTracer.
func (w *watch) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent implements topdown.QueryTracer.
func (w *watch) TraceEvent(event topdown.Event) {
	if event.Op != topdown.UnifyOp {
		w.successive = 0
	} else if w.successive++; w.successive > 2*maxParts {
		panic(errParts)
	}
}
