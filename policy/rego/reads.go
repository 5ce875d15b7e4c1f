package rego

import "github.com/open-policy-agent/opa/v1/ast"

// reads is what the rules behind an entry point look at, found without
// evaluating them. It errs on the side of more.
type reads struct {
	input  paths
	impure bool // an answer may differ for the same input
	chance bool // and also for the same input at the same time
}

// paths is a set of paths below input; a path stands for all that is below it.
type paths struct {
	all  bool
	next map[string]*paths
}

func (p *paths) add(path []string) {
	for _, name := range path {
		if p.next == nil {
			p.next = map[string]*paths{}
		}
		if p.next[name] == nil {
			p.next[name] = &paths{}
		}
		p = p.next[name]
	}
	p.all = true
}

// covers says whether anything at or below the name is read.
func (p *paths) covers(name string) bool { return p.all || p.next[name] != nil }

// analyse walks all rules that the answers of an entry point depend on.
func (s *set) analyse(path string, answers []string) reads {
	refs := make([]ast.Ref, len(answers))
	for i, name := range answers {
		refs[i] = dataRef(path, name)
	}
	return s.readsOf(refs...)
}

// readsOf walks all rules that the documents depend on.
func (s *set) readsOf(refs ...ast.Ref) reads {
	var r reads
	seen := map[*ast.Rule]bool{}
	var follow func(rule *ast.Rule)
	follow = func(rule *ast.Rule) {
		if seen[rule] {
			return
		}
		seen[rule] = true
		r.merge(s.looks(rule))
		for _, next := range s.depends[rule] {
			follow(next)
		}
	}
	for _, ref := range refs {
		for _, rule := range s.compiler.GetRulesDynamicWithOpts(ref, ast.RulesOptions{IncludeHiddenModules: true}) {
			follow(rule)
		}
	}
	return r
}

// looks is what one rule looks at itself. An earlier set may know.
func (s *set) looks(rule *ast.Rule) *reads {
	if s.seen[rule] != nil {
		return s.seen[rule]
	}
	var r *reads
	if s.base != nil {
		r = s.base.seen[rule]
	}
	if r == nil {
		r = &reads{}
		s.visit(rule, r)
	}
	if !s.made { // later ones would race with those who use them
		if s.seen == nil {
			s.seen = map[*ast.Rule]*reads{}
		}
		s.seen[rule] = r
	}
	return r
}

func (r *reads) merge(o *reads) {
	r.impure, r.chance = r.impure || o.impure, r.chance || o.chance
	r.input.merge(&o.input)
}

func (p *paths) merge(o *paths) {
	p.all = p.all || o.all
	for name, below := range o.next {
		if p.next == nil {
			p.next = map[string]*paths{}
		}
		if p.next[name] == nil {
			p.next[name] = &paths{}
		}
		p.next[name].merge(below)
	}
}

// visit collects what one rule, with its else branches, reads itself.
func (s *set) visit(rule *ast.Rule, r *reads) {
	var visitor *ast.GenericVisitor
	visitor = ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case ast.Ref:
			s.visitRef(x, r)
			for _, t := range x[1:] {
				visitor.Walk(t)
			}
			return true
		case ast.Var:
			if x.Equal(ast.InputRootDocument.Value) {
				r.input.all = true
			}
		}
		return false
	})
	visitor.Walk(rule)
}

func (s *set) visitRef(ref ast.Ref, r *reads) {
	if !ref.HasPrefix(ast.InputRootRef) {
		name := ref.String()
		r.impure, r.chance = r.impure || s.catalog.impure[name], r.chance || s.catalog.chance[name]
		return
	}
	var path []string
	for _, t := range ref[1:] {
		name, ok := t.Value.(ast.String)
		if !ok {
			break
		}
		path = append(path, string(name))
	}
	r.input.add(path)
}
