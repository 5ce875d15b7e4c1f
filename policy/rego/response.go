package rego

import (
	"context"
	"fmt"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// DecideResponse implements [policy.Decider].
func (e *Engine) DecideResponse(ctx context.Context, rev *policy.Revision, entrypoint string, input []byte) (policy.Decision, error) {
	if entrypoint == "" {
		return policy.Decision{}, fault.New(fault.BadRequest, "name the entry point that answers the proxy, such as %s", policy.DefaultLookup)
	}
	return e.decideRaw(ctx, rev, entrypoint, input, (*set).responding)
}

// responding gives the entry point of that path as proxies ask it.
func (s *set) responding(path string) *entry {
	// No path has a question mark, so no other entry point has the name.
	return s.remembered(path+"?", func() *entry {
		if !s.rule(path) {
			e := s.prepare(path, slices.Concat(answers, policy.Responses))
			e.responds = true
			return e
		}
		e := &entry{path: path, defined: true, responds: true}
		if s.ask(e, []string{fmt.Sprintf(`"allow": [v | v = %s]`, reference(path))}); e.err == nil {
			e.chance = s.readsOf(dataRef(path)).chance
		}
		return e
	})
}

// rule says whether the path is that of a rule, and not of a package.
func (s *set) rule(path string) bool {
	ref := dataRef(path)
	for _, m := range s.modules {
		if m.Package.Path.HasPrefix(ref) {
			return false
		}
	}
	return len(s.compiler.GetRulesDynamicWithOpts(ref, ast.RulesOptions{})) > 0
}

// respond gives the verdict, and the answer to a proxy as JSON. Where allow is
// an object, its members take the place of the rules.
func respond(allow *ast.Term, answer func(name string) *ast.Term) (*ast.Term, []byte, error) {
	if o, ok := value(allow).(ast.Object); ok {
		answer = func(name string) *ast.Term { return o.Get(ast.InternedTerm(name)) }
		allow = answer("allowed")
	}
	members := ast.NewObject()
	for _, name := range policy.Responses {
		if t := answer(name); t != nil {
			members.Insert(ast.InternedTerm(name), t)
		}
	}
	if members.Len() == 0 {
		return allow, nil, nil
	}
	b, err := encode(ast.NewTerm(members))
	return allow, b, err
}
