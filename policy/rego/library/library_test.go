package library_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego/library"
	"github.com/muster-registry/muster/registry/definition"
)

// open makes a library that gives slow machines time.
func open(t testing.TB, o library.Options) *library.Library {
	t.Helper()
	if o.Limit == 0 {
		o.Limit = time.Minute
	}
	o.Logger = slog.New(slog.DiscardHandler)
	l, err := library.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// paths gives where a rule found something.
func paths(r *definition.Review, rule string) (at []string) {
	for _, f := range r.Findings {
		if f.Rule == rule {
			at = append(at, f.Path)
		}
	}
	return at
}

func format(document string) string {
	if strings.Contains(document, "\nasyncapi:") || strings.HasPrefix(document, "asyncapi:") {
		return "asyncapi"
	}
	return "openapi"
}

// contexts judge what a document alone cannot show.
var contexts = map[string]struct{ breaks, holds definition.Context }{
	"owner-set":     {definition.Context{Lifecycle: "published"}, definition.Context{Lifecycle: "published", Owner: "team-a"}},
	"lifecycle-set": {definition.Context{Lifecycle: "draft"}, definition.Context{Lifecycle: "deprecated"}},
	"unique-routes": {
		definition.Context{Lifecycle: "published", Published: []definition.Published{{Version: "1.0.0", Routes: []definition.Route{{Method: "GET", Path: "/things/{id}"}}}}},
		definition.Context{Lifecycle: "draft", Published: []definition.Published{{Version: "1.0.0", Routes: []definition.Route{{Method: "GET", Path: "/things/{id}"}}}}},
	},
}

const thing = "openapi: 3.0.3\ninfo: {title: t, version: 1.0.0}\npaths: {\"/things/{thing}\": {get: {responses: {}}}}\n"

// Each rule finds the place in the document that breaks it, and nothing in the
// one that does not.
func TestRules(t *testing.T) {
	l := open(t, library.Options{})
	read := func(rule, kind string) string {
		b, err := os.ReadFile(filepath.Join("testdata", rule+"."+kind+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, rule := range l.Rules() {
		t.Run(rule.ID, func(t *testing.T) {
			breaks, holds, at := thing, thing, []string{""}
			c, ok := contexts[rule.ID]
			in := func(c definition.Context) *definition.Context { return &c }
			if rule.ID == "unique-routes" {
				at = []string{"/paths/~1things~1{thing}/get"}
			}
			if !ok {
				in = func(definition.Context) *definition.Context { return nil }
				breaks, holds = read(rule.ID, "breaks"), read(rule.ID, "holds")
				line, _, _ := strings.Cut(breaks, "\n")
				at = []string{strings.TrimPrefix(line, "# at: ")}
			}
			found := l.Review(t.Context(), nil, format(breaks), []byte(breaks), in(c.breaks))
			if diff := cmp.Diff(at, paths(found, rule.ID)); diff != "" {
				t.Errorf("what breaks it: %s", diff)
			}
			if n := paths(l.Review(t.Context(), nil, format(holds), []byte(holds), in(c.holds)), rule.ID); n != nil {
				t.Errorf("what holds is found at %v", n)
			}
			for _, f := range found.Findings {
				if f.Rule == definition.NotChecked {
					t.Errorf("%+v", f)
				}
			}
		})
	}
	files, err := filepath.Glob("testdata/*.breaks.yaml")
	if err != nil || len(files)+len(contexts) != len(l.Rules()) {
		t.Errorf("%d documents and %d contexts for %d rules", len(files), len(contexts), len(l.Rules()))
	}
}

func TestEveryRuleSaysWhatItIs(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range open(t, library.Options{}).Rules() {
		if seen[r.ID] || r.Title == "" || r.Description == "" || r.Package == "" {
			t.Errorf("%+v", r)
		}
		seen[r.ID] = true
		if !strings.HasSuffix(r.OWASP, ":2023") || !strings.HasPrefix(r.NIST, "SP 800-2") {
			t.Errorf("%s refers to %q and %q", r.ID, r.OWASP, r.NIST)
		}
		if r.Severity != "high" && r.Severity != "medium" && r.Severity != "low" && r.Severity != "info" {
			t.Errorf("%s has severity %q", r.ID, r.Severity)
		}
	}
}

func revision(data string) *policy.Revision {
	return &policy.Revision{Number: 1, Digest: data, Content: policy.Content{Data: []byte(data)}}
}

const twoReads = `{"openapi":"3.0.3","info":{"title":"t","version":"1"},"paths":{
	"/health":{"get":{"responses":{}}},"/things":{"get":{"responses":{}}}}}`

// A revision's data changes severities and leaves out rules, or rules below a
// place; what it says amiss changes nothing.
func TestSettings(t *testing.T) {
	tests := []struct {
		name, data string
		at         []string
		severity   string
	}{
		{"none", ``, []string{"/paths/~1health/get", "/paths/~1things/get"}, "low"},
		{"another severity", `{"muster":{"definition":{"severity":{"read-restricted":"high"}}}}`, []string{"/paths/~1health/get", "/paths/~1things/get"}, "high"},
		{"ignored", `{"muster":{"definition":{"ignore":["read-restricted"]}}}`, nil, ""},
		{"ignored in one place", `{"muster":{"definition":{"ignore":[{"rule":"read-restricted","path":"/paths/~1health"}]}}}`, []string{"/paths/~1things/get"}, "low"},
		{"half a name is none", `{"muster":{"definition":{"ignore":[{"rule":"read-restricted","path":"/paths/~1heal"},{"rule":"read-restricted","path":""}]}}}`, []string{"/paths/~1health/get", "/paths/~1things/get"}, "low"},
		{"no such severity", `{"muster":{"definition":{"severity":{"read-restricted":"none"}}}}`, []string{"/paths/~1health/get", "/paths/~1things/get"}, "low"},
		{"of another kind", `{"muster":{"definition":{"severity":["read-restricted"],"ignore":"read-restricted"}}}`, []string{"/paths/~1health/get", "/paths/~1things/get"}, "low"},
		{"nothing of it", `{"muster":7}`, []string{"/paths/~1health/get", "/paths/~1things/get"}, "low"},
	}
	l := open(t, library.Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := l.Review(t.Context(), revision(tt.data), "openapi", []byte(twoReads), nil)
			if diff := cmp.Diff(tt.at, paths(r, "read-restricted")); diff != "" {
				t.Error(diff)
			}
			for _, f := range r.Findings {
				if f.Rule == "read-restricted" && f.Severity != tt.severity {
					t.Errorf("severity %s, want %s", f.Severity, tt.severity)
				}
			}
		})
	}
}

// What could not be judged is never clean.
func TestNotChecked(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name, format, document, severity string
		ctx                              context.Context
		options                          library.Options
	}{
		{"too slow", "openapi", twoReads, "high", t.Context(), library.Options{Limit: 1}},
		{"too much", "openapi", twoReads[:len(twoReads)-2] + `,"/more":{"post":{"responses":{}}}}}`, "high", t.Context(), library.Options{Entries: 1}},
		{"nobody waits", "openapi", twoReads, "high", ended, library.Options{}},
		{"not a definition", "openapi", `{}`, "high", t.Context(), library.Options{}},
		{"another format", "graphql", `type Query { a: Int }`, "info", t.Context(), library.Options{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := open(t, tt.options).Review(tt.ctx, nil, tt.format, []byte(tt.document), nil)
			if len(r.Findings) != 1 || r.Findings[0].Rule != definition.NotChecked || r.Findings[0].Severity != tt.severity || r.Findings[0].Message == "" {
				t.Errorf("findings %+v", r.Findings)
			}
			if r.Counts != nil {
				t.Errorf("counts %v of what was not checked", r.Counts)
			}
		})
	}
}
