package rego

import (
	"context"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/muster-registry/muster/policy"
)

// failure describes the expression that a definition failed at, with what it
// read. One line of a module may have become several expressions.
func (x *explainer) failure(ev *topdown.Event, rule *ast.Rule, expr *ast.Expr) *policy.Failure {
	f := &policy.Failure{Values: map[string]string{}}
	at := expr.Loc()
	if at == nil {
		at = rule.Loc()
	}
	f.File, f.Row, f.Text = at.File, at.Row, x.line(at)
	for _, part := range rule.Body {
		if part != expr && (part.Index > expr.Index || part.Loc() == nil || part.Loc().Row != at.Row) {
			continue
		}
		ast.WalkTerms(part, func(t *ast.Term) bool {
			switch v := t.Value.(type) {
			case ast.Ref:
				x.read(f, ev, v)
				return true
			case ast.Var:
				if name, ok := x.named(v); ok {
					if value := ev.Plug(t); value.IsGround() {
						f.Values[name] = x.show(value.Value)
					}
				}
			}
			return false
		})
	}
	return f
}

// named is the name that the module gives to a variable.
func (x *explainer) named(v ast.Var) (string, bool) {
	if name, ok := x.set.compiler.RewrittenVars[v]; ok {
		v = name
	}
	if v.IsGenerated() || v.IsWildcard() || strings.HasPrefix(string(v), "__local") || v == ast.InputRootDocument.Value || v == ast.DefaultRootDocument.Value {
		return "", false
	}
	return string(v), true
}

// read tells the value of a reference, if it can be had without evaluating.
func (x *explainer) read(f *policy.Failure, ev *topdown.Event, ref ast.Ref) {
	head, ok := ref[0].Value.(ast.Var)
	if !ok {
		return
	}
	plugged := make(ast.Ref, len(ref))
	plugged[0] = ref[0]
	for i, t := range ref[1:] {
		if plugged[i+1] = ev.Plug(t); !plugged[i+1].IsGround() {
			x.prefix(f, ev, ref[:i+1])
			return
		}
	}
	switch {
	case head == ast.InputRootDocument.Value:
		f.Values[plugged.String()] = x.find(x.input, plugged[1:])
	case head == ast.DefaultRootDocument.Value:
		path := make([]string, len(plugged)-1)
		for i, t := range plugged[1:] {
			name, ok := t.Value.(ast.String)
			if !ok {
				return
			}
			path[i] = string(name)
		}
		if len(x.set.compiler.GetRulesDynamicWithOpts(plugged, ast.RulesOptions{})) > 0 {
			return // a rule: it is told by itself
		}
		if v, err := x.set.store.Read(context.Background(), x.set.txn, path); err == nil {
			if value, ok := v.(ast.Value); ok {
				f.Values[plugged.String()] = x.show(value)
			}
			return
		}
		if !slices.ContainsFunc(x.set.catalog.capabilities.Builtins, func(b *ast.Builtin) bool { return b.Name == plugged.String() }) {
			f.Values[plugged.String()] = policy.Undefined
		}
	default:
		name, ok := x.named(head)
		root := ev.Plug(ref[0])
		if ok && root.IsGround() {
			plugged[0] = ast.VarTerm(name)
			f.Values[plugged.String()] = x.find(root, plugged[1:])
		}
	}
}

// prefix tells the part of a reference before what it iterates over.
func (x *explainer) prefix(f *policy.Failure, ev *topdown.Event, ref ast.Ref) {
	if len(ref) > 1 {
		x.read(f, ev, ref)
	}
}

func (x *explainer) find(root *ast.Term, path ast.Ref) string {
	v, err := root.Value.Find(path)
	if err != nil {
		return policy.Undefined
	}
	return x.show(v)
}

// show writes a value out, cut off where it is long.
func (x *explainer) show(v ast.Value) string {
	b, err := encode(ast.NewTerm(v))
	if err != nil {
		return "too large to be shown"
	}
	s := x.hide(string(b))
	if len(s) > maxValue {
		s = strings.ToValidUTF8(s[:maxValue], "") + "…"
	}
	return s
}
