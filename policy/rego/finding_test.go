package rego

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/policy"
)

const quiet = head + "default allow := false\n"

// Each rule has a policy with the mistake, where it is found, and the same
// policy put right.
func TestFindings(t *testing.T) {
	for name, c := range map[string]struct {
		rule       string
		row        int
		wrong      string
		right      string
		entryPoint string
	}{
		"decoded and believed": {"jwt-unverified", 4,
			quiet + "\nallow if { [_, p, _] := io.jwt.decode(input.token); p.role == \"admin\" }",
			quiet + "\nallow if { [ok, _, p] := io.jwt.decode_verify(input.token, {\"secret\": data.secret, \"aud\": \"muster\"}); ok; p.role == \"admin\" }", ""},
		"another token is verified": {"jwt-unverified", 4,
			quiet + "\nallow if { io.jwt.verify_hs256(input.principal.id, \"s\"); [_, p, _] := io.jwt.decode(input.token); p.role == \"admin\" }",
			quiet + "\nallow if { io.jwt.verify_hs256(input.token, \"s\"); [_, p, _] := io.jwt.decode(input.token); p.role == \"admin\" }", ""},
		"verified elsewhere, through names": {"jwt-unverified", 5,
			quiet + "import input.token as t\n\nclaims := io.jwt.decode(t)[1]\nallow if claims.role == \"admin\"",
			quiet + "import input.token as t\nclaims := io.jwt.decode(t)[1]\nsigned if { x := input.token; io.jwt.verify_es256(x, data.key) }\nallow if { signed; claims.role == \"admin\" }", ""},
		"a header taken for a verdict": {"jwt-decode-order", 3,
			quiet + "allow if { [good, _, _] := io.jwt.decode(input.token); good; io.jwt.verify_hs256(input.token, \"s\") }",
			quiet + "allow if { [good, _, _] := io.jwt.decode_verify(input.token, {\"secret\": \"s\"}); good }", ""},
		"by its name": {"jwt-decode-order", 3,
			quiet + "allow if { [valid, _, _] := io.jwt.decode(input.token); valid.alg == \"RS256\"; io.jwt.verify_hs256(input.token, \"s\") }",
			quiet + "allow if { [header, _, _] := io.jwt.decode(input.token); header.alg == \"RS256\"; io.jwt.verify_hs256(input.token, \"s\") }", ""},
		"by its place": {"jwt-decode-order", 3,
			quiet + "allow if { d := io.jwt.decode(input.token); d[0]; io.jwt.verify_hs256(input.token, \"s\") }",
			quiet + "allow if { d := io.jwt.decode(input.token); d[1].ok; io.jwt.verify_hs256(input.token, \"s\") }", ""},
		"a field of the signature": {"jwt-decode-order", 3,
			quiet + "allow if { [_, _, p] := io.jwt.decode(input.token); p.role == \"admin\"; io.jwt.verify_hs256(input.token, \"s\") }",
			quiet + "allow if { [_, p, _] := io.jwt.decode(input.token); p.role == \"admin\"; io.jwt.verify_hs256(input.token, \"s\") }", ""},
		"seconds and nanoseconds": {"seconds-against-nanoseconds", 3,
			quiet + "allow if input.principal.claims.exp > time.now_ns()",
			quiet + "allow if input.principal.claims.exp > time.now_ns() / 1000000000", ""},
		"seconds and nanoseconds, through names": {"seconds-against-nanoseconds", 5,
			quiet + "now := time.now_ns()\nclaims := input.principal.claims\nallow if { nbf := claims.nbf; now >= nbf - 60 }",
			quiet + "now := time.now_ns() / 1e9\nclaims := input.principal.claims\nallow if { nbf := claims.nbf; now >= nbf - 60 }", ""},
		"a header with its scheme, as a token": {"bearer-prefix", 3,
			quiet + "allow if io.jwt.verify_hs256(input.headers.Authorization, \"s\")",
			quiet + "allow if io.jwt.verify_hs256(trim_prefix(input.headers.Authorization, \"Bearer \"), \"s\")", ""},
		"a header with its scheme, compared": {"bearer-prefix", 4,
			quiet + "import input.attributes.request.http as h\nallow if h.headers.authorization == data.secret",
			quiet + "import input.attributes.request.http as h\nallow if h.headers.authorization == concat(\" \", [\"Bearer\", data.secret])", ""},
		"a header with its scheme, and a text": {"bearer-prefix", 3,
			quiet + "allow if \"s3cret\" == input.headers[\"Authorization\"]",
			quiet + "allow if \"Bearer s3cret\" == input.headers[\"Authorization\"]", ""},
		"no default":              {"no-default", 2, head + "allow if input.token", quiet + "allow if input.token", ""},
		"no allow":                {"no-allow", 0, head + "deny contains \"x\"", quiet + "deny contains \"x\"", ""},
		"allow is a text":         {"allow-not-boolean", 2, quiet + "allow := \"yes\" if input.token", quiet + "allow := true if input.token", ""},
		"allow is a set":          {"allow-not-boolean", 2, head + "allow contains \"x\" if input.token", quiet + "allow if input.token", ""},
		"allow is an object":      {"allow-not-boolean", 2, quiet + "allow := {\"ok\": ok} if { ok := input.ok }", quiet + "allow := ok if { ok := input.ok }", ""},
		"nothing there":           {"no-entry-point", 0, "package typo.authz\nallow := true", quiet, ""},
		"not where it says it is": {"no-entry-point", 0, quiet, strings.Replace(quiet, "api.registry", "a", 1), "a/authz"},
		"deprecated": {"deprecated-builtin", 3,
			"package api.registry.authz\ndefault allow = false\nallow { any([input.a, input.b]) }",
			"package api.registry.authz\ndefault allow = false\nallow { input.a }", ""},
		"walk": {"walk-on-hot-path", 4,
			quiet + "allow if secrets == set()\nsecrets contains v if walk(input.resource.payload, [_, v])",
			quiet + "allow if secrets == set()\nsecrets contains v if walk(input.resource.metadata, [_, v])", ""},
		"walk, in what calls it": {"walk-on-hot-path", 4,
			quiet + "allow if count(all(input)) < 9\nall(x) := {v | some v; walk(x, [_, v])}",
			quiet + "allow if count(input.path) < 9\nall(x) := {v | some v; walk(x, [_, v])}", ""},
		"not of what may be undefined": {"undefined-under-not", 3,
			quiet + "deny contains \"x\" if not input.resource.metadata.tier in {\"a\"}",
			quiet + "deny contains \"x\" if { tier := object.get(input.resource.metadata, \"tier\", \"\"); not tier in {\"a\"} }", ""},
		"not of a text that may be undefined": {"undefined-under-not", 4,
			quiet + "import input.attributes.request.http as h\ndeny contains \"x\" if { not startswith(h.headers.accept, \"a\") }",
			quiet + "import input.attributes.request.http as h\ndeny contains \"x\" if { not startswith(h.path, \"/v1\"); not h.headers.accept == \"a\" }", ""},
		"version 0": {"rego-v0", 1, "package api.registry.authz\ndefault allow = false\nallow { input.a }", quiet + "allow if input.a", ""},
	} {
		t.Run(name, func(t *testing.T) {
			check := func(module string) []policy.Finding {
				c := &policy.Content{Modules: map[string]string{"p.rego": module}, EntryPoints: policy.EntryPoints{Write: c.entryPoint}}
				report, err := engine(t).Check(t.Context(), &stage(t, c).Content)
				if err != nil && !slices.ContainsFunc(report.Findings, func(f policy.Finding) bool { return f.Severity == policy.SeverityError }) {
					t.Errorf("refused without a finding of that severity: %v", err)
				}
				return report.Findings
			}
			is := func(f policy.Finding) bool { return f.Rule == c.rule }
			found := check(c.wrong)
			if at := slices.IndexFunc(found, is); at < 0 {
				t.Errorf("nothing of %s is found in what has it: %+v", c.rule, found)
			} else if f := found[at]; f.Row != c.row || f.Message == "" || f.Remedy == "" || f.Severity == "" {
				t.Errorf("%+v, want row %d with a message and a remedy", f, c.row)
			}
			if found := check(c.right); slices.ContainsFunc(found, is) {
				t.Errorf("%s is found in what has it not: %+v", c.rule, found)
			}
		})
	}
}

