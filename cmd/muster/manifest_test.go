package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDocuments(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"YAML", "kind: Service\nname: cart\n", `{"kind":"Service","name":"cart"}`},
		{"order is kept", "b: 1\na: 2\n", `{"b":1,"a":2}`},
		{"many", "a: 1\n---\n---\n# nothing\n---\nb: 2\n", `{"a":1} {"b":2}`},
		{"JSON", `{"a":1}`, `{"a":1}`},
		{"JSON, one after the other", "{\"a\":1}\n{\"b\":2}", `{"a":1} {"b":2}`},
		{"JSON list", `[{"a":1},{"b":2}]`, `{"a":1} {"b":2}`},
		{"flow YAML", `{a: 1}`, `{"a":1}`},
		{"numbers as written", "a: 1.10\nb: 1e3\nc: -7\nd: 12345678901234567890\n", `{"a":1.10,"b":1e3,"c":-7,"d":12345678901234567890}`},
		{"hexadecimal", "a: 0x10\n", `{"a":16}`},
		{"not a number in JSON", "a: .inf\nb: .5\n", `{"a":".inf","b":".5"}`},
		{"dates stay text", "a: 2024-01-01\n", `{"a":"2024-01-01"}`},
		{"keys are text", "200: {description: fine}\ntrue: 1\n", `{"200":{"description":"fine"},"true":1}`},
		{"null, bool", "a: ~\nb: yes\nc: true\n", `{"a":null,"b":"yes","c":true}`},
		{"alias", "a: &x {b: 1}\nc: *x\n", `{"a":{"b":1},"c":{"b":1}}`},
		{"empty", "# nothing\n", ``},
	} {
		docs, err := documents([]byte(c.in))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		var got []string
		for _, d := range docs {
			got = append(got, string(d))
		}
		if d := cmp.Diff(c.want, strings.Join(got, " ")); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
}

func TestDocumentsRefused(t *testing.T) {
	bomb := "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += string(c) + ": &" + string(c) + " [" + strings.TrimSuffix(strings.Repeat("*"+string(c-1)+", ", 10), ", ") + "]\n"
	}
	for name, in := range map[string]string{
		"not YAML": "a: [", "key twice": "a: 1\na: 2\n", "merge": "a: &x {b: 1}\nc: {<<: *x}\n", "key is a list": "[a]: 1\n", "aliases that multiply": bomb,
		"JSON key twice": `{"a":1,"a":2}`,
	} {
		if docs, err := documents([]byte(in)); err == nil {
			t.Errorf("%s: accepted as %s", name, docs)
		}
	}
}

func TestManifestsKnowTheirService(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "api.yaml"), []byte("openapi: 3.1.0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, in, ref, spec string }{
		{"service", "{kind: Service, name: cart, spec: {owner: x}}", "shop/service/cart", `{"owner":"x"}`},
		{"own namespace", "{kind: Service, namespace: other, name: cart}", "other/service/cart", `{}`},
		{"in the spec", "{kind: Instance, name: i1, spec: {service: cart, port: 80}}", "shop/instance/cart/i1", `{"port":80}`},
		{"beside the name", "{kind: Instance, name: i1, service: cart, spec: {port: 80}}", "shop/instance/cart/i1", `{"port":80}`},
		{"before the name", "{kind: Version, name: cart/1.0.0, spec: {format: openapi}}", "shop/version/cart/1.0.0", `{"format":"openapi"}`},
		{"a name like a number", "{kind: Version, name: 1.10, service: cart}", "shop/version/cart/1.10", `{}`},
		{"document_file", "{kind: Version, name: v1, spec: {service: cart, document_file: api.yaml}}", "shop/version/cart/v1", `{"content":"openapi: 3.1.0\n"}`},
	} {
		file := filepath.Join(dir, "m.yml")
		if err := os.WriteFile(file, []byte(c.in), 0o600); err != nil {
			t.Fatal(err)
		}
		ms, err := (&app{}).manifests([]string{file}, "shop")
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := ms[0].Namespace + "/" + ms[0].ref().String(); got != c.ref || string(ms[0].Spec) != c.spec {
			t.Errorf("%s: %s with %s, want %s with %s", c.name, got, ms[0].Spec, c.ref, c.spec)
		}
	}
	for name, in := range map[string]string{
		"no kind": "name: cart", "unknown kind": "{kind: Planet, name: x}", "no name": "{kind: Service}", "no service": "{kind: Instance, name: i1}",
		"unknown member": "{kind: Service, name: cart, colour: red}", "no such document": "{kind: Version, name: v1, service: cart, spec: {document_file: none}}",
		"a list": "[1]", "text": "hello",
	} {
		a := &app{in: strings.NewReader(in)}
		if _, err := a.manifests([]string{"-"}, "shop"); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestFoldersAreAppliedInOrder(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml": "{kind: Instance, name: cart/i1}", "b.json": `{"kind":"Version","name":"cart/v1"}`, "c.yml": "{kind: Service, name: cart}\n---\n{kind: Policy}",
		"notes.txt": "not a manifest", "sub/d.yaml": "not a manifest",
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ms, err := (&app{}).manifests([]string{dir}, "default")
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, m := range ms {
		kinds = append(kinds, m.Kind)
	}
	if d := cmp.Diff([]string{"Policy", "Service", "Version", "Instance"}, kinds); d != "" {
		t.Error(d)
	}
}

func TestPolicyContentIsGatheredAsOPADoes(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.rego": "package a", "sub/b.rego": "package b", "data.yaml": "x: 1", "teams/data.json": `{"checkout":["ann"]}`, "README.md": "no",
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, _, err := content([]string{dir}, "why")
	if err != nil {
		t.Fatal(err)
	}
	want := `{"data":{"teams":{"checkout":["ann"]},"x":1},"modules":{"a.rego":"package a","sub/b.rego":"package b"},"note":"why"}`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
	manifest := filepath.Join(dir, ".manifest")
	if err := os.WriteFile(manifest, []byte(`{"revision":"7","metadata":{"muster":{"entry_points":{"write":"my/authz"}}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, names := range [][]string{{dir}, {filepath.Join(dir, "a.rego"), manifest}} {
		if got, _, err := content(names, ""); err != nil || !strings.Contains(string(got), `"entry_points":{"write":"my/authz"}`) {
			t.Errorf("%v: %v %s", names, err, got)
		}
	}
	if err := os.WriteFile(manifest, []byte(`{"metadata":{"muster":{"entrypoints":{}}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := content([]string{dir}, ""); err == nil || !strings.Contains(err.Error(), "entry_points") {
		t.Errorf("a manifest that says something else: %v", err)
	}
	if _, _, err := content([]string{filepath.Join(dir, "teams")}, ""); err == nil {
		t.Error("a folder without policies was taken")
	}
	if _, _, err := content([]string{filepath.Join(dir, "a.rego"), filepath.Join(dir, "a.rego")}, ""); err == nil {
		t.Error("the same file twice was taken")
	}
}
