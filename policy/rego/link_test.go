package rego

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/policy"
)

// edits are ways to change a module of teams, with whether the rest may be
// used again.
var edits = []struct {
	from, to string
	again    bool
}{
	{"<= 3", "<= 1", true},
	{"lib.has_role(\"publisher\")", "lib.has_role(\"viewer\")", true},
	{"input.action == \"delete\"", "input.action == \"delete\"\n\tinput.token == \"t\"", true},
	{"lib.owner == \"\"", "x := lib.owner\n\ty := [x, x]\n\tcount([z | some z in y; z == x]) == 2", true},
	{"default allow := false", "default allow := true", true},
	{"allow if {\n\tinput.action == \"delete\"", "allow if data.people[_].name == input.principal.id\n\nallow if {\n\tinput.action == \"delete\"", true},
	{"on_call := [person.name | some", "on_call := [person | some", true},
	{"on_call := [", "on_call := 1\n\nwas := [", false},
	{"small if", "small := input.token if input.token != \"\"\n\nnothing if", false},
	{"contacts :=", "more := data.teams.t001.contacts\n\ncontacts :=", false},
	{"small if count", "small if rego.metadata.rule() == {}\n\nsmall if count", false},
	{"small if count", "small if data.teams.t002.allow\n\nsmall if count", true},
	{"small if count", "small if data.teams[input.token].small2\n\nsmall2 if count", false},
}

// shapes are modules with all that tables are made of: rules at general
// places and below them, branches, a package in several files, and
// comprehensions with and without an index.
func shapes(c *policy.Content) *policy.Content {
	maps.Copy(c.Modules, map[string]string{
		"shapes/a.rego": "package shapes\n\nat[x].left := 1 if x := input.token\n\nat[x].right := 2 if x := input.action\n\n" +
			"level := 1 if input.action == \"update\" else := 2 if input.token == \"t\" else := 3\n\nlevel := 1 if input.action == \"patch\"\n",
		"shapes/b.rego": "package shapes\n\nat[x].right := 2 if x := input.principal.id\n\n" +
			"peers contains name if {\n\tsome p in data.people\n\tname := p.name\n\tnames := [q.name | some q in data.people; q.team == p.team]\n\tcount(names) > 0\n}\n",
		"shapes/c.rego": "package shapes.at\n\nunder := 3 if data.shapes.level == 3\n",
		"shapes/user.rego": "package user\n\nimport data.shapes\n\nall contains k if some k, v in shapes.at\n\n" +
			"high if shapes.level == 3\n\nnamed := shapes.level\n\nright := shapes.at[input.token].right\n\nleft := shapes.at.t.left\n\ntest := walked if some [walked, \"ann\"] in {[1, x] | some x in shapes.peers}\n",
		"shapes/hidden.rego": "package system.log\n\nmask contains \"/input/token\" if data.shapes.level == 3\n",
	})
	c.Modules["teams/t003.rego"] += "\nallow if {\n\tdata.user.high\n\tdata.user.right == 2\n\tcount(data.user.all) > 1\n\tdata.user.left\n}\n\ndeny contains name if some name in data.shapes.peers\n"
	return c
}

// reshape are changes to them, by file.
var reshape = []struct{ file, from, to string }{
	{"shapes/a.rego", "if x := input.token", "if {\n\tx := input.token\n\tx != \"t001\"\n}"},
	{"shapes/a.rego", "at[x].right := 2 if x := input.action\n", "at[x].right := 2 if x := input.resource.kind\n\nat[x].right := 2 if x := input.resource.namespace\n"},
	{"shapes/a.rego", "at[x].right := 2 if x := input.action\n", ""},
	{"shapes/a.rego", "at[x].left := 1", "at[x].lower := 1"},
	{"shapes/a.rego", " else := 2 if input.token == \"t\"", " else := 2 if input.token == \"t\" else := 2 if input.principal.id == \"ann\""},
	{"shapes/a.rego", " else := 2 if input.token == \"t\"", ""},
	{"shapes/a.rego", "\nlevel := 1 if input.action == \"patch\"\n", ""},
	{"shapes/b.rego", "if x := input.principal.id", "if x := data.people[_].name"},
	{"shapes/b.rego", "q.team == p.team", "q.team != \"\""},
	{"shapes/b.rego", "q.team != \"\"", "q.team == p.team"},
	{"shapes/c.rego", "data.shapes.level == 3", "data.shapes.level == 1"},
	{"shapes/c.rego", "data.shapes.level == 3", "true"},
	{"shapes/c.rego", "under", "other"},
	{"shapes/user.rego", "some k, v in shapes.at", "some k, v in shapes.at[_]"},
	{"shapes/user.rego", "shapes.at[input.token].right", "shapes.at[input.action].right"},
	{"shapes/user.rego", "shapes.at.t.left", "shapes.at.t001.left"},
	{"shapes/hidden.rego", "level == 3", "level == 2"},
	{"teams/t003.rego", "data.user.high", "data.user[\"high\"]"},
}

