package rego

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

const head = "package api.registry.authz\n"

// Row 15 of the bad input, and the rest of what is not a plain yes.
func TestOnlyAPlainYesAllows(t *testing.T) {
	e := engine(t)
	for name, c := range map[string]struct {
		rules  string
		allow  bool
		reason string
	}{
		"true":                 {`allow := true`, true, ""},
		"false":                {`allow := false`, false, "allow is false"},
		"undefined":            {`allow if input.action == "nothing"`, false, "allow is undefined"},
		"no rule":              {`other := true`, false, "allow is undefined"},
		"empty package":        {``, false, "allow is undefined"},
		"a string":             {`allow := "true"`, false, "allow is a string"},
		"a number":             {`allow := 1`, false, "allow is a number"},
		"an object":            {`allow := {"allowed": true}`, false, "allow is an object"},
		"an array":             {`allow := [true]`, false, "allow is an array"},
		"a set":                {`allow contains true`, false, "allow is a set"},
		"null":                 {`allow := null`, false, "allow is a null"},
		"two values":           {"allow := true if input.action\nallow := false if input.method == \"\"", false, "two different answers: rule data.api.registry.authz.allow produced conflicting values: true at p.rego:2 false at p.rego:3"},
		"a failing builtin":    {`allow if to_number(concat("", ["x", input.action])) > 0`, false, "the policy failed at p.rego:2"},
		"a division by zero":   {`allow if 1 / count(input.headers) > 0`, false, "divide by zero"},
		"deny wins":            {"allow := true\ndeny contains \"owner is missing\"", false, "owner is missing"},
		"deny of nothing":      {"allow := true\ndeny contains \"x\" if input.method == \"no\"", true, ""},
		"deny is an array":     {"allow := true\ndeny := [\"a\", \"b\"]", false, "a|b"},
		"deny is an empty one": {"allow := true\ndeny := []", true, ""},
		"deny by object keys":  {"allow := true\ndeny[\"x\"] := 1", false, "x"},
		"deny with msg":        {"allow := true\ndeny contains {\"msg\": \"say why\"}", false, "say why"},
		"deny true":            {"allow := true\ndeny := true", false, "deny is true"},
		"deny false":           {"allow := true\ndeny := false", true, ""},
		"deny undefined":       {"allow := true\ndeny if input.method == \"no\"", true, ""},
		"deny a number":        {"allow := true\ndeny := 0", false, "deny is a number"},
		"deny that fails":      {"allow := true\ndeny contains \"x\" if to_number(concat(\"\", [\"x\", input.action])) > 0", false, "the policy failed"},
		"a failing filtered":   {"allow := true\nfiltered := to_number(concat(\"\", [\"x\", input.action]))", false, "the policy failed"},
	} {
		t.Run(name, func(t *testing.T) {
			rev := revision(t, "p.rego", head+c.rules+"\n")
			for range 2 { // evaluated, and remembered
				d := e.Decide(t.Context(), rev, &policy.Input{Action: policy.Register})
				if d.Allow != c.allow || d.Default {
					t.Fatalf("allow = %v, default = %v, reasons = %q", d.Allow, d.Default, d.Reasons)
				}
				if got := strings.Join(d.Reasons, "|"); !strings.Contains(got, c.reason) || (c.allow && got != "") {
					t.Fatalf("reasons = %q, want %q", got, c.reason)
				}
			}
		})
	}
}

