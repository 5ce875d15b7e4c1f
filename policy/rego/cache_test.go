package rego

import (
	"maps"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/muster-registry/muster/policy"
)

// pure are policies whose decisions may be remembered, written to read the
// input in as many ways as Rego has.
var pure = map[string]string{
	"constant":      `allow := true`,
	"nothing":       `allow if false`,
	"roles":         `allow if "publisher" in input.principal.roles`,
	"iteration":     `allow if { some r in input.principal.roles; some n in input.principal.namespaces; r == n }`,
	"headers":       "allow if input.headers[\"X-A\"] == \"a\"\ndeny contains input.headers[\"X-B\"]",
	"lower headers": "import input.attributes.request.http as h\nallow if h.headers[\"x-a\"] == \"a\"\ndeny contains \"capital\" if h.headers[\"X-A\"]",
	"any header":    `allow if { some k; input.headers[k] == input.resource.name }`,
	"alias":         "allow if { r := input.resource; x := r.metadata; x.a == r.payload.a }",
	"else":          "allow := true if { input.method == \"PUT\" } else := false if { input.token == \"a\" } else := true if { input.resource.previous == null }",
	"other package": "import data.helper\nallow if helper.ok",
	"data":          "allow if data.table[input.resource.name][_] == input.resource.namespace",
	"dynamic rule":  "m.a if input.token == \"a\"\nm.b if input.method == \"b\"\nallow if m[input.resource.name]",
	"conflict":      "allow := true if input.token\nallow := false if input.method == \"PUT\"",
	"error":         "allow if to_number(input.token) == 1",
	"comprehension": "allow if count({x | some x in input.path; not x == input.resource.kind}) == 1",
	"every":         "allow if every r in input.principal.roles { r in [\"publisher\", \"a\"] }",
	"filtered":      "allow := true\nfiltered := object.union(input.resource.payload, {\"k\": input.attributes.source})",
	"prefix":        "allow if input.attributes.request.http == object.union(input.attributes.request.http, {\"method\": \"PUT\"})",
	"unknown place": "allow if not input.nothing.here\ndeny contains \"n\" if input.headers[\"X-A\"].deeper",
	"jwt":           "allow if { [_, p, _] := io.jwt.decode(input.token); p.ok }",
	"array path":    "allow if input.path[1] == \"a\"",
	"default":       "default allow := false\nallow if { input[\"method\"] == \"PUT\"; input.resource[\"name\"] }",
}

// wide are policies that read the time along with everything else, so that
// remembering them would be of no use.
var wide = map[string]string{
	"whole input": "allow if { some p, v; walk(object.remove(input, [\"time\"]), [p, v]); v == \"publisher\" }",
	"function":    "f(i) := i.principal.kind\nallow if f(input) == \"token\"",
	"with":        "inner if input.method == \"GET\"\nallow if inner with input.method as input.token\nallow if inner with input as input.principal.claims",
}

// impure are policies whose decisions may not be.
var impure = map[string]string{
	"clock":       `allow if time.now_ns() % 2 == 0`,
	"input time":  `allow if endswith(input.time, "1Z")`,
	"whole":       `allow if input == {}`,
	"random":      `allow if rand.intn("x", 2) == 0`,
	"verify":      `allow if io.jwt.decode_verify(input.token, {"secret": "s"})[0]`,
	"in a helper": "f := time.now_ns()\nallow if f > 0",
	"through with": `g(x, y) := 1
allow if g("x", 2) == 0 with g as rand.intn`,
}

const helpers = "package helper\nok if { some h; input.attributes.request.http.headers[h] == data.table.a[0] }"

func content(rules string) *policy.Content {
	return &policy.Content{
		Modules: map[string]string{"p.rego": head + rules, "helper.rego": helpers},
		Data:    []byte(`{"table":{"a":["a","b"],"PUT":["a"]}}`),
	}
}

func TestImpureDecisionsAreNotRemembered(t *testing.T) {
	e := engine(t)
	for name, rules := range impure {
		if s := e.compile(content(rules)); s.err != nil || s.entry(policy.DefaultWrite).cacheable {
			t.Errorf("%s: cacheable; error %v", name, s.err)
		}
	}
	for name, rules := range wide {
		if s := e.compile(content(rules)); s.err != nil || s.entry(policy.DefaultWrite).cacheable {
			t.Errorf("%s: cacheable; error %v", name, s.err)
		}
	}
	for name, rules := range pure {
		if s := e.compile(content(rules)); s.err != nil || !s.entry(policy.DefaultWrite).cacheable {
			t.Errorf("%s: not cacheable; error %v", name, s.err)
		}
	}
}

