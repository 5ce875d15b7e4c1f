package rego

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/types"
)

// A revision is mostly the one before it with a few modules changed. What OPA's
// compiler made of the others is used again: the changed modules are compiled
// together with all that they refer to, and take the place of what they were in
// the tables that lead to rules. That gives what compiling everything would give, as
// long as what other modules can see of the changed ones is the same: the same
// rules, of the same kinds, with the same types. In all other cases everything
// is compiled.
const (
	maxChanged = 16 // modules
	maxClosure = 64 // modules that changed ones refer to, with those
)

// generation keeps apart the names that compilers make up.
var generation atomic.Uint64

// link makes the compiler of the set out of that of an earlier one. It says
// whether it could.
func (s *set) link(base *set) bool {
	if base == nil || base.compiler == nil || len(s.modules) != len(base.modules) {
		return false
	}
	changed := map[string]*ast.Module{}
	for file, m := range s.modules {
		old := base.modules[file]
		if old == nil || !old.Package.Equal(m.Package) {
			return false
		}
		if old != m {
			changed[file] = m
		}
		// This built-in reads annotations of other modules when it is compiled.
		if strings.Contains(s.sources[file], "rego.metadata") {
			return false
		}
	}
	linked := base.compiler
	s.depends, s.indexed = base.depends, base.indexed
	if len(changed) > 0 || s.tried {
		closure := s.closure(changed)
		if closure == nil {
			return false
		}
		part := s.newCompiler()
		if s.run(part, closure); part.Failed() || !sameView(base.compiler, part, changed) {
			return false
		}
		if linked = s.replace(base, part, changed); linked == nil {
			return false
		}
	}
	if !bytes.Equal(s.data, base.data) && len(ast.CheckPathConflicts(linked, storage.NonEmpty(context.Background(), s.store, s.txn))) > 0 {
		return false
	}
	s.compiler = linked
	return true
}

// replace gives the compiler of the base with the changed modules as they are
// in the part, and notes what depends on what there. What is not changed is
// shared with the base. Nil: it could not.
func (s *set) replace(base *set, part *ast.Compiler, changed map[string]*ast.Module) *ast.Compiler {
	old := base.compiler
	compiled, vars := maps.Clone(old.Modules), maps.Clone(old.RewrittenVars)
	if !distinct(part, changed, compiled, vars) {
		return nil
	}
	tree, fresh := old.RuleTree, map[*ast.TreeNode]bool{}
	for file := range changed {
		tree = replaced(tree, old.Modules[file], compiled[file], fresh)
	}
	if len(fresh) > 0 {
		reindex(tree, fresh)
	}
	linked := s.linkCompiler(base, changed, func(c *ast.Compiler) {
		c.Modules, c.RewrittenVars, c.RuleTree, c.TypeEnv = compiled, vars, tree, old.TypeEnv
	})
	if linked.Failed() {
		return nil
	}
	s.depends = dependencies(base, linked, changed)
	s.indexed = maps.Clone(base.indexed)
	for file := range changed {
		delete(s.indexed, file)
		if comprehensions(linked, compiled[file]) {
			s.indexed[file] = true
		}
	}
	return linked
}

// linkCompiler gives a compiler of modules that are compiled. They are shared
// with other compilers: no stage that is run changes them. Comprehensions are
// indexed in those modules alone that had such an index or are changed.
func (s *set) linkCompiler(base *set, changed map[string]*ast.Module, fill func(*ast.Compiler)) *ast.Compiler {
	empty := map[string]*ast.Module{}
	for file := range base.indexed {
		empty[file] = &ast.Module{Package: s.modules[file].Package}
	}
	for file, m := range changed {
		empty[file] = &ast.Module{Package: m.Package}
	}
	linked := s.plainCompiler().WithSkipStages(without(ast.StageRemoveImports, ast.StageBuildComprehensionIndices)...).
		WithStageAfterID(ast.StageRemoveImports, ast.CompilerStageDefinition{
			Name: "Link", MetricName: "compile_stage_link",
			Stage: func(c *ast.Compiler) *ast.Error {
				fill(c)
				return nil
			},
		})
	linked.Compile(empty)
	return linked
}

// edges are the rules that each rule refers to.
type edges map[*ast.Rule][]*ast.Rule

// add takes what the rules of modules refer to from their graph.
func (e edges) add(g *ast.Graph, modules map[string]*ast.Module) {
	for _, m := range modules {
		ast.WalkRules(m, func(r *ast.Rule) bool {
			var to []*ast.Rule
			for x := range g.Dependencies(r) {
				to = append(to, x.(*ast.Rule))
			}
			e[r] = to
			return false
		})
	}
}

