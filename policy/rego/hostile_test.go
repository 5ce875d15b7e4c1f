package rego

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/policy"
)

// shared builds two equal documents apart from each other, of 2^levels parts,
// under the names a and b, when the input's method is POST; otherwise they are
// small. Each level is two references to the one below.
func shared(levels int) string {
	var b strings.Builder
	for _, v := range []string{"a", "b"} {
		fmt.Fprintf(&b, "%s0 := {\"x\": input.method}\n", v)
		for i := range levels {
			// The union hides the type, which the compiler would not get done with.
			fmt.Fprintf(&b, "%s%d := object.union({\"l\": %s%d, \"r\": %s%d}, {})\n", v, i+1, v, i, v, i)
		}
		fmt.Fprintf(&b, "%s := %s%d if input.method == \"POST\"\n%s := {\"x\": [1]} if input.method != \"POST\"\n", v, v, levels, v)
	}
	return b.String()
}

// overflowing are the ways to have two documents unified. Without the bound,
// each ends the process.
var overflowing = map[string]string{
	"compared":                 `allow if a == b`,
	"unified":                  `allow if a = b`,
	"variables":                `allow if { x := a; y := b; x = y }`,
	"an element":               `allow if { x := b; l := [a]; l[_] = x }`,
	"an element of a rule":     "l := [a]\nallow if l[_] = b",
	"elements of two":          "l := [a]\nm := [b]\nallow if l[_] = m[_]",
	"in a pattern":             `allow if { x := b; [x, y] = [a, 1]; y == 1 }`,
	"in a known pattern":       `allow if { x := b; [x, 1] = [a, 1] }`,
	"an argument twice":        "f(x, x) := true\nallow if f(a, b)",
	"arguments' patterns":      "f([x], {\"k\": x}) := true\nallow if f([a], {\"k\": b})",
	"an argument's pattern":    "f([x, x]) := true\nallow if f([a, b])",
	"a result":                 "f(x) := a\nallow if f(1) = b",
	"a built-in's result":      `allow if object.union(a, {}) = b`,
	"a key":                    "s contains x if x := a\nallow if s[b]",
	"a key of an object":       "o[x] := 1 if x := a\nallow if o[b] == 1",
	"a key within":             "s contains [x, 1] if x := a\nallow if { y := b; s[[y, 1]] }",
	"negated":                  `allow if not a == b`,
	"negated variables":        `allow if { x := a; y := b; not x = y }`,
	"in a comprehension":       `allow if count([1 | a = b]) == 1`,
	"in a comprehension's":     `allow if { x := a; count([1 | x = b]) == 1 }`,
	"in every":                 `allow if every x in [a] { x = b }`,
	"in else":                  "allow := false if input.method == \"x\" else := true if a = b",
	"with":                     `allow if a = b with input.x as 1`,
	"a walk":                   `allow if { y := b; walk([a], [_, y]) }`,
	"a comprehension compared": `allow if { x := [b]; [a | true] = x }`,
}

func hostile(rules string) string {
	return "package api.registry.authz\nimport rego.v1\ndefault allow := false\n" + shared(22) + rules + "\n"
}

// TestMain lets the test binary be a node that is asked by hostile policies.
func TestMain(m *testing.M) {
	if os.Getenv("MUSTER_TEST_HOSTILE") != "" {
		for name := range overflowing {
			fmt.Println("asking", name)
			if err := askHostile(name); err != nil {
				fmt.Println("FAILED", name, err)
			}
		}
		fmt.Println("asking queries")
		if err := askHostileQueries(); err != nil {
			fmt.Println("FAILED queries", err)
		}
		fmt.Println("alive")
		return
	}
	os.Exit(m.Run())
}