func TestEveryFindingIsOfAKnownRule(t *testing.T) {
	list := Rules()
	for i, r := range list {
		if r.ID == "" || r.Summary == "" || !slices.Contains([]string{"info", "warning", "error"}, r.Severity) || (i > 0 && list[i-1].ID >= r.ID) {
			t.Errorf("%+v", r)
		}
	}
	report, _ := engine(t).Check(t.Context(), &revision(t, "p.rego", read(t, "testdata", "printed-registry.rego")).Content)
	var got []string
	for _, f := range report.Findings {
		got = append(got, fmt.Sprintf("%s %d", f.Rule, f.Row))
		if _, known := rules[f.Rule]; !known {
			t.Errorf("%s is no known rule", f.Rule)
		}
	}
	if want := "[rego-v0 1 bearer-prefix 15 jwt-unverified 15]"; fmt.Sprint(got) != want {
		t.Errorf("%v in the printed policy, want %s", got, want)
	}
}

func TestCoverage(t *testing.T) {
	tests := "package t_test\nimport data.api.registry.authz\ntest_a if authz.allow with input as {\"a\": 1}\n"
	rev := revision(t, "p.rego", quiet+"allow if {\n\tinput.a\n}\nallow if {\n\tinput.b\n\tinput.c\n}", "p_test.rego", tests)
	report, err := engine(t).Check(t.Context(), &rev.Content)
	if err != nil || report.Coverage == nil {
		t.Fatalf("%+v, %v", report, err)
	}
	if c := report.Coverage; c.Percent <= 30 || c.Percent >= 80 || fmt.Sprint(c.Uncovered["p.rego"]) != "[{2 2} {6 8}]" || len(c.Uncovered) != 1 {
		t.Errorf("%+v", c)
	}
	e := engine(t, func(o *Options) { o.MinCoverage = 90 })
	report, err = e.Check(t.Context(), &rev.Content)
	f := refusal(t, err)
	if !strings.Contains(f.Detail, "% of its lines, and 90 % is the least: p.rego:2: no test reaches lines 2, 6-8") || f.Places[0].Row != 2 {
		t.Errorf("%s %+v", f.Detail, f.Places)
	}
	if !slices.ContainsFunc(report.Findings, func(f policy.Finding) bool { return f.Rule == "low-coverage" }) || report.Tests.Passed != 1 {
		t.Errorf("%+v", report)
	}
	if _, err := e.Check(t.Context(), &revision(t, "p.rego", quiet).Content); !strings.Contains(refusal(t, err).Detail, "cover 0.0 %") {
		t.Errorf("without tests: %v", err)
	}
	whole := revision(t, "p.rego", quiet+"allow if {\n\tinput.a\n}", "p_test.rego", tests+"test_b if not authz.allow with input as {}\n")
	if report, err := e.Check(t.Context(), &whole.Content); err != nil || report.Coverage.Percent != 100 || len(report.Coverage.Uncovered) != 0 {
		t.Errorf("all covered: %+v, %v", report, err)
	}
}

