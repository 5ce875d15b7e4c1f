package library_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/muster-registry/muster/policy/rego/library"
)

// A definition of many operations that are alike costs little more than to
// read it.
func TestLargeDefinition(t *testing.T) {
	const n = 10_000
	var b strings.Builder
	b.WriteString(`{"openapi":"3.0.3","info":{"title":"t","version":"1"},"paths":{`)
	for i := range n {
		fmt.Fprintf(&b, `"/a%d/{id}":{"get":{"operationId":"op%d","parameters":[{"name":"id","in":"path","required":true,"schema":{"type":"string"}}],`+
			`"responses":{"200":{"description":"ok","content":{"application/json":{"schema":{"type":"object","properties":{"a":{"type":"string"}}}}}}}}},`, i, i)
	}
	b.WriteString(`"/b":{"post":{"responses":{}}}}}`)
	document := []byte(b.String())
	l := open(t, library.Options{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := l.Review(t.Context(), nil, "openapi", document, nil)
	runtime.ReadMemStats(&after)
	if r.Counts["high"] != 1 || r.Counts["medium"] != n+1 || len(r.Findings) > 1000 {
		t.Errorf("%v, %d findings", r.Counts, len(r.Findings))
	}
	if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 80 {
		t.Errorf("%d MiB were allocated for a definition of %d KiB", got, len(document)>>10)
	}
}
