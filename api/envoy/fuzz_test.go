package envoy

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
)

// Whatever a request looks like, it is refused as it is, or rules see one JSON
// document with a path that can be read in one way only.
func FuzzInput(f *testing.F) {
	for _, path := range []string{"/", "/a/b?x=1", "/a//b", "/a/../b", "/%61", "/a%2fb", "/a%2e%2e/b", `/a\b`, "/a;b", "/%00", "/%ff", "/%", "*", "//a", "/a?b#c", "http://a/b", "/a?%zz", "/ä", "/a b"} {
		f.Add(path, "application/json", `{"a":1}`, "1")
	}
	f.Add("/", "application/json; charset=utf-8", `{"a":1,"a":2}`, "x")
	f.Add("/", "application/merge-patch+json", strings.Repeat("[", 100), "200")
	f.Fuzz(func(t *testing.T, path, media, body, length string) {
		a := &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: "GET", Path: path, Body: body, Headers: map[string]string{"Content-Type": media, "content-length": length},
		}}}
		in, err := newInput(a, &resourceInput{Metadata: emptyObject, Payload: null, Previous: null})
		var document []byte
		if err == nil {
			document, err = in.document()
		}
		if err != nil {
			if f := fault.From(err); f.Code.Status() != 400 {
				t.Fatalf("%q: %v", path, err)
			}
			return
		}
		if !jsontext.Value(document).IsValid() {
			t.Fatalf("not JSON: %s", document)
		}
		seen, _, _ := strings.Cut(in.Attributes.Request.HTTP.Path, "?")
		plain, err := url.PathUnescape(seen)
		if err != nil || !strings.HasPrefix(plain, "/") || strings.Contains(plain, "//") || strings.ContainsAny(plain, "\\;\x00") {
			t.Fatalf("%q is seen as %q", path, seen)
		}
		if got := strings.Split(strings.Trim(plain, "/"), "/"); !slices.Equal(got, in.Path) || slices.Contains(got, "..") || slices.Contains(got, ".") {
			t.Fatalf("%q is seen as %q and %q", path, seen, in.Path)
		}
		// Seen once more it is the same.
		if again, err := canonical(in.Attributes.Request.HTTP.Path); err != nil || again.RequestURI() != in.Attributes.Request.HTTP.Path {
			t.Fatalf("%q is seen as %q, and that as %v, %v", path, seen, again, err)
		}
	})
}

// A policy's answer can be used whole, or is refused.
func FuzzShape(f *testing.F) {
	for _, s := range []string{``, `{}`, `{"headers":{"a":"b","c":["d","e"]},"http_status":418,"body":"x"}`, `{"headers":[{"a":"b"},{"a":"c"}]}`, `{"headers":{"a":1}}`, `{"headers":{"a b":"c"}}`,
		`{"headers":{"a":"b\r\nc"}}`, `{"http_status":100}`, `{"http_status":2e2}`, `{"dynamic_metadata":[1]}`, `{"query_parameters_to_set":{"a":["b"]}}`, `{"request_headers_to_remove":["a:"]}`, `{"headers":null}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readShape(b)
		if err != nil {
			return
		}
		if s.status < 200 {
			t.Fatalf("%s: status %d", b, s.status)
		}
		for _, h := range slices.Concat(s.headers, s.responseHeaders) {
			if h.Header.Key == "" || strings.ContainsAny(h.Header.Key+h.Header.Value, "\r\n\x00") || strings.ToLower(h.Header.Key) != h.Header.Key {
				t.Fatalf("%s: %v", b, h)
			}
		}
	})
}
