package definition_test

import (
	"encoding/json"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry/definition"
)

const head = `{"openapi":"3.0.3","info":{"title":"t","version":"1"},`

func TestRoutes(t *testing.T) {
	tests := []struct {
		name, document string
		want           []definition.Route
	}{
		{"sorted by path, then method", head + `"paths":{"/b":{"put":{"responses":{}},"get":{"responses":{}}},"/a/{id}":{"delete":{"responses":{}}}}}`,
			[]definition.Route{{Method: "DELETE", Path: "/a/{id}"}, {Method: "GET", Path: "/b"}, {Method: "PUT", Path: "/b"}}},
		{"server paths are not part of a route", head + `"servers":[{"url":"https://x.example/v1"}],"paths":{"/a":{"get":{"responses":{}}}}}`,
			[]definition.Route{{Method: "GET", Path: "/a"}}},
		{"the base path of Swagger is", `{"swagger":"2.0","info":{"title":"t","version":"1"},"basePath":"/v1/","paths":{"/a":{"get":{"responses":{}}}}}`,
			[]definition.Route{{Method: "GET", Path: "/v1/a"}}},
		{"a path item by reference", `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{"/a":{"$ref":"#/components/pathItems/p"}},
			"components":{"pathItems":{"p":{"post":{}}}}}`,
			[]definition.Route{{Method: "POST", Path: "/a"}}},
		{"webhooks are no routes", `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"webhooks":{"w":{"post":{}}}}`, []definition.Route{}},
		{"extensions are left alone", head + `"x-a":{"$ref":"http://127.0.0.1:1/x"},"paths":{"x-b":7,"/a":{"get":{"x-c":[],"responses":{"x-d":1}}}}}`,
			[]definition.Route{{Method: "GET", Path: "/a"}}},
		{"YAML with merges and anchors", "swagger: '2.0'\ninfo: {title: t, version: 1.0}\nx-op: &op\n  responses: {200: {description: d}}\npaths:\n  /a:\n    get:\n      <<: *op\n    head: *op\n",
			[]definition.Route{{Method: "GET", Path: "/a"}, {Method: "HEAD", Path: "/a"}}},
		{"an escaped key", head + `"paths":{"\/\u0061":{"g\u0065t":{"responses":{}}}}}`, []definition.Route{{Method: "GET", Path: "/a"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := definition.Parse("openapi", []byte(tt.document))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, d.Routes); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func schemas(s string) string { return head + `"paths":{},"components":{"schemas":{` + s + `}}}` }

func TestReferences(t *testing.T) {
	refused := map[string]struct{ document, pointer string }{
		"itself":               {schemas(`"A":{"$ref":"#/components/schemas/A"}`), "/components/schemas/A/$ref"},
		"itself, written else": {schemas(`"A":{"$ref":"#/components/schemas/%41"}`), "/components/schemas/A/$ref"},
		"each other":           {schemas(`"A":{"$ref":"#/components/schemas/B"},"B":{"$ref":"#/components/schemas/A"}`), "/components/schemas/A/$ref"},
		"a URL":                {schemas(`"A":{"properties":{"x":{"$ref":"https://x.example/s.json#/A"}}}`), "/components/schemas/A/properties/x/$ref"},
		"a file":               {schemas(`"A":{"items":{"$ref":"../../etc/passwd"}}`), "/components/schemas/A/items/$ref"},
		"a file by URL":        {schemas(`"A":{"allOf":[{},{"$ref":"file:///etc/passwd"}]}`), "/components/schemas/A/allOf/1/$ref"},
		"nothing":              {schemas(`"A":{"not":{"$ref":"#/components/schemas/B"}}`), "/components/schemas/A/not/$ref"},
		"the whole":            {schemas(`"A":{"$ref":"#"}`), "/components/schemas/A/$ref"},
		"no text":              {schemas(`"A":{"$ref":1}`), "/components/schemas/A/$ref"},
		"a path item":          {head + `"paths":{"/a":{"$ref":"other.json"}}}`, "/paths/~1a/$ref"},
		"a parameter":          {head + `"paths":{"/a":{"get":{"parameters":[{"$ref":"p.json"}],"responses":{}}}}}`, "/paths/~1a/get/parameters/0/$ref"},
		"a response":           {head + `"paths":{"/a":{"get":{"responses":{"200":{"$ref":"//x.example/r"}}}}}}`, "/paths/~1a/get/responses/200/$ref"},
	}
	for name, tt := range refused {
		t.Run(name, func(t *testing.T) {
			_, err := definition.Parse("openapi", []byte(tt.document))
			if !fault.Is(err, fault.InvalidDefinition) {
				t.Fatalf("got %v", err)
			}
			if p := fault.From(err).Fields[0].Pointer; p != tt.pointer {
				t.Errorf("pointer %q, want %q", p, tt.pointer)
			}
		})
	}
	accepted := map[string]string{
		"a tree":                  schemas(`"Node":{"properties":{"children":{"type":"array","items":{"$ref":"#/components/schemas/Node"}}}}`),
		"two that hold the other": schemas(`"A":{"properties":{"b":{"$ref":"#/components/schemas/B"}}},"B":{"properties":{"a":{"$ref":"#/components/schemas/A"}}}`),
		"a chain":                 schemas(`"A":{"$ref":"#/components/schemas/B"},"B":{"$ref":"#/components/schemas/C"},"C":{"type":"string"}`),
		"escaped names":           schemas(`"a/b~c d":{},"A":{"$ref":"#/components/schemas/a~1b~0c%20d"}`),
		"an item":                 schemas(`"A":{"allOf":[{},{"type":"object"}]},"B":{"$ref":"#/components/schemas/A/allOf/1"}`),
		"a property called $ref":  schemas(`"A":{"properties":{"$ref":{"type":"string"}}}`),
		"in an example":           schemas(`"A":{"example":{"$ref":"http://127.0.0.1:1/"}}`),
		"an anchor": `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"components":{"schemas":{
			"A":{"$anchor":"a"},"B":{"$ref":"#a"}}}}`,
	}
	for name, document := range accepted {
		t.Run(name, func(t *testing.T) {
			if _, err := definition.Parse("openapi", []byte(document)); err != nil {
				t.Error(err)
			}
		})
	}
}

// A reference to a listener shows whether anything is fetched.
func TestNothingIsFetched(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int32
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			calls.Add(1)
			c.Close()
		}
	}()
	url := "http://" + l.Addr().String() + "/s.json"
	for format, document := range map[string]string{
		"openapi":  schemas(`"A":{"$ref":"` + url + `"},"B":{"$schema":"` + url + `","$id":"` + url + `","externalDocs":{"url":"` + url + `"}}`),
		"asyncapi": `{"asyncapi":"3.0.0","info":{"title":"t","version":"1"},"channels":{"c":{"$ref":"` + url + `"}}}`,
		"wsdl":     `<!DOCTYPE d SYSTEM "` + url + `"><definitions/>`,
	} {
		_, err := definition.Parse(format, []byte(document))
		if !fault.Is(err, fault.InvalidDefinition) {
			t.Errorf("%s: %v", format, err)
		}
	}
	l.Close()
	<-done
	if n := calls.Load(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
}

func TestMalformed(t *testing.T) {
	tests := []struct{ name, format, document, where string }{
		{"empty", "openapi", " \n", ""},
		{"no version", "openapi", `{"info":{}}`, ""},
		{"a version to come", "openapi", `{"openapi":"4.0.0"}`, "/openapi"},
		{"an old version", "openapi", `{"swagger":"1.2"}`, "/swagger"},
		{"no paths", "openapi", head + `"x":1}`, ""},
		{"no title", "openapi", `{"openapi":"3.0.0","info":{"version":"1"},"paths":{}}`, "/info"},
		{"a path without a slash", "openapi", head + `"paths":{"a":{}}}`, "/paths/a"},
		{"an operation of the wrong type", "openapi", head + `"paths":{"/a":{"get":[]}}}`, "/paths/~1a/get"},
		{"no responses", "openapi", head + `"paths":{"/a":{"get":{}}}}`, "/paths/~1a/get"},
		{"a status of four digits", "openapi", head + `"paths":{"/a":{"get":{"responses":{"2000":{"description":""}}}}}}`, "/paths/~1a/get/responses/2000"},
		{"a parameter nowhere", "openapi", head + `"paths":{"/a":{"parameters":[{"name":"n","in":"body"}]}}}`, "/paths/~1a/parameters/0/in"},
		{"an optional path parameter", "openapi", head + `"paths":{"/a/{n}":{"parameters":[{"name":"n","in":"path"}]}}}`, "/paths/~1a~1{n}/parameters/0"},
		{"a type that is none", "openapi", schemas(`"A":{"type":"text"}`), "/components/schemas/A/type"},
		{"a scheme without its URL", "openapi", head + `"paths":{},"components":{"securitySchemes":{"s":{"type":"openIdConnect"}}}}`, "/components/securitySchemes/s"},
		{"a duplicate key", "openapi", "{\n\"a\":1,\n\"a\":2}", "line 3"},
		{"a duplicate key in YAML", "openapi", "a: 1\nb: 2\na: 3\n", "line 3"},
		{"JSON that stops", "openapi", `{"openapi":`, "line 1"},
		{"JSON and more", "openapi", head + `"paths":{}} {}`, "line 1"},
		{"an array", "openapi", `[]`, ""},
		{"YAML that is none", "openapi", "a: 1\nb: c: d\n", "line 2"},
		{"two YAML documents", "openapi", "a: 1\n---\nb: 2\n", "second"},
		{"a list as a key", "openapi", "? [a]\n: 1\n", "line 1"},
		{"NUL", "graphql", "type A {}\n\x00", "line 2"},
		{"no text", "protobuf", "\xff\xfe", "UTF-8"},
		{"AsyncAPI that is no object", "asyncapi", "- a\n", "object"},
		{"a DTD", "wsdl", "<?xml version=\"1.0\"?>\n<!DOCTYPE d [<!ENTITY a \"b\">]>\n<definitions>&a;</definitions>", "line 2"},
		{"an entity", "wsdl", "<definitions>\n&a;</definitions>", "line 2"},
		{"another element", "wsdl", "<html/>", "WSDL"},
		{"two elements", "wsdl", "<definitions/><definitions/>", "one WSDL element"},
		{"half an element", "wsdl", "<definitions>", "line 1"},
		{"deep XML", "wsdl", strings.Repeat("<definitions>", 65), "deeper"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := definition.Parse(tt.format, []byte(tt.document))
			if !fault.Is(err, fault.InvalidDefinition) {
				t.Fatalf("got %v", err)
			}
			f := fault.From(err).Fields[0]
			if strings.HasPrefix(tt.where, "/") && f.Pointer != tt.where || !strings.Contains(f.Pointer+" "+f.Message, tt.where) {
				t.Errorf("says %q %q, want %q", f.Pointer, f.Message, tt.where)
			}
		})
	}
	if _, err := definition.Parse("raml", nil); !fault.Is(err, fault.InvalidField) {
		t.Errorf("an unknown format: %v", err)
	}
	var bad strings.Builder
	for i := range 100 {
		fmt.Fprintf(&bad, `,"A%d":{"type":1}`, i)
	}
	_, err := definition.Parse("openapi", []byte(schemas(bad.String()[1:])))
	if n := len(fault.From(err).Fields); n != 16 {
		t.Errorf("%d of 100 mistakes are listed, want 16", n)
	}
}

// processorTime is what this process has used so far: unlike time on the
// clock, it does not depend on what else the machine does.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Small documents that are made to cost much.
func TestBombs(t *testing.T) {
	laughs := "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
	merges := "a0: &a0 {k: v}\n"
	for i := 1; i <= 30; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 9), ","))
		merges += fmt.Sprintf("a%d: &a%d {<<: [%s]}\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 9), ","))
	}
	bombs := map[string]string{
		"laughs":        "openapi: 3.0.0\n" + laughs,
		"merges":        "openapi: 3.0.0\n" + merges,
		"long text":     "a: &a " + strings.Repeat("x", 100_000) + "\nb: [" + strings.Repeat("*a,", 10_000) + "]\n",
		"wide list":     "a: &a [" + strings.Repeat("x,", 5_000) + "]\nb: [" + strings.Repeat("*a,", 5_000) + "]\n",
		"holds itself":  "a: &a [*a]\n",
		"merges itself": "a: &a {<<: *a}\n",
		"deep YAML":     "a: " + strings.Repeat("[", 9_000) + strings.Repeat("]", 9_000) + "\n",
		"deep JSON":     strings.Repeat(`{"a":`, 100_000),
		"deep brackets": strings.Repeat(`[`, 1_000_000),
		"dashes":        strings.Repeat("- ", 2_000),
	}
	for name, bomb := range bombs {
		for _, format := range []string{"openapi", "asyncapi"} {
			t.Run(name+"/"+format, func(t *testing.T) {
				start := processorTime(t)
				_, err := definition.Parse(format, []byte(bomb))
				if took := processorTime(t) - start; took > slowness*100*time.Millisecond {
					t.Errorf("took %v", took)
				}
				if !fault.Is(err, fault.InvalidDefinition) {
					t.Errorf("got %v", err)
				}
				if definition.Valid(bomb) {
					t.Error("is valid")
				}
			})
		}
	}
}