func TestWithoutAPackageTheRolesDecide(t *testing.T) {
	e := engine(t)
	for name, rev := range map[string]*policy.Revision{
		"no policy": nil, "only the other": revision(t, "p.rego", "package api.security.authz\nallow := false"),
		"only tests": revision(t, "other.rego", "package other\nx := 1", "p_test.rego", head+"test_x if true"),
	} {
		if d := e.Decide(t.Context(), rev, &policy.Input{Action: policy.Update}); !d.Allow || !d.Default || d.ID == "" {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestLookUpsAskTheirOwnEntryPoint(t *testing.T) {
	e := engine(t)
	c := &policy.Content{Modules: map[string]string{
		"w.rego": "package mine.write\nallow := true", "l.rego": "package mine.look\nallow := false",
	}, EntryPoints: policy.EntryPoints{Write: "data.mine.write", Lookup: "mine/look"}}
	rev := stage(t, c)
	for action, allow := range map[policy.Action]bool{
		policy.Register: true, policy.Update: true, policy.Delete: true, policy.Authorize: true,
		policy.Lookup: false, policy.Watch: false,
	} {
		if d := e.Decide(t.Context(), rev, &policy.Input{Action: action}); d.Allow != allow || d.Default {
			t.Errorf("%s: %+v", action, d)
		}
	}
}

func TestFilteredIsGivenWithAYes(t *testing.T) {
	rev := revision(t, "p.rego", head+`allow := true
filtered := object.remove(input.resource.payload, ["secret"])`)
	in := &policy.Input{Action: policy.Register, Resource: policy.Resource{Payload: []byte(`{"secret":1,"b":12345678901234567890,"a":"<"}`)}}
	d := engine(t).Decide(t.Context(), rev, in)
	if !d.Allow || string(d.Filtered) != `{"a":"<","b":12345678901234567890}` {
		t.Errorf("%v %s", d.Allow, d.Filtered)
	}
}

func TestTimeOfTheDecisionIsTheInputs(t *testing.T) {
	rev := revision(t, "p.rego", head+`allow if time.now_ns() == 1700000000000000000`)
	e := engine(t)
	if d := e.Decide(t.Context(), rev, &policy.Input{Time: time.Unix(1700000000, 0)}); !d.Allow {
		t.Errorf("replaying the time: %+v", d)
	}
	if d := e.Decide(t.Context(), rev, &policy.Input{Time: time.Unix(1700000001, 0)}); d.Allow {
		t.Error("a decision that depends on the time was remembered")
	}
}

// Row 13 of the bad input.
func TestReachingOutIsRefused(t *testing.T) {
	for name, source := range map[string]string{
		"http.send":           head + `allow if http.send({"method": "get", "url": "http://127.0.0.1"}).status_code == 200`,
		"http.send, mocked":   head + "f(_) := {\"status_code\": 200}\nallow if http.send({}).status_code == 200 with http.send as f",
		"through with":        head + "g(x) := x\nallow if g(1) with g as http.send",
		"with, of a builtin":  head + `allow if count([1]) with count as http.send`,
		"in a comprehension":  head + `allow if count([r | r := http.send({})]) > 0`,
		"uninterruptible":     head + `allow if bits.lsh(1, 10000000000) > 0`,
		"paths of a graph":    head + `allow if graph.reachable_paths({}, {})`,
		"templates":           head + `allow if strings.render_template("{{.}}", {})`,
		"net.lookup_ip_addr":  head + `allow if net.lookup_ip_addr("localhost")`,
		"net.cidr_expand":     head + `allow if net.cidr_expand("10.0.0.0/8")`,
		"opa.runtime":         head + `allow if opa.runtime().env.HOME`,
		"with opa.runtime":    head + `allow if opa.runtime().x with opa.runtime as {"x": true}`,
		"http.send in v0":     head + `allow { http.send({}).status_code == 200 }`,
		"http.send in a test": head + "test_x if http.send({})",
	} {
		t.Run(name, func(t *testing.T) {
			file := "p.rego"
			if strings.HasSuffix(name, "test") {
				file = "p_test.rego"
			}
			rev := revision(t, file, source, "ok.rego", "package ok")
			_, err := engine(t).Check(t.Context(), &rev.Content)
			f := refusal(t, err)
			if f.Places[0].File != file || f.Places[0].Row == 0 {
				t.Errorf("places = %+v", f.Places)
			}
		})
	}
}

// Row 14 of the bad input.
var bombs = map[string]string{
	"time":          `allow if count([1 | numbers.range(1, 10000)[_]; numbers.range(1, 10000)[_]; numbers.range(1, 10000)[_]]) > 0`,
	"product":       `allow if count([[a, b, c] | some a in numbers.range(1, 5000); some b in numbers.range(1, 5000); some c in numbers.range(1, 5000)]) > 0`,
	"numbers.range": `allow if count(numbers.range(1, 100000000)) > 0`,
	"set":           `allow if count({sprintf("%d-%d", [a, b]) | some a in numbers.range(1, 100000); some b in numbers.range(1, 100000)}) > 0`,
	"doubling":      doubling(40, `concat("", [%, %])`, `"xxxxxxxxxxxxxxxx"`),
	"squaring":      doubling(40, `% * %`, `12345678901234567890`),

	// In one call, which nothing can interrupt.
	"exponent":         `allow if to_number("1e100000000") + 1 > 0`,
	"exponent in JSON": `allow if floor(json.unmarshal("{\"x\":1e100000000}").x) > 0`,
	"exponents":        `allow if sum([json.unmarshal("1e100000000"), 1]) > 0`,
	"width":            `allow if sprintf(concat("", ["%1000000d" | some _ in numbers.range(1, 100000)]), [1]) != ""`,
	"replace":          grown(`replace(b18, "x", b18) != ""`),
	"delimiter":        grown(`concat(b18, split(b18, "x")) != ""`),
	"regex.replace":    grown(`regex.replace(b18, "x", b18) != ""`),
	"replace_n":        grown(`strings.replace_n({"x": b18}, b18) != ""`),
	"marshal":          grown(`json.marshal(d40) != ""`),
	"sprintf":          grown(`sprintf("%v", [d40]) != ""`),
	"walk":             grown(`walk(d40, [_, "nothing"])`),
	"deny":             grown("true") + "\ndeny contains d40",
	"filtered":         grown("true") + "\nfiltered := d40",
}

// grown gives a rule beside a text of half a MiB, and a small object that
// takes a terabyte when it is written out. The union hides its type.
func grown(condition string) string {
	var b strings.Builder
	b.WriteString("allow if " + condition + "\nb0 := \"xx\"\nd0 := {\"a\": 1}\n")
	for i := range 40 {
		fmt.Fprintf(&b, "d%d := object.union({\"a\": d%d, \"b\": d%d}, {})\n", i+1, i, i)
		if i < 18 {
			fmt.Fprintf(&b, "b%d := concat(\"\", [b%d, b%d])\n", i+1, i, i)
		}
	}
	return b.String()
}

func doubling(times int, step, start string) string {
	var b strings.Builder
	b.WriteString("allow if {\n\tx0 := " + start + "\n")
	for i := range times {
		from, to := "x"+string(rune('a'+i/10))+string(rune('0'+i%10)), "x"+string(rune('a'+(i+1)/10))+string(rune('0'+(i+1)%10))
		if i == 0 {
			from = "x0"
		}
		b.WriteString("\t" + to + " := " + strings.ReplaceAll(step, "%", from) + "\n")
	}
	b.WriteString("\tcount([x0]) == 1\n}")
	return b.String()
}

func TestBombsAreCutOff(t *testing.T) {
	for name, rule := range bombs {
		t.Run(name, func(t *testing.T) {
			e := engine(t, func(o *Options) { o.Limit = 50 * time.Millisecond })
			bomb := revision(t, "bomb.rego", head+rule)
			good := revision(t, "good.rego", head+"allow := true")
			if err := e.Prepare(t.Context(), bomb); err != nil {
				t.Fatal(err)
			}
			if err := e.Prepare(t.Context(), good); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					d := e.Decide(context.Background(), bomb, &policy.Input{Method: "PUT"})
					if d.Allow || len(d.Reasons) != 1 {
						t.Errorf("%+v", d)
						return
					}
					if !strings.Contains(d.Reasons[0], "cut off") && !strings.Contains(d.Reasons[0], "failed") && !strings.Contains(d.Reasons[0], "written out") {
						t.Errorf("reason = %q", d.Reasons[0])
					}
				})
			}
			wg.Wait()
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			t.Logf("4 at once: %v, allocated %d MiB in all, from the system %d MiB", took, (after.TotalAlloc-before.TotalAlloc)>>20, after.Sys>>20)
			if took > time.Minute {
				t.Errorf("four bombs took %v", took)
			}
			// 50 ms are little on a slow machine that has just been kept busy.
			d := e.Decide(t.Context(), good, &policy.Input{})
			for end := time.Now().Add(time.Minute); d.Missed && time.Now().Before(end); {
				d = e.Decide(t.Context(), good, &policy.Input{})
			}
			if !d.Allow {
				t.Errorf("afterwards another policy refuses: %+v", d)
			}
		})
	}
}

