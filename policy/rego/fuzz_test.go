package rego

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"path"
	"strings"
	"testing"

	"github.com/muster-registry/muster/fault"
)

func packed(t testing.TB, files ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o600, Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Close()
	_ = z.Close()
	return out.Bytes()
}

// FuzzBundle: a bundle of a stranger is read or refused with a fault; what is
// read has no name that leads out of it.
func FuzzBundle(f *testing.F) {
	f.Add(packed(f, "/.manifest", `{"roots":["a"],"revision":"1"}`, "/a/a.rego", "package a\n\nx := 1\n", "/data.json", `{"a":{"b":1}}`), false)
	f.Add(packed(f, "../a.rego", "package a"), false)
	f.Add(packed(f, "/a.rego", "package a", "/a.rego", "package a", "/.signatures.json", `{"signatures":["a.b.c"]}`), false)
	f.Add([]byte("package a"), true)
	f.Add([]byte{0x1f, 0x8b}, false)
	f.Fuzz(func(t *testing.T, b []byte, plain bool) {
		if len(b) > 64<<10 {
			return
		}
		if plain { // so that what is inside is reached without a right checksum
			b = packed(t, "/a.rego", string(b), "/a/data.json", string(b), "/.manifest", string(b))
		}
		p, err := ReadBundle(b, 1<<20)
		if err != nil {
			if c := fault.From(err).Code; c == fault.Internal {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		for name := range p.Content.Modules {
			if strings.Contains(name, "..") && path.Clean(name) != name {
				t.Fatalf("module %q", name)
			}
		}
	})
}

// FuzzInput: the body of a call on the policy port is read or refused.
func FuzzInput(f *testing.F) {
	for _, s := range []string{`{"input":{"a":[1,2.5e3,"\ud83d\ude00"]}}`, `{"input":null}`, `{"input":1,"input":2}`, `[[[[`, `{"input":1e400}`, "\xff", ``} {
		f.Add([]byte(s), uint8(0))
		f.Add([]byte(s), uint8(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		if len(b) > 64<<10 {
			return
		}
		_, _, _ = Envelope(kind % 3).Open(b)
	})
}
