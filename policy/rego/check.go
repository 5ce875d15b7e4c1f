package rego

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/tester"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// Check compiles the content, runs its tests and looks for what is likely to
// be a mistake. The error is invalid_policy with its places; the report then
// still counts the tests. What compiles is kept, so that preparing the
// revision later costs nothing.
func (e *Engine) Check(ctx context.Context, c *policy.Content) (policy.Report, error) {
	report := policy.Report{Findings: []policy.Finding{}}
	s, err := e.compiled(ctx, c.Digest(), c)
	if err != nil {
		return report, err
	}
	var places []fault.Place
	report.Tests, places, err = e.test(ctx, s)
	if err != nil {
		return report, err
	}
	if len(places) > 0 {
		f := fault.From(refused(places, nil))
		f.Detail = fmt.Sprintf("%d of the revision's tests failed; the first is %s", report.Tests.Failed, f.Detail)
		return report, f
	}
	report.Findings = append(report.Findings, s.findings()...)
	return report, nil
}

// test runs the tests of a set, and leaves behind those that cannot be ended.
func (e *Engine) test(ctx context.Context, s *set) (counts policy.Tests, failed []fault.Place, err error) {
	type outcome struct {
		counts policy.Tests
		failed []fault.Place
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if p := recover(); p != nil {
				e.options.Logger.Error("the policy's tests panicked", "panic", p)
				o.err = fault.New(fault.InvalidPolicy, "the policy engine failed on the revision's tests; the node's log says why")
			}
			done <- o
		}()
		o.counts, o.failed, o.err = e.runTests(ctx, s)
	}()
	patience := time.NewTimer(e.options.TestLimit + grace)
	defer patience.Stop()
	select {
	case o := <-done:
		return o.counts, o.failed, o.err
	case <-patience.C:
		return counts, nil, e.tooLong()
	}
}

func (e *Engine) tooLong() error {
	return fault.New(fault.InvalidPolicy, "the revision's tests did not end within %v; make them smaller", e.options.TestLimit)
}

// runTests runs the tests of a set, one after the other.
func (e *Engine) runTests(ctx context.Context, s *set) (counts policy.Tests, failed []fault.Place, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.options.TestLimit)
	defer cancel()
	modules := maps.Clone(s.modules)
	maps.Copy(modules, s.tests)
	results, err := tester.NewRunner().
		SetCompiler(s.newCompiler()).
		SetModules(modules).
		SetStore(s.store).
		AddCustomBuiltins([]*tester.Builtin{{Decl: s.catalog.declaration, Func: rego.Function1(
			&rego.Function{Name: schemaBuiltin, Decl: s.catalog.declaration.Decl},
			func(_ rego.BuiltinContext, document *ast.Term) (*ast.Term, error) {
				return ast.BooleanTerm(s.catalog.accepts(document)), nil
			})}}).
		CapturePrintOutput(false).
		SetParallel(1).
		SetTimeout(min(time.Second, e.options.TestLimit)).
		RunTests(ctx, s.txn)
	if err != nil {
		return counts, nil, invalid(err, modules)
	}
	for r := range results {
		switch {
		case r.Skip:
		case r.Pass():
			counts.Passed++
		default:
			counts.Failed++
			failed = append(failed, failure(r))
		}
	}
	if ctx.Err() != nil {
		return counts, nil, e.tooLong()
	}
	return counts, failed, nil
}

func failure(r *tester.Result) fault.Place {
	p := fault.Place{Message: fmt.Sprintf("%s.%s failed", r.Package, r.Name)}
	if r.Location != nil {
		p.File, p.Row, p.Col = r.Location.File, r.Location.Row, r.Location.Col
	}
	if r.Error != nil {
		p.Message = clip(fmt.Sprintf("%s.%s: %v", r.Package, r.Name, r.Error))
	}
	return p
}

// findings looks for what compiles but is likely to be a mistake.
func (s *set) findings() []policy.Finding {
	var found []policy.Finding
	undefined := 0
	for path, entry := range s.ready {
		if !entry.defined {
			undefined++
			continue
		}
		rules := s.compiler.GetRulesExact(dataRef(path, "allow"))
		if len(rules) == 0 && !s.mayDefine(path, "allow") {
			found = append(found, policy.Finding{Rule: "no-allow", Severity: "warning",
				Message: fmt.Sprintf("data.%s has no rule named allow, so it refuses everything", dotted(path))})
		}
		if len(rules) > 0 && !slices.ContainsFunc(rules, func(r *ast.Rule) bool { return r.Default }) {
			at := rules[0].Location
			found = append(found, policy.Finding{Rule: "no-default-allow", Severity: "info", File: at.File, Row: at.Row, Col: at.Col,
				Message: "allow has no default; write default allow := false, so that it is never undefined"})
		}
	}
	if undefined == len(s.ready) {
		found = append(found, policy.Finding{Rule: "no-entry-point", Severity: "warning",
			Message: fmt.Sprintf("no module defines %s, so this revision decides nothing and the built-in roles decide alone",
				join(slices.Sorted(maps.Keys(s.ready))))})
	}
	for file, m := range s.modules {
		if m.RegoVersionSpan().Max() == ast.RegoV0 {
			found = append(found, policy.Finding{Rule: "rego-v0", Severity: "info", File: file, Row: 1, Col: 1,
				Message: "loads as Rego v0; opa fmt --v0-v1 rewrites it for Rego v1"})
		}
	}
	slices.SortFunc(found, func(a, b policy.Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Row, b.Row), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Message, b.Message))
	})
	return found
}

func join(paths []string) string {
	s := ""
	for i, p := range paths {
		if i > 0 {
			s += " or "
		}
		s += "data." + dotted(p)
	}
	return s
}