// A claim in a token is the caller's to choose.
func TestHugeNumbersOfCallersRefuse(t *testing.T) {
	e := engine(t)
	rev := revision(t, "p.rego", head+`allow if { [_, claims, _] := io.jwt.decode(input.token); claims.exp * 1000000000 > 0 }
allow if input.resource.metadata.replicas + 1 > 0`)
	for name, in := range map[string]*policy.Input{
		"claim":    {Token: jwt(map[string]any{"exp": json.Number("1e100000000")})},
		"metadata": {Resource: policy.Resource{Metadata: []byte(`{"replicas":1e100000000}`)}},
	} {
		start := time.Now()
		if d := e.Decide(t.Context(), rev, in); d.Allow || time.Since(start) > 30*time.Second {
			t.Errorf("%s: %+v after %v", name, d, time.Since(start))
		}
	}
}

func TestAHungTestIsCutOff(t *testing.T) {
	e := engine(t, func(o *Options) { o.TestLimit = 100 * time.Millisecond })
	rev := revision(t, "p.rego", head+"allow := true", "p_test.rego", head+"test_x if count([1 | numbers.range(1, 10000)[_]; numbers.range(1, 10000)[_]; numbers.range(1, 10000)[_]]) > 0")
	if _, err := e.Check(t.Context(), &rev.Content); !fault.Is(err, fault.InvalidPolicy) {
		t.Errorf("error = %v", err)
	}
}

