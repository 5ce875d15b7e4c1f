package main

import (
	"encoding/json"
	"testing"
	"time"
)

// FuzzManifest: a YAML file is read or refused, in little time, and what is
// read is JSON.
func FuzzManifest(f *testing.F) {
	for _, s := range []string{
		"kind: Service\nname: cart\nspec: {owner: shop, protocol: rest}\n---\nkind: Instance\nname: i1\nspec: {service: cart, address: 10.0.0.1, port: 80}\n",
		`{"kind":"Policy","spec":{"modules":{"a.rego":"package a"}}}`, "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "a: &a {<<: *a}\n", "? [a]\n: b\n",
		"kind: Quota\nspec: !!binary aGk=\n", "a: 2020-01-01\nb: 0x10\nc: .inf\nd: ~\n", "--- |\n x\n...\n", "\t", "a: \"\\ud800\"",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		began := time.Now()
		docs, err := documents(b)
		if took := time.Since(began); took > 20*time.Second {
			t.Fatalf("%d bytes took %s", len(b), took)
		}
		if err != nil {
			return
		}
		for _, d := range docs {
			if !json.Valid(d) {
				t.Fatalf("%q became %q", b, d)
			}
			m := &manifest{origin: "f", dir: t.TempDir()}
			if m.read(d, "default") == nil && m.Kind == "" {
				t.Fatalf("%q has no kind", d)
			}
		}
	})
}
