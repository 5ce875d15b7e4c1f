package rego

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

const documents = `package shop

default open := false

open if input.hour > 8

prices := {"apple": 3, "pear": data.fees.pear}

first := [10, 20, 30]

clock := time.now_ns()

broken := 1 / input.zero

two := 1 if input.a
two := 2 if input.b
`

func TestDocumentAnswersAsOPADoes(t *testing.T) {
	e := engine(t)
	content := &policy.Content{Modules: map[string]string{
		"shop.rego": documents, "main.rego": "package system.main\n\nwho := input.who",
	}, Data: []byte(`{"fees":{"pear":4},"list":["a","b"],"system":{"hidden":1}}`)}
	rev := stage(t, content)
	for _, c := range []struct {
		name string
		ask  Ask
		want string // "": undefined
		code fault.Code
		opa  string // code of topdown's error
	}{
		{name: "a rule that holds", ask: Ask{Path: "shop/open", Body: []byte(`{"input":{"hour":9}}`)}, want: `true`},
		{name: "its default", ask: Ask{Path: "shop/open", Body: []byte(`{"input":{"hour":1}}`)}, want: `false`},
		{name: "no input", ask: Ask{Path: "shop/open"}, want: `false`},
		{name: "null is no input", ask: Ask{Path: "shop/open", Body: []byte(`{"input":null}`)}, want: `false`},
		{name: "the body is the input", ask: Ask{Path: "shop/open", Body: []byte(`{"hour":9}`), Envelope: Bare}, want: `true`},
		{name: "rules read data", ask: Ask{Path: "shop/prices"}, want: `{"apple":3,"pear":4}`},
		{name: "below a rule", ask: Ask{Path: "shop/prices/apple"}, want: `3`},
		{name: "an index", ask: Ask{Path: "shop/first/1"}, want: `20`},
		{name: "data alone", ask: Ask{Path: "list/0"}, want: `"a"`},
		{name: "escaped", ask: Ask{Path: "%6cist/0"}, want: `"a"`},
		{name: "nothing is there", ask: Ask{Path: "shop/nothing"}},
		{name: "a quote in the path", ask: Ask{Path: `x%22]; data.y["`}, code: fault.BadRequest},
		{name: "the system's own", ask: Ask{Path: "system/hidden"}, code: fault.Forbidden},
		{name: "the same, escaped", ask: Ask{Path: "/%73ystem"}, code: fault.Forbidden},
		{name: "main", ask: Ask{Main: true, Body: []byte(`{"who":"me"}`), Envelope: Bare}, want: `{"who":"me"}`},
		{name: "an error is undefined", ask: Ask{Path: "shop/broken", Body: []byte(`{"input":{"zero":0}}`)}},
		{name: "unless strict", ask: Ask{Path: "shop/broken", Body: []byte(`{"input":{"zero":0}}`), Strict: true}, opa: topdown.BuiltinErr},
		{name: "two answers", ask: Ask{Path: "shop/two", Body: []byte(`{"input":{"a":1,"b":1}}`)}, opa: topdown.ConflictErr},
		{name: "not JSON", ask: Ask{Path: "shop/open", Body: []byte(`{"input":`)}, code: fault.BadRequest},
		{name: "not an object", ask: Ask{Path: "shop/open", Body: []byte(`[1]`)}, code: fault.BadRequest},
		{name: "a key twice", ask: Ask{Path: "shop/open", Body: []byte(`{"input":{"hour":9,"hour":1}}`)}, code: fault.BadRequest},
		{name: "two values", ask: Ask{Path: "shop/open", Body: []byte(`{"input":{}} {}`)}, code: fault.BadRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 2 { // evaluated, and remembered
				a, err := e.Document(t.Context(), rev, &c.ask)
				switch {
				case c.code != "":
					if !fault.Is(err, c.code) {
						t.Fatalf("error = %v, want %s", err, c.code)
					}
					continue
				case c.opa != "":
					if failed, ok := err.(*topdown.Error); !ok || failed.Code != c.opa {
						t.Fatalf("error = %v, want %s", err, c.opa)
					}
					continue
				case err != nil:
					t.Fatal(err)
				}
				if string(a.Result) != c.want {
					t.Errorf("result = %s, want %s", a.Result, c.want)
				}
			}
		})
	}
	whole, err := e.Document(t.Context(), rev, &Ask{})
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal(whole.Result, &all); err != nil || all["system"] != nil || all["shop"] == nil || all["list"] == nil {
		t.Errorf("data = %s, %v", whole.Result, err)
	}
}

func TestDocumentsThatDependOnTheClockAreNotRemembered(t *testing.T) {
	e := engine(t)
	rev := revision(t, "shop.rego", documents)
	ask := func() string {
		a, err := e.Document(t.Context(), rev, &Ask{Path: "shop/clock"})
		if err != nil {
			t.Fatal(err)
		}
		return string(a.Result)
	}
	if first, second := ask(), ask(); first == second {
		t.Errorf("time.now_ns() stands still at %s", first)
	}
}

