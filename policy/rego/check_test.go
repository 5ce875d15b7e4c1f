package rego

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

func TestCheckRunsTheTests(t *testing.T) {
	e := engine(t)
	tests := `package t_test
import data.api.registry.authz
test_yes if authz.allow with input as {"token": "a"}
test_data if data.table.x == 1
test_schema if is_valid_schema({"openapi": "3.1.0"})
todo_test_later if false
`
	c := &policy.Content{Modules: map[string]string{"p.rego": head + "default allow := false\nallow if input.token == \"a\"", "p_test.rego": tests}, Data: []byte(`{"table":{"x":1}}`)}
	rev := stage(t, c)
	report, err := e.Check(t.Context(), &rev.Content)
	if err != nil || report.Tests != (policy.Tests{Passed: 3}) || len(report.Findings) != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	if !e.Prepared(rev) {
		t.Error("what was checked is not prepared")
	}
	c.Modules["p_test.rego"] += "test_no if authz.allow with input as {}\ntest_error if to_number(\"x\") == 1\n"
	rev = stage(t, c)
	report, err = e.Check(t.Context(), &rev.Content)
	f := refusal(t, err)
	if report.Tests != (policy.Tests{Passed: 3, Failed: 2}) || len(f.Places) != 2 {
		t.Fatalf("%+v, %+v", report, f.Places)
	}
	if p := f.Places[0]; p.File != "p_test.rego" || p.Row != 7 || !strings.Contains(p.Message, "test_no") {
		t.Errorf("%+v", p)
	}
}

func TestCheckSaysWhereTheMistakesAre(t *testing.T) {
	for name, c := range map[string]struct {
		modules []string
		want    []string // file:row of each place, in order
	}{
		"syntax":             {[]string{"a.rego", head + "allow if {\n\tx ==\n}"}, []string{"a.rego:4"}},
		"two files":          {[]string{"b.rego", "package b\nx :=", "a.rego", "nonsense"}, []string{"a.rego:1", "b.rego:2", "b.rego:2"}},
		"unsafe":             {[]string{"a.rego", head + "allow if x == y"}, []string{"a.rego:2", "a.rego:2"}},
		"unknown function":   {[]string{"a.rego", head + "allow if f(1)"}, []string{"a.rego:2"}},
		"recursion":          {[]string{"a.rego", head + "a if b\nb if a"}, []string{"a.rego:2", "a.rego:3"}},
		"v0, further":        {[]string{"a.rego", head + "allow { input.a }\nb { c( }"}, []string{"a.rego:3"}},
		"mistake in a test":  {[]string{"a.rego", head, "a_test.rego", "package t\ntest_x if g(1)"}, []string{"a_test.rego:2"}},
		"empty":              {[]string{"a.rego", ""}, []string{"a.rego:0"}},
		"conflict with data": {[]string{"a.rego", "package table\nx := 2"}, []string{"a.rego:2"}},
	} {
		t.Run(name, func(t *testing.T) {
			content := &policy.Content{Modules: map[string]string{}, Data: []byte(`{"table":{"x":1}}`)}
			for i := 0; i < len(c.modules); i += 2 {
				content.Modules[c.modules[i]] = c.modules[i+1]
			}
			rev := stage(t, content)
			_, err := engine(t).Check(t.Context(), &rev.Content)
			f := refusal(t, err)
			var got []string
			for _, p := range f.Places {
				got = append(got, fmt.Sprintf("%s:%d", p.File, p.Row))
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("places %v, want %v: %v", got, c.want, err)
			}
		})
	}
}

func TestBothVersionsOfRegoInOneRevision(t *testing.T) {
	rev := revision(t, "old.rego", "package lib\nok { input.token == \"a\" }\nlist[x] { x := input.path[_] }",
		"new.rego", head+"default allow := false\nallow if {\n\tdata.lib.ok\n\t\"v1\" in data.lib.list\n}")
	e := engine(t)
	report, err := e.Check(t.Context(), &rev.Content)
	if err != nil || len(report.Findings) != 1 || report.Findings[0].Rule != "rego-v0" || report.Findings[0].File != "old.rego" {
		t.Fatalf("%+v, %v", report, err)
	}
	if d := e.Decide(t.Context(), rev, &policy.Input{Token: "a", Path: []string{"v1"}}); !d.Allow {
		t.Errorf("%+v", d)
	}
}

func TestDeepNestingEndsQuickly(t *testing.T) {
	for _, open := range []string{"[", "{", "(", "f(", "not ", "- "} {
		rev := revision(t, "p.rego", head+"allow := "+strings.Repeat(open, 200_000))
		if _, err := engine(t).Check(t.Context(), &rev.Content); !fault.Is(err, fault.InvalidPolicy) {
			t.Errorf("%q: %v", open, err)
		}
	}
}

func TestManyAtOnceCompileOnce(t *testing.T) {
	e := engine(t)
	rev := revision(t, "p.rego", head+"default allow := false\nallow if input.token == \"a\"")
	if e.Prepared(rev) {
		t.Fatal("prepared before anyone asked")
	}
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if d := e.Decide(t.Context(), rev, &policy.Input{Token: "a"}); !d.Allow {
				t.Errorf("%+v", d)
			}
		})
	}
	wg.Wait()
	if got := e.shelf.made.Load(); got != 1 || !e.Prepared(rev) {
		t.Errorf("compiled %d times", got)
	}
}

func TestARevisionThatDoesNotCompileRefusesAndIsTriedOnce(t *testing.T) {
	e := engine(t)
	rev := revision(t, "p.rego", head+"allow if nonsense(1)")
	for range 3 {
		if d := e.Decide(t.Context(), rev, &policy.Input{}); d.Allow || !strings.Contains(d.Reasons[0], "revision 7 does not compile") {
			t.Fatalf("%+v", d)
		}
	}
	if err := e.Prepare(t.Context(), rev); !fault.Is(err, fault.InvalidPolicy) || e.Prepared(rev) {
		t.Errorf("Prepare: %v", err)
	}
	if got := e.shelf.made.Load(); got != 1 {
		t.Errorf("compiled %d times", got)
	}
}

func TestDecideGivesUpWaitingForTheCompilerWithItsCaller(t *testing.T) {
	e := engine(t)
	rev := revision(t, "p.rego", head+"allow := true")
	started, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_, err := e.shelf.make(context.Background(), rev.Digest, func() *set {
			close(started)
			<-release
			return e.compile(&rev.Content)
		})
		if err != nil {
			t.Error(err)
		}
	}()
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Prepare(ctx, rev); !errors.Is(err, context.Canceled) {
		t.Errorf("Prepare: %v", err)
	}
	if d := e.Decide(ctx, rev, &policy.Input{}); d.Allow || !strings.Contains(d.Reasons[0], "not ready in time") {
		t.Errorf("%+v", d)
	}
	close(release)
	<-ended
}

func TestTheSetInUseStaysWhileOthersComeAndGo(t *testing.T) {
	e := engine(t, func(o *Options) { o.Sets = 3 })
	active := revision(t, "p.rego", head+"allow := true")
	if err := e.Prepare(t.Context(), active); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		e.Decide(t.Context(), active, &policy.Input{})
		if err := e.Prepare(t.Context(), revision(t, "p.rego", fmt.Sprintf("package x%d", i))); err != nil {
			t.Fatal(err)
		}
		if !e.Prepared(active) {
			t.Fatal("the set in use was dropped")
		}
	}
	if n := len(*e.shelf.sets.Load()); n != 3 {
		t.Errorf("%d sets are kept", n)
	}
}
