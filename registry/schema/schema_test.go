package schema

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/muster-registry/muster/fault"
)

func registered(t *testing.T, kind, body string) Registered {
	t.Helper()
	spec, err := Parse(kind, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return Registered{Namespace: "shop", Kind: kind, Spec: spec}
}

func TestRecordsAreHeldToTheirSchema(t *testing.T) {
	var cache Cache
	const tier = `{"metadata":{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","required":["tier"],
		"properties":{"tier":{"enum":["gold","silver"]},"cost/center":{"type":"integer","minimum":100},"contact":{"type":"string","format":"email"}}},
		"payload":{"properties":{"owner":{"type":"string","pattern":"^[a-z]+$"},"tags":{"type":"array","uniqueItems":true,"items":{"maxLength":4}}}}}`
	s := registered(t, "service", tier)
	for _, c := range []struct {
		metadata, payload string
		want              string // pointers
	}{
		{`{"tier":"gold"}`, `{"owner":"ann"}`, ""},
		{`{"tier":"gold","cost/center":100,"contact":"ann@example.org","more":[1,2]}`, `{}`, ""},
		{``, `{}`, "/metadata"},
		{`{"tier":"tin"}`, `{}`, "/metadata/tier"},
		{`{"tier":"gold","cost/center":99}`, `{}`, "/metadata/cost~1center"},
		{`{"tier":"gold","cost/center":100.5}`, `{}`, "/metadata/cost~1center"},
		{`{"tier":"gold","cost/center":1e3}`, `{}`, ""},
		{`{"tier":"gold","contact":"nobody"}`, `{}`, "/metadata/contact"},
		{`{"tier":"gold"}`, `{"owner":"Ann 1"}`, "/owner"},
		{`{"tier":"tin"}`, `{"owner":"Ann","tags":["a","b","a","longer"]}`, "/metadata/tier /owner /tags /tags/3"},
		{`{"tier":"gold","cost/center":1e999999}`, `{}`, "*"},
	} {
		var metadata []byte
		if c.metadata != "" {
			metadata = []byte(c.metadata)
		}
		err := cache.Check(s, Record{Metadata: metadata, Payload: []byte(c.payload)})
		if c.want == "" {
			if err != nil {
				t.Errorf("%s %s: %v", c.metadata, c.payload, err)
			}
			continue
		}
		if !fault.Is(err, fault.InvalidField) || !strings.Contains(err.Error(), "the JSON Schema for service in namespace shop") {
			t.Errorf("%s %s: %v", c.metadata, c.payload, err)
			continue
		}
		var at []string
		for _, f := range fault.From(err).Fields {
			at = append(at, f.Pointer)
		}
		if got := sorted(at); c.want != "*" && got != c.want {
			t.Errorf("%s %s: mistakes at %q, want %q", c.metadata, c.payload, got, c.want)
		}
	}
}

func sorted(at []string) string {
	for i := range at {
		for j := i; j > 0 && at[j] < at[j-1]; j-- {
			at[j], at[j-1] = at[j-1], at[j]
		}
	}
	return strings.Join(at, " ")
}

func TestWhereTheDefinitionStands(t *testing.T) {
	var cache Cache
	s := registered(t, "version", `{"payload":{"properties":{"info":{"required":["contact"]}}}}`)
	s.Namespace = "*"
	err := cache.Check(s, Record{Payload: []byte(`{"info":{}}`), At: "/document"})
	if f := fault.From(err); f.Code != fault.InvalidField || f.Fields[0].Pointer != "/document/info" || !strings.Contains(f.Detail, "all namespaces") {
		t.Errorf("%v", err)
	}
	if err := cache.Check(s, Record{At: "/document"}); !fault.Is(err, fault.InvalidField) {
		t.Errorf("a definition that cannot be read: %v", err)
	}
}

func TestANewSchemaCountsAtOnce(t *testing.T) {
	var cache Cache
	a := registered(t, "service", `{"payload":{"type":"object"}}`)
	b := registered(t, "service", `{"payload":{"type":"string"}}`)
	for range 3 {
		if err := cache.Check(a, Record{Payload: []byte(`{}`)}); err != nil {
			t.Error(err)
		}
		if err := cache.Check(b, Record{Payload: []byte(`{}`)}); err == nil {
			t.Error("the old schema is still used")
		}
	}
	broken := Registered{Namespace: "shop", Kind: "service", Spec: []byte(`{"payload":7}`)}
	if err := cache.Check(broken, Record{Payload: []byte(`{}`)}); !fault.Is(err, fault.Internal) {
		t.Errorf("a damaged schema: %v", err)
	}
}

func TestSchemasThatAreRefused(t *testing.T) {
	deep := strings.Repeat(`{"not":`, 70) + "true" + strings.Repeat("}", 70)
	wide := `{"allOf":[` + strings.TrimSuffix(strings.Repeat(`{"not":{}},`, MaxSubschemas), ",") + `]}`
	for name, c := range map[string]struct {
		kind, body string
		code       fault.Code
		says       string
	}{
		"no schema":                    {"service", `{}`, fault.InvalidField, "give a schema"},
		"null":                         {"service", `{"metadata":null}`, fault.InvalidField, "give a schema"},
		"no JSON":                      {"service", `{`, fault.BadRequest, ""},
		"a key twice":                  {"service", `{"metadata":{"type":"object","type":"string"}}`, fault.BadRequest, ""},
		"an unknown field":             {"service", `{"schema":{}}`, fault.InvalidField, "/schema"},
		"another kind":                 {"token", `{"payload":{}}`, fault.InvalidField, "token"},
		"version metadata":             {"version", `{"metadata":{}}`, fault.InvalidField, "no metadata"},
		"an unknown type":              {"service", `{"metadata":{"properties":{"a":{"type":"text"}}}}`, fault.InvalidField, "/metadata/properties/a/type"},
		"a number":                     {"service", `{"metadata":7}`, fault.InvalidField, "/metadata"},
		"an old draft":                 {"service", `{"metadata":{"$schema":"http://json-schema.org/draft-07/schema#"}}`, fault.InvalidField, "/metadata/$schema"},
		"an old draft inside":          {"service", `{"metadata":{"$defs":{"a":{"$id":"a","$schema":"http://json-schema.org/draft-04/schema#"}}}}`, fault.InvalidField, "2020-12"},
		"a file":                       {"service", `{"metadata":{"$ref":"file:///etc/passwd"}}`, fault.InvalidField, "nothing is fetched"},
		"a URL":                        {"service", `{"metadata":{"$ref":"https://example.org/a.json"}}`, fault.InvalidField, "nothing is fetched"},
		"a relative file":              {"service", `{"metadata":{"$ref":"other.json"}}`, fault.InvalidField, "nothing is fetched"},
		"through $id":                  {"service", `{"metadata":{"$id":"https://example.org/","$ref":"a.json"}}`, fault.InvalidField, "nothing is fetched"},
		"the meta-schema":              {"service", `{"metadata":{"$ref":"https://json-schema.org/draft/2020-12/schema"}}`, fault.InvalidField, "outside"},
		"a missing part":               {"service", `{"metadata":{"$ref":"#/$defs/none"}}`, fault.InvalidField, ""},
		"look-behind":                  {"service", `{"metadata":{"properties":{"a":{"pattern":"(?<=a)b"}}}}`, fault.InvalidField, ""},
		"back-references":              {"service", `{"metadata":{"properties":{"a":{"pattern":"(a)\\1"}}}}`, fault.InvalidField, ""},
		"a huge expression":            {"service", `{"metadata":{"properties":{"a":{"pattern":"((a{30}){30}b){30}"}}}}`, fault.InvalidField, ""},
		"too deep":                     {"service", `{"metadata":` + deep + `}`, fault.BadRequest, "64"},
		"too many":                     {"service", `{"metadata":` + wide + `}`, fault.InvalidField, "schemas"},
		"too large":                    {"service", `{"metadata":{"title":"` + strings.Repeat("a", MaxSize) + `"}}`, fault.TooLarge, ""},
		"a number of a million digits": {"service", `{"metadata":{"maximum":1e999999999}}`, fault.InvalidField, "number"},
	} {
		_, err := Parse(c.kind, []byte(c.body))
		if !fault.Is(err, c.code) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %s and %q", name, err, c.code, c.says)
		}
	}
}