func whereIs(r *ast.Rule) string {
	return fmt.Sprintf("%s:%d:%d", r.Location.File, r.Location.Row, r.Location.Col)
}

func placesOf(rules []*ast.Rule) (all []string) {
	for _, r := range rules {
		all = append(all, whereIs(r))
	}
	return all
}

// nothing knows no document.
type nothing struct{}

func (nothing) Resolve(ast.Ref) (ast.Value, error) { return nil, ast.UnknownValueErr{} }

// tables writes out all that leads to rules: the tree with its indices, what
// depends on what, and how many comprehensions of each file have an index.
func tables(s *set, depends edges) string {
	var b strings.Builder
	var walk func(n *ast.TreeNode, depth int)
	walk = func(n *ast.TreeNode, depth int) {
		values := placesOf(n.Values)
		fmt.Fprintf(&b, "%*s%v %v hidden %v", depth, "", n.Key, values, n.Hide)
		if n.Index != nil {
			for _, look := range []func(ast.ValueResolver) (*ast.IndexResult, error){n.Index.Lookup, n.Index.AllRules} {
				r, err := look(nothing{})
				if err != nil {
					panic(err)
				}
				fmt.Fprintf(&b, " index %v %v %v %v %v", placesOf(r.Rules), r.Default != nil, r.Kind, r.EarlyExit, r.OnlyGroundRefs)
				for _, rule := range r.Rules {
					fmt.Fprintf(&b, " else %v", placesOf(r.Else[rule]))
				}
			}
		}
		b.WriteByte('\n')
		if len(n.Sorted) != len(n.Children) {
			panic("children are missing")
		}
		for _, key := range n.Sorted {
			walk(n.Children[key], depth+1)
		}
	}
	walk(s.compiler.RuleTree, 0)
	var lines []string
	for r, to := range depends {
		all := placesOf(to)
		slices.Sort(all)
		lines = append(lines, fmt.Sprintf("%s -> %v", whereIs(r), all))
	}
	for file, m := range s.compiler.Modules {
		n := 0
		ast.WalkTerms(m, func(t *ast.Term) bool {
			if s.compiler.ComprehensionIndex(t) != nil {
				n++
			}
			return false
		})
		lines = append(lines, fmt.Sprintf("%s has %d, noted %v", file, n, s.indexed[file]))
	}
	slices.Sort(lines)
	return b.String() + strings.Join(lines, "\n")
}

// What leads to the rules of a linked revision is what a compiler makes of all
// of it.
func TestTablesOfLinkedRevisions(t *testing.T) {
	linked := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		e, other := New(Options{CacheTTL: -1}), New(Options{CacheTTL: -1})
		defer e.Close()
		defer other.Close()
		c := shapes(teams(4))
		c.Data = []byte(`{"people":[{"name":"ann","team":"t001","on_call":true}]}`)
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			s, fresh := e.compile(c), other.compile(c)
			if s.err != nil || fresh.err != nil {
				if fmt.Sprint(s.err) != fmt.Sprint(fresh.err) {
					t.Fatalf("%v, compiled: %v", s.err, fresh.err)
				}
				return
			}
			depends := edges{}
			depends.add(fresh.compiler.Graph, fresh.compiler.Modules)
			if got, want := tables(s, s.depends), tables(fresh, depends); got != want {
				t.Fatalf("%s\n\ncompiled:\n%s", got, want)
			}
			e.latest.Store(s)
			c = &policy.Content{Modules: maps.Clone(c.Modules), Data: c.Data}
			edit := rapid.SampledFrom(reshape).Draw(t, "edit")
			c.Modules[edit.file] = strings.Replace(c.Modules[edit.file], edit.from, edit.to, 1)
			if s.linked {
				linked[edit.file]++
			}
		}
	})
	if len(linked) < 3 {
		t.Errorf("linked: %v", linked)
	}
}

