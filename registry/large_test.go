package registry_test

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/muster-registry/muster/registry"
)

// largeBody puts a definition of 19 999 operations, one less than there may be, and
// some 15 MiB, as an object or as text.
func largeBody(text bool) []byte {
	var b strings.Builder
	b.WriteString(`{"openapi":"3.0.3","info":{"title":"t","version":"1"},"paths":{"/":{}`)
	for i := range 19_999 {
		fmt.Fprintf(&b, `,"/a%d/{id}":{"get":{"operationId":"op%d","description":"Reads one thing of the many that there are, by its id. `+strings.Repeat("More of it. ", 36)+`",`+
			`"parameters":[{"name":"id","in":"path","required":true,"schema":{"type":"string"}}],`+
			`"responses":{"200":{"description":"ok","content":{"application/json":{"schema":{"type":"object"}}}}}}}`, i, i)
	}
	b.WriteString(`}}`)
	if text {
		return []byte(`{"format":"openapi","content":` + strconv.Quote(b.String()) + `}`)
	}
	return []byte(`{"format":"openapi","document":` + b.String() + `}`)
}

// All that is allocated on the way of a huge definition, from the body to the
// stored record, bounds what is held at any moment.
func TestLargeVersion(t *testing.T) {
	for _, text := range []bool{false, true} {
		body := largeBody(text)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		spec, document, err := registry.CanonicalVersion("default", "cart", "v1", body)
		if err != nil {
			t.Fatal(err)
		}
		txn := registry.New().Txn(nil)
		if _, _, err := txn.PutService(at(1), "default", "cart", []byte(`{}`), 0); err != nil {
			t.Fatal(err)
		}
		rec, _, err := txn.PutVersion(at(2), "default", "cart", "v1", spec, document, 0)
		if err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if len(rec.Routes) != 19_999 {
			t.Errorf("%d routes", len(rec.Routes))
		}
		got := (after.TotalAlloc - before.TotalAlloc) >> 20
		t.Logf("a body of %d MiB: %d MiB allocated in all", len(body)>>20, got)
		if got > 280 {
			t.Errorf("%d MiB were allocated", got)
		}
	}
}

func BenchmarkLargeVersion(b *testing.B) {
	body := largeBody(false)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := registry.CanonicalVersion("default", "cart", "v1", body); err != nil {
			b.Fatal(err)
		}
	}
}
