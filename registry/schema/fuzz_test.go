package schema

import (
	"bytes"
	"testing"

	"github.com/muster-registry/muster/fault"
)

// FuzzParse: a JSON Schema as an operator sends it; nothing is fetched for it.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`{"metadata":{"type":"object","required":["a"],"properties":{"a":{"type":"string","pattern":"^a+$"}}}}`,
		`{"payload":{"$ref":"https://example.org/a"}}`, `{"payload":{"$ref":"#"}}`, `{"metadata":{"$schema":"http://json-schema.org/draft-07/schema#","not":{}}}`, `{"metadata":{"pattern":"(((("}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 16<<10 {
			return
		}
		spec, err := Parse("service", b)
		if err != nil {
			if fault.From(err).Code == fault.Internal {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		if again, err := Parse("service", spec); err != nil || !bytes.Equal(again, spec) {
			t.Fatalf("%s becomes %s: %v", spec, again, err)
		}
	})
}