// Schemas that would take for ever, each on a record that makes them: the check
// ends after its steps, and the next one has them all again.
func TestEvilSchemasEnd(t *testing.T) {
	double := func(n int, kw string) string {
		defs := `"s0":{"type":"string"}`
		for i := 1; i <= n; i++ {
			defs += fmt.Sprintf(`,"s%d":{"%s":[{"$ref":"#/$defs/s%d"},{"$ref":"#/$defs/s%d"}]}`, i, kw, i-1, i-1)
		}
		return fmt.Sprintf(`{"$defs":{%s},"$ref":"#/$defs/s%d"}`, defs, n)
	}
	nested := strings.Repeat(`{"a":`, 60) + "1" + strings.Repeat("}", 60)
	list := "[" + strings.TrimSuffix(strings.Repeat(`{"a":1},`, 20_000), ",") + "]"
	for name, c := range map[string]struct{ schema, payload string }{
		"allOf doubling":       {double(60, "allOf"), `"a"`},
		"anyOf doubling":       {double(60, "anyOf"), `1`},
		"oneOf doubling":       {double(60, "oneOf"), `1`},
		"doubling under not":   {strings.Replace(double(60, "anyOf"), `"$ref":"#/$defs/s60"}`, `"not":{"$ref":"#/$defs/s60"}}`, 1), `1`},
		"patterns that meet":   {`{"$defs":{"s":{"type":"object","patternProperties":{"a":{"$ref":"#/$defs/s"},".":{"$ref":"#/$defs/s"}}}},"$ref":"#/$defs/s"}`, nested},
		"patterns under not":   {`{"$defs":{"s":{"type":"object","patternProperties":{"a":{"$ref":"#/$defs/s"},".":{"$ref":"#/$defs/s"}}}},"not":{"$ref":"#/$defs/s"}}`, nested},
		"through dynamic":      {`{"$dynamicAnchor":"s","type":"object","patternProperties":{"a":{"$dynamicRef":"#s"},".":{"$dynamicRef":"#s"}}}`, nested},
		"a long enumeration":   {`{"items":{"enum":[` + strings.TrimSuffix(strings.Repeat(`{"b":1},`, 10_000), ",") + `]}}`, list},
		"a slow expression":    {`{"items":{"properties":{},"patternProperties":{"(a?){60}a{60}":true}}}`, `[{"` + strings.Repeat("a", 900_000) + `":1}]`},
		"contains in contains": {`{"allOf":[` + strings.TrimSuffix(strings.Repeat(`{"contains":{"required":["b"]}},`, 400), ",") + `]}`, list},
	} {
		cache := Cache{limit: 20_000}
		if name == "doubling under not" { // the slowest of all, with all of its steps
			cache.limit = 0
		}
		s := registered(t, "version", `{"payload":`+c.schema+`}`)
		err := cache.Check(s, Record{Payload: []byte(c.payload)})
		if !fault.Is(err, fault.InvalidField) || !strings.Contains(err.Error(), "steps") {
			t.Errorf("%s: %.300v", name, err)
		}
	}
	var cache Cache
	s := registered(t, "version", `{"payload":`+double(4, "allOf")+`}`)
	for range 2000 {
		if err := cache.Check(s, Record{Payload: []byte(`"a"`)}); err != nil {
			t.Fatal(err)
		}
	}
}

