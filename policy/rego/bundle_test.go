package rego

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/bundle"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/fault"
)

const bundleLimit = 1 << 20

// entry of a bundle under test; the zero kind is a plain file.
type entryOf struct {
	name, content string
	kind          byte
	link          string
}

func file(name, content string) entryOf { return entryOf{name: name, content: content} }

func archiveOf(t testing.TB, entries ...entryOf) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o600, Size: int64(len(e.content)), Typeflag: e.kind, Linkname: e.link}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func bundleOf(t testing.TB, entries ...entryOf) []byte {
	t.Helper()
	return zip(t, archiveOf(t, entries...))
}

const (
	v1Module = "package api.registry.authz\n\ndefault allow := false\n\nallow if input.principal.id == data.owners.root\n"
	v0Module = "package api.security.authz\n\nallow { input.action == \"lookup\" }\n"
)

func TestBundle(t *testing.T) {
	c, err := ReadBundle(bundleOf(t,
		entryOf{name: "./", kind: tar.TypeDir},
		entryOf{name: "./authz/", kind: tar.TypeDir},
		file("./authz/write.rego", v1Module),
		file("./authz/look.rego", v0Module),
		file("./authz/write_test.rego", "package api.registry.authz_test\n\ntest_it if true\n"),
		file("./data.json", `{"big":12345678901234567890.10,"owners":{"root":"ann"}}`),
		file("./owners/data.json", `{"shop":"bob"}`),
		file("./owners/more/data.yaml", "deputy: eve\nlevel: 3\n"),
		file("./README.md", "not part of the policy"),
		file("./.manifest", `{"revision":"git:4711","metadata":{"muster":{"entry_points":{"write":"shop/authz"}},"other":1}}`),
	), bundleLimit)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Modules) != 3 || c.Modules["authz/write.rego"] != v1Module || c.Modules["authz/look.rego"] != v0Module {
		t.Errorf("modules: %q", c.Modules)
	}
	const data = `{"big":12345678901234567890.10,"owners":{"more":{"deputy":"eve","level":3},"root":"ann","shop":"bob"}}`
	if string(c.Data) != data {
		t.Errorf("data: %s", c.Data)
	}
	if c.Note != "git:4711" || c.EntryPoints.Write != "shop/authz" || c.EntryPoints.Lookup != "" {
		t.Errorf("note %q, entry points %+v", c.Note, c.EntryPoints)
	}
	report, err := engine(t).Check(t.Context(), &c.Content)
	if err != nil || report.Tests.Passed != 1 {
		t.Errorf("checked as any content: %+v, %v", report, err)
	}
}

// What OPA's own writer makes is taken, and is the same revision as its parts
// sent as JSON.
func TestBundleAsOPAWritesIt(t *testing.T) {
	roots := []string{"api", "owners"}
	b := bundle.Bundle{
		Manifest: bundle.Manifest{Revision: "r1", Roots: &roots},
		Modules:  []bundle.ModuleFile{{URL: "/write.rego", Path: "/write.rego", Raw: []byte(v1Module)}},
		Data:     map[string]any{"owners": map[string]any{"root": "ann"}},
	}
	var packed bytes.Buffer
	if err := bundle.Write(&packed, b); err != nil {
		t.Fatal(err)
	}
	c, err := ReadBundle(packed.Bytes(), bundleLimit)
	if err != nil {
		t.Fatal(err)
	}
	same := revision(t, "write.rego", v1Module).Content
	same.Data = []byte(`{"owners":{"root":"ann"}}`)
	if c.Digest() != same.Digest() {
		t.Errorf("digest differs: %s and %s", c.Encode(), same.Encode())
	}
}

