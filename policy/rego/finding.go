package rego

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/types"

	"github.com/muster-registry/muster/policy"
)

// Rule is a kind of finding.
type Rule struct {
	ID       string
	Severity string // policy.SeverityInfo, …
	Summary  string // what it is about
	Remedy   string // what to write instead
}

const (
	ruleSyntax       = "syntax-error"
	ruleCompile      = "compile-error"
	ruleTest         = "test-failed"
	ruleCoverage     = "low-coverage"
	ruleForbidden    = "forbidden-builtin"
	ruleDeprecated   = "deprecated-builtin"
	ruleUnverified   = "jwt-unverified"
	ruleDecodeOrder  = "jwt-decode-order"
	ruleNanoseconds  = "seconds-against-nanoseconds"
	ruleBearer       = "bearer-prefix"
	ruleNoDefault    = "no-default"
	ruleNoAllow      = "no-allow"
	ruleNotBoolean   = "allow-not-boolean"
	ruleNoEntryPoint = "no-entry-point"
	ruleWalk         = "walk-on-hot-path"
	ruleNegation     = "undefined-under-not"
	ruleV0           = "rego-v0"
)

var rules = func() map[string]Rule {
	all := map[string]Rule{}
	for _, r := range []Rule{
		{ruleSyntax, policy.SeverityError, "The module is not Rego.", ""},
		{ruleCompile, policy.SeverityError, "The modules do not compile together.", ""},
		{ruleTest, policy.SeverityError, "A test of the revision fails.", "make the rule or the test right; muster policy test runs the tests alone"},
		{ruleCoverage, policy.SeverityError, "The tests evaluate less of the modules than is asked for.", "write tests that reach the lines named"},
		{ruleForbidden, policy.SeverityError, "A built-in that policies may not call.",
			"policies cannot reach the network or the node, nor call what no time limit can interrupt; send the facts they need as data of the revision"},
		{ruleDeprecated, policy.SeverityWarning, "A built-in that OPA has given up.", "write what the finding names in its place; in Rego v1 it does not compile"},
		{ruleUnverified, policy.SeverityWarning, "A token is decoded and its signature is not verified.",
			"whoever can send a token can write its claims; use [valid, header, payload] := io.jwt.decode_verify(token, constraints), or input.principal, which is verified"},
		{ruleDecodeOrder, policy.SeverityWarning, "The three values of io.jwt.decode are taken for those of io.jwt.decode_verify.",
			"io.jwt.decode returns [header, payload, signature] and no verdict; use [valid, header, payload] := io.jwt.decode_verify(token, constraints)"},
		{ruleNanoseconds, policy.SeverityWarning, "Seconds are compared with nanoseconds.",
			"exp, iat and nbf count seconds, time.now_ns() nanoseconds: compare with time.now_ns() / 1000000000"},
		{ruleBearer, policy.SeverityWarning, "The authorization header is used together with its scheme.",
			"the header is \"Bearer TOKEN\": take trim_prefix(header, \"Bearer \"), or input.token, which is the token alone"},
		{ruleNoDefault, policy.SeverityInfo, "allow has no default.", "write default allow := false, so that it is never undefined"},
		{ruleNoAllow, policy.SeverityWarning, "An entry point has no allow, so it refuses everything.", "define allow in it"},
		{ruleNotBoolean, policy.SeverityWarning, "allow can be something else than true or false, which refuses.", "let allow be true or false, and give reasons in deny"},
		{ruleNoEntryPoint, policy.SeverityWarning, "Nothing is defined at an entry point.", "name the package as the entry point says, or the entry point as the package: {\"metadata\":{\"muster\":{\"entry_points\":{\"write\":\"a/b\",\"lookup\":\"a/c\"}}}} in .manifest, or entry_points in the JSON of a push"},
		{ruleWalk, policy.SeverityWarning, "A decision visits every value of a document that callers make as large as they like.",
			"walk only the part that matters, such as input.resource.payload.servers, or refer to it by its path"},
		{ruleNegation, policy.SeverityWarning, "A not does not hold where an argument of what it negates is undefined.",
			"give the argument a value first, as in tier := object.get(input.resource.metadata, \"tier\", \"\"), and negate what is said of that"},
		{ruleV0, policy.SeverityInfo, "The module is Rego v0.", "write if before the body of a rule and contains before what a set contains, as in allow if { … } and deny contains reason if { … }; opa fmt --v0-v1 does so by itself"},
	} {
		all[r.ID] = r
	}
	return all
}()

// instead says what to write for a built-in that OPA has given up.
var instead = map[string]string{
	"all":              "every x in xs { x == true }",
	"any":              "true in xs",
	"re_match":         "regex.match, with the same arguments",
	"net.cidr_overlap": "net.cidr_contains, with the same arguments",
	"set_diff":         "a - b",
	"cast_array":       "[x | some x in xs]",
	"cast_set":         "{x | some x in xs}",
	"cast_string":      "is_string(x), and use x",
	"cast_boolean":     "is_boolean(x), and use x",
	"cast_null":        "is_null(x), and use x",
	"cast_object":      "is_object(x), and use x",
}

// deprecated is the finding about a built-in that OPA has given up.
func deprecated(name string, at *ast.Location) policy.Finding {
	f := finding(ruleDeprecated, at, "%s is deprecated", name)
	f.Remedy = replacement(name)
	return f
}

