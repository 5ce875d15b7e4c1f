package rego_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
)

const authz = `package api.registry.authz

import data.teams as known

# Who may.
default allow := false

allow if input.principal.id in known.admins

allow if {
	input.action == "delete"
	count(known.admins) > 1
}

deny contains "no owner" if not input.resource.payload.owner
`

func TestDiffByRule(t *testing.T) {
	e := rego.New(rego.Options{})
	defer e.Close()
	parse := func(module, test, data string) *policy.Content {
		modules := map[string]string{"authz.rego": module}
		if test != "" {
			modules["authz_test.rego"] = test
		}
		body, err := json.Marshal(map[string]any{"modules": modules})
		if err != nil {
			t.Fatal(err)
		}
		c, err := policy.ParseContent(append(body[:len(body)-1], `,"data":`+data+`}`...))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const data = `{"teams":{"admins":["ann"],"size":3}}`
	const pkg = "api.registry.authz"
	base := parse(authz, "", data)
	edit := func(old, new string) string {
		if !strings.Contains(authz, old) {
			t.Fatalf("%q is not in the module", old)
		}
		return strings.ReplaceAll(authz, old, new)
	}
	for _, c := range []struct {
		name  string
		to    *policy.Content
		same  bool
		rules []string // package rule change
		tests []string
		data  []string // pointer change
		files []string
	}{
		{name: "itself", to: base, same: true},
		{name: "a comment and white space", to: parse(edit("# Who may.", "# Who may do what.\n\n"), "", data), files: []string{"authz.rego changed"}},
		{name: "the order of definitions", to: parse(edit("default allow := false\n", "")+"\ndefault allow := false\n", "", data), files: []string{"authz.rego changed"}},
		{name: "a body", to: parse(edit("> 1", "> 2"), "", data), rules: []string{"allow changed"}, files: []string{"authz.rego changed"}},
		{name: "the default", to: parse(edit("default allow := false", "default allow := true"), "", data), rules: []string{"allow changed"}, files: []string{"authz.rego changed"}},
		{name: "an import that a rule uses", to: parse(edit("import data.teams as known", "import data.staff as known"), "", data),
			rules: []string{"allow changed"}, files: []string{"authz.rego changed"}},
		{name: "a rule less and a rule more", to: parse(edit(`deny contains "no owner" if not input.resource.payload.owner`, `limit := 3`), "", data),
			rules: []string{"deny removed", "limit added"}, files: []string{"authz.rego changed"}},
		{name: "a test", to: parse(authz, "package api.registry.authz_test\n\ntest_a if true\n", data),
			tests: []string{"test_a added"}, files: []string{"authz_test.rego added"}},
		{name: "data", to: parse(authz, "", `{"teams":{"admins":["ann","bob"],"a/b":1}}`),
			data: []string{"/teams/a~1b added", "/teams/admins changed", "/teams/size removed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := e.Diff(base, c.to)
			var rules, tests, data, files []string
			for _, r := range d.Rules {
				if r.Package != pkg {
					t.Errorf("package %q", r.Package)
				}
				if (r.Before == "") != (r.Change == policy.Added) || (r.After == "") != (r.Change == policy.Removed) || r.Before == r.After {
					t.Errorf("texts of %+v", r)
				}
				rules = append(rules, r.Rule+" "+r.Change)
			}
			for _, r := range d.Tests {
				tests = append(tests, r.Rule+" "+r.Change)
			}
			for _, p := range d.Data {
				data = append(data, p.Pointer+" "+p.Change)
			}
			for _, m := range d.Modules {
				files = append(files, m.Name+" "+m.Change)
			}
			if d.Same != c.same || !reflect.DeepEqual([][]string{rules, tests, data, files}, [][]string{c.rules, c.tests, c.data, c.files}) {
				t.Errorf("same %v, rules %q, tests %q, data %q, files %q", d.Same, rules, tests, data, files)
			}
		})
	}
	d := e.Diff(base, parse(edit("import data.teams as known", "import data.staff as known"), "", data))
	if want := "import data.teams as known\n\ndefault allow := false\n\nallow if input.principal.id in known.admins\n\nallow if {\n\tinput.action == \"delete\"\n\tcount(known.admins) > 1\n}"; d.Rules[0].Before != want {
		t.Errorf("text\n%s\nwant\n%s", d.Rules[0].Before, want)
	}
	moved := *base
	moved.EntryPoints.Write = "other/authz"
	if d := e.Diff(base, &moved); d.Same || len(d.EntryPoints) != 1 ||
		d.EntryPoints[0] != (policy.EntryPointChange{For: "write", Before: policy.DefaultWrite, After: "other/authz"}) {
		t.Errorf("%+v", d.EntryPoints)
	}
}

// A module that no longer parses must not end the comparison.
func TestDiffOfWhatCannotBeRead(t *testing.T) {
	e := rego.New(rego.Options{})
	defer e.Close()
	from := &policy.Content{Modules: map[string]string{"a.rego": "package a\n\nx if {"}}
	to := &policy.Content{Modules: map[string]string{"a.rego": "package a\n\nx := 1\n"}}
	d := e.Diff(from, to)
	if d.Same || len(d.Modules) != 1 || len(d.Rules) != 1 || d.Rules[0].Change != policy.Added {
		t.Errorf("%+v", d)
	}
}