// A query may replace what rules decide by, in a linked revision as well.
func TestQueriesReplaceRulesOfLinkedRevisions(t *testing.T) {
	e := engine(t)
	c := shapes(teams(2))
	c.Modules["teams/t003.rego"] = team(3, 3)
	if err := e.Prepare(t.Context(), stage(t, c)); err != nil {
		t.Fatal(err)
	}
	c.Modules["shapes/hidden.rego"] = strings.Replace(c.Modules["shapes/hidden.rego"], "level == 3", "level == 2", 1)
	rev := stage(t, c)
	if err := e.Prepare(t.Context(), rev); err != nil || !e.shelf.get(rev.Digest).linked {
		t.Fatal(err, "or not linked")
	}
	found, err := e.Query(t.Context(), rev, &Query{Metrics: metrics.New(), Body: ast.MustParseBody(`startswith(data.user.named, "n") with data.shapes.level as "none"`)})
	if err != nil || len(found.Results) != 1 {
		t.Errorf("%+v, %v", found, err)
	}
}

func someTeamInput(t *rapid.T) *policy.Input {
	in := &policy.Input{
		Action: policy.Action(rapid.SampledFrom([]string{"register", "delete", "update"}).Draw(t, "action")),
		Token:  rapid.SampledFrom([]string{"", "t", "t001"}).Draw(t, "token"), Principal: policy.Principal{Kind: "token", ID: "ann"},
		Resource: policy.Resource{Kind: "service", Namespace: fmt.Sprintf("t%03d", rapid.IntRange(0, 3).Draw(t, "team")),
			Payload: []byte(rapid.SampledFrom([]string{`{"owner":""}`, `{"owner":"x","instances":[1,2]}`, `{"instances":[1,2,3,4],"servers":[{"url":"http://a"}]}`,
				`{"owner":"x","paths":{"/a":{"post":{},"get":{}}}}`}).Draw(t, "payload"))},
	}
	for _, role := range []string{"publisher", "viewer", "owner-1"} {
		if rapid.Bool().Draw(t, role) {
			in.Principal.Roles = append(in.Principal.Roles, role)
		}
	}
	return in
}

// A revision that is made out of the one before decides like one that is
// compiled from nothing, after any number of changes.
func TestLinkedRevisionsDecideAsCompiledOnes(t *testing.T) {
	linked := 0
	rapid.Check(t, func(t *rapid.T) {
		e := New(Options{CacheTTL: -1, Limit: 1 << 33})
		defer e.Close()
		c := shapes(teams(4))
		c.Data = []byte(`{"people":[{"name":"ann","team":"t001","on_call":true}]}`)
		for range rapid.IntRange(1, 5).Draw(t, "changes") {
			rev := &policy.Revision{Number: 1, Digest: c.Digest(), Content: *c}
			err := e.Prepare(t.Context(), rev)
			other := New(Options{CacheTTL: -1, Limit: 1 << 33})
			s, fresh := e.shelf.get(rev.Digest), other.compile(&rev.Content)
			if err != nil || fresh.err != nil {
				if fmt.Sprint(err) != fmt.Sprint(fresh.err) {
					t.Fatalf("%v, compiled: %v", err, fresh.err)
				}
				other.Close()
				return
			}
			if s.linked {
				linked++
			}
			for path, entry := range s.ready {
				a, b := entry, fresh.ready[path]
				if a.defined != b.defined || a.cacheable != b.cacheable || fmt.Sprint(a.projection) != fmt.Sprint(b.projection) && fmt.Sprint(s.analyse(path, answers)) != fmt.Sprint(fresh.analyse(path, answers)) {
					t.Fatalf("%s: %+v, compiled %+v", path, a, b)
				}
			}
			for range 8 {
				in := someTeamInput(t)
				got, want := e.Decide(t.Context(), rev, in), other.Decide(t.Context(), rev, in)
				got.ID, want.ID = "", ""
				if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
					t.Fatalf("%+v\ncompiled: %+v\n%v", got, want, c.Modules)
				}
			}
			other.Close()
			c = &policy.Content{Modules: maps.Clone(c.Modules), Data: c.Data}
			file := rapid.SampledFrom([]string{"teams/t001.rego", "teams/t002.rego", "lib.rego"}).Draw(t, "file")
			edit := rapid.SampledFrom(edits).Draw(t, "edit")
			if !strings.Contains(c.Modules[file], edit.to) {
				c.Modules[file] = strings.Replace(c.Modules[file], edit.from, edit.to, 1)
			}
			if rapid.Bool().Draw(t, "reshape") {
				edit := rapid.SampledFrom(reshape).Draw(t, "shape")
				c.Modules[edit.file] = strings.Replace(c.Modules[edit.file], edit.from, edit.to, 1)
			}
		}
	})
	if linked == 0 {
		t.Error("no revision was made out of another")
	}
}

