package rego

import (
	"github.com/open-policy-agent/opa/v1/ast"
)

// names are what the names of a module stand for, as far as its text says.
type names struct {
	file    string
	imports map[ast.Var]ast.Ref
	rules   map[ast.Var]*ast.Rule // those that are defined once, and are a plain value
}

func namesOf(m *ast.Module) *names {
	n := &names{imports: map[ast.Var]ast.Ref{}, rules: map[ast.Var]*ast.Rule{}}
	if m.Package != nil && m.Package.Location != nil {
		n.file = m.Package.Location.File
	}
	for _, i := range m.Imports {
		if ref, ok := i.Path.Value.(ast.Ref); ok {
			n.imports[i.Name()] = ref
		}
	}
	times := map[ast.Var]int{}
	for _, r := range m.Rules {
		if r.Default {
			continue
		}
		name := r.Head.Name
		if times[name]++; times[name] == 1 && len(r.Head.Args) == 0 && r.Head.Key == nil && r.Head.Value != nil && len(r.Head.Ref()) == 1 && r.Else == nil {
			n.rules[name] = r
		} else {
			delete(n.rules, name)
		}
	}
	return n
}

// call is one call of a built-in or a function, or a comparison.
type call struct {
	name string
	args []*ast.Term
	at   *ast.Location
}

// local is one rule with what its variables stand for.
type local struct {
	*names
	rule     *ast.Rule
	vars     map[ast.Var]*ast.Term
	calls    []call
	verdicts map[string]bool // terms that are asked whether they are true
	opened   map[string]bool // terms of which a field is read
}

func (n *names) in(rule *ast.Rule) *local {
	l := &local{names: n, rule: rule, vars: map[ast.Var]*ast.Term{}, verdicts: map[string]bool{}, opened: map[string]bool{}}
	add := func(terms []*ast.Term, at *ast.Location) {
		c := call{name: terms[0].String(), args: terms[1:], at: at}
		l.calls = append(l.calls, c)
		if !assigns[c.name] || len(c.args) != 2 {
			return
		}
		if v, ok := c.args[0].Value.(ast.Var); ok {
			if _, twice := l.vars[v]; !twice {
				l.vars[v] = c.args[1]
			}
		}
	}
	ast.WalkNodes(rule, func(x ast.Node) bool {
		switch x := x.(type) {
		case *ast.Expr:
			switch terms := x.Terms.(type) {
			case []*ast.Term:
				add(terms, x.Location)
				for _, t := range terms[1:] {
					if len(terms) == 3 && (terms[1].Equal(ast.BooleanTerm(true)) || terms[2].Equal(ast.BooleanTerm(true))) {
						l.verdicts[t.String()] = true
					}
				}
			case *ast.Term:
				l.verdicts[terms.String()] = true
			}
		case *ast.Term:
			switch v := x.Value.(type) {
			case ast.Call:
				add(v, x.Location)
			case ast.Ref:
				for i := 1; i < len(v); i++ {
					l.opened[v[:i].String()] = true
				}
			}
		}
		return false
	})
	return l
}

// resolve gives what a term stands for: what its variable was assigned, the
// value of a plain rule, the path that was imported. What cannot be told stays
// as it is.
func (l *local) resolve(t *ast.Term) *ast.Term { return l.resolveIn(t, 8) }

func (l *local) resolveIn(t *ast.Term, depth int) *ast.Term {
	if depth == 0 {
		return t
	}
	switch v := t.Value.(type) {
	case ast.Var:
		if to := l.vars[v]; to != nil {
			return l.resolveIn(to, depth-1)
		}
		if to := l.imports[v]; to != nil {
			return ast.NewTerm(to)
		}
		if rule := l.rules[v]; rule != nil {
			return l.in(rule).resolveIn(rule.Head.Value, depth-1)
		}
	case ast.Ref:
		if len(v) == 1 {
			return l.resolveIn(v[0], depth-1)
		}
		head, ok := v[0].Value.(ast.Var)
		if !ok {
			return t
		}
		var to ast.Ref
		if r := l.resolveIn(v[0], depth-1); !r.Equal(v[0]) {
			to, _ = r.Value.(ast.Ref)
		}
		if to == nil || head == ast.DefaultRootDocument.Value || head == ast.InputRootDocument.Value {
			return t
		}
		return ast.NewTerm(to.Concat(v[1:]))
	}
	return t
}

// key names the first of the arguments so that the same value has the same
// name in all modules. A variable whose value cannot be told has its name for
// its module.
func (l *local) key(args []*ast.Term) string {
	if len(args) == 0 {
		return ""
	}
	t := l.resolve(args[0])
	switch v := t.Value.(type) {
	case ast.Ref:
		if v[0].Equal(ast.DefaultRootDocument) || v[0].Equal(ast.InputRootDocument) {
			return t.String()
		}
	case ast.Call:
		whole := v[0].String() + "("
		for i := range v[1:] {
			whole += l.key(v[i+1:]) + ","
		}
		return whole + ")"
	case ast.String:
		return t.String()
	}
	return l.file + "#" + t.String()
}
