package registry_test

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// refusal is what a body is answered with: a code, and for invalid_field the
// pointers.
func refusal(err error) string {
	if err == nil {
		return "accepted"
	}
	f := fault.From(err)
	var b strings.Builder
	b.WriteString(string(f.Code))
	for _, field := range f.Fields {
		b.WriteString(" " + field.Pointer)
	}
	return b.String()
}

func TestInstanceBodies(t *testing.T) {
	body := func(extra string) string { return `{"address":"10.0.0.1","port":80` + extra + `}` }
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	tests := []struct{ name, body, want string }{
		{"the least", body(``), "accepted"},
		{"IPv6", `{"address":"2001:db8::1","port":1}`, "accepted"},
		{"a host name", `{"address":"cart-1.Example.org.","port":65535}`, "accepted"},
		{"names as in the path", body(`,"namespace":"default","service":"cart","id":"c1"`), "accepted"},
		{"null as absent", body(`,"weight":null,"ttl":null,"tags":null,"metadata":null,"version":null`), "accepted"},
		{"what only a record has", body(`,"status":"critical","status_by":7,"revision":3,"created_at":"x","updated_at":null,"created_by":[]`), "accepted"},

		{"a key twice", body(`,"zone":"a","zone":"b"`), "bad_request"},
		{"a key twice, inside", body(`,"metadata":{"a":"1","a":"2"}`), "bad_request"},
		{"a key twice, inside what is ignored", body(`,"revision":{"a":1,"a":2}`), "bad_request"},
		{"more after it", body(``) + `{}`, "bad_request"},
		{"garbage after it", body(``) + ` x`, "bad_request"},
		{"nothing", ``, "bad_request"},
		{"white space", "\n ", "bad_request"},
		{"half of it", `{"address":"10.0.0.1"`, "bad_request"},
		{"half a string", `{"address":"10`, "bad_request"},
		{"no UTF-8", body(`,"zone":"` + "\xff" + `"`), "bad_request"},
		{"half a surrogate", body(`,"zone":"\ud800"`), "bad_request"},
		{"NUL", body(`,"zone":"` + "\x00" + `"`), "bad_request"},
		{"NUL between", body("\x00"), "bad_request"},
		{"10 000 levels", body(`,"revision":` + deep(10_000)), "bad_request"},
		{"65 levels", body(`,"revision":` + deep(64)), "bad_request"},
		{"64 levels", body(`,"revision":` + deep(63)), "accepted"},
		{"brackets in a string", body(`,"metadata":{"a":"` + strings.Repeat(`[\"`, 100) + `"}`), "accepted"},
		{"a comment", body(``) + `//`, "bad_request"},

		{"no object", `[]`, "invalid_field "},
		{"unknown", body(`,"adress":"x"`), "invalid_field /adress"},
		{"unknown, in another case", body(`,"Zone":"x"`), "invalid_field /Zone"},
		{"unknown, escaped", body(`,"a/b~":"x"`), "invalid_field /a~1b~0"},
		{"unknown, inside", body(`,"checks":[{"type":"ttl"},{"type":"ttl","url":"x"}]`), "invalid_field /checks/1/url"},
		{"several", `{"address":7,"port":"80","zon":1,"tags":["a",2]}`, "invalid_field /address /port /zon /tags/1"},
		{"several, and then no JSON", `{"address":7,"port":"80","zon":1`, "bad_request"},
		{"several, and then a key twice", `{"address":7,"port":1,"port":2}`, "bad_request"},
		{"several, and then more", `{"address":7} 1`, "bad_request"},
		{"numbers as text", body(`,"weight":"1"`), "invalid_field /weight"},
		{"a fraction", body(`,"weight":1.5`), "invalid_field /weight"},
		{"metadata of numbers", body(`,"metadata":{"a":1}`), "invalid_field /metadata/a"},
		{"a duration without unit", body(`,"ttl":"30"`), "invalid_field /ttl"},
		{"a duration as a number", body(`,"ttl":30`), "invalid_field /ttl"},

		{"nothing given", `{}`, "invalid_field /address /port"},
		{"other names", body(`,"namespace":"x","service":"y","id":"c1\u0000"`), "invalid_field /namespace /service /id"},
		{"a port of 0", `{"address":"10.0.0.1","port":0}`, "invalid_field /port"},
		{"a port too high", `{"address":"10.0.0.1","port":65536}`, "invalid_field /port"},
		{"no address", `{"address":"999.0.0.1","port":1}`, "invalid_field /address"},
		{"an address with a port", `{"address":"10.0.0.1:80","port":1}`, "invalid_field /address"},
		{"an address with a zone", `{"address":"fe80::1%eth0","port":1}`, "invalid_field /address"},
		{"a URL for an address", `{"address":"http://x","port":1}`, "invalid_field /address"},
		{"control in the address", `{"address":"a\nb","port":1}`, "invalid_field /address"},
		{"weights", body(`,"weight":65535`), "accepted"},
		{"a weight too high", body(`,"weight":65536`), "invalid_field /weight"},
		{"a negative weight", body(`,"weight":-1`), "invalid_field /weight"},
		{"a version that is none", body(`,"version":"V1"`), "invalid_field /version"},
		{"control in the zone", body(`,"zone":"a\u0001"`), "invalid_field /zone"},
		{"an empty tag", body(`,"tags":["a",""]`), "invalid_field /tags/1"},
		{"a long tag", body(`,"tags":["` + strings.Repeat("x", 129) + `"]`), "invalid_field /tags/0"},
		{"65 tags", body(`,"tags":["a"` + strings.Repeat(`,"a"`, 64) + `]`), "invalid_field /tags"},
		{"much metadata", body(`,"metadata":{"a":"` + strings.Repeat("x", 64<<10) + `"}`), "invalid_field /metadata"},
		{"a key of control", body(`,"metadata":{"a\tb":"x"}`), "invalid_field /metadata/a\tb"},
		{"a short TTL", body(`,"ttl":"999ms"`), "invalid_field /ttl"},
		{"a long TTL", body(`,"ttl":"24h1s"`), "invalid_field /ttl"},
		{"a negative TTL", body(`,"ttl":"-1h"`), "invalid_field /ttl"},
		{"deregistered before it expires", body(`,"ttl":"1m","deregister_after":"59s"`), "invalid_field /deregister_after"},
		{"a TTL over the usual hour", body(`,"ttl":"2h"`), "accepted"},
		{"without a lease", body(`,"ttl":"0s"`), "accepted"},
		{"never removed", body(`,"ttl":"1m","deregister_after":"0s"`), "accepted"},
		{"checks", body(`,"checks":[{"type":"tcp","target":"[::1]:80"},{"type":"grpc","target":"h:1"},{"type":"ttl"}]`), "accepted"},
		{"a check of no type", body(`,"checks":[{"type":"script","target":"rm"}]`), "invalid_field /checks/0/type"},
		{"a check's target", body(`,"checks":[{"type":"http","target":"ftp://x"},{"type":"tcp","target":"h"},{"type":"ttl","target":"x"}]`), "invalid_field /checks/0/target /checks/1/target /checks/2/target"},
		{"a check slower than its interval", body(`,"checks":[{"type":"tcp","target":"a:1","interval":"5s","timeout":"6s"}]`), "invalid_field /checks/0/timeout"},
		{"a check in no hurry", body(`,"checks":[{"type":"tcp","target":"a:1","interval":"1h","timeout":"61s"}]`), "invalid_field /checks/0/timeout"},
		{"a check too often", body(`,"checks":[{"type":"tcp","target":"a:1","interval":"999ms"}]`), "invalid_field /checks/0/interval"},
		{"what a check of another type has", body(`,"checks":[{"type":"ttl","interval":"5s","tls":{}},{"type":"tcp","target":"a:1","ttl":"5s","method":"GET"}]`),
			"invalid_field /checks/0/interval /checks/0/tls /checks/1/ttl /checks/1/method"},
		{"the same check twice", body(`,"checks":[{"type":"ttl","id":"a"},{"type":"ttl","id":"a"}]`), "invalid_field /checks/1/id"},
		{"a check's request", body(`,"checks":[{"type":"http","target":"http://h/","method":"CONNECT","headers":{"a b":["x"]},"expect":{"status":[99]}}]`),
			"invalid_field /checks/0/method /checks/0/headers"},
		{"a header that splits", body(`,"checks":[{"type":"http","target":"http://h/","headers":{"A":["x\r\nB: c"]}}]`), "invalid_field /checks/0/headers/A"},
		{"an answer that is none", body(`,"checks":[{"type":"http","target":"http://h/","expect":{"status":[99]}}]`), "invalid_field /checks/0/expect/status"},
		{"an authority that is none", body(`,"checks":[{"type":"grpc","target":"h:1","tls":{"ca":"x","server_name":"a b"}}]`), "invalid_field /checks/0/tls/server_name /checks/0/tls/ca"},
		{"an endless streak", body(`,"checks":[{"type":"tcp","target":"h:1","failures_before_critical":101,"successes_before_passing":0}]`),
			"invalid_field /checks/0/failures_before_critical /checks/0/successes_before_passing"},
		{"an initial status that no check has", body(`,"checks":[{"type":"ttl","initial_status":"maintenance"}]`), "invalid_field /checks/0/initial_status"},
		{"a lease and its end left out", body(`,"ttl":"0s","deregister_after":"0s","checks":[{"type":"ttl","ttl":"0s"}]`), "accepted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := registry.CanonicalInstance("default", "cart", "c1", []byte(tt.body))
			if got := refusal(err); got != tt.want {
				t.Errorf("%s, want %s (%v)", got, tt.want, err)
			}
		})
	}
	var many strings.Builder
	for i := range 100 {
		fmt.Fprintf(&many, `"x%d":1,`, i)
	}
	_, err := registry.CanonicalInstance("default", "cart", "c1", []byte("{"+many.String()+`"port":1}`))
	if n := len(fault.From(err).Fields); n != 16 {
		t.Errorf("%d of 100 mistakes are listed, want 16", n)
	}
	_, err = registry.CanonicalInstance("default", "cart", "c1", []byte(body(`,"metadata":{"the key":"1","the key":"2"}`)))
	if err == nil || !strings.Contains(err.Error(), `"the key"`) {
		t.Errorf("the key that stands twice is not named: %v", err)
	}
}

