package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	weak  = "openapi: 3.0.3\ninfo: {title: t, version: 1.0.0}\npaths: {}\nsecurity: [{s: []}]\ncomponents:\n  securitySchemes:\n    s: {type: http, scheme: basic}\n"
	plain = "openapi: 3.0.3\ninfo: {title: t, version: 1.0.0}\npaths: {}\nservers:\n  - {url: https://api.example, description: Production, x-internal: false}\n"
)

func TestDefinitionCheck(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	weakFile, plainFile := file("weak.yaml", weak), file("plain.yaml", plain)
	async := file("async.yaml", "asyncapi: 2.6.0\ninfo: {title: t, version: 1.0.0}\nchannels: {c: {subscribe: {}}}\n")
	settings := file("data.json", `{"muster":{"definition":{"severity":{"no-http-basic":"low"}}}}`)
	module := file("a.rego", "package a\n")
	tests := []struct {
		args string
		code int
		out  string
	}{
		{weakFile, exitError, "weak.yaml#/components/securitySchemes/s: high: the scheme s is HTTP basic"},
		{weakFile + " --fail none", exitDone, "weak.yaml: 1 high, 0 medium, 0 low, 0 info"},
		{plainFile + " --fail info", exitDone, "plain.yaml: 0 high, 0 medium, 0 low, 0 info"},
		{plainFile + " " + weakFile, exitError, "plain.yaml: 0 high"},
		{async, exitDone, "(operation-security)"},
		{async + " --fail medium", exitError, "async.yaml: 0 high, 1 medium"},
		{weakFile + " --policy " + module + "," + settings, exitDone, "low: the scheme s is HTTP basic"},
		{weakFile + " --fail severe", exitUsage, ""},
		{file("none.yaml", "a: 1\n"), exitError, ""},
		{filepath.Join(dir, "missing.yaml"), exitError, ""},
	}
	for _, tt := range tests {
		out, err, code := shell{}.do(t, append([]string{"definition", "check"}, strings.Fields(tt.args)...)...)
		if code != tt.code || !strings.Contains(out, tt.out) {
			t.Errorf("%s: exit code %d, want %d, with %q: %s%s", tt.args, code, tt.code, tt.out, out, err)
		}
	}
	out, _, _ := shell{}.do(t, "definition", "check", weakFile, "--format", "json")
	var all []checked
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 || all[0].Counts["high"] != 1 || all[0].Findings[0].Rule != "no-http-basic" {
		t.Errorf("%v: %s", err, out)
	}
}

func TestPolicyLibrary(t *testing.T) {
	out, _, code := shell{}.do(t, "policy", "library")
	if code != exitDone || !strings.Contains(out, "no-http-basic") || !strings.Contains(out, "API2:2023") {
		t.Errorf("exit code %d: %s", code, out)
	}
	dir := filepath.Join(t.TempDir(), "rules")
	if out, err, code := (shell{}).do(t, "policy", "library", "--export", dir); code != exitDone {
		t.Fatalf("exit code %d: %s%s", code, out, err)
	}
	// What was exported is Rego that anyone can check.
	if out, err, code := (shell{}).do(t, "policy", "check", dir); code != exitDone {
		t.Errorf("exit code %d: %s%s", code, out, err)
	}
	if _, _, code := (shell{}).do(t, "policy", "library", "--export", dir); code != exitError {
		t.Errorf("exit code %d where files are there already", code)
	}
}