func TestWhatOthersSeeDecidesWhetherARevisionIsLinked(t *testing.T) {
	for _, edit := range edits {
		e := engine(t)
		c := teams(4)
		if s := e.compile(&policy.Content{Modules: maps.Clone(stage(t, c).Modules)}); s.err != nil {
			t.Fatal(s.err)
		} else {
			e.latest.Store(s)
		}
		c.Modules["teams/t001.rego"] = strings.Replace(c.Modules["teams/t001.rego"], edit.from, edit.to, 1)
		s := e.compile(&stage(t, c).Content)
		if s.err == nil && s.linked != edit.again {
			t.Errorf("%q: linked = %v", edit.to, s.linked)
		}
	}
}

// Mistakes in a changed module are found as if all were compiled.
func TestMistakesAreFoundWhereARevisionIsLinked(t *testing.T) {
	for _, wrong := range []string{
		"allow if nobody(1)", "allow if x", "recursive if allow\nallow if recursive", "allow if data.lib.has_role(1, 2, 3)", "allow := 1 if allow2",
		"default allow := true", "allow(x) := x", "allow if http.send({})", "import data.teams.t002 as x\nimport data.lib as x",
		"y if data.api.registry.authz.allow\nallow if y",
	} {
		e := engine(t)
		c := teams(4)
		if err := e.Prepare(t.Context(), stage(t, c)); err != nil {
			t.Fatal(err)
		}
		c.Modules["teams/t001.rego"] += wrong + "\n"
		rev := stage(t, c)
		again, whole := e.Prepare(t.Context(), rev), engine(t).Prepare(t.Context(), rev)
		if again == nil || whole == nil || again.Error() != whole.Error() {
			t.Errorf("%s: %v, and from nothing: %v", wrong, again, whole)
		}
	}
}

// What others look at stays as it is: modules are shared between revisions.
func TestSharedModulesAreNotChanged(t *testing.T) {
	e := engine(t)
	c := teams(4)
	first := stage(t, c)
	if err := e.Prepare(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	before := map[string]string{}
	var modules map[string]*ast.Module = e.shelf.get(first.Digest).compiler.Modules
	for file, m := range modules {
		before[file] = m.String()
	}
	for i := range 5 {
		c = &policy.Content{Modules: maps.Clone(c.Modules)}
		c.Modules["teams/t001.rego"] = team(1, 4+i)
		if err := e.Prepare(t.Context(), stage(t, c)); err != nil {
			t.Fatal(err)
		}
	}
	for file, m := range modules {
		if m.String() != before[file] {
			t.Errorf("%s was changed", file)
		}
	}
}

// Decisions go on while revisions are made out of the one that decides.
func TestLinkingWhileDeciding(t *testing.T) {
	e := engine(t, func(o *Options) { o.CacheTTL = -1 })
	c := teams(8)
	first := stage(t, c)
	if err := e.Prepare(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	in := &policy.Input{Action: policy.Register, Principal: policy.Principal{Kind: "token", Roles: []string{"publisher"}},
		Resource: policy.Resource{Kind: "service", Namespace: "t001", Payload: []byte(`{"owner":"x","servers":[{"url":"https://a"}]}`)}}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if d := e.Decide(t.Context(), first, in); !d.Allow {
					t.Errorf("%+v", d)
					return
				}
			}
		})
	}
	for i := range 10 {
		c = &policy.Content{Modules: maps.Clone(c.Modules)}
		c.Modules["teams/t001.rego"] = team(1, 4+i)
		rev := stage(t, c)
		if err := e.Prepare(t.Context(), rev); err != nil {
			t.Error(err)
		}
		if !e.shelf.get(rev.Digest).linked {
			t.Error("not made out of the one before")
		}
		if d := e.Decide(t.Context(), rev, in); !d.Allow {
			t.Errorf("%+v", d)
		}
	}
	close(done)
	wg.Wait()
}