func TestServiceBodies(t *testing.T) {
	keys := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"k%d":1`, i)
		}
		return `{"metadata":{` + b.String()[1:] + `}}`
	}
	tests := []struct{ name, body, want string }{
		{"the least", `{}`, "accepted"},
		{"null as absent", `{"metadata":null,"tags":null,"owner":null}`, "accepted"},
		{"64 keys", keys(64), "accepted"},
		{"65 keys", keys(65), "invalid_field /metadata"},
		{"a list of metadata", `{"metadata":[]}`, "invalid_field /metadata"},
		{"much metadata", `{"metadata":{"a":"` + strings.Repeat("x", 64<<10) + `"}}`, "invalid_field /metadata"},
		{"NUL in metadata", `{"metadata":{"a":["\u0000"]}}`, "invalid_field /metadata"},
		{"what looks like NUL", `{"metadata":{"a":"\\u0000"}}`, "accepted"},
		{"an empty key", `{"metadata":{"":1}}`, "invalid_field /metadata"},
		{"another protocol", `{"protocol":"ftp"}`, "invalid_field /protocol"},
		{"another name", `{"name":"till"}`, "invalid_field /name"},
		{"a name of control", `{"name":"cart\u0000"}`, "invalid_field /name"},
		{"lines of description", `{"description":"a\nb"}`, "accepted"},
		{"a bell in the description", `{"description":"\u0007"}`, "invalid_field /description"},
		{"a long owner", `{"owner":"` + strings.Repeat("x", 254) + `"}`, "invalid_field /owner"},
		{"several rules", `{"protocol":"x","owner":"\n","tags":[""]}`, "invalid_field /protocol /owner /tags/0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := registry.CanonicalService("default", "cart", []byte(tt.body))
			if got := refusal(err); got != tt.want {
				t.Errorf("%s, want %s (%v)", got, tt.want, err)
			}
		})
	}
	if _, err := registry.CanonicalService("Default", "cart\x00", []byte(`{}`)); refusal(err) != "invalid_field /namespace /name" {
		t.Errorf("names in the path: %v", err)
	}
}

func TestVersionBodies(t *testing.T) {
	const api = `{"openapi":"3.0.3","info":{"title":"t","version":"1"},"paths":{}}`
	tests := []struct{ name, body, want string }{
		{"an object", `{"format":"openapi","document":` + api + `}`, "accepted"},
		{"text", `{"format":"openapi","content":"swagger: '2.0'\ninfo: {title: t, version: '1'}\npaths: {}"}`, "accepted"},
		{"neither", `{"format":"openapi"}`, "invalid_field /document"},
		{"both", `{"format":"openapi","document":{},"content":""}`, "invalid_field /content"},
		{"text as the document", `{"format":"openapi","document":"x"}`, "invalid_field /document"},
		{"no format", `{"document":{}}`, "invalid_field /format"},
		{"another format and lifecycle", `{"format":"raml","lifecycle":"new","document":{}}`, "invalid_field /format /lifecycle"},
		{"another version", `{"version":"2","format":"openapi","document":{}}`, "invalid_field /version"},
		{"a reference out", `{"format":"openapi","document":{"openapi":"3.0.3","info":{"title":"t","version":"1"},"paths":{"/a":{"$ref":"x.json"}}}}`, "invalid_definition /paths/~1a/$ref"},
		{"no definition", `{"format":"openapi","document":{}}`, "invalid_definition "},
		{"a key twice in the document", `{"format":"openapi","document":{"a":1,"a":2}}`, "bad_request"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := registry.CanonicalVersion("default", "cart", "1.0", []byte(tt.body))
			if got := refusal(err); got != tt.want {
				t.Errorf("%s, want %s (%v)", got, tt.want, err)
			}
		})
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string][2]bool{ // as a name, as a version
		"a": {true, true}, "cart-2": {true, true}, "9": {true, true}, "a--b": {true, true}, strings.Repeat("a", 63): {true, true},
		"1.0.0-rc.1": {false, true}, "a.b": {false, true},
		"": {}, "-a": {}, "a-": {}, "A": {}, "a_b": {}, "a b": {}, "a/b": {}, "a\x00": {}, "a\n": {}, "é": {}, "a..b": {}, ".a": {}, "a.": {}, "..": {}, "a.-b": {},
		strings.Repeat("a", 64): {}, strings.Repeat("a.", 31) + "ab": {},
	} {
		if got := [2]bool{registry.ValidName(name) == nil, registry.ValidVersion(name) == nil}; got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
	if err := registry.ValidName("A"); refusal(err) != "invalid_field /name" {
		t.Error(err)
	}
	if err := registry.ValidVersion("A"); refusal(err) != "invalid_field /version" {
		t.Error(err)
	}
}

// Bodies made to cost much allocate no more than a few times their size.
func TestStrictIsBounded(t *testing.T) {
	var members, checks strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&members, `,"k%d":%d`, i, i)
	}
	for range 100_000 {
		checks.WriteString(`,{"x":1}`)
	}
	for name, body := range map[string]string{
		"unknown members": `{"a":1` + members.String() + `}`,
		"quotes":          `{"address":"` + strings.Repeat(`\"`, 1<<21) + `"}`,
		"brackets":        strings.Repeat("[", 4<<20),
		"checks":          `{"checks":[{}` + checks.String() + `]}`,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := registry.CanonicalInstance("default", "cart", "c1", []byte(body))
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
			t.Errorf("%s: %d bytes allocated for %d", name, got, len(body))
		}
	}
}

func FuzzDecodeStrict(f *testing.F) {
	for _, s := range []string{`{}`, `{"address":"10.0.0.1","port":80,"tags":["a"],"metadata":{"a":"b"},"ttl":"1h","checks":[{"type":"ttl"}]}`,
		`{"a":1,"a":2}`, `{"x":[[[[]]]]}`, `{"address":7,"port":"x","y":1} z`, "{\"zone\":\"\\u0000\\ud800\"}", `{"ttl":"9223372036854775807ns","deregister_after":"2562047h47m16.854775807s"}`,
		`{"metadata":{"\u003c":"\u2028\"\\/"}}`, `null`, "\xef\xbb\xbf{}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > 64<<10 {
			return
		}
		var v map[string]any
		if err := registry.DecodeStrict(body, &v); err != nil && !fault.Is(err, fault.BadRequest) && !fault.Is(err, fault.InvalidField) {
			t.Fatalf("not a refusal: %v", err)
		}
		spec, err := registry.CanonicalInstance("default", "cart", "c1", body)
		if err != nil {
			if !fault.Is(err, fault.BadRequest) && !fault.Is(err, fault.InvalidField) {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		// What is canonical stays as it is, in and out of the store.
		again, err := registry.CanonicalInstance("default", "cart", "c1", spec)
		if err != nil || !bytes.Equal(spec, again) {
			t.Fatalf("%s becomes %s: %v", spec, again, err)
		}
		s := store{}
		txn := registry.New().Txn(s.emit(t))
		rec, _, err := txn.PutInstance(at(1), "default", "cart", "c1", spec, 0, true)
		if err != nil {
			t.Fatal(err)
		}
		if put, err := registry.CanonicalInstance("default", "cart", "c1", rec.JSON); err != nil || !bytes.Equal(put, spec) {
			t.Fatalf("put back, %s becomes %s: %v", rec.JSON, put, err)
		}
		if a, b := dump(txn.Commit()), dump(s.load(t)); a != b {
			t.Fatalf("a reload differs:\n%s\n%s", a, b)
		}
	})
}