func TestTestsByName(t *testing.T) {
	rev := revision(t, "p.rego", quiet, "p_test.rego", "package t_test\ntest_one if true\ntest_two if { print(\"hello\"); false }\ntodo_test_three if true\n")
	e := engine(t, func(o *Options) { o.Print = true })
	run, err := e.Test(t.Context(), &rev.Content, "")
	if err != nil || run.Tests != (policy.Tests{Passed: 1, Failed: 1}) || len(run.Cases) != 3 {
		t.Fatalf("%+v, %v", run, err)
	}
	if two := run.Cases[1]; two.Name != "test_two" || !two.Failed || two.File != "p_test.rego" || two.Row != 3 || two.Output != "hello\n" || two.Message == "" {
		t.Errorf("%+v", two)
	}
	if run, err = e.Test(t.Context(), &rev.Content, "one$"); err != nil || run.Tests != (policy.Tests{Passed: 1}) {
		t.Errorf("%+v, %v", run, err)
	}
}

// The page for those who write policies names each rule, with its severity.
func TestFindingsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range Rules() {
		row := slices.ContainsFunc(strings.Split(string(page), "\n"), func(line string) bool {
			return strings.HasPrefix(line, "| ") && strings.Contains(line, "`"+r.ID+"`") && strings.Contains(line, "| "+r.Severity+" |")
		})
		if !row {
			t.Errorf("docs/security.md has no row for %s, of severity %s", r.ID, r.Severity)
		}
	}
}