// A schema that refers to itself without going on is refused or ends.
func TestCircles(t *testing.T) {
	for _, schema := range []string{`{"$ref":"#"}`, `{"allOf":[{"$ref":"#"}]}`, `{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}`} {
		spec, err := Parse("service", []byte(`{"payload":`+schema+`}`))
		if err != nil {
			continue
		}
		var cache Cache
		if err := cache.Check(Registered{Namespace: "a", Kind: "service", Spec: spec}, Record{Payload: []byte(`{}`)}); !fault.Is(err, fault.InvalidField) {
			t.Errorf("%s: %v", schema, err)
		}
	}
	// One that goes down into the record with each turn is common.
	tree := registered(t, "version", `{"payload":{"type":"object","properties":{"children":{"type":"array","items":{"$ref":"#"}}}}}`)
	var cache Cache
	if err := cache.Check(tree, Record{Payload: []byte(`{"children":[{"children":[{}]},{}]}`)}); err != nil {
		t.Error(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	var cache Cache
	s := registered(t, "service", `{"metadata":{"required":["a"]},"payload":{"type":"object"}}`)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 200 {
				rec := Record{Metadata: []byte(`{"a":1}`), Payload: []byte(`{}`)}
				if (i+j)%2 == 0 {
					rec.Metadata = []byte(`{"b":1}`)
				}
				if err := cache.Check(s, rec); (err == nil) != ((i+j)%2 != 0) {
					t.Errorf("%s: %v", rec.Metadata, err)
				}
			}
		})
	}
	wg.Wait()
	for i := range maxKept + 10 {
		s.Namespace = fmt.Sprint("n", i)
		if err := cache.Check(s, Record{Metadata: []byte(`{"a":1}`), Payload: []byte(`{}`)}); err != nil {
			t.Fatal(err)
		}
	}
	if len(cache.kept) > maxKept {
		t.Errorf("%d schemas are kept", len(cache.kept))
	}
}

// The canonical form is stored, and put back as a GET gave it.
func TestTheCanonicalForm(t *testing.T) {
	spec, err := Parse("service", []byte(`{ "payload" : { "type": "object" }, "revision": 7, "created_by": "ann", "name": "service" }`))
	if err != nil || string(spec) != `{"payload":{"type":"object"}}` {
		t.Errorf("%s %v", spec, err)
	}
}

func BenchmarkCheck(b *testing.B) {
	var cache Cache
	spec, err := Parse("service", []byte(`{"metadata":{"type":"object","required":["tier"],"properties":{"tier":{"enum":["gold","silver"]},"center":{"type":"integer"}}}}`))
	if err != nil {
		b.Fatal(err)
	}
	s := Registered{Namespace: "shop", Kind: "service", Spec: spec}
	b.ReportAllocs()
	for b.Loop() {
		if err := cache.Check(s, Record{Metadata: []byte(`{"tier":"gold","center":100}`)}); err != nil {
			b.Fatal(err)
		}
	}
}