func TestBundleRefused(t *testing.T) {
	good := file("a.rego", v1Module)
	deep := strings.Repeat("[", 80) + strings.Repeat("]", 80)
	for name, tc := range map[string]struct {
		entries []entryOf
		says    string
	}{
		"up":                  {[]entryOf{good, file("../b.rego", v0Module)}, "not plain"},
		"up within":           {[]entryOf{good, file("x/../../b.rego", v0Module)}, "not plain"},
		"up and back":         {[]entryOf{good, file("x/../b.rego", v0Module)}, "not plain"},
		"up as data":          {[]entryOf{good, file("/../data.json", `{}`)}, "not plain"},
		"two slashes":         {[]entryOf{good, file("//etc/b.rego", v0Module)}, "not plain"},
		"a slash within":      {[]entryOf{good, file("x//b.rego", v0Module)}, "not plain"},
		"backslash":           {[]entryOf{good, file(`..\b.rego`, v0Module)}, "not plain"},
		"drive":               {[]entryOf{good, file(`C:/b.rego`, v0Module)}, "not plain"},
		"control character":   {[]entryOf{good, file("b\n.rego", v0Module)}, "not plain"},
		"not UTF-8":           {[]entryOf{good, file("b\xff.rego", v0Module)}, "not plain"},
		"long path":           {[]entryOf{good, file(strings.Repeat("x", 300)+".rego", v0Module)}, "255 bytes"},
		"symbolic link":       {[]entryOf{good, {name: "b.rego", kind: tar.TypeSymlink, link: "/etc/passwd"}}, "link"},
		"hard link":           {[]entryOf{good, {name: "b.rego", kind: tar.TypeLink, link: "a.rego"}}, "link"},
		"device":              {[]entryOf{good, {name: "b.rego", kind: tar.TypeChar}}, "plain files"},
		"pipe":                {[]entryOf{good, {name: "b.rego", kind: tar.TypeFifo}}, "plain files"},
		"the same twice":      {[]entryOf{good, good}, "stands twice"},
		"twice, written else": {[]entryOf{good, file("/a.rego", v1Module)}, "stands twice"},
		"data twice":          {[]entryOf{good, file("data.json", `{}`), file("./data.json", `{}`)}, "stands twice"},
		"data that clash":     {[]entryOf{good, file("data.json", `{"x":1}`), file("x/data.json", `{"y":1}`)}, "data.json"},
		"wasm":                {[]entryOf{good, file("policy.wasm", "\x00asm")}, "target rego"},
		"plan":                {[]entryOf{good, file("x/plan.json", `{}`)}, "target rego"},
		"delta":               {[]entryOf{file("patch.json", `{"data":[]}`)}, "delta"},
		"signed below":        {[]entryOf{good, file("x/.signatures.json", `{}`)}, "root of the bundle"},
		"manifest below":      {[]entryOf{good, file("x/.manifest", `{}`)}, "root of the bundle"},
		"two manifests":       {[]entryOf{good, file(".manifest", `{}`), file(".manifest.pb", "")}, "multiple manifest"},
		"broken manifest":     {[]entryOf{good, file(".manifest", `{"roots":[`)}, "JSON"},
		"wasm in manifest":    {[]entryOf{good, file(".manifest", `{"wasm":[{"module":"/policy.wasm","entrypoint":"a"}]}`)}, "wasm"},
		"module outside":      {[]entryOf{good, file(".manifest", `{"roots":["other"]}`)}, "roots"},
		"data outside":        {[]entryOf{good, file("data.json", `{"x":1}`), file(".manifest", `{"roots":["api"]}`)}, "roots"},
		"roots that overlap":  {[]entryOf{good, file(".manifest", `{"roots":["api","api/registry"]}`)}, "overlap"},
		"unknown to muster":   {[]entryOf{good, file(".manifest", `{"metadata":{"muster":{"entrypoint":"a"}}}`)}, "metadata.muster"},
		"no entry point":      {[]entryOf{good, file(".manifest", `{"metadata":{"muster":{"entry_points":{"write":"a b"}}}}`)}, "entry_points"},
		"key twice":           {[]entryOf{good, file("data.json", `{"x":1,"x":2}`)}, "stands twice"},
		"after the value":     {[]entryOf{good, file("data.json", `{} {}`)}, "after the JSON value"},
		"deep data":           {[]entryOf{good, file("data.json", `{"x":`+deep+`}`)}, "nested deeper"},
		"data no object":      {[]entryOf{good, file("data.json", `[1]`)}, "data.json"},
		"YAML aliases":        {[]entryOf{good, file("data.yaml", "a: &a [x, x]\nb: [*a, *a]\n")}, "aliases"},
		"YAML key twice":      {[]entryOf{good, file("data.yml", "a: 1\na: 2\n")}, "already defined"},
		"large YAML":          {[]entryOf{good, file("data.yaml", "a: "+strings.Repeat("x", maxYAML))}, "send data.json"},
		"module not UTF-8":    {[]entryOf{file("a.rego", "package a\n# \xff\n")}, "UTF-8"},
		"module with a NUL":   {[]entryOf{file("a.rego", "package a\n# \x00\n")}, "NUL"},
		"no module":           {[]entryOf{file("data.json", `{}`)}, "at least one module"},
		"nothing":             {nil, "at least one module"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadBundle(bundleOf(t, tc.entries...), 2*bundleLimit)
			if f := refusal(t, err); !strings.Contains(f.Detail, tc.says) {
				t.Errorf("%q does not say %q", f.Detail, tc.says)
			}
		})
	}
}

