package rego

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
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
		c := teams(4)
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
				if a.defined != b.defined || a.cacheable != b.cacheable || fmt.Sprint(a.projection) != fmt.Sprint(b.projection) && fmt.Sprint(s.analyse(path)) != fmt.Sprint(fresh.analyse(path)) {
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