// What was found in the modules before is not looked for again, and the
// findings are those of all modules together all the same: a token that one
// module verifies is verified for every other.
func TestFindingsOfUnchangedModulesStay(t *testing.T) {
	decodes := "package a\nimport rego.v1\nok if io.jwt.decode(input.token)[1].sub == \"ann\"\n"
	verifies := "package b\nimport rego.v1\nok if io.jwt.verify_hs256(input.token, \"secret\")\n"
	silent := "package b\nimport rego.v1\nok := true\n"
	e, fresh := engine(t), func() *Engine { return engine(t) }
	for i, second := range []string{silent, verifies, silent, verifies} {
		c := &policy.Content{Modules: map[string]string{"a.rego": decodes, "b.rego": second}}
		if err := c.Normalize(); err != nil {
			t.Fatal(err)
		}
		got, err := e.Check(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		want, err := fresh().Check(t.Context(), c)
		if err != nil || !reflect.DeepEqual(got.Findings, want.Findings) {
			t.Errorf("%d: %+v\nby a new engine\n%+v, %v", i, got.Findings, want.Findings, err)
		}
		unverified := slices.ContainsFunc(got.Findings, func(f policy.Finding) bool { return f.Rule == ruleUnverified })
		if unverified != (second == silent) {
			t.Errorf("%d: unverified = %v", i, unverified)
		}
	}
}

// A finding about a built-in that is given up names what to write, in the
// older Rego, where it loads, and in Rego v1, where it does not.
func TestEveryDeprecatedBuiltinHasAReplacement(t *testing.T) {
	for _, b := range ast.DefaultBuiltins {
		if !b.IsDeprecated() || strings.HasPrefix(b.Name, "internal.") {
			continue
		}
		if !strings.HasPrefix(replacement(b.Name), "write ") || strings.Contains(replacement(b.Name), "the finding") {
			t.Errorf("%s: %s", b.Name, replacement(b.Name))
		}
	}
	e := engine(t)
	for _, source := range []string{
		"package api.registry.authz\ndefault allow = false\nallow { any([input.a, input.b]) }",
		"package api.registry.authz\nimport rego.v1\ndefault allow := false\nallow if any([input.a, input.b])",
	} {
		c := policy.Content{Modules: map[string]string{"a.rego": source}}
		if err := c.Normalize(); err != nil {
			t.Fatal(err)
		}
		report, err := e.Check(t.Context(), &c)
		found := report.Findings
		if err != nil {
			found = errorFindings(err)
		}
		if !slices.ContainsFunc(found, func(f policy.Finding) bool {
			return f.Rule == ruleDeprecated && strings.Contains(f.Remedy, "true in xs")
		}) {
			t.Errorf("%s: %v %+v", source, err, found)
		}
	}
}
