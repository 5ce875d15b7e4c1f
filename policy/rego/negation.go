package rego

import (
	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/policy"
)

// negations finds calls under a not whose argument may be undefined. OPA takes
// the arguments out of the negation: where one is undefined, so is the whole,
// and the rule does not hold that was meant to hold just then. Plain == is the
// exception.
func (l *local) negations(rule *ast.Rule) (found []policy.Finding) {
	ast.WalkExprs(rule, func(e *ast.Expr) bool {
		terms, ok := e.Terms.([]*ast.Term)
		if !ok || !e.Negated || l.plain(terms) {
			return false
		}
		for _, arg := range terms[1:] {
			if path := l.uncertain(arg); path != nil {
				found = append(found, finding(ruleNegation, e.Location,
					"where %s is undefined, so is this not, and the rule does not hold", path))
				break
			}
		}
		return false
	})
	return found
}

func (l *local) plain(terms []*ast.Term) bool {
	name := terms[0].String()
	return name == ast.Equality.Name || name == ast.Equal.Name
}

// uncertain gives the part of the input that the term reads and that an input
// need not have; nil: none. What a variable stands for is not looked at: that
// it is undefined shows where it is assigned.
func (l *local) uncertain(t *ast.Term) (path ast.Ref) {
	ast.WalkRefs(t, func(ref ast.Ref) bool {
		if path == nil {
			if full, ok := l.resolve(ast.NewTerm(ref)).Value.(ast.Ref); ok && full[0].Equal(ast.InputRootDocument) && !always(full) {
				path = ref
			}
		}
		return false
	})
	return path
}

// always says whether every input of the registry has the path.
func always(ref ast.Ref) bool {
	for _, path := range inputPaths {
		if path.HasPrefix(ref) {
			return true
		}
	}
	return false
}

var inputPaths = func() (paths []ast.Ref) {
	for _, path := range []string{
		"input.action", "input.time", "input.protocol", "input.method", "input.path", "input.headers", "input.token",
		"input.principal.id", "input.principal.kind", "input.principal.roles", "input.principal.namespaces", "input.principal.claims",
		"input.attributes.request.http.method", "input.attributes.request.http.path", "input.attributes.request.http.host",
		"input.attributes.request.http.scheme", "input.attributes.request.http.headers",
		"input.attributes.source.address", "input.attributes.source.principal",
		"input.resource.kind", "input.resource.namespace", "input.resource.name", "input.resource.metadata", "input.resource.payload", "input.resource.previous",
	} {
		paths = append(paths, ast.MustParseRef(path))
	}
	return paths
}()
