package definition_test

import (
	"testing"

	"github.com/muster-registry/muster/registry/definition"
)

func BenchmarkNormaliseLarge(b *testing.B) {
	document := large(50_000)
	b.SetBytes(int64(len(document)))
	b.ReportAllocs()
	for b.Loop() {
		if n, err := definition.Normalise("openapi", document, nil); err != nil || n.Entries > 100 {
			b.Fatal(err)
		}
	}
}
