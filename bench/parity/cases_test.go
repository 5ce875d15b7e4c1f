package parity

import "strings"

const shop = `package shop

import rego.v1

default open := false

open if input.hour > 8

prices := {"apple": 3, "pear": data.fees.pear}

members contains name if some name in ["ann", "bob"]

greeting := sprintf("hello <%s> & co", [input.who])

half := input.a / input.b

two := 1 if input.x
two := 2 if input.y

noted if {
	input.n == 1
	trace("one was seen")
}

f(x) := x + 1

nothing if false

gone := "gone" if input.never
`

const (
	jsonWords = "the words of the JSON parsers differ"
	badPath   = "the caller's path is wrong, not the server"
)

const partial = `package part

import rego.v1

allow if {
	input.method == "GET"
	input.subject.role == data.roles[_]
}

deny if not input.secure
`

var groups = []struct {
	name  string
	steps []step
}{
	{"documents that were put", []step{
		{method: "GET", path: "/v1/data"},
		{method: "GET", path: "/v1/data/none"},
		{method: "PUT", path: "/v1/data/a/b", body: `{"c":[1,2,{"d":null}],"e f":"x","big":12345678901234567890,"small":1e-7}`},
		{method: "GET", path: "/v1/data/a/b"},
		{method: "GET", path: "/v1/data/a/b/c/0"},
		{method: "GET", path: "/v1/data/a/b/c/9"},
		{method: "GET", path: "/v1/data/a/b/c/-1"},
		{method: "GET", path: "/v1/data/a/b/c/01"},
		{method: "GET", path: "/v1/data/a/b/c/2/d"},
		{method: "GET", path: "/v1/data/a/b/e%20f"},
		{method: "GET", path: "/v1/data/a%2Fb"},
		{method: "PUT", path: "/v1/data/a/b/c/0", body: `7`},
		{method: "PUT", path: "/v1/data/a/b/c/-", body: `8`},
		{method: "PUT", path: "/v1/data/a/b/c/9", body: `9`},
		{method: "PUT", path: "/v1/data/a/b/c/x", body: `9`},
		{method: "PUT", path: "/v1/data/a/b/c/0/deep", body: `9`},
		{method: "GET", path: "/v1/data/a"},
		{method: "PUT", path: "/v1/data/x%2Fy", body: `1`},
		{method: "GET", path: "/v1/data/x%2Fy"},
		{method: "PUT", path: "/v1/data/n", body: `null`},
		{method: "GET", path: "/v1/data/n"},
		{method: "PUT", path: "/v1/data/a", body: `{"only":true}`, headers: []string{"If-None-Match", "*"}},
		{method: "PUT", path: "/v1/data/new/one", body: `{"only":true}`, headers: []string{"If-None-Match", "*"}},
		{method: "GET", path: "/v1/data"},
		{method: "DELETE", path: "/v1/data/a/b/c/0"},
		{method: "DELETE", path: "/v1/data/a/b/none"},
		{method: "DELETE", path: "/v1/data/none/at/all"},
		{method: "DELETE", path: "/v1/data/a/b"},
		{method: "GET", path: "/v1/data/a"},
		{method: "PUT", path: "/v1/data/a", body: ``},
		{method: "PUT", path: "/v1/data/a", body: `{`, differ: jsonWords, status: 400},
		{method: "PUT", path: "/v1/data", body: `[1]`},
		{method: "PUT", path: "/v1/data", body: `{"root":1}`},
		{method: "GET", path: "/v1/data"},
		{method: "POST", path: "/v1/data/root"},
	}},
	{"patches", []step{
		{method: "PUT", path: "/v1/data", body: `{"a":{"b":[1,2,3]},"s":"x"}`},
		{method: "PATCH", path: "/v1/data/a", body: `[{"op":"add","path":"b/-","value":4}]`},
		{method: "PATCH", path: "/v1/data/a", body: `[{"op":"add","path":"/b/0","value":0}]`},
		{method: "PATCH", path: "/v1/data", body: `[{"op":"replace","path":"s","value":{"t":1}},{"op":"add","path":"/s/u","value":2}]`},
		{method: "PATCH", path: "/v1/data/a/b", body: `[{"op":"remove","path":"1"}]`},
		{method: "PATCH", path: "/v1/data/s", body: `[{"op":"add","path":"x~1y","value":1},{"op":"add","path":"x~0y","value":2}]`},
		{method: "GET", path: "/v1/data"},
		{method: "PATCH", path: "/v1/data/a", body: `[{"op":"add","path":"none/at/all","value":4}]`},
		{method: "PATCH", path: "/v1/data/a", body: `[{"op":"remove","path":"none"}]`},
		{method: "PATCH", path: "/v1/data/a", body: `[{"op":"replace","path":"none","value":1}]`},
		{method: "PATCH", path: "/v1/data/a", body: `[{"op":"add","path":"b/99","value":1}]`},
		{method: "PATCH", path: "/v1/data/a", body: `[{"op":"move","path":"b"}]`},
		{method: "PATCH", path: "/v1/data/a", body: `{}`},
		{method: "PATCH", path: "/v1/data/a", body: `[{"op":"add","path":"ok","value":1},{"op":"remove","path":"none"}]`},
		{method: "PATCH", path: "/v1/data/none", body: `[{"op":"add","path":"x","value":1}]`},
		{method: "PATCH", path: "/v1/data", body: `[{"op":"remove","path":""}]`},
		{method: "PATCH", path: "/v1/data", body: `[{"op":"add","path":"","value":{"whole":1}}]`},
		{method: "PATCH", path: "/v1/data", body: `[]`},
		{method: "PATCH", path: "/v1/data", body: ``},
		{method: "GET", path: "/v1/data"},
	}},
	{"documents of rules", []step{
		{method: "PUT", path: "/v1/policies/p", body: shop},
		{method: "PUT", path: "/v1/data/fees", body: `{"pear":4}`},
		{method: "POST", path: "/v1/data/shop/open", body: `{"input":{"hour":9}}`},
		{method: "POST", path: "/v1/data/shop/open", body: `{"input":{"hour":1}}`},
		{method: "POST", path: "/v1/data/shop/open", body: `{}`},
		{method: "POST", path: "/v1/data/shop/open", body: ``},
		{method: "POST", path: "/v1/data/shop/open", body: `{"input":null}`},
		{method: "POST", path: "/v1/data/shop/open", body: `{"other":1}`},
		{method: "POST", path: "/v1/data/shop/open", body: `null`},
		{method: "POST", path: "/v1/data/shop/open", body: `{"input":{"hour":9},"other":1}`},
		{method: "POST", path: "/v1/data/shop/prices", body: `{}`},
		{method: "POST", path: "/v1/data/shop/prices/apple", body: `{}`},
		{method: "POST", path: "/v1/data/shop/members", body: `{}`},
		{method: "POST", path: "/v1/data/shop/greeting", body: `{"input":{"who":"é\u0001\u2028"}}`},
		{method: "POST", path: "/v1/data/shop/nothing", body: `{"input":{}}`},
		{method: "POST", path: "/v1/data/shop/none", body: `{"input":{}}`},
		{method: "POST", path: "/v1/data/shop/f", body: `{"input":{}}`},
		{method: "POST", path: "/v1/data/shop", body: `{"input":{"hour":9,"a":1,"b":2}}`},
		{method: "POST", path: "/v1/data", body: `{"input":{"hour":9}}`},
		{method: "POST", path: "/v1/data/", body: `{"input":{"hour":9}}`},
		{method: "GET", path: "/v1/data/shop/open/"},
		{method: "HEAD", path: "/v1/data/shop/open"},
		{method: "GET", path: "/v1/data/shop/open?input=%7B%22hour%22%3A9%7D"},
		{method: "GET", path: "/v1/data/shop/open?input=%7B%22hour%22%3A1%7D&input=%7B%22hour%22%3A9%7D"},
		{method: "GET", path: "/v1/data/shop/open?input=null"},
		{method: "GET", path: "/v1/data/shop/open"},
		{method: "POST", path: "/v1/data/shop/half", body: `{"input":{"a":1,"b":0}}`},
		{method: "POST", path: "/v1/data/shop/half?strict-builtin-errors", body: `{"input":{"a":1,"b":0}}`},
		{method: "POST", path: "/v1/data/shop/half?strict-builtin-errors=true", body: `{"input":{"a":1,"b":0}}`},
		{method: "POST", path: "/v1/data/shop/half?strict-builtin-errors=false", body: `{"input":{"a":1,"b":0}}`},
		{method: "GET", path: "/v1/data/shop/half?strict-builtin-errors&input=%7B%22a%22%3A1%2C%22b%22%3A0%7D"},
		{method: "POST", path: "/v1/data/shop/two", body: `{"input":{"x":1,"y":1}}`},
		{method: "POST", path: "/v1/data/shop/open?pretty", body: `{"input":{"hour":9}}`},
		{method: "POST", path: "/v1/data/shop/open?metrics", body: `{"input":{"hour":9}}`},
		{method: "POST", path: "/v1/data/shop/open?instrument", body: `{"input":{"hour":9}}`},
		{method: "POST", path: "/v1/data/shop/open?provenance", body: `{"input":{"hour":9}}`},
		{method: "POST", path: "/v1/data/shop/open?explain=full", body: `{"input":{"hour":9}}`},
		{method: "POST", path: "/v1/data/shop/open?explain=full&pretty", body: `{"input":{"hour":1}}`},
		{method: "POST", path: "/v1/data/shop/noted?explain=notes&pretty", body: `{"input":{"n":1}}`},
		{method: "POST", path: "/v1/data/shop/noted?explain=fails&pretty", body: `{"input":{"n":2}}`},
		{method: "POST", path: "/v1/data/shop/noted?explain=full", body: `{"input":{"n":2}}`},
		{method: "POST", path: "/v1/data/shop/open?explain=debug", body: `{"input":{"hour":9}}`},
		{method: "POST", path: "/v1/data/shop/open?explain=nonsense", body: `{"input":{"hour":9}}`},
		{method: "POST", path: "/v1/data/shop/two?explain=full", body: `{"input":{"x":1,"y":1}}`},
		{method: "GET", path: "/v1/data/shop/open?explain=full&metrics&pretty&provenance&input=%7B%22hour%22%3A9%7D"},
		{method: "PUT", path: "/v1/data/shop/open", body: `1`},
		{method: "PUT", path: "/v1/data/shop/unruled", body: `1`},
		{method: "GET", path: "/v1/data/shop/unruled"},
	}},
	{"inputs that cannot be used", []step{
		{method: "PUT", path: "/v1/policies/p", body: shop},
		{method: "POST", path: "/v1/data/shop/open?explain=full", body: `{"input":`, differ: jsonWords, status: 400},
		{method: "POST", path: "/v1/data/shop/open", body: `[1]`, differ: jsonWords, status: 400},
		{method: "GET", path: "/v1/data/shop/open?input=%7B", differ: jsonWords, status: 400},
		{method: "GET", path: "/v1/data/shop/open?input=", differ: jsonWords, status: 400},
		{method: "POST", path: "/v1/data/shop/open", body: `{"input":{"hour":9}} {}`, differ: "nothing may follow upon the document", status: 400},
		{method: "POST", path: "/v1/data/shop/open", body: `{"input":{"hour":1,"hour":9}}`, differ: "a key that stands twice is refused", status: 400},
		{method: "POST", path: "/v1/data/shop/open", body: `{"input":` + strings.Repeat("[", 65) + strings.Repeat("]", 65) + `}`, differ: "JSON deeper than 64 levels is refused", status: 400},
		{method: "POST", path: "/v1/data/x%22%5D;%20y", body: `{}`, differ: badPath, status: 400},
		{method: "GET", path: "/v1/data/x%22%5D;%20y", differ: badPath, status: 400},
		{method: "POST", path: "/v0/data/x%22%5D;%20y", body: `{}`, differ: badPath, status: 400},
		{method: "POST", path: "/v1/data/shop/open", body: zipped(`{"input":{"hour":9}}`), headers: []string{"Content-Encoding", "gzip"}},
		{method: "POST", path: "/v1/data/shop/open", body: `{"input":{"hour":9}}`, headers: []string{"Accept-Encoding", "gzip"}},
		{method: "POST", path: "/v1/data/shop/open", body: "input:\n  hour: 9\n", headers: []string{"Content-Type", "application/x-yaml"}},
		{method: "POST", path: "/v1/data/shop/open", body: "input:\n  hour: 9\n", headers: []string{"Content-Type", "text/yaml; charset=utf-8"}},
		{method: "POST", path: "/v1/data/shop/open", body: "", headers: []string{"Content-Type", "application/yaml"}},
		{method: "POST", path: "/v1/data/shop/open", body: "\tx: [", headers: []string{"Content-Type", "application/yaml"}},
		{method: "POST", path: "/v0/data/shop/open", body: "hour: 9\n", headers: []string{"Content-Type", "application/yaml"}},
	}},
	{"webhooks of version 0", []step{
		{method: "PUT", path: "/v1/policies/p", body: shop},
		{method: "POST", path: "/v0/data/shop/open", body: `{"hour":9}`},
		{method: "POST", path: "/v0/data/shop/open", body: `{"hour":1}`},
		{method: "POST", path: "/v0/data/shop/open", body: ``},
		{method: "POST", path: "/v0/data/shop/members?pretty", body: `null`},
		{method: "POST", path: "/v0/data/shop/gone", body: `{}`},
		{method: "POST", path: "/v0/data/shop/none", body: `{}`},
		{method: "POST", path: "/v0/data/shop/two", body: `{"x":1,"y":1}`},
		{method: "POST", path: "/v0/data", body: `{"hour":9}`},
		{method: "POST", path: "/v0/data/shop/open", body: `{"hour":`, differ: jsonWords, status: 400},
		{method: "POST", path: "/", body: `{}`},
		{method: "POST", path: "/", body: ``},
		{method: "GET", path: "/v0/data/shop/open"},
		{method: "PUT", path: "/v0/data/shop/open", body: `{}`},
	}},
	{"queries", []step{
		{method: "PUT", path: "/v1/data", body: `{"list":["a","b"],"fees":{"pear":4}}`},
		{method: "PUT", path: "/v1/policies/p", body: shop},
		{method: "GET", path: "/v1/query?q=data.list%5Bi%5D%20%3D%20x"},
		{method: "GET", path: "/v1/query?q=x%3D1;y%3D2"},
		{method: "GET", path: "/v1/query?q=x%3D1%3By%3D2"},
		{method: "GET", path: "/v1/query?q=data.list%5B_%5D%20%3D%20x&pretty&metrics"},
		{method: "GET", path: "/v1/query?q=data.none"},
		{method: "GET", path: "/v1/query?q=true"},
		{method: "GET", path: "/v1/query?q=false"},
		{method: "GET", path: "/v1/query?q=1+1"},
		{method: "GET", path: "/v1/query?q=input%20%3D%20x"},
		{method: "GET", path: "/v1/query"},
		{method: "GET", path: "/v1/query?q="},
		{method: "GET", path: "/v1/query?q=x%20%3D%20"},
		{method: "GET", path: "/v1/query?q=y%20%3D%20f(1)"},
		{method: "GET", path: "/v1/query?q=x%20%3D%201%3B%20x%20%3D%20y%20%2B%20z"},
		{method: "POST", path: "/v1/query", body: `{"query":"data.shop.open = x","input":{"hour":9}}`},
		{method: "POST", path: "/v1/query", body: `{"query":"data.shop.open = x"}`},
		{method: "POST", path: "/v1/query", body: `{"query":"input = x","input":null}`},
		{method: "POST", path: "/v1/query", body: `{"query":"data.shop.two = x","input":{"x":1,"y":1}}`},
		{method: "POST", path: "/v1/query", body: `{"query":"x = 1/0"}`},
		{method: "POST", path: "/v1/query", body: `{"query":"data.shop.f(1, x)"}`},
		{method: "POST", path: "/v1/query", body: `{"query":"x ="}`},
		{method: "POST", path: "/v1/query", body: `{}`},
		{method: "POST", path: "/v1/query", body: ``},
		{method: "POST", path: "/v1/query", body: `{"query":`, differ: jsonWords, status: 400},
		{method: "POST", path: "/v1/query", body: `{"query":1}`, differ: jsonWords, status: 400},
		{method: "POST", path: "/v1/query?explain=full&pretty", body: `{"query":"data.shop.open = x","input":{"hour":9}}`},
		{method: "POST", path: "/v1/query", body: zipped(`{"query":"x = 1"}`), headers: []string{"Content-Encoding", "gzip"}},
		{method: "POST", path: "/v1/query", body: `{"query":"http.send({\"method\":\"get\",\"url\":\"http://127.0.0.1:1\"}, x)"}`, differ: "no module may reach the network, so http.send is not even known", status: 400},
	}},
	{"partial evaluation", []step{
		{method: "PUT", path: "/v1/data/roles", body: `["admin","dev"]`},
		{method: "PUT", path: "/v1/policies/q", body: partial},
		{method: "POST", path: "/v1/compile", body: `{"query":"data.part.allow == true","input":{"method":"GET"},"unknowns":["input.subject"]}`},
		{method: "POST", path: "/v1/compile", body: `{"query":"data.part.allow == true","input":{"method":"PUT"},"unknowns":["input.subject"]}`},
		{method: "POST", path: "/v1/compile", body: `{"query":"data.part.allow == true"}`},
		{method: "POST", path: "/v1/compile", body: `{"query":"data.part.deny == true"}`},
		{method: "POST", path: "/v1/compile", body: `{"query":"data.part.allow == true","unknowns":["data.roles"],"input":{"method":"GET","subject":{"role":"dev"}}}`},
		{method: "POST", path: "/v1/compile", body: `{"query":"data.part.allow == true","unknowns":[],"input":{"method":"GET","subject":{"role":"dev"}}}`},
		{method: "POST", path: "/v1/compile", body: `{"query":"data.part.allow == true","options":{"disableInlining":["data.part.allow"]}}`},
		{method: "POST", path: "/v1/compile", body: `{"query":"data.part.allow == true","options":{"disableInlining":["not a ref("]}}`},
		{method: "POST", path: "/v1/compile", body: `{"query":"time.now_ns() = x; input.a = x"}`},
		{method: "POST", path: "/v1/compile?metrics&pretty", body: `{"query":"input.x == 1"}`},
		{method: "POST", path: "/v1/compile?explain=full&pretty", body: `{"query":"input.x == 1"}`},
		{method: "POST", path: "/v1/compile", body: `{"query":"input.x > 1; data.none"}`},
		{method: "POST", path: "/v1/compile", body: `{"query":""}`},
		{method: "POST", path: "/v1/compile", body: `{}`},
		{method: "POST", path: "/v1/compile", body: ``},
		{method: "POST", path: "/v1/compile", body: `{"query":"x ="}`},
		{method: "POST", path: "/v1/compile", body: `{"query":"y + 1 = x"}`},
		{method: "POST", path: "/v1/compile", body: `{"query":"input.x == 1","unknowns":["input."]}`},
		{method: "POST", path: "/v1/compile", body: `{"query":`, differ: jsonWords, status: 400},
	}},
	{"policies", []step{
		{method: "GET", path: "/v1/policies"},
		{method: "GET", path: "/v1/policies/p"},
		{method: "DELETE", path: "/v1/policies/p"},
		{method: "PUT", path: "/v1/policies/p", body: "package a\n\nx := data.b.y\n"},
		{method: "PUT", path: "/v1/policies/p", body: "package a\n\nx := data.b.y\n"},
		{method: "PUT", path: "/v1/policies/q?metrics", body: "package b\n\ny := 1\n"},
		{method: "GET", path: "/v1/policies"},
		{method: "GET", path: "/v1/policies/p?pretty"},
		{method: "GET", path: "/v1/data/a/x"},
		{method: "PUT", path: "/v1/policies/p", body: ""},
		{method: "PUT", path: "/v1/policies/p", body: "# only a comment"},
		{method: "PUT", path: "/v1/policies/p", body: "package"},
		{method: "PUT", path: "/v1/policies/p", body: "x := 1"},
		{method: "PUT", path: "/v1/policies/p", body: "package a\n\nx := y\nz if {\n\tw\n}\n"},
		{method: "PUT", path: "/v1/policies/p", body: "package a\n\nx := 1\nx := \n"},
		{method: "PUT", path: "/v1/policies/p", body: "package a\n\nx := data.a.x\n"},
		{method: "PUT", path: "/v1/policies/p", body: "package a\n\nx if count(1, 2, 3)\n"},
		{method: "PUT", path: "/v1/policies/p", body: "package a\n\ndefault x := 1\ndefault x := 2\n"},
		{method: "PUT", path: "/v1/policies/p", body: "package a\n\nx := no.such(1)\n"},
		{method: "PUT", path: "/v1/policies/r/s", body: "package r\n"},
		{method: "GET", path: "/v1/policies/r/s"},
		{method: "GET", path: "/v1/policies/r%2Fs"},
		{method: "DELETE", path: "/v1/policies/r%2Fs"},
		{method: "DELETE", path: "/v1/policies/q?pretty"},
		{method: "GET", path: "/v1/data/a"},
		{method: "PUT", path: "/v1/policies/p", body: "package a\n\nx { input.y }\n", differ: "modules in Rego v0 load, too", status: 200},
		{method: "PUT", path: "/v1/policies/own", body: "package system.authz\n\nallow := true\n", differ: "what belongs to the engine is out of reach", status: 403},
		{method: "PUT", path: "/v1/policies/net", body: "package c\n\nx := http.send({})\n", differ: "no module may reach the network", status: 400},
	}},
	{"what a deletion leaves behind must compile", []step{
		{method: "PUT", path: "/v1/policies/q", body: "package b\n\nf(x) := x\n"},
		{method: "PUT", path: "/v1/policies/p", body: "package a\n\ny := data.b.f(1)\n"},
		{method: "DELETE", path: "/v1/policies/q"},
		{method: "GET", path: "/v1/data"},
	}},
	{"methods and paths", []step{
		{method: "GET", path: "/health"},
		{method: "GET", path: "/health?bundles"},
		{method: "GET", path: "/health?plugins&bundles=true"},
		{method: "POST", path: "/v1/policies", body: "{}"},
		{method: "POST", path: "/v1/policies/x", body: "{}"},
		{method: "PATCH", path: "/v1/policies/x", body: "{}"},
		{method: "PUT", path: "/v1/query", body: "{}"},
		{method: "DELETE", path: "/v1/query"},
		{method: "DELETE", path: "/v1/data"},
		{method: "PATCH", path: "/v0/data", body: "{}"},
		{method: "GET", path: "/v0/data"},
		{method: "GET", path: "/v1/status", differ: "there is a status to tell", status: 200},
		{method: "GET", path: "/v1/config", differ: "the labels name the node", status: 200},
		{method: "GET", path: "/", differ: "the page is muster's own", status: 200},
		{method: "GET", path: "/nothing/here"},
	}},
}
