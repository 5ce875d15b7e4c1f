package rego

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/tester"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// Check compiles the content, runs its tests and looks for what is likely to
// be a mistake. The error is invalid_policy with its places; the report then
// still counts the tests, and its findings hold the errors as well. What
// compiles is kept, so that preparing the revision later costs nothing.
func (e *Engine) Check(ctx context.Context, c *policy.Content) (policy.Report, error) {
	report := policy.Report{Findings: []policy.Finding{}}
	s, err := e.compiled(ctx, c.Digest(), c)
	if err != nil {
		found := errorFindings(err)
		if s != nil {
			found = append(found, e.lint(s.modules)...)
		}
		sortFindings(found)
		report.Findings = append(report.Findings, found...)
		return report, err
	}
	report.Findings = append(report.Findings, s.findings(e.lint(s.modules))...)
	run, err := e.test(ctx, s, "")
	if err == nil {
		err = e.judgeTests(s, run)
	}
	if run != nil {
		report.Tests, report.Coverage = run.Tests, run.Coverage
	}
	if err != nil {
		report.Findings = append(report.Findings, errorFindings(err)...)
		sortFindings(report.Findings)
	}
	return report, err
}

// lint is [lint] with what is still known of the modules that were looked at
// last.
func (e *Engine) lint(modules map[string]*ast.Module) []policy.Finding {
	var known remarks
	if last := e.linted.Load(); last != nil {
		known = *last
	}
	found, all := lint(modules, known)
	e.linted.Store(&all)
	return found
}

// errorFindings gives what an error of checking was made of.
func errorFindings(err error) []policy.Finding {
	if m, ok := errors.AsType[*mistakes](err); ok {
		return slices.Clone(m.found)
	}
	return []policy.Finding{{Rule: ruleCompile, Severity: policy.SeverityError, Message: fault.From(err).Detail}}
}

// judgeTests refuses a revision whose tests fail, or reach too little of it.
func (e *Engine) judgeTests(s *set, run *TestRun) error {
	var found []policy.Finding
	for _, c := range run.Cases {
		if c.Failed {
			found = append(found, policy.Finding{Rule: ruleTest, Severity: policy.SeverityError, File: c.File, Row: c.Row, Col: c.Col, Message: c.Message})
		}
	}
	if len(found) > 0 {
		err := refused(found, nil)
		f := fault.From(err)
		f.Detail = fmt.Sprintf("%d of the revision's tests failed; the first is %s", run.Tests.Failed, f.Detail)
		return err
	}
	if e.options.MinCoverage <= 0 {
		return nil
	}
	covered := policy.Coverage{Uncovered: map[string][]policy.Rows{}}
	if run.Coverage != nil {
		covered = *run.Coverage
	} else {
		for file := range s.modules {
			covered.Uncovered[file] = nil
		}
	}
	if covered.Percent >= e.options.MinCoverage {
		return nil
	}
	for file, rows := range covered.Uncovered {
		f := finding(ruleCoverage, &ast.Location{File: file, Row: 1}, "no test reaches %s", lines(rows))
		if rows == nil {
			f.Message = "no test reaches it"
		} else {
			f.Row = rows[0].From
		}
		found = append(found, f)
	}
	err := refused(found, nil)
	f := fault.From(err)
	f.Detail = fmt.Sprintf("the revision's tests cover %.1f %% of its lines, and %g %% is the least: %s", covered.Percent, e.options.MinCoverage, f.Detail)
	return err
}

// lines writes rows as "3-5, 9".
func lines(rows []policy.Rows) string {
	parts := make([]string, len(rows))
	for i, r := range rows {
		if parts[i] = fmt.Sprint(r.From); r.To > r.From {
			parts[i] = fmt.Sprintf("%d-%d", r.From, r.To)
		}
	}
	if len(rows) == 1 && rows[0].To <= rows[0].From {
		return "line " + parts[0]
	}
	return "lines " + strings.Join(parts, ", ")
}

// TestCase is one test of a revision and how it ended.
type TestCase struct {
	Package, Name   string
	File            string
	Row, Col        int
	Failed, Skipped bool
	Message         string // why it failed
	Output          string // what it printed
	Took            time.Duration
}

// TestRun is what the tests of a revision came to. Cases are in the order of
// files and rows.
type TestRun struct {
	Tests    policy.Tests
	Coverage *policy.Coverage // nil: there are no tests
	Cases    []TestCase
}

// Test compiles the content and runs those of its tests whose name, such as
// data.authz_test.test_allow, matches the expression; all if it is empty. The
// error is invalid_policy when they cannot be run. Failed tests are no error.
func (e *Engine) Test(ctx context.Context, c *policy.Content, pattern string) (*TestRun, error) {
	s, err := e.compiled(ctx, c.Digest(), c)
	if err != nil {
		return nil, err
	}
	return e.test(ctx, s, pattern)
}