// hostileEngine has limits that a slow machine does not decide anything by.
func hostileEngine(rules string) (*Engine, *policy.Revision) {
	content := policy.Content{Modules: map[string]string{"a.rego": hostile(rules)}}
	e := New(Options{CacheTTL: -1, Limit: 250 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	return e, &policy.Revision{Number: 7, Digest: content.Digest(), Content: content}
}

// askHostileQueries asks what is no rule of the revision.
func askHostileQueries() error {
	e, rev := hostileEngine("")
	defer e.Close()
	for _, query := range []string{
		"data.api.registry.authz.a = data.api.registry.authz.b",
		"x := data.api.registry.authz.a; [y, x] = [1, data.api.registry.authz.b]",
		"[1 | data.api.registry.authz.a = data.api.registry.authz.b]",
	} {
		if v, err := e.Eval(context.Background(), rev, query, []byte(`{"method":"POST"}`), false); err == nil {
			return fmt.Errorf("%s: %s", query, v.Result)
		}
	}
	return nil
}

func askHostile(name string) error {
	ctx := context.Background()
	e, rev := hostileEngine(overflowing[name])
	defer e.Close()
	if err := e.Prepare(ctx, rev); err != nil {
		return err
	}
	if d := e.Decide(ctx, rev, &policy.Input{Action: policy.Register, Method: "POST"}); d.Allow || len(d.Reasons) == 0 {
		return fmt.Errorf("%+v", d)
	}
	d := e.Decide(ctx, rev, &policy.Input{Action: policy.Register, Method: "GET"})
	for end := time.Now().Add(time.Minute); d.Missed && time.Now().Before(end); {
		d = e.Decide(ctx, rev, &policy.Input{Action: policy.Register, Method: "GET"})
	}
	if d.Missed {
		return fmt.Errorf("the next question is not answered: %v", d.Reasons)
	}
	return nil
}

// A policy that makes OPA recurse for each part of a document refuses one
// question, in a process that lives on.
func TestUnificationDoesNotOverflowTheStack(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "MUSTER_TEST_HOSTILE=1")
	out, err := cmd.CombinedOutput()
	said := string(out)
	if err != nil || !strings.HasSuffix(said, "alive\n") || strings.Contains(said, "FAILED") {
		t.Errorf("%v: %s", err, clip(said))
	}
}

// What the rewritten rules answer is what they answer as their author wrote
// them, also where one side is undefined.
func TestRewrittenRulesAnswerTheSame(t *testing.T) {
	e := engine(t)
	values := rapid.SampledFrom([]string{"", "null", "1", `"x"`, "[]", "[1]", "[1,1]", `{"k":1}`, `{"k":[1]}`, `{"k":1,"l":2}`, "false"})
	for name, rules := range overflowing {
		for what, names := range map[string]string{
			"rules":      "a := input.resource.payload\nb := input.resource.previous",
			"undefined":  "a := input.resource.payload.k\nb := input.resource.previous.k",
			"collection": "a := v if some v in input.resource.payload\nb := input.resource.previous[0]",
		} {
			module := "package api.registry.authz\nimport rego.v1\n" + names + "\n" + rules + "\n"
			rewritten, written := e.compile(content(module[len(head):])), e.compile(content(module[len(head):]))
			if rewritten.err != nil {
				t.Fatalf("%s: %v", name, rewritten.err)
			}
			written.compiler = written.asWritten()
			written.depends = edges{} // what its rules read is found by them
			written.depends.add(written.compiler.Graph, written.compiler.Modules)
			entries := []*entry{rewritten.entry(policy.DefaultWrite), written.prepare(policy.DefaultWrite, answers)}
			rapid.Check(t, func(t *rapid.T) {
				in := &policy.Input{Action: policy.Register, Method: "GET", Resource: policy.Resource{
					Payload: []byte(values.Draw(t, "payload")), Previous: []byte(values.Draw(t, "previous"))}}
				var got [2]string
				for i, s := range []*set{rewritten, written} {
					v := e.evaluate(t.Context(), s, entries[i], in.Time, func() ast.Value { return entries[i].input(in) })
					got[i] = fmt.Sprint(v.allow, strings.HasPrefix(v.reasons0(), "the policy failed"))
				}
				if got[0] != got[1] {
					t.Fatalf("%s of %s: %s, and as written %s", name, what, got[0], got[1])
				}
			})
		}
	}
}

func (v *verdict) reasons0() string {
	if len(v.reasons) == 0 {
		return ""
	}
	return v.reasons[0]
}

// What a policy asks for beyond the limits is refused, within bounds of time
// and memory, and the log names the revision and the entry point.
func TestHostilePoliciesCostOneRefusedRequest(t *testing.T) {
	product := "n := numbers.range(1, 5000)\n"
	for name, rules := range map[string]string{
		"a huge product":            product + "allow if count([1 | some a in n; some b in n; some c in n; a + b == c]) == 0",
		"comprehensions in another": product + "allow if count([x | some i in n; x := [y | some j in n; y := [k | some k in n; k > i + j]]]) == 0",
		"arrays that double":        "a0 := [input.token]\n" + chain(40, "array.concat(a%d, a%d)") + "allow if count(a40) == 1",
		"texts that double":         "a0 := input.method\n" + chain(40, `concat("", [a%d, a%d])`) + "allow if a40 == \"x\"",
		"a number that squares":     "a0 := 99999999999 + count(input.method)\n" + chain(40, "a%d * a%d") + "allow if a40 == 1",
		"hex of hex":                "a0 := concat(\"\", [input.method | some _ in numbers.range(1, 1000)])\n" + chain(30, "hex.encode(concat(\"\", [a%d, a%d]))") + "allow if a30 == \"x\"",
		"a graph of nested texts":   `allow if graphql.is_valid(concat("", ["{a" | some _ in numbers.range(1, 1000000)]), "type Query { a: Query }")`,
		"products of numbers":       "allow if product([99999999999999999999 | some _ in numbers.range(1, 100000)]) == 1",
		"a long split":              "a0 := input.method\n" + chain(19, `concat("", [a%d, a%d])`) + `allow if count(split(a19, "")) == 1`,
	} {
		t.Run(name, func(t *testing.T) {
			var said bytes.Buffer
			e := New(Options{CacheTTL: -1, Logger: slog.New(slog.NewTextHandler(&said, nil))})
			rev := revision(t, "a.rego", quiet+rules+"\nallow if input.method == \"GET\"")
			if err := e.Prepare(t.Context(), rev); err != nil {
				t.Fatal(err)
			}
			said.Reset()
			e.told.Store(nil)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			d := e.Decide(t.Context(), rev, &policy.Input{Action: policy.Register, Method: "POST"})
			runtime.ReadMemStats(&after)
			if d.Allow || len(d.Reasons) == 0 {
				t.Errorf("%+v", d)
			}
			if grown := (after.TotalAlloc - before.TotalAlloc) >> 20; grown > 2000 {
				t.Errorf("%d MiB were allocated for one question", grown)
			}
			for _, want := range []string{"policy_revision=7", "entry_point=api/registry/authz", "decision_id=" + d.ID} {
				if !strings.Contains(said.String(), want) {
					t.Errorf("%s is not in the log: %s (%v)", want, said.String(), d.Reasons)
				}
			}
			e.Close()
			t.Logf("%v, %d MiB", d.Reasons, (after.TotalAlloc-before.TotalAlloc)>>20)
		})
	}
}

func chain(times int, form string) string {
	var b strings.Builder
	for i := range times {
		fmt.Fprintf(&b, "a%d := "+form+"\n", i+1, i, i)
	}
	return b.String()
}