func someInput(t *rapid.T) *policy.Input {
	word := rapid.SampledFrom([]string{"", "a", "b", "ab", "PUT", "publisher", "token"})
	words := rapid.SliceOfN(word, 0, 3)
	object := rapid.SampledFrom([]string{"", "{}", `{"a":"a"}`, `{"a":"b"}`, `{"method":"GET"}`})
	value := rapid.SampledFrom([]string{"", "null", `{"a":"a"}`, `{"a":"b","k":1}`, `[1]`})
	token := rapid.SampledFrom([]string{"", "a", "1", "GET", jwt(map[string]any{"ok": true}), jwt(map[string]any{"ok": false})})
	header := rapid.MapOfN(rapid.SampledFrom([]string{"X-A", "X-B", "Authorization"}), word, 0, 3)
	return &policy.Input{
		Action: policy.Register, Time: time.Unix(1700000000, 0), Protocol: word.Draw(t, "protocol"), Method: word.Draw(t, "method"),
		Path: words.Draw(t, "path"), RawPath: word.Draw(t, "raw path"), Host: word.Draw(t, "host"), Scheme: word.Draw(t, "scheme"),
		Headers: header.Draw(t, "headers"), Token: token.Draw(t, "token"), Source: word.Draw(t, "source"),
		Principal: policy.Principal{ID: word.Draw(t, "id"), Kind: word.Draw(t, "principal kind"), Roles: words.Draw(t, "roles"),
			Namespaces: words.Draw(t, "namespaces"), Claims: []byte(object.Draw(t, "claims"))},
		Resource: policy.Resource{Kind: word.Draw(t, "kind"), Namespace: word.Draw(t, "namespace"), Name: word.Draw(t, "name"),
			Metadata: []byte(object.Draw(t, "metadata")), Payload: []byte(value.Draw(t, "payload")), Previous: []byte(value.Draw(t, "previous"))},
	}
}

// A decision from memory, one that is evaluated on what the policy reads, and
// one that is evaluated on the whole document are the same.
func TestRememberedDecisionsAreTheEvaluatedOnes(t *testing.T) {
	policies := maps.Clone(pure)
	maps.Copy(policies, wide)
	for name, rules := range policies {
		t.Run(name, func(t *testing.T) {
			cached, plain := engine(t, func(o *Options) { o.CacheTTL = time.Hour }), engine(t, func(o *Options) { o.CacheTTL = -1 })
			rev := stage(t, content(rules))
			rapid.Check(t, func(t *rapid.T) {
				in := someInput(t)
				whole, err := encode(document.build(in))
				if err != nil {
					t.Fatal(err)
				}
				raw, err := plain.DecideRaw(t.Context(), rev, "", whole)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range []policy.Decision{cached.Decide(t.Context(), rev, in), cached.Decide(t.Context(), rev, in), plain.Decide(t.Context(), rev, in)} {
					d.ID, d.Time = raw.ID, raw.Time
					if !reflect.DeepEqual(d, raw) {
						t.Fatalf("%+v\non the whole document: %+v\ninput: %s", d, raw, whole)
					}
				}
			})
			if _, remembered := pure[name]; remembered != (cached.cache.verdicts.EstimatedSize() > 0) {
				t.Errorf("remembered = %v", !remembered)
			}
		})
	}
}

func TestKeysOfDifferentInputsDiffer(t *testing.T) {
	pr := project(&paths{all: true})
	rapid.Check(t, func(t *rapid.T) {
		a, b := someInput(t), someInput(t)
		same := pr.input(a).Compare(pr.input(b)) == 0
		if !same && string(pr.appendKey(nil, a)) == string(pr.appendKey(nil, b)) {
			t.Fatalf("one key for\n%v\n%v", pr.input(a), pr.input(b))
		}
	})
}

func TestAnotherPolicyNeverMeetsTheOldAnswers(t *testing.T) {
	e := engine(t, func(o *Options) { o.CacheTTL = time.Hour })
	yes, no := revision(t, "p.rego", head+"allow := true"), revision(t, "p.rego", head+"allow := false")
	for range 3 {
		if !e.Decide(t.Context(), yes, &policy.Input{}).Allow || e.Decide(t.Context(), no, &policy.Input{}).Allow {
			t.Fatal("the answers of two policies are mixed up")
		}
	}
}