// large is an OpenAPI document of n operations and about 300 n bytes.
func large(n int) []byte {
	var b strings.Builder
	b.WriteString(head + `"paths":{`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"/a%d/{id}":{"get":{"operationId":"op%d","description":"Reads one thing of the many that there are, by its id.",`+
			`"parameters":[{"name":"id","in":"path","required":true,"schema":{"type":"string"}}],`+
			`"responses":{"200":{"description":"ok","content":{"application/json":{"schema":{"$ref":"#/components/schemas/A%d"}}}}}}}`, i, i, i%1000)
	}
	b.WriteString(`},"components":{"schemas":{"A0":{}`)
	for i := 1; i < 1000; i++ {
		fmt.Fprintf(&b, `,"A%d":{"type":"object","properties":{"next":{"$ref":"#/components/schemas/A%d"}}}`, i, i-1)
	}
	b.WriteString(`}}}`)
	return []byte(b.String())
}

// What a hostile or huge document may allocate in all, which bounds what it
// can hold at any moment.
func TestLargeDocuments(t *testing.T) {
	var chain strings.Builder
	chain.WriteString(`"A0":{}`)
	for i := 1; i < 30_000; i++ {
		fmt.Fprintf(&chain, `,"A%d":{"$ref":"#/components/schemas/A%d"}`, i, i-1)
	}
	var items strings.Builder // many references to the items of one long list
	for i := range 20_000 {
		fmt.Fprintf(&items, `,{"$ref":"#/components/schemas/A/allOf/%d"}`, 20_000+i)
	}
	tests := []struct {
		name     string
		document []byte
		accepted bool
	}{
		{"20 000 operations", large(20_000), true},
		{"50 000 operations", large(50_000), false},
		{"a long chain of references", []byte(schemas(chain.String())), true},
		{"references into a long list", []byte(schemas(`"A":{"allOf":[{}` + strings.Repeat(",{}", 60_000) + `]},"B":{"oneOf":[` + items.String()[1:] + `]}`)), true},
		{"16 MiB of numbers", []byte(`{"x":[1` + strings.Repeat(",1", 8<<20-8) + `]}`), false},
		{"more than 16 MiB", make([]byte, 16<<20+1), false},
		{"more than 4 MiB of YAML", []byte("a: " + strings.Repeat("x", 4<<20)), false},
		{"4 MiB of YAML values", []byte("a: [" + strings.Repeat("b,", 2<<20-8) + "]"), false},
		{"more than 4 MiB of XML", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			format := "openapi"
			if tt.document == nil {
				format, tt.document = "wsdl", []byte("<definitions>"+strings.Repeat("<a/>", 1<<20)+"</definitions>")
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := definition.Parse(format, tt.document)
			runtime.ReadMemStats(&after)
			if tt.accepted && err != nil || !tt.accepted && !fault.Is(err, fault.TooLarge) {
				t.Errorf("got %v", err)
			}
			if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 250 {
				t.Errorf("%d MiB were allocated", got)
			}
		})
	}
}

func BenchmarkLarge(b *testing.B) {
	document := large(20_000)
	b.SetBytes(int64(len(document)))
	b.ReportAllocs()
	for b.Loop() {
		d, err := definition.Parse("openapi", document)
		if err != nil || len(d.Routes) != 20_000 {
			b.Fatal(err)
		}
	}
}

func TestValid(t *testing.T) {
	decode := func(s string) any {
		var v any
		if err := json.Unmarshal([]byte(s), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	loop := map[string]any{"openapi": "3.0.3"}
	loop["x"] = loop
	tests := []struct {
		name     string
		document any
		want     bool
	}{
		{"OpenAPI", decode(schemas(`"A":{"type":"string","maxLength":3}`)), true},
		{"OpenAPI as text", schemas(``), true},
		{"OpenAPI as YAML", "openapi: 3.1.0\ninfo: {title: t, version: '1'}\npaths: {}\n", true},
		{"Swagger", decode(`{"swagger":"2.0","info":{"title":"t","version":"1"},"paths":{}}`), true},
		{"AsyncAPI", decode(`{"asyncapi":"2.6.0","info":{"title":"t","version":"1"},"channels":{}}`), true},
		{"AsyncAPI 1", decode(`{"asyncapi":"1.2.0","info":{"title":"t"},"channels":{}}`), false},
		{"AsyncAPI without channels", decode(`{"asyncapi":"3.0.0","info":{"title":"t"}}`), false},
		{"AsyncAPI without a title", decode(`{"asyncapi":"3.0.0","info":{},"channels":{}}`), false},
		{"broken OpenAPI", decode(`{"openapi":"3.0.0"}`), false},
		{"a reference out", decode(schemas(`"A":{"$ref":"a.json"}`)), false},
		{"something else", decode(`{"name":"cart"}`), false},
		{"numbers as they come", map[string]any{"openapi": "3.0.3", "info": map[string]any{"title": "t", "version": "1"},
			"paths": map[string]any{}, "x": []any{1, int64(2), 2.5, json.Number("3"), uint64(4), true, nil}}, true},
		{"no number", map[string]any{"openapi": "3.0.3", "x": json.Number("x")}, false},
		{"a cycle", loop, false},
		{"a type JSON lacks", map[string]any{"openapi": make(chan int)}, false},
		{"nothing", nil, false},
		{"a number", 7.0, false},
		{"a list", []any{}, false},
		{"empty text", "", false},
		{"any text", "\x00{", false},
	}
	for _, tt := range tests {
		if got := definition.Valid(tt.document); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{schemas(`"A":{"$ref":"#/components/schemas/A"}`), head + `"paths":{"/a":{"get":{"responses":{"200":{"description":""}}}}}}`,
		`{"swagger":"2.0","info":{"title":"t","version":"1"},"basePath":"/v1","paths":{"/a":{"$ref":"#/paths/~1b"},"/b":{}}}`,
		"openapi: 3.1.0\ninfo: {title: t, version: 1}\nx: &a {b: 0x10, c: .inf, d: 2020-01-01}\npaths:\n  /a: {<<: *a}\n",
		"a: &a [*a]", "? [a]\n: b", "<definitions><a>&amp;</a></definitions>", `{"a":"\ud800"}`, `{"\u0000":[[[`} {
		f.Add(uint8(0), []byte(s))
	}
	f.Add(uint8(3), []byte("<definitions/>"))
	f.Fuzz(func(t *testing.T, format uint8, document []byte) {
		if len(document) > 64<<10 {
			return
		}
		name := definition.Formats[int(format)%len(definition.Formats)]
		d, err := definition.Parse(name, document)
		if err != nil {
			if !fault.Is(err, fault.InvalidDefinition) && !fault.Is(err, fault.TooLarge) {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		for i, r := range d.Routes {
			if r.Method == "" || name == "openapi" && !strings.HasPrefix(r.Path, "/") {
				t.Fatalf("route %v", r)
			}
			if i > 0 && r == d.Routes[i-1] {
				t.Fatalf("twice: %v", r)
			}
		}
		if name == "openapi" && !definition.Valid(string(document)) {
			t.Fatal("accepted and not valid")
		}
	})
}