// test runs the tests of a set, and leaves behind those that cannot be ended.
func (e *Engine) test(ctx context.Context, s *set, pattern string) (*TestRun, error) {
	type outcome struct {
		run *TestRun
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if p := recover(); p != nil {
				e.options.Logger.Error("the policy's tests panicked", "panic", p)
				o = outcome{err: fault.New(fault.InvalidPolicy, "the policy engine failed on the revision's tests; the node's log says why")}
			}
			done <- o
		}()
		o.run, o.err = e.runTests(ctx, s, pattern)
	}()
	patience := time.NewTimer(e.options.TestLimit + grace)
	defer patience.Stop()
	select {
	case o := <-done:
		return o.run, o.err
	case <-patience.C:
		return nil, e.tooLong()
	}
}

func (e *Engine) tooLong() error {
	return fault.New(fault.InvalidPolicy, "the revision's tests did not end within %v; make them smaller", e.options.TestLimit)
}

// runTests runs the tests of a set, one after the other.
func (e *Engine) runTests(ctx context.Context, s *set, pattern string) (*TestRun, error) {
	run := &TestRun{}
	if len(s.tests) == 0 {
		return run, nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.options.TestLimit)
	defer cancel()
	trial, err := e.trial(s)
	if err != nil {
		return nil, err
	}
	covered := cover.New()
	results, err := tester.NewRunner().
		SetCompiler(trial.compiler).
		SetStore(s.store).
		AddCustomBuiltins([]*tester.Builtin{{Decl: s.catalog.declaration, Func: rego.Function1(
			&rego.Function{Name: schemaBuiltin, Decl: s.catalog.declaration.Decl},
			func(_ rego.BuiltinContext, document *ast.Term) (*ast.Term, error) {
				return ast.BooleanTerm(s.catalog.accepts(document)), nil
			})}}).
		CapturePrintOutput(e.options.Print).
		SetCoverageQueryTracer(covered).
		SetCoverageRuns(nil).
		Filter(pattern).
		SetParallel(1).
		SetTimeout(min(time.Second, e.options.TestLimit)).
		RunTests(ctx, s.txn)
	if err != nil {
		return nil, invalid(err, trial.modules)
	}
	for r := range results {
		c := testCase(r)
		switch {
		case c.Failed:
			run.Tests.Failed++
		case !c.Skipped:
			run.Tests.Passed++
		}
		run.Cases = append(run.Cases, c)
	}
	if ctx.Err() != nil {
		return run, e.tooLong()
	}
	slices.SortStableFunc(run.Cases, func(a, b TestCase) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Row, b.Row), cmp.Compare(a.Name, b.Name))
	})
	if run.Tests != (policy.Tests{}) {
		run.Coverage = coverage(covered.Report(s.modules))
	}
	return run, nil
}

// trial compiles the tests of a set together with what they test, out of the
// one before where that goes. Its compiler is for one run alone.
func (e *Engine) trial(s *set) (*set, error) {
	t := &set{
		catalog: s.catalog, sources: s.sources, data: s.data, store: s.store, txn: s.txn,
		modules: maps.Clone(s.modules), tried: true, print: e.options.Print,
	}
	maps.Copy(t.modules, s.tests)
	if t.linked = t.link(e.tested.Load()); !t.linked {
		if err := t.whole(); err != nil {
			return nil, err
		}
	}
	e.tested.Store(t)
	return t, nil
}

// compileTests has OPA's runner of tests compile, which rewrites them, and run
// none of them.
func compileTests(c *ast.Compiler, modules map[string]*ast.Module) {
	results, err := tester.NewRunner().SetCompiler(c).SetModules(modules).Filter("^$").SetParallel(1).RunTests(context.Background(), nil)
	if err != nil {
		return // the compiler has the errors
	}
	for range results {
	}
}

// coverage leaves out the tests themselves.
func coverage(report cover.Report) *policy.Coverage {
	c := &policy.Coverage{Uncovered: map[string][]policy.Rows{}}
	covered, all := 0, 0
	for file, f := range report.Files {
		if strings.HasSuffix(file, testSuffix) {
			continue
		}
		covered += f.CoveredLines
		all += f.CoveredLines + f.NotCoveredLines
		var rows []policy.Rows
		for _, r := range f.NotCovered {
			if last := len(rows) - 1; last >= 0 && r.Start.Row <= rows[last].To+1 {
				rows[last].To = max(rows[last].To, r.End.Row)
			} else {
				rows = append(rows, policy.Rows{From: r.Start.Row, To: r.End.Row})
			}
		}
		if len(rows) > 0 {
			c.Uncovered[file] = rows
		}
	}
	c.Percent = 100
	if all > 0 {
		c.Percent = math.Floor(1000*float64(covered)/float64(all)) / 10
	}
	return c
}

func testCase(r *tester.Result) TestCase {
	c := TestCase{Package: r.Package, Name: r.Name, Skipped: r.Skip, Failed: !r.Skip && !r.Pass(), Output: string(r.Output), Took: r.Duration}
	if r.Location != nil {
		c.File, c.Row, c.Col = r.Location.File, r.Location.Row, r.Location.Col
	}
	if c.Failed {
		c.Message = fmt.Sprintf("%s.%s failed", r.Package, r.Name)
	}
	if r.Error != nil {
		c.Message = clip(fmt.Sprintf("%s.%s: %v", r.Package, r.Name, r.Error))
	}
	return c
}
