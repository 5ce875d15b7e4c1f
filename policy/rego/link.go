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

	"github.com/muster-registry/muster/policy"
)

// A revision is mostly the one before it with a few modules changed. What OPA's
// compiler made of the others is used again: the changed modules are compiled
// together with all that they refer to, and then only the tables that lead to
// rules are built anew. That gives what compiling everything would give, as
// long as what other modules can see of the changed ones is the same: the same
// rules, of the same kinds, with the same types. In all other cases everything
// is compiled.
const (
	maxChanged = 16 // modules
	maxClosure = 64 // modules that changed ones refer to, with those
)

// linkStages are what is left to do for modules that are compiled.
var linkStages = []ast.StageID{
	ast.StageRemoveImports, ast.StageSetModuleTree, ast.StageSetRuleTree, ast.StageSetGraph,
	ast.StageBuildRuleIndices, ast.StageBuildComprehensionIndices,
}

// generation keeps apart the names that compilers make up.
var generation atomic.Uint64

// link makes the compiler of the set out of that of an earlier one. It says
// whether it could.
func (s *set) link(base *set, c *policy.Content) bool {
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
		if strings.Contains(c.Modules[file], "rego.metadata") {
			return false
		}
	}
	compiled := base.compiler.Modules
	vars := base.compiler.RewrittenVars
	if len(changed) > 0 {
		closure := s.closure(changed)
		if closure == nil {
			return false
		}
		part := s.newCompiler()
		if part.Compile(closure); part.Failed() || !sameView(base.compiler, part, changed) {
			return false
		}
		compiled, vars = maps.Clone(compiled), maps.Clone(vars)
		if !distinct(part, changed, compiled, vars) {
			return false
		}
	}
	linked := s.linkCompiler(base.compiler.TypeEnv, compiled, vars)
	if linked.Failed() {
		return false
	}
	if !bytes.Equal(c.Data, base.data) && len(ast.CheckPathConflicts(linked, storage.NonEmpty(context.Background(), s.store, s.txn))) > 0 {
		return false
	}
	s.compiler = linked
	return true
}

// linkCompiler gives a compiler of modules that are compiled. They are shared
// with other compilers: no stage that is run changes them.
func (s *set) linkCompiler(env *ast.TypeEnv, compiled map[string]*ast.Module, vars map[ast.Var]ast.Var) *ast.Compiler {
	empty := make(map[string]*ast.Module, len(compiled))
	for file, m := range compiled {
		empty[file] = &ast.Module{Package: m.Package}
	}
	skip := slices.DeleteFunc(ast.AllStages(), func(id ast.StageID) bool { return slices.Contains(linkStages, id) })
	linked := s.plainCompiler().WithSkipStages(skip...).
		WithStageAfterID(ast.StageRemoveImports, ast.CompilerStageDefinition{
			Name: "Link", MetricName: "compile_stage_link",
			Stage: func(c *ast.Compiler) *ast.Error {
				maps.Copy(c.Modules, compiled)
				c.TypeEnv = env
				c.RewrittenVars = vars
				return nil
			},
		})
	linked.Compile(empty)
	return linked
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
		ref := r.Ref()
		prefix := ref.GroundPrefix()
		all[fmt.Sprintf("%s %d %d %d %v", prefix, len(ref), len(r.Head.Args), r.Head.RuleKind(), r.Default)] = prefix
	}
	return all
}

// distinct puts the changed modules among the compiled, with names for their
// variables that no other module's have.
func distinct(part *ast.Compiler, changed map[string]*ast.Module, compiled map[string]*ast.Module, vars map[ast.Var]ast.Var) bool {
	suffix := fmt.Sprintf("_g%d__", generation.Add(1))
	for file := range changed {
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
