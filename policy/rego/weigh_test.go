package rego

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// doubled is lines in which each value stands twice in the next.
func doubled(form string) string {
	var b strings.Builder
	b.WriteString("a0 := [input.x]\n")
	for i := range 40 {
		fmt.Fprintf(&b, form+"\n", i+1, i, i)
	}
	return b.String()
}

// The compiler cannot be interrupted, so what it would not get done with is
// refused before. Whoever may ask the policy must not fill a node's memory.
func TestQueriesDoNotKeepTheCompilerBusy(t *testing.T) {
	e := engine(t)
	rev := revision(t, "a.rego", head+"allow if input.method == \"POST\"\nwide := {\"a\": [1, 2, {\"b\": 3}]}")
	if err := e.Prepare(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ query, says string }{
		"arrays":         {doubled("a%d := [a%d, a%d]") + "true", "has a type of more than"},
		"objects":        {doubled(`a%d := {"l": a%d, "r": a%d}`) + "true", "has a type of more than"},
		"sets":           {doubled("a%d := {a%d, [a%d]}") + "true", "has a type of more than"},
		"unified":        {doubled("[a%d, 1] = [[a%d, a%d], 1]") + "true", "has a type of more than"},
		"in another":     {doubled("a%d := [y | y := [a%d, a%d]]") + "true", "has a type of more than"},
		"as the input":   {doubled("a%d := [[y, y] | y := input] with input as [a%d, a%d]") + "true", "has a type of more than"},
		"last line":      {strings.ReplaceAll(doubled("a%d = [a%d, a%d]"), ":=", "=") + "true", "has a type of more than"},
		"nested":         {strings.Repeat("[x | x := ", 400) + "1" + strings.Repeat("]", 400), "nested deeper than"},
		"long":           {strings.Repeat("true; ", 20_000) + "true", "more than 65536 bytes"},
		"many":           {strings.Repeat("true; ", 2000) + "true", "has 2001 expressions"},
		"a rule's value": {"x := data.api.registry.authz.wide; y := [x, x]; true", ""},
		"a few levels":   {"a0 := [input.x]\n" + chain(10, "[a%d, a%d]") + "true", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := e.Eval(t.Context(), rev, c.query, []byte(`{"x":1}`), false)
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("error = %v, want %q", err, c.says)
			}
		})
	}
	if d := e.Decide(t.Context(), rev, &policy.Input{Action: policy.Register, Method: "POST"}); !d.Allow {
		t.Errorf("the registry's decisions are refused afterwards: %+v", d)
	}
}

// The same lines in a module are refused while they are still text.
func TestModulesDoNotKeepTheCompilerBusy(t *testing.T) {
	var rules strings.Builder
	for i := range 40 {
		fmt.Fprintf(&rules, "r%d := [r%d, r%d]\n", i+1, i, i)
	}
	for name, module := range map[string]string{
		"in one rule":      "allow if {\n" + doubled("a%d := [a%d, a%d]") + "}",
		"over rules":       "r0 := [input.x]\n" + rules.String() + "allow if r40",
		"through a result": "r0 := [input.x]\nf(_) := r40\n" + rules.String() + "allow if f(1)",
		"in else":          "allow := false if input.x else := true if {\n" + doubled("a%d := [a%d, a%d]") + "}",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := engine(t).Check(t.Context(), &revision(t, "a.rego", head+module).Content)
			if err == nil || !strings.Contains(err.Error(), "has a type of more than") {
				t.Errorf("error = %v", err)
			}
		})
	}
}

// Large inputs take turns, so that many at once do not fill the memory; small
// ones do not wait for them.
func TestLargeInputsTakeTurns(t *testing.T) {
	e := engine(t)
	rev := revision(t, "a.rego", head+"allow if count(input.list) > 0")
	ask := func(ctx context.Context, bytes int) error {
		body := []byte(`{"input":{"list":["` + strings.Repeat("x", bytes) + `"]}}`)
		_, err := e.Document(ctx, rev, &Ask{Path: "api/registry/authz/allow", Body: body})
		return err
	}
	for range cap(e.large) + 1 { // none is lost
		if err := ask(t.Context(), largeInput); err != nil {
			t.Fatal(err)
		}
	}
	for range cap(e.large) {
		e.large <- struct{}{}
	}
	left, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ask(left, largeInput); !fault.Is(err, fault.NotReady) {
		t.Errorf("error = %v, want not_ready", err)
	}
	d, err := e.DecideRaw(left, rev, "", []byte(`{"list":["`+strings.Repeat("x", largeInput)+`"]}`))
	if err != nil || d.Allow || !d.Missed {
		t.Errorf("%+v %v, want a refusal", d, err)
	}
	if err := ask(t.Context(), 10); err != nil {
		t.Errorf("a small one: %v", err)
	}
}

// What is no part of the policy takes neither the places of the registry's
// decisions nor, when it does not end, the revision out of service.
func TestQueriesDoNotStandInTheWayOfDecisions(t *testing.T) {
	e := engine(t, func(o *Options) { o.CacheTTL = -1 })
	rev := revision(t, "a.rego", head+"allow if input.method == \"POST\"")
	s, err := e.compiled(t.Context(), rev.Digest, &rev.Content)
	if err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	var asked sync.WaitGroup
	for range cap(e.queries) {
		asked.Go(func() {
			if _, err := e.superviseFor(t.Context(), e.queries, s, "a query", time.Millisecond, func() any { <-hold; return nil }); err == nil {
				t.Error("a query that does not end was answered")
			}
		})
	}
	asked.Wait()
	if _, err := e.Eval(t.Context(), rev, "true", nil, false); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("one query more: %v, want it refused", err)
	}
	for range cap(e.asked) {
		e.asked <- struct{}{}
	}
	if d := e.Decide(t.Context(), rev, &policy.Input{Action: policy.Register, Method: "POST"}); !d.Allow {
		t.Errorf("the registry's decisions wait for others: %+v", d)
	}
	close(hold)
	for deadline := time.Now().Add(time.Minute); len(e.queries) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d places are held by queries that have ended", len(e.queries))
		}
	}
	if _, err := e.Eval(t.Context(), rev, "true", nil, false); err != nil {
		t.Error(err)
	}
}
