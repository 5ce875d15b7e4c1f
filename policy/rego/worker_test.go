package rego

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/policy"
)

// endless is a policy that compares two documents, equal and built apart, in
// which one part stands 2^28 times: OPA cannot be interrupted in that, and it takes longer
// than an evaluation is waited for. It does
// so when the request's method is one of the names.
func endless(when string) string {
	var b strings.Builder
	b.WriteString("package api.registry.authz\nimport rego.v1\ndefault allow := false\nallow if input.method == \"GET\"\n")
	b.WriteString("allow if {\n\t" + when + "\n\ts := {a28}\n\tx := b28\n\ts[x]\n}\n")
	for _, v := range []string{"a", "b"} {
		fmt.Fprintf(&b, "%s0 := {\"x\": input.method}\n", v)
		for i := range 28 {
			// The union hides the type, which the compiler would not get done with.
			fmt.Fprintf(&b, "%s%d := object.union({\"l\": %s%d, \"r\": %s%d}, {})\n", v, i+1, v, i, v, i)
		}
	}
	return b.String()
}

// swelling is a policy that the compiler does not get done with: it compares
// the types of two such documents.
func swelling() string {
	return strings.NewReplacer("object.union(", "", ", {})", "", "x := b28", "x := b28\n\ta28 == b28").Replace(endless("true"))
}

// An evaluation that nothing can end is left behind: its caller is refused, a
// revision that goes on like that is not asked any more, and others are not
// kept from being asked.
func TestWhatCannotBeInterruptedIsLeftBehind(t *testing.T) {
	// Long enough to get to the step that nothing ends: what is cut off before is no news.
	e := engine(t, func(o *Options) { o.Limit, o.CacheTTL = time.Second, -1 })
	rev := revision(t, "a.rego", endless(`input.method == "POST"`))
	good := revision(t, "a.rego", "package api.registry.authz\nimport rego.v1\nallow if input.method == \"POST\"")
	for _, r := range []*policy.Revision{rev, good} {
		if err := e.Prepare(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	post := &policy.Input{Action: policy.Register, Method: "POST"}
	for i := range maxStuck {
		began := time.Now()
		if d := e.Decide(t.Context(), rev, post); d.Allow || !strings.Contains(strings.Join(d.Reasons, ""), "cut off") {
			t.Fatalf("question %d: %+v, want a refusal because of the time", i, d)
		}
		if took := time.Since(began); took > 2*time.Minute {
			t.Fatalf("question %d: refused after %v", i, took)
		}
	}
	began := time.Now()
	if d := e.Decide(t.Context(), rev, post); d.Allow || !strings.Contains(strings.Join(d.Reasons, ""), "not asked any more") || time.Since(began) > 30*time.Second {
		t.Errorf("after %v: %+v, want an immediate refusal", time.Since(began), d)
	}
	if d := e.Decide(t.Context(), good, post); !d.Allow {
		t.Errorf("another revision is kept from deciding: %+v", d)
	}
	if len(e.slots) != 0 {
		t.Errorf("%d slots are held by what was left behind", len(e.slots))
	}
}

func TestCheckRefusesWhatCannotBeInterrupted(t *testing.T) {
	limits := func(o *Options) {
		o.Limit, o.TestLimit, o.CompileLimit = time.Second, time.Second, 8*time.Second
	}
	for name, modules := range map[string][]string{
		"on the first question": {"a.rego", endless(`input.method == "PUT"`)},
		"when compiled":         {"a.rego", swelling()},
		"in a test": {"a.rego", endless(`input.method == "POST"`),
			"a_test.rego", "package api.registry.authz_test\nimport rego.v1\nimport data.api.registry.authz\ntest_it if authz.allow with input as {\"method\": \"POST\"}"},
	} {
		t.Run(name, func(t *testing.T) {
			e := engine(t, limits)
			rev := revision(t, modules...)
			began := time.Now()
			_, err := e.Check(t.Context(), &rev.Content)
			if err == nil || !strings.Contains(err.Error(), "invalid_policy") {
				t.Errorf("error = %v, want invalid_policy", err)
			}
			if took := time.Since(began); took > 2*time.Minute {
				t.Errorf("refused after %v", took)
			}
		})
	}
}

// An input of very many values is refused before it keeps an evaluation busy.
func TestInputsOfVeryManyValuesAreRefused(t *testing.T) {
	e := engine(t)
	rev := revision(t, "a.rego", "package api.registry.authz\nimport rego.v1\nallow if input.resource.payload == input.resource.previous")
	many := []byte("[" + strings.Repeat("0,", maxValues) + "0]")
	in := &policy.Input{Action: policy.Register, Resource: policy.Resource{Payload: many, Previous: many}}
	if d := e.Decide(t.Context(), rev, in); d.Allow || !strings.Contains(strings.Join(d.Reasons, ""), "more than 1048576 values") {
		t.Errorf("%+v", d)
	}
	// Names count as values do.
	named := []byte("{")
	for i := range maxValues/2 + 1 {
		named = fmt.Appendf(named, "\"%x\":0,", i)
	}
	named[len(named)-1] = '}'
	d, err := e.DecideRaw(t.Context(), rev, "", fmt.Appendf(nil, `{"resource":{"payload":%s}}`, named))
	if err != nil || d.Allow || len(d.Reasons) != 1 || d.Reasons[0] != "the input holds more than 1048576 values" {
		t.Errorf("%+v, %v", d, err)
	}
}