func TestABusyNodeRefusesWhenTheCallerLeaves(t *testing.T) {
	e := engine(t)
	rev := revision(t, "p.rego", head+"allow := true")
	if err := e.Prepare(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	for range cap(e.slots) {
		e.slots <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := e.Decide(ctx, rev, &policy.Input{})
	if d.Allow || !strings.Contains(strings.Join(d.Reasons, ""), "busy") {
		t.Errorf("%+v", d)
	}
}

func TestAPanicIsARefusal(t *testing.T) {
	e := engine(t, func(o *Options) { o.ValidSchema = func(any) bool { panic("boom") } })
	rev := revision(t, "p.rego", head+"allow if is_valid_schema({})")
	for range 2 * cap(e.slots) { // none is lost
		if d := e.Decide(t.Context(), rev, &policy.Input{}); d.Allow || len(d.Reasons) != 1 {
			t.Fatalf("%+v", d)
		}
	}
}

func TestInputThatIsNotJSONRefuses(t *testing.T) {
	rev := revision(t, "p.rego", head+"allow if not input.resource.metadata.locked")
	d := engine(t).Decide(t.Context(), rev, &policy.Input{Resource: policy.Resource{Metadata: []byte(`{"locked":`)}})
	if d.Allow {
		t.Errorf("%+v", d)
	}
}

func TestDecisionsHaveTheirOwnIDs(t *testing.T) {
	e := engine(t)
	rev := revision(t, "p.rego", head+"allow := true")
	seen := map[string]bool{}
	for range 10_000 {
		id := e.Decide(t.Context(), rev, &policy.Input{}).ID
		if seen[id] || len(id) != 36 || id[14] != '7' {
			t.Fatalf("id %q", id)
		}
		seen[id] = true
	}
}

// JSON Schema may refer to files and URLs; neither is opened.
func TestSchemasAreNotFetched(t *testing.T) {
	asked := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "schema.json")
	if err := os.WriteFile(file, []byte(`{"type":"object"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	e := engine(t)
	rev := revision(t, "p.rego", head+`allow if json.match_schema({}, input.resource.payload)[0]
allow if json.verify_schema(input.resource.metadata.schema)[0]`)
	good := func(in *policy.Input) bool { return e.Decide(t.Context(), rev, in).Allow }
	if !good(&policy.Input{Resource: policy.Resource{Payload: []byte(`{"type":"object"}`)}}) {
		t.Fatal("a schema without references is refused")
	}
	for _, ref := range []string{
		`{"$ref":"` + server.URL + `/s.json"}`, `{"$ref":"file://` + file + `"}`, `{"$ref":"FILE://` + file + `"}`,
		`{"$id":"file://` + filepath.Dir(file) + `/","properties":{"a":{"$ref":"schema.json"}}}`,
		`{"allOf":[{"$ref":"file://` + file + `"}]}`, `{"$ref":"file:///dev/zero"}`,
	} {
		text, err := json.Marshal(ref)
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range []*policy.Input{
			{Resource: policy.Resource{Payload: []byte(ref)}}, {Resource: policy.Resource{Payload: text}},
			{Resource: policy.Resource{Metadata: []byte(`{"schema":` + ref + `}`)}}, {Resource: policy.Resource{Metadata: []byte(`{"schema":` + string(text) + `}`)}},
		} {
			if good(in) {
				t.Errorf("%s is followed", ref)
			}
		}
	}
	if len(asked) > 0 {
		t.Errorf("asked for %s", <-asked)
	}
}