// dependencies are those of the base where nothing has changed. A rule that
// referred to one of a changed module refers to all that are seen as it was.
func dependencies(base *set, linked *ast.Compiler, changed map[string]*ast.Module) edges {
	depends := maps.Clone(base.depends)
	now := map[*ast.Rule][]*ast.Rule{} // by what they were
	modules := map[string]*ast.Module{}
	for file := range changed {
		modules[file] = linked.Modules[file]
		seen := map[string][]*ast.Rule{}
		for _, r := range modules[file].Rules {
			look, _ := looksLike(r)
			for branch := r; branch != nil; branch = branch.Else {
				seen[look] = append(seen[look], branch)
			}
		}
		for _, r := range base.compiler.Modules[file].Rules {
			look, _ := looksLike(r)
			now[r] = seen[look]
			for branch := r.Else; branch != nil; branch = branch.Else {
				now[branch] = nil // those of the first branch stand for it
			}
		}
	}
	for r := range now {
		delete(depends, r)
	}
	for r, to := range depends {
		if !slices.ContainsFunc(to, func(r *ast.Rule) bool { _, gone := now[r]; return gone }) {
			continue
		}
		next := map[*ast.Rule]bool{}
		for _, r := range to {
			if rules, gone := now[r]; !gone {
				next[r] = true
			} else {
				for _, r := range rules {
					next[r] = true
				}
			}
		}
		depends[r] = slices.Collect(maps.Keys(next))
	}
	depends.add(ast.NewGraph(modules, func(ref ast.Ref) []*ast.Rule {
		return linked.GetRulesDynamicWithOpts(ref, ast.RulesOptions{IncludeHiddenModules: true})
	}), modules)
	return depends
}

// closure gives the modules with all that they may refer to, and all others of
// their packages; nil where that is too much.
func (s *set) closure(changed map[string]*ast.Module) map[string]*ast.Module {
	if len(changed) > maxChanged {
		return nil
	}
	all := map[string]*ast.Module{}
	todo := slices.Collect(maps.Values(changed))
	seen := map[string]bool{}
	reach := func(ref ast.Ref) {
		ref = ref.ConstantPrefix()
		key := ref.String()
		if seen[key] {
			return
		}
		seen[key] = true
		for file, m := range s.modules {
			if all[file] == nil && (m.Package.Path.HasPrefix(ref) || ref.HasPrefix(m.Package.Path)) {
				all[file] = m
				todo = append(todo, m)
			}
		}
	}
	for len(todo) > 0 && len(all) <= maxClosure {
		m := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		reach(m.Package.Path)
		names := namesOf(m)
		var visitor *ast.GenericVisitor
		visitor = ast.NewGenericVisitor(func(x any) bool {
			switch x := x.(type) {
			case ast.Ref:
				ref := x
				head, ok := ref[0].Value.(ast.Var)
				if to, imported := names.imports[head]; ok && imported {
					ref = to.Concat(ref[1:])
				}
				if ref[0].Equal(ast.DefaultRootDocument) {
					reach(ref)
				}
				for _, t := range x[1:] {
					visitor.Walk(t)
				}
				return true
			case ast.Var:
				if x == ast.DefaultRootDocument.Value {
					reach(ast.DefaultRootRef)
				}
			}
			return false
		})
		for _, r := range m.Rules {
			visitor.Walk(r)
		}
		for _, ref := range names.imports {
			if ref[0].Equal(ast.DefaultRootDocument) {
				reach(ref)
			}
		}
	}
	if len(all) > maxClosure {
		return nil
	}
	return all
}

// sameView says whether other modules see in the changed ones what they saw.
func sameView(old, part *ast.Compiler, changed map[string]*ast.Module) bool {
	for file := range changed {
		was, is := view(old.Modules[file]), view(part.Modules[file])
		if !maps.EqualFunc(was, is, func(a, b ast.Ref) bool { return a.Equal(b) }) {
			return false
		}
		for _, ref := range is {
			a, b := old.TypeEnv.GetByRef(ref), part.TypeEnv.GetByRef(ref)
			if (a == nil) != (b == nil) || a != nil && types.Compare(a, b) != 0 {
				return false
			}
		}
	}
	return true
}

// view is what a module defines, by everything but the bodies and values.
func view(m *ast.Module) map[string]ast.Ref {
	all := map[string]ast.Ref{}
	for _, r := range m.Rules {
		look, prefix := looksLike(r)
		all[look] = prefix
	}
	return all
}

// looksLike is what others see of a rule, and its place.
func looksLike(r *ast.Rule) (string, ast.Ref) {
	ref := r.Ref()
	prefix := ref.GroundPrefix()
	var rest strings.Builder
	for _, t := range ref[len(prefix):] {
		if ast.IsConstant(t.Value) {
			rest.WriteString(t.String())
		}
		rest.WriteByte('/')
	}
	return fmt.Sprintf("%s %s %d %d %v", prefix, rest.String(), len(r.Head.Args), r.Head.RuleKind(), r.Default), prefix
}

// distinct puts the changed modules among the compiled, with names for their
// variables that no other module's have.
func distinct(part *ast.Compiler, changed map[string]*ast.Module, compiled map[string]*ast.Module, vars map[ast.Var]ast.Var) bool {
	suffix := fmt.Sprintf("_g%d__", generation.Add(1))
	for file := range changed {
		ast.WalkVars(compiled[file], func(v ast.Var) bool {
			if strings.HasPrefix(string(v), ast.LocalVarPrefix) {
				delete(vars, v)
			}
			return false
		})
		x, err := ast.TransformVars(part.Modules[file], func(v ast.Var) (ast.Value, error) {
			// A term may stand in several places, and come by once for each.
			if !strings.HasPrefix(string(v), ast.LocalVarPrefix) || strings.HasSuffix(string(v), suffix) {
				return v, nil
			}
			name := v + ast.Var(suffix)
			if to, ok := part.RewrittenVars[v]; ok {
				vars[name] = to
			}
			return name, nil
		})
		m, ok := x.(*ast.Module)
		if err != nil || !ok {
			return false
		}
		compiled[file] = m
	}
	return true
}
