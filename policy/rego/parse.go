package rego

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// maxPlaces is how many mistakes an error lists.
const maxPlaces = 50

// parse reads all modules and sets tests apart. The error is invalid_policy.
func parse(sources map[string]string, caps *ast.Capabilities) (modules, tests map[string]*ast.Module, err error) {
	return parseAgain(nil, sources, caps)
}

// parseAgain is parse, with the modules of an earlier set where their sources
// are the same.
func parseAgain(base *set, sources map[string]string, caps *ast.Capabilities) (modules, tests map[string]*ast.Module, err error) {
	modules, tests = map[string]*ast.Module{}, map[string]*ast.Module{}
	var places []policy.Finding
	var all ast.Errors
	for _, file := range slices.Sorted(maps.Keys(sources)) {
		module, errs := base.parsed(file, sources[file])
		if module == nil {
			module, errs = parseModule(file, sources[file], caps)
		}
		switch {
		case len(errs) > 0:
			all = append(all, errs...)
			places = append(places, toFindings(errs, nil)...)
			places = append(places, quoteHint(file, sources[file])...)
		case strings.HasSuffix(file, testSuffix):
			tests[file] = module
		default:
			modules[file] = module
		}
	}
	if len(places) > 0 {
		return nil, nil, refused(places, all)
	}
	return modules, tests, nil
}

// parsed gives a module of the set that has that source; nil: there is none.
func (s *set) parsed(file, source string) (*ast.Module, ast.Errors) {
	if s == nil || s.sources[file] != source {
		return nil, nil
	}
	if m := s.modules[file]; m != nil {
		return m, nil
	}
	return s.tests[file], nil
}

// parseModule reads a module as Rego v1 or, where only that succeeds, as v0.
// When neither does, the errors are those of the version that got further.
func parseModule(file, source string, caps *ast.Capabilities) (*ast.Module, ast.Errors) {
	module, err := ast.ParseModuleWithOpts(file, source, ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: caps})
	if err == nil {
		return module, nil
	}
	v0, err0 := ast.ParseModuleWithOpts(file, source, ast.ParserOptions{RegoVersion: ast.RegoV0, Capabilities: caps})
	if err0 == nil {
		return v0, nil
	}
	errs, errs0 := toErrors(file, err), toErrors(file, err0)
	if firstRow(errs0) > firstRow(errs) {
		return nil, errs0
	}
	return nil, errs
}

func toErrors(file string, err error) ast.Errors {
	if errs, ok := errors.AsType[ast.Errors](err); ok {
		return errs
	}
	if one, ok := errors.AsType[*ast.Error](err); ok {
		return ast.Errors{one}
	}
	return ast.Errors{{Code: ast.ParseErr, Message: err.Error(), Location: &ast.Location{File: file}}}
}

func firstRow(errs ast.Errors) int {
	row := 0
	for _, e := range errs {
		if e.Location != nil && (row == 0 || e.Location.Row < row) {
			row = e.Location.Row
		}
	}
	return row
}

// invalid turns what OPA's compiler says into an invalid_policy error, with
// advice where a known misunderstanding lies behind it.
func invalid(err error, modules map[string]*ast.Module) error {
	errs := toErrors("", err)
	found := forbiddenCalls(modules)
	named := map[string]bool{} // places where that says it better
	for _, f := range found {
		named[fmt.Sprintf("%s:%d", f.File, f.Row)] = true
	}
	for _, f := range toFindings(errs, modules) {
		if !named[fmt.Sprintf("%s:%d", f.File, f.Row)] {
			found = append(found, f)
		}
	}
	return refused(found, errs)
}

func toFindings(errs ast.Errors, modules map[string]*ast.Module) []policy.Finding {
	found := make([]policy.Finding, 0, len(errs))
	for _, e := range errs {
		f := policy.Finding{Rule: ruleCompile, Severity: policy.SeverityError, Message: e.Message}
		if e.Code == ast.ParseErr {
			f.Rule = ruleSyntax
		}
		if e.Location != nil {
			f.File, f.Row, f.Col = e.Location.File, e.Location.Row, e.Location.Col
		}
		advise(&f, modules[f.File])
		found = append(found, f)
	}
	return found
}