func TestAnotherRevisionNeverMeetsOldAnswers(t *testing.T) {
	e := engine(t, func(o *Options) { o.CacheTTL = time.Hour })
	for _, want := range []string{"1", "2", "1"} {
		rev := revision(t, "a.rego", "package a\n\nx := "+want)
		a, err := e.Document(t.Context(), rev, &Ask{Path: "a/x"})
		if err != nil || string(a.Result) != want {
			t.Errorf("%s, %v; want %s", a.Result, err, want)
		}
	}
}

// A signature that was verified once must not pass where another algorithm,
// another key or a later time is asked for.
func TestRememberedSignaturesAreNotBelievedElsewhere(t *testing.T) {
	e := engine(t)
	rev := revision(t, "jwt.rego", `package jwt

private := {"kty": "EC", "crv": "P-256", "x": "UtjTYyXMQOk3oVcSNfrrcmiMxDLbHAgOZHuA2I1ITpA", "y": "nESzDfi4StBMqOFq6dRrWJpJTR1yCm4IySyOifnf0mc", "d": "ywNvQw6EdFTt32o26ouwVlmTHv-HzC8-ugmui2KJ9yA"}
public := json.marshal({"keys": [object.remove(private, ["d"])]})
token := io.jwt.encode_sign({"typ": "JWT", "alg": "ES256"}, {"exp": 1000}, private)

valid(constraints) := io.jwt.decode_verify(token, object.union({"cert": public, "time": 0}, constraints))[0]

fresh := valid({})
named := valid({"alg": "ES256"})
other := valid({"alg": "ES384"})
late := valid({"time": 2000 * 1000000000})
secret := valid({"alg": "HS256", "cert": null, "secret": public})
`)
	for range 3 {
		for path, want := range map[string]string{"fresh": "true", "named": "true", "other": "false", "late": "false"} {
			a, err := e.Document(t.Context(), rev, &Ask{Path: "jwt/" + path, Strict: true})
			if err != nil || string(a.Result) != want {
				t.Errorf("%s = %+v, %v; want %s", path, a, err, want)
			}
		}
		if a, err := e.Document(t.Context(), rev, &Ask{Path: "jwt/secret"}); err == nil && string(a.Result) == "true" {
			t.Error("the public key is believed as a secret")
		}
	}
}

func TestQueriesAndPartialEvaluation(t *testing.T) {
	e := engine(t)
	rev := stage(t, &policy.Content{Modules: map[string]string{"shop.rego": documents}, Data: []byte(`{"list":["a","b"],"system":{"hidden":1}}`)})
	query := func(text string) *Query {
		body, err := ast.ParseBody(text)
		if err != nil {
			t.Fatal(err)
		}
		return &Query{Body: body, Metrics: metrics.New()}
	}
	found, err := e.Query(t.Context(), rev, query(`data.list[i] = x; x != "a"`))
	if err != nil || len(found.Results) != 1 || found.Results[0].Bindings["x"] != "b" {
		t.Errorf("%+v, %v", found, err)
	}
	for _, reach := range []string{`data.system.hidden = x`, `data[x] = y`, `x = data`} {
		if _, err := e.Query(t.Context(), rev, query(reach)); !fault.Is(err, fault.Forbidden) {
			t.Errorf("%s: error = %v", reach, err)
		}
	}
	if _, err := e.Query(t.Context(), rev, query(`http.send({"method": "get", "url": "http://127.0.0.1:1"}, x)`)); err == nil {
		t.Error("a query reaches the network")
	}
	partial, err := e.Partial(t.Context(), rev, query(`data.shop.open = true`))
	if err != nil || len(partial.Partial.Queries) == 0 {
		t.Errorf("%+v, %v", partial, err)
	}
	explained := query(`data.shop.prices.apple = 3`)
	explained.Explain = true
	if found, err := e.Query(t.Context(), rev, explained); err != nil || len(found.Trace) == 0 {
		t.Errorf("%+v, %v", found, err)
	}
}

func TestAHostileQueryIsCutOff(t *testing.T) {
	e := engine(t, func(o *Options) { o.Limit = 50 * time.Millisecond })
	rev := revision(t, "a.rego", "package a\n\nx := count({p | some a in numbers.range(1, 100000); some b in numbers.range(1, 100000); p := a * b})")
	for _, explain := range []bool{false, true} {
		body := ast.MustParseBody(`data.a.x = y`)
		if _, err := e.Query(t.Context(), rev, &Query{Body: body, Metrics: metrics.New(), Explain: explain}); err == nil {
			t.Error("no error")
		}
	}
	if _, err := e.Document(t.Context(), rev, &Ask{Path: "a/x"}); !topdown.IsCancel(err) {
		t.Errorf("error = %v", err)
	}
}
