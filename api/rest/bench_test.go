package rest_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/policy"
)

// sink is a response writer that costs nothing.
type sink struct {
	h http.Header
	n int
}

func (s *sink) Header() http.Header         { return s.h }
func (s *sink) Write(b []byte) (int, error) { s.n += len(b); return len(b), nil }
func (s *sink) WriteHeader(int)             {}

func benchmark(b *testing.B, e *edge, a ask) {
	r := a.request()
	w := &sink{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		e.api.ServeHTTP(w, r)
	}
	if w.n == 0 {
		b.Fatal("nothing was answered")
	}
}

func benchEdge(b *testing.B) *edge {
	e := newEdge(b, rest.Options{})
	for i := range 4 {
		e.call("publisher", "PUT", fmt.Sprintf("%s/instances/i%d?create_service=true", cart, i), instance, 201)
	}
	return e
}

func BenchmarkDiscover(b *testing.B) {
	find := ask{caller: "viewer", method: "GET", path: "/v1/discovery/shop/cart"}
	b.Run("roles", func(b *testing.B) { benchmark(b, benchEdge(b), find) })
	b.Run("policy", func(b *testing.B) {
		e := benchEdge(b)
		e.policed(func(*policy.Input) policy.Decision { return policy.Decision{Allow: true} })
		benchmark(b, e, find)
	})
	b.Run("gzip asked", func(b *testing.B) {
		a := find
		a.header = header("Accept-Encoding", "gzip")
		benchmark(b, benchEdge(b), a)
	})
	b.Run("min_revision", func(b *testing.B) {
		a := find
		a.path += "?min_revision=4"
		benchmark(b, benchEdge(b), a)
	})
}

func BenchmarkGetService(b *testing.B) {
	benchmark(b, benchEdge(b), ask{caller: "viewer", method: "GET", path: cart})
}

func BenchmarkHeartbeat(b *testing.B) {
	e := benchEdge(b)
	r := ask{caller: "publisher", method: "POST", path: cart + "/instances/i0/heartbeat"}.request()
	w := &sink{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		e.beats = e.beats[:0]
		e.api.ServeHTTP(w, r)
	}
}