// mistakes is an invalid_policy error together with what it was made of.
type mistakes struct {
	err   *fault.Error
	found []policy.Finding
}

func (m *mistakes) Error() string { return m.err.Error() }

// Unwrap gives the error that callers know.
func (m *mistakes) Unwrap() error { return m.err }

// refused makes the error of the findings. Its cause is what OPA says, for the
// edge that speaks OPA's language; nil where OPA says nothing.
func refused(found []policy.Finding, cause error) error {
	sortFindings(found)
	found = slices.Compact(found)
	places := make([]fault.Place, 0, len(found))
	for _, f := range found {
		p := fault.Place{File: f.File, Row: f.Row, Col: f.Col, Message: f.Message}
		if f.Remedy != "" {
			p.Message += ": " + f.Remedy
		}
		places = append(places, p)
	}
	first := places[0]
	detail := first.Message
	if first.File != "" {
		detail = fmt.Sprintf("%s:%d: %s", first.File, first.Row, detail)
	}
	if more := len(places) - 1; more > 0 {
		detail += fmt.Sprintf(" (and %d more)", more)
	}
	f := fault.Wrap(fault.InvalidPolicy, cause, "%s", detail)
	f.Places = places[:min(len(places), maxPlaces)]
	return &mistakes{f, found}
}

func sortFindings(found []policy.Finding) {
	slices.SortStableFunc(found, func(a, b policy.Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Row, b.Row), cmp.Compare(a.Col, b.Col), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Message, b.Message))
	})
}

const jwtAdvice = "io.jwt.decode returns [header, payload, signature] and no verdict, so the third value, here named %s, " +
	"is the signature, a string without fields; besides, exp counts seconds where time.now_ns() counts nanoseconds: " +
	"use [valid, header, payload] := io.jwt.decode_verify(token, constraints), which checks the signature and exp itself"

// advise explains a message of OPA's compiler, where it can.
func advise(f *policy.Finding, m *ast.Module) {
	if strings.HasPrefix(f.Message, "deprecated built-in") {
		_, name, _ := strings.Cut(f.Message, ": ")
		f.Rule, f.Remedy = ruleDeprecated, replacement(name)
	}
	rest, ok := strings.CutPrefix(f.Message, "undefined ref: ")
	if !ok || m == nil {
		return
	}
	for _, third := range thirdOfDecode(m) {
		if strings.HasPrefix(rest, third+".") || strings.HasPrefix(rest, third+"[") {
			f.Rule, f.Remedy = ruleDecodeOrder, fmt.Sprintf(jwtAdvice, third)
		}
	}
}

// thirdOfDecode lists the names that the module gives to the third value of
// io.jwt.decode.
func thirdOfDecode(m *ast.Module) (names []string) {
	ast.WalkExprs(m, func(x *ast.Expr) bool {
		if (!x.IsAssignment() && !x.IsEquality()) || len(x.Operands()) != 2 {
			return false
		}
		left, ok := x.Operand(0).Value.(*ast.Array)
		if !ok || left.Len() != 3 {
			return false
		}
		call, ok := x.Operand(1).Value.(ast.Call)
		if !ok || call.Operator().String() != "io.jwt.decode" {
			return false
		}
		if v, ok := left.Elem(2).Value.(ast.Var); ok {
			names = append(names, string(v))
		}
		return false
	})
	return names
}

// quoteHint points at the first curly quote of a module that does not parse.
func quoteHint(file, source string) []policy.Finding {
	at := strings.IndexAny(source, "“”‘’„‟")
	if at < 0 {
		return nil
	}
	line := source[:at]
	return []policy.Finding{{
		Rule: ruleSyntax, Severity: policy.SeverityError, File: file, Row: strings.Count(line, "\n") + 1, Col: at - strings.LastIndex(line, "\n"),
		Message: "curly quotes, as word processors and web pages make them, mean nothing in Rego: use plain quotes \" instead of “ and ”",
	}}
}