func replacement(name string) string {
	if text, ok := instead[name]; ok {
		return "write " + text + "; in Rego v1 " + name + " does not compile"
	}
	return rules[ruleDeprecated].Remedy
}

// Rules lists all kinds of findings, by id.
func Rules() []Rule {
	list := slices.Collect(maps.Values(rules))
	slices.SortFunc(list, func(a, b Rule) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// finding makes one of a rule; a nil location is that of the whole revision.
func finding(rule string, at *ast.Location, format string, args ...any) policy.Finding {
	r := rules[rule]
	f := policy.Finding{Rule: rule, Severity: r.Severity, Message: fmt.Sprintf(format, args...), Remedy: r.Remedy}
	if at != nil {
		f.File, f.Row, f.Col = at.File, at.Row, at.Col
	}
	return f
}

// findings looks for what compiles but is likely to be a mistake, beside what
// was found in single modules.
func (s *set) findings(found []policy.Finding) []policy.Finding {
	undefined := 0
	for path, entry := range s.ready {
		if entry.defined {
			found = append(found, s.answers(path)...)
			continue
		}
		if undefined++; path == s.entryPoints.Write || path == s.entryPoints.Lookup {
			found = append(found, finding(ruleNoEntryPoint, nil, "no module defines data.%s, which the revision names as an entry point", dotted(path)))
		}
	}
	if undefined == len(s.ready) {
		found = append(found, finding(ruleNoEntryPoint, nil, "no module defines %s, so this revision decides nothing and the built-in roles decide alone",
			join(slices.Sorted(maps.Keys(s.ready)))))
	}
	for file, m := range s.modules {
		if m.RegoVersionSpan().Max() == ast.RegoV0 {
			found = append(found, finding(ruleV0, &ast.Location{File: file, Row: 1, Col: 1}, "loads as Rego v0"))
		}
	}
	found = append(found, s.walks()...)
	sortFindings(found)
	return found
}

// answers looks at the allow of an entry point.
func (s *set) answers(path string) (found []policy.Finding) {
	ref := dataRef(path, "allow")
	rules := s.compiler.GetRulesExact(ref)
	if len(rules) == 0 {
		if !s.mayDefine(path, "allow") {
			found = append(found, finding(ruleNoAllow, nil, "data.%s has no rule named allow, so it refuses everything", dotted(path)))
		}
		return found
	}
	if !slices.ContainsFunc(rules, func(r *ast.Rule) bool { return r.Default }) {
		found = append(found, finding(ruleNoDefault, rules[0].Location, "allow has no default"))
	}
	if t := s.compiler.TypeEnv.GetByRef(ref); t != nil && !onlyBoolean(t) {
		found = append(found, finding(ruleNotBoolean, rules[0].Location, "data.%s.allow can be %s, and anything but true refuses", dotted(path), types.Sprint(t)))
	}
	return found
}

// onlyBoolean is false where something else than true and false is certainly
// possible.
func onlyBoolean(t types.Type) bool {
	switch t := t.(type) {
	case types.Boolean:
		return true
	case types.Any:
		return len(t) == 0 || !slices.ContainsFunc(t, func(t types.Type) bool { return !onlyBoolean(t) })
	}
	return false
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

// walks finds the calls of walk that a decision can reach, on documents
// without a bound of their own.
func (s *set) walks() (found []policy.Finding) {
	reached := map[string]bool{} // places of rules
	seen := map[*ast.Rule]bool{}
	var follow func(rule *ast.Rule)
	follow = func(rule *ast.Rule) {
		if seen[rule] {
			return
		}
		seen[rule] = true
		if rule.Location != nil {
			reached[rule.Location.String()] = true
		}
		for _, next := range s.depends[rule] {
			follow(next)
		}
	}
	for path := range s.ready {
		for _, name := range answers {
			for _, rule := range s.compiler.GetRulesDynamicWithOpts(dataRef(path, name), ast.RulesOptions{IncludeHiddenModules: true}) {
				follow(rule)
			}
		}
	}
	for file, m := range s.modules {
		if !strings.Contains(s.sources[file], ast.WalkBuiltin.Name) {
			continue
		}
		names := namesOf(m)
		for _, rule := range m.Rules {
			if rule.Location == nil || !reached[rule.Location.String()] {
				continue
			}
			l := names.in(rule)
			for _, c := range l.calls {
				if c.name == ast.WalkBuiltin.Name && len(c.args) > 0 && !bounded(l.resolve(c.args[0])) {
					found = append(found, finding(ruleWalk, c.at, "walk visits all of %s for each decision", c.args[0]))
				}
			}
		}
	}
	return found
}

// bounded says whether a document that is walked is one of the small parts of
// the input, or the revision's own.
func bounded(t *ast.Term) bool {
	switch t.Value.(type) {
	case ast.Ref:
	case ast.Var, ast.Call:
		return false
	default:
		return true
	}
	ref := t.Value.(ast.Ref)
	if ref[0].Equal(ast.DefaultRootDocument) {
		return len(ref) > 1
	}
	if !ref[0].Equal(ast.InputRootDocument) || len(ref) < 2 {
		return false
	}
	switch name, _ := ref[1].Value.(ast.String); name {
	case "resource":
		part, _ := ast.String(""), false
		if len(ref) > 2 {
			part, _ = ref[2].Value.(ast.String)
		}
		return part == "metadata" || len(ref) > 3
	case "attributes":
		return len(ref) > 2
	}
	return true
}
