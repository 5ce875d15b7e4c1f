package definition_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry/definition"
)

// form is a normal form, decoded.
func form(t *testing.T, format, document string, c *definition.Context) (*definition.Normal, map[string]any) {
	t.Helper()
	n, err := definition.Normalise(format, []byte(document), c)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(n.JSON, &v); err != nil {
		t.Fatal(err)
	}
	return n, v
}

// at gives the places of an entry, as pointers.
func at(t *testing.T, n *definition.Normal, entry any) (paths []string) {
	t.Helper()
	places := int(entry.(map[string]any)["places"].(float64))
	for _, f := range n.Review([]definition.Judgement{{Rule: "r", Severity: "info", Places: places}}).Findings {
		paths = append(paths, f.Path)
	}
	return paths
}

// TestNormalForm looks at single facts: list, place and members of an entry.
func TestNormalForm(t *testing.T) {
	const schemes = `"components":{"securitySchemes":{"s":{"type":"http","scheme":"Bearer"}}}`
	tests := []struct {
		name, format, document, list, place, want string
	}{
		{"the document's security is the operation's", "openapi", head + `"security":[{"s":["a"]}],"paths":{"/a":{"get":{"responses":{}}}},` + schemes + `}`,
			"security", "/paths/~1a/get", `{"requirements":[{"scheme":"s","scopes":["a"]}],"admin":false}`},
		{"its own takes the place of that", "openapi", head + `"security":[{"s":[]}],"paths":{"/a":{"get":{"security":[],"responses":{}}}},` + schemes + `}`,
			"operations", "/paths/~1a/get", `{"asks":false,"secured":false,"opened":true}`},
		{"an empty alternative opens", "openapi", head + `"paths":{"/a":{"get":{"security":[{"s":[]},{}],"responses":{}}}},` + schemes + `}`,
			"operations", "/paths/~1a/get", `{"asks":true,"secured":false,"opened":true}`},
		{"an operation by reference", "openapi", `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{"/admin/a":{"$ref":"#/components/pathItems/p"}},"components":{"pathItems":{"p":{"post":{"tags":["x"]}}}}}`,
			"operations", "/components/pathItems/p/post", `{"method":"POST","admin":true,"tags":["x"]}`},
		{"answers by reference", "openapi", head + `"paths":{"/a":{"get":{"responses":{"429":{"$ref":"#/components/responses/r"},"default":{"description":""}}}}},"components":{"responses":{"r":{"description":"","headers":{"Retry-After":{},"X-A":{}}}}}}`,
			"operations", "/paths/~1a/get", `{"answers":{"429":["retry-after","x-a"],"DEFAULT":[]},"answer_headers":["retry-after","x-a"]}`},
		{"headers of a path are the operation's", "openapi", head + `"paths":{"/a":{"parameters":[{"name":"B","in":"header"}],"get":{"parameters":[{"name":"A","in":"header"}],"responses":{}}}}}`,
			"operations", "/paths/~1a/get", `{"headers":["a","b"]}`},
		{"an administrator is no administration", "openapi", head + `"paths":{"/badminton/{admin}":{"get":{"responses":{}}}}}`,
			"operations", "/paths/~1badminton~1{admin}/get", `{"admin":false}`},
		{"a parameter by reference stands where it is defined", "openapi", head + `"paths":{"/a":{"parameters":[{"$ref":"#/components/parameters/p"}]}},"components":{"parameters":{"p":{"name":"callbackURL","in":"query","schema":{"$ref":"#/components/schemas/S"}}},"schemas":{"S":{"type":["string","null"],"format":"uri"}}}}`,
			"parameters", "/components/parameters/p", `{"name":"callbackURL","words":["callback","url"],"types":["string"],"format":"uri"}`},
		{"a parameter of Swagger is its own schema", "openapi", `{"swagger":"2.0","info":{"title":"t","version":"1"},"paths":{"/a":{"get":{"parameters":[{"name":"n","in":"query","type":"integer","maximum":3}],"responses":{}}}}}`,
			"schemas", "/paths/~1a/get/parameters/0", `{"type":"integer","side":"request","maximum":true,"minimum":false}`},
		{"what is asked comes in", "openapi", head + `"paths":{"/a":{"post":{"requestBody":{"content":{"a/b":{"schema":{"type":"string"}}}},"responses":{}}}}}`,
			"schemas", "/paths/~1a/post/requestBody/content/a~1b/schema", `{"type":"string","side":"request"}`},
		{"what is answered goes out", "openapi", head + `"paths":{"/a":{"get":{"responses":{"200":{"description":"","content":{"a/b":{"schema":{"type":"array","items":{"$ref":"#/components/schemas/S"}}}}}}}}},"components":{"schemas":{"S":{"type":"string","maxLength":3}}}}`,
			"schemas", "/components/schemas/S", `{"type":"string","side":"answer","max_length":true}`},
		{"a callback asks the other way", "openapi", head + `"paths":{"/a":{"post":{"responses":{},"callbacks":{"c":{"http://x.example":{"post":{"requestBody":{"content":{"a/b":{"schema":{"type":"string"}}}},"responses":{}}}}}}}}}`,
			"schemas", "/paths/~1a/post/callbacks/c/http:~1~1x.example/post/requestBody/content/a~1b/schema", `{"side":"answer"}`},
		{"what is read only does not come in", "openapi", head + `"paths":{"/a":{"put":{"requestBody":{"$ref":"#/components/requestBodies/b"},"responses":{}}}},"components":{"requestBodies":{"b":{"content":{"a/b":{"schema":{"properties":{"id":{"readOnly":true,"type":"string"}}}}}}}}}`,
			"schemas", "/components/requestBodies/b/content/a~1b/schema/properties/id", `{"side":"none"}`},
		{"parts of an allOf are left open", "openapi", schemas(`"A":{"allOf":[{"$ref":"#/components/schemas/B"}]},"B":{"type":"object","additionalProperties":{}}`),
			"schemas", "/components/schemas/B", `{"type":"object","composed":true,"additional":"open"}`},
		{"a server's variables", "openapi", head + `"paths":{},"servers":[{"url":"{s}://user:pw@{h}:8080/v1","variables":{"s":{"default":"https","enum":["https","http"]},"h":{"default":"API.example"}}}]}`,
			"servers", "/servers/0", `{"protocols":["http","https"],"host":"api.example","credentials":true,"url":"https://…@API.example:8080/v1"}`},
		{"Swagger's host", "openapi", `{"swagger":"2.0","info":{"title":"t","version":"1"},"host":"api.example","schemes":["HTTP"],"paths":{}}`,
			"servers", "/schemes/0", `{"protocols":["http"],"host":"api.example"}`},
		{"a server of AsyncAPI 3", "asyncapi", async3 + `"servers":{"main":{"host":"b.example:9092","protocol":"Kafka","security":[{"$ref":"#/components/securitySchemes/s"}]}},"components":{"securitySchemes":{"s":{"type":"plain"}}}}`,
			"servers", "/servers/main", `{"name":"main","protocols":["kafka"],"host":"b.example","secured":true,"schemes":["s"]}`},
		{"an operation of AsyncAPI on secured servers", "asyncapi", async2 + `"servers":{"a":{"url":"a.example","protocol":"amqps","security":[{"s":[]}]},"b":{"url":"b.example","protocol":"amqps"}},"channels":{"c":{"servers":["a"],"subscribe":{}}},"components":{"securitySchemes":{"s":{"type":"X509"}}}}`,
			"operations", "/channels/c/subscribe", `{"method":"SUBSCRIBE","secured":true,"asks":false}`},
		{"an operation of AsyncAPI on all servers", "asyncapi", async2 + `"servers":{"a":{"url":"a.example","protocol":"amqps","security":[{"s":[]}]},"b":{"url":"b.example","protocol":"amqps"}},"channels":{"c":{"subscribe":{}}},"components":{"securitySchemes":{"s":{"type":"X509"}}}}`,
			"operations", "/channels/c/subscribe", `{"secured":false}`},
		{"what is received comes in", "asyncapi", async3 + `"channels":{"c":{"messages":{"m":{"$ref":"#/components/messages/m"}}}},"operations":{"o":{"action":"receive","channel":{"$ref":"#/channels/c"}}},"components":{"messages":{"m":{"payload":{"schemaFormat":"application/vnd.aai.asyncapi;version=3.0.0","schema":{"type":"string"}}}}}}`,
			"schemas", "/components/messages/m/payload/schema", `{"type":"string","side":"request"}`},
		{"a schema of another language", "asyncapi", async3 + `"components":{"messages":{"m":{"payload":{"schemaFormat":"application/vnd.apache.avro","schema":{"$ref":"https://x.example/a"}}}}}}`,
			"references", "/components/messages/m/payload/schema/$ref", `{"to":"https://x.example/a"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, v := form(t, tt.format, tt.document, nil)
			var want, got map[string]any
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatal(err)
			}
			var seen []string
			for _, entry := range v[tt.list].([]any) {
				paths := at(t, n, entry)
				if seen = append(seen, paths...); slices.Contains(paths, tt.place) {
					got = entry.(map[string]any)
				}
			}
			if got == nil {
				t.Fatalf("%s has nothing at %s, but at %q", tt.list, tt.place, seen)
			}
			for name, value := range want {
				if diff := cmp.Diff(value, got[name]); diff != "" {
					t.Errorf("%s: %s", name, diff)
				}
			}
		})
	}
}

// Things about which the same holds are one entry, in the order of the
// document, however many they are.
func TestNormalFormIsShort(t *testing.T) {
	n, v := form(t, "openapi", string(large(2_000)), nil)
	if n.Entries > 20 || len(v["operations"].([]any)) != 1 {
		t.Errorf("%d entries", n.Entries)
	}
	r := n.Review([]definition.Judgement{{Rule: "r", Severity: "low", Places: int(v["operations"].([]any)[0].(map[string]any)["places"].(float64))}})
	if r.Counts["low"] != 2_000 || len(r.Findings) != 51 || r.Findings[0].Path != "/paths/~1a0~1{id}/get" || r.Findings[49].Path != "/paths/~1a49~1{id}/get" {
		t.Errorf("%v, %d findings, first %+v", r.Counts, len(r.Findings), r.Findings[0])
	}
	if last := r.Findings[50]; last.Rule != "more-findings" || last.Message != "not listed for their number: 1950 of r" {
		t.Errorf("%+v", last)
	}
}

func TestReview(t *testing.T) {
	document := head + `"paths":{"/a":{"get":{"responses":{}},"put":{"responses":{}}},"/b":{"get":{"responses":{}}},"/` + strings.Repeat("x", 2000) + `":{"delete":{"responses":{}}}}}`
	n, v := form(t, "openapi", document, nil)
	place := map[string]int{}
	for _, o := range v["operations"].([]any) {
		o := o.(map[string]any)
		place[o["method"].(string)] = int(o["places"].(float64))
	}
	r := n.Review([]definition.Judgement{
		{Rule: "b", Severity: "low", Message: "second", Places: place["PUT"]},
		{Rule: "b", Severity: "low", Message: "first", Places: place["GET"], Except: []string{"/paths/~1b"}},
		{Rule: "b", Severity: "low", Message: "zweit", Places: place["GET"]},
		{Rule: "a", Severity: "low", Message: "m", Places: place["PUT"]},
		{Rule: "z", Severity: "high", Message: "m", Places: place["DELETE"]},
		{Rule: "z", Severity: "high", Message: "no such place", Places: 99},
	})
	want := &definition.Review{
		Findings: []definition.Finding{
			{Rule: "z", Severity: "high", Path: "/paths", Message: "m"}, // a pointer would be too long
			{Rule: "a", Severity: "low", Path: "/paths/~1a/put", Message: "m"},
			{Rule: "b", Severity: "low", Path: "/paths/~1a/get", Message: "first"},
			{Rule: "b", Severity: "low", Path: "/paths/~1a/put", Message: "second"},
			{Rule: "b", Severity: "low", Path: "/paths/~1b/get", Message: "zweit"},
		},
		Counts: map[string]int{"high": 1, "medium": 0, "low": 4, "info": 0},
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Error(diff)
	}
}

func TestNormaliseRefusesWhatParseDoes(t *testing.T) {
	for format, document := range map[string]string{"openapi": `{"openapi":"3.0.0"}`, "asyncapi": `{"asyncapi":"2.0.0"}`} {
		if _, err := definition.Normalise(format, []byte(document), nil); !fault.Is(err, fault.InvalidDefinition) {
			t.Errorf("%s: %v", format, err)
		}
	}
	if _, err := definition.Normalise("openapi", make([]byte, 16<<20+1), nil); !fault.Is(err, fault.TooLarge) {
		t.Errorf("too large: %v", err)
	}
	if n, err := definition.Normalise("graphql", []byte("type A {}"), nil); n != nil || err != nil {
		t.Errorf("graphql: %v, %v", n, err)
	}
}

// References let a small document say much: what is behind them is looked at
// as often as they are, up to a bound.
func TestReferencesThatMultiply(t *testing.T) {
	many := func(n int, item string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, ","+item, i)
		}
		return b.String()[1:]
	}
	tests := map[string]struct{ format, document string }{
		"answers with many headers": {"openapi", head + `"paths":{` + many(3_000, `"/a%d":{"get":{"responses":{"200":{"$ref":"#/components/responses/r"}}}}`) +
			`},"components":{"responses":{"r":{"description":"","headers":{` + many(3_000, `"h%d":{}`) + `}}}}}`},
		"security of many alternatives": {"openapi", head + `"security":[` + many(3_000, `{"s%d":[]}`) + `],"paths":{` + many(3_000, `"/a%d":{"get":{"responses":{}}}`) + `}}`},
		"messages of a channel": {"asyncapi", async3 + `"channels":{"c":{"messages":{` + many(3_000, `"m%d":{}`) + `}}},"operations":{` +
			many(3_000, `"o%d":{"action":"send","channel":{"$ref":"#/channels/c"}}`) + `}}`},
		"servers of a channel": {"asyncapi", async2 + `"servers":{` + many(3_000, `"s%d":{"url":"a","protocol":"b"}`) + `},"channels":{` +
			many(3_000, `"c%d":{"publish":{}}`) + `}}`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n, err := definition.Normalise(tt.format, []byte(tt.document), nil)
			if err != nil || !n.Partial {
				t.Errorf("all of it was looked at: %v", err)
			}
		})
	}
	// One path item for many paths is looked at once.
	n, _ := form(t, "openapi", `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{`+many(3_000, `"/a%d":{"$ref":"#/components/pathItems/p"}`)+
		`},"components":{"pathItems":{"p":{"parameters":[`+many(3_000, `{"name":"p%d","in":"query"}`)+`],"get":{}}}}}`, nil)
	if n.Partial {
		t.Error("a path item is looked at again for every path")
	}
}

func TestClaims(t *testing.T) {
	const document = head + `"paths":{"/a/{id}":{"get":{"responses":{}},"put":{"responses":{}}}}}`
	others := []definition.Published{
		{Version: "1", Routes: []definition.Route{{Method: "GET", Path: "/a/{other}"}, {Method: "POST", Path: "/a/{id}"}}},
		{Version: "2", Routes: []definition.Route{{Method: "GET", Path: "/a/{id}", Operation: "x"}, {Method: "PUT", Path: "/a/b"}}},
	}
	for lifecycle, want := range map[string]string{"published": "[[1 2] []]", "draft": "[[] []]"} {
		_, v := form(t, "openapi", document, &definition.Context{Lifecycle: lifecycle, Published: others})
		var got []any
		for _, o := range v["operations"].([]any) {
			got = append(got, o.(map[string]any)["claimed"])
		}
		if fmt.Sprint(got) != want {
			t.Errorf("%s: %v, want %s", lifecycle, got, want)
		}
	}
}

// resolve follows a JSON pointer.
func resolve(document any, pointer string) bool {
	if pointer == "" {
		return true
	}
	for _, token := range strings.Split(pointer[1:], "/") {
		token = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
		switch d := document.(type) {
		case map[string]any:
			next, ok := d[token]
			if !ok {
				return false
			}
			document = next
		case []any:
			var i int
			if _, err := fmt.Sscan(token, &i); err != nil || i >= len(d) {
				return false
			}
			document = d[i]
		default:
			return false
		}
	}
	return true
}

// Every place in the normal form of a published definition is in it.
func TestPlacesOfTheCorpus(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(corpus(t), "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, name := range files {
		document, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		format := strings.Replace(filepath.Base(filepath.Dir(name)), "swagger2", "openapi", 1)
		n, err := definition.Normalise(format, document, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n == nil {
			continue
		}
		var v any
		if err := json.Unmarshal(definition.JSON(format, document), &v); err != nil {
			t.Fatal(err)
		}
		for places := range n.Entries {
			for _, f := range n.Review([]definition.Judgement{{Rule: "r", Severity: "low", Places: places}}).Findings {
				if looked++; !resolve(v, f.Path) {
					t.Fatalf("%s has nothing at %s", name, f.Path)
				}
			}
		}
	}
	if looked < 1000 {
		t.Errorf("only %d places", looked)
	}
}

// What Parse accepts has a normal form, whose places are in the document.
func FuzzNormalise(f *testing.F) {
	for _, name := range []string{"one", "two"} {
		f.Add(name == "two", []byte(head+`"security":[{"s":[]},{}],"paths":{"/a/{id}":{"$ref":"#/paths/~1b"},"/b":{"post":{"parameters":[{"name":"aB_c","in":"query","schema":{"type":["string","null"]}}],"requestBody":{"content":{"x":{"schema":{"allOf":[{"$ref":"#/components/schemas/A"}]}}}},"responses":{"200":{"description":"","headers":{"H":{}},"links":{"l":{"operationRef":"x"}}}},"callbacks":{"c":{"{$x}":{}}}}}},"components":{"schemas":{"A":{"properties":{"a":{"$ref":"#/components/schemas/A"}},"discriminator":{"mapping":{"a":"b/c"}}}},"securitySchemes":{"s":{"type":"oauth2","flows":{"implicit":{"scopes":{"x":"y"}}}}}}}`))
		f.Add(name == "two", []byte(async2+`"servers":{"s":{"url":"{a}://b","protocol":"mqtt","variables":{"a":{"enum":["c"]}},"security":[{"x":[]}]}},"channels":{"c":{"servers":["s"],"publish":{"message":{"oneOf":[{"payload":{"type":"string"}}]}}}}}`))
		f.Add(name == "two", []byte(async3+`"channels":{"c":{"messages":{"m":{"payload":{"schemaFormat":"avro","schema":{"$ref":"x"}}}}}},"operations":{"o":{"action":"send","channel":{"$ref":"#/channels/c"},"reply":{"messages":[{"$ref":"#/channels/c/messages/m"}]},"security":[{"type":"plain"}]}}}`))
	}
	f.Fuzz(func(t *testing.T, async bool, document []byte) {
		format := "openapi"
		if async {
			format = "asyncapi"
		}
		if len(document) > 64<<10 {
			return
		}
		_, err := definition.Parse(format, document)
		n, also := definition.Normalise(format, document, &definition.Context{Lifecycle: "published"})
		if (err == nil) != (also == nil) {
			t.Fatalf("Parse says %v, Normalise %v", err, also)
		}
		if err != nil {
			return
		}
		var v any
		if err := json.Unmarshal(n.JSON, &v); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(definition.JSON(format, document), &v); err != nil {
			return // encoding/json is stricter about what is not UTF-8
		}
		for places := range n.Entries {
			for _, f := range n.Review([]definition.Judgement{{Rule: "r", Severity: "low", Places: places}}).Findings {
				if !resolve(v, f.Path) {
					t.Fatalf("nothing is at %q", f.Path)
				}
			}
		}
	})
}