func TestBundleThatIsNone(t *testing.T) {
	whole := bundleOf(t, file("a.rego", v1Module), file("data.json", `{"x":"`+strings.Repeat("abcdefgh", 4096)+`"}`))
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-6] ^= 1 // in the checksum
	plain := archiveOf(t, file("a.rego", v1Module))
	for name, tc := range map[string]struct {
		packed []byte
		code   fault.Code
	}{
		"empty":              {nil, fault.BadRequest},
		"no gzip":            {[]byte(`{"modules":{}}`), fault.BadRequest},
		"a tar without gzip": {plain, fault.BadRequest},
		"cut short":          {whole[:len(whole)/2], fault.BadRequest},
		"wrong checksum":     {flipped, fault.BadRequest},
		"something after":    {append(bytes.Clone(whole), "garbage"...), fault.BadRequest},
		"gzip of no tar":     {zip(t, []byte(strings.Repeat("no tar at all ", 100))), fault.InvalidPolicy},
		"half a tar":         {zip(t, plain[:560]), fault.InvalidPolicy},
		"two archives":       {zip(t, append(bytes.Clone(plain), plain...)), fault.InvalidPolicy},
		"two streams":        {append(bytes.Clone(whole), whole...), fault.InvalidPolicy},
	} {
		if _, err := ReadBundle(tc.packed, bundleLimit); !fault.Is(err, tc.code) {
			t.Errorf("%s: %v, want %s", name, err, tc.code)
		}
	}
}

// sparse is an archive of 3 KiB with a file of 8 GiB, almost all of it a hole.
func sparse() []byte {
	var records strings.Builder
	for _, r := range []string{"GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.name=data.json",
		"GNU.sparse.size=8589934592", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,1"} {
		line := fmt.Sprintf("%d %s\n", len(r)+4, r) // each has two digits of length, a blank and a line end
		records.WriteString(line)
	}
	block := func(name string, kind byte, content string) []byte {
		b := make([]byte, 512)
		copy(b, name)
		copy(b[100:], "0000600\x00")
		copy(b[124:], fmt.Sprintf("%011o\x00", len(content)))
		copy(b[136:], "00000000000\x00")
		copy(b[148:], "        ")
		b[156] = kind
		copy(b[257:], "ustar\x0000")
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		copy(b[148:], fmt.Sprintf("%06o\x00", sum))
		return append(append(b, content...), make([]byte, 512-len(content)%512)...)
	}
	archive := append(block("x", tar.TypeXHeader, records.String()), block("data.json", tar.TypeReg, "1")...)
	return append(archive, make([]byte, 1024)...)
}

func TestBundleBomb(t *testing.T) {
	bomb := strings.Repeat(" ", 25*bundleLimit) // more than may be taken to refuse it
	for name, packed := range map[string][]byte{
		"one file":     bundleOf(t, file("a.rego", v1Module), file("data.json", bomb)),
		"left out":     bundleOf(t, file("a.rego", v1Module), file("README", bomb)),
		"behind":       zip(t, append(archiveOf(t, file("a.rego", v1Module)), make([]byte, len(bomb))...)),
		"a sparse one": zip(t, sparse()),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			_, err := ReadBundle(packed, bundleLimit)
			runtime.ReadMemStats(&after)
			if !fault.Is(err, fault.TooLarge) {
				t.Fatalf("%v, want %s", err, fault.TooLarge)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 16*bundleLimit {
				t.Errorf("took %d KiB to refuse at a limit of %d KiB", took>>10, bundleLimit>>10)
			}
		})
	}
}

// Whatever is sent, the answer is a content or one of three refusals, within
// the limit.
func TestBundleAnything(t *testing.T) {
	whole := archiveOf(t, file("a.rego", v1Module), file("data.json", `{"x":1}`), file(".manifest", `{"revision":"1"}`))
	rapid.Check(t, func(t *rapid.T) {
		b := bytes.Clone(whole)
		for range rapid.IntRange(0, 4).Draw(t, "changes") {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "to")
		}
		b = b[:rapid.IntRange(0, len(b)).Draw(t, "length")]
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		c, err := ReadBundle(packed.Bytes(), bundleLimit)
		switch {
		case err == nil && len(c.Modules) > 0:
		case fault.Is(err, fault.InvalidPolicy), fault.Is(err, fault.TooLarge), fault.Is(err, fault.BadRequest):
		default:
			t.Fatalf("%+v, %v", c, err)
		}
	})
}
