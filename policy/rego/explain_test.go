package rego

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

const explained = `package api.registry.authz

import data.lib

default allow := false

allow if {
	input.protocol == "https"
	lib.owner(input.principal.id)
	some role in input.principal.roles
	role == data.writers[_]
}

allow if input.principal.id == "root"

deny contains "no department" if not input.headers["X-Dept"]

deny contains sprintf("department %s is closed", [dept]) if {
	dept := input.headers["X-Dept"]
	dept in data.closed
}

unused if lib.never

broken if to_number(input.headers["X-Dept"]) > 3

level := "high" if input.resource.kind == "version"
else := "low"

allow if {
	broken
	level == "high"
}
`

const library = `package lib

owner(id) if startswith(id, "team-")

never if input.method == "NEVER"
`

func explainedRevision(t testing.TB) *policy.Revision {
	return stage(t, &policy.Content{
		Modules: map[string]string{"authz.rego": explained, "lib.rego": library},
		Data:    []byte(`{"writers":["publisher","operator"],"closed":["sales"]}`),
	})
}

func explainText(t *testing.T, e *Engine, rev *policy.Revision, past *policy.Past) string {
	t.Helper()
	x, err := e.Explain(t.Context(), rev, past, func(s string) string { return strings.ReplaceAll(s, "s3cret", "***") })
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, r := range x.Rules {
		fmt.Fprintf(&b, "%s %s: %s %s\n", r.Package, r.Name, r.Outcome, r.Value)
		for _, d := range r.Definitions {
			fmt.Fprintf(&b, "  %d %s", d.Row, d.Outcome)
			if d.Default {
				b.WriteString(" default")
			}
			if f := d.Failed; f != nil {
				values, _ := json.Marshal(f.Values, json.Deterministic(true))
				fmt.Fprintf(&b, " at %d: %s %s %s", f.Row, f.Text, values, f.Error)
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

func TestExplain(t *testing.T) {
	e := engine(t)
	rev := explainedRevision(t)
	for _, tc := range []struct{ name, input, want string }{
		{"a role is missing", `{"action":"update","protocol":"https","principal":{"id":"team-a","roles":["viewer","auditor"]},"headers":{"X-Dept":"shop"},"resource":{"kind":"service"}}`, `
api.registry.authz allow: false false
  5 true default
  7 false at 11: role == data.writers[_] {"data.writers":"[\"publisher\",\"operator\"]","role":"\"viewer\""} 
  14 false at 14: allow if input.principal.id == "root" {"input.principal.id":"\"team-a\""} 
  30 false at 31: broken {} 
api.registry.authz deny: false []
  16 false at 16: deny contains "no department" if not input.headers["X-Dept"] {"input.headers[\"X-Dept\"]":"\"shop\""} 
  18 false at 20: dept in data.closed {"data.closed":"[\"sales\"]","dept":"\"shop\""} 
api.registry.authz unused: not reached 
  23 not reached
api.registry.authz broken: undefined 
  25 false at 25: broken if to_number(input.headers["X-Dept"]) > 3 {"input.headers[\"X-Dept\"]":"\"shop\""} to_number: strconv.ParseFloat: parsing "shop": invalid syntax
api.registry.authz level: not reached 
  27 not reached
  28 not reached
lib owner: true 
  3 true
lib never: not reached 
  5 not reached
`},
		{"denied", `{"action":"update","protocol":"https","principal":{"id":"team-a","roles":["publisher"]},"headers":{"X-Dept":"sales"},"token":"s3cret"}`, `
api.registry.authz allow: true true
  5 not reached default
  7 true
  14 false at 14: allow if input.principal.id == "root" {"input.principal.id":"\"team-a\""} 
  30 false at 31: broken {} 
api.registry.authz deny: true ["department sales is closed"]
`},
		{"nothing sent", `{"action":"update"}`, `
api.registry.authz allow: false false
  5 true default
  7 false at 8: input.protocol == "https" {"input.protocol":"undefined"} 
`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := explainText(t, e, rev, &policy.Past{Input: []byte(tc.input), Time: time.Unix(1700000000, 0)})
			if want := strings.TrimPrefix(tc.want, "\n"); !strings.HasPrefix(got, want) {
				t.Errorf("%s\nwant\n%s", got, want)
			}
		})
	}
}

// What is masked in the input must not come back through a value, a variable
// or a line of the explanation.
func TestExplainHides(t *testing.T) {
	e := engine(t)
	rev := revision(t, "a.rego", `package api.registry.authz
allow if {
	token := trim_prefix(input.headers.Authorization, "Bearer ")
	parts := split(token, ".")
	parts[0] == "s3cret-but-other"
}
deny contains token if token := input.token
`)
	got := explainText(t, e, rev, &policy.Past{Input: []byte(`{"token":"s3cret.b","headers":{"Authorization":"Bearer s3cret.b"}}`)})
	if strings.Contains(got, "s3cret") || !strings.Contains(got, "***.b") {
		t.Error(got)
	}
}

// A replay at another time, with other results of chance, gives the decision
// that was made, and the rules say the same.
func TestReplayIsExact(t *testing.T) {
	e := engine(t)
	rev := revision(t, "a.rego", `package api.registry.authz
roll := rand.intn("roll", 1000000)
id := uuid.rfc4122(input.principal.id)
filtered := {"roll": roll, "id": id, "now": time.now_ns(), "day": time.weekday(time.now_ns())}
allow if time.now_ns() > 0
`)
	in := &policy.Input{Action: policy.Update, Time: time.Unix(1_600_000_000, 123456789), Principal: policy.Principal{ID: "ann"}}
	document, err := in.Document()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 5 {
		d := e.Decide(t.Context(), rev, in)
		if d.Chance == nil {
			t.Fatal("no results of built-ins were kept")
		}
		chance, err := d.Chance.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		seen[string(d.Filtered)] = true
		past := &policy.Past{Input: document, Time: d.Time, Chance: chance}
		again, err := e.Replay(t.Context(), rev, past)
		if err != nil {
			t.Fatal(err)
		}
		if !again.Allow || string(again.Filtered) != string(d.Filtered) {
			t.Errorf("%s was replayed as %s, %q", d.Filtered, again.Filtered, again.Reasons)
		}
		x, err := e.Explain(t.Context(), rev, past, func(s string) string { return s })
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(x.Rules, func(r policy.Rule) bool { return r.Name == "roll" })
		if i < 0 || !strings.Contains(string(d.Filtered), `"roll":`+x.Rules[i].Value) {
			t.Errorf("%s, explained as %+v", d.Filtered, x.Rules)
		}
	}
	if len(seen) < 2 {
		t.Errorf("chance gave the same %d times: %v", 5, seen)
	}
}

// A document that was asked for comes out again as it was then: what depends
// on the time alone by the time on record, and the rest by what was recorded.
func TestDocumentsAreReplayedAsOfThen(t *testing.T) {
	e := engine(t)
	rev := revision(t, "a.rego", `package a
roll := {"roll": rand.intn("roll", 1000000), "now": time.now_ns()}
clock := {"now": time.now_ns(), "token": io.jwt.decode_verify(input.token, {"secret": "s"})}
`)
	input := []byte(`{"token":"` + jwt(map[string]any{"ok": true}) + `"}`)
	for path, chance := range map[string]bool{"a/roll": true, "a/clock": false} {
		seen := map[string]bool{}
		for range 5 {
			a, err := e.Document(t.Context(), rev, &Ask{Path: path, Body: input, Envelope: Bare})
			if err != nil {
				t.Fatal(err)
			}
			past := &policy.Past{Input: input, EntryPoint: path, Time: a.Time, Document: true}
			if (a.Chance != nil) != chance {
				t.Errorf("%s: results of built-ins are kept: %v", path, a.Chance != nil)
			}
			if a.Chance != nil {
				if past.Chance, err = a.Chance.MarshalJSON(); err != nil {
					t.Fatal(err)
				}
			}
			again, err := e.Replay(t.Context(), rev, past)
			if err != nil || string(again.Result) != string(a.Result) {
				t.Errorf("%s: %s was replayed as %s, %v", path, a.Result, again.Result, err)
			}
			seen[string(a.Result)] = true
		}
		if len(seen) < 2 {
			t.Errorf("%s did not change: %v", path, seen)
		}
	}
}

func TestReplayByAnotherRevision(t *testing.T) {
	e := engine(t)
	yes := revision(t, "a.rego", "package api.registry.authz\nallow := true\n")
	none := revision(t, "a.rego", "package other\nallow := true\n")
	past := &policy.Past{Input: []byte(`{"action":"update","principal":{"roles":["viewer"]},"resource":{"kind":"service"}}`)}
	for _, tc := range []struct {
		rev        *policy.Revision
		entrypoint string
		allow      bool
		reason     string
	}{
		{yes, "", true, ""},
		{none, "", false, "needs the role"},
		{none, "other", true, ""},
		{yes, "other", false, "nothing is defined at data.other"},
	} {
		past.EntryPoint = tc.entrypoint
		d, err := e.Replay(t.Context(), tc.rev, past)
		if err != nil || d.Allow != tc.allow || !strings.Contains(strings.Join(d.Reasons, ""), tc.reason) {
			t.Errorf("%+v: %+v %v", tc, d, err)
		}
	}
}

func TestABadPastIsRefused(t *testing.T) {
	e := engine(t)
	rev := explainedRevision(t)
	for _, past := range []policy.Past{
		{Input: nil}, {Input: []byte(`{`)}, {Input: []byte(`{}`), Chance: []byte(`[]`)}, {Input: []byte(`{}`), Chance: []byte(`{"rand.intn":{"x y":1}}`)}, {Input: []byte(`{}`), Chance: []byte(`{"rand.intn":3}`)},
	} {
		if _, err := e.Replay(t.Context(), rev, &past); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s %s: %v", past.Input, past.Chance, err)
		}
		if _, err := e.Explain(t.Context(), rev, &past, strings.ToUpper); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s %s: %v", past.Input, past.Chance, err)
		}
	}
}

// An explanation of an evaluation that does not end in time ends in time.
func TestExplainIsBounded(t *testing.T) {
	e := engine(t, func(o *Options) { o.Limit = time.Millisecond })
	rev := revision(t, "a.rego", `package api.registry.authz
allow if count([1 | some i in numbers.range(1, 5000); some j in numbers.range(1, 5000); i * j == -1]) > 0
`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := e.Explain(ctx, rev, &policy.Past{Input: []byte(`{}`)}, strings.ToUpper)
	if !fault.Is(err, fault.PolicyUnavailable) {
		t.Errorf("%v", err)
	}
}
