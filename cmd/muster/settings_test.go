package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettingsComeFromTheNearestPlace(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	put("stored", "from-context\n")
	token := put("token", " from-file \n")
	config := put("config.yaml", `
current: prod
contexts:
  prod: {addr: "https://prod:1", token_file: stored, cacert: prod.crt, namespace: shop}
  test: {addr: "https://test:1"}
`)
	for _, c := range []struct {
		name  string
		flags settings
		env   map[string]string
		want  settings
	}{
		{"defaults", settings{}, nil, settings{Addr: defaultAddr, Namespace: "default"}},
		{"environment", settings{}, map[string]string{"MUSTER_ADDR": "https://env:1", "MUSTER_TOKEN": "t", "MUSTER_NAMESPACE": "n"},
			settings{Addr: "https://env:1", Token: "t", Namespace: "n"}},
		{"context file", settings{}, map[string]string{"MUSTER_CONFIG": config},
			settings{Addr: "https://prod:1", Token: "from-context", CACert: filepath.Join(dir, "prod.crt"), Namespace: "shop"}},
		{"another context", settings{context: "test"}, map[string]string{"MUSTER_CONFIG": config}, settings{Addr: "https://test:1", Namespace: "default"}},
		{"context from the environment", settings{}, map[string]string{"MUSTER_CONFIG": config, "MUSTER_CONTEXT": "test"}, settings{Addr: "https://test:1", Namespace: "default"}},
		{"flag over all", settings{Addr: "https://flag:1", Token: "flag"}, map[string]string{"MUSTER_CONFIG": config, "MUSTER_ADDR": "https://env:1", "MUSTER_TOKEN_FILE": token},
			settings{Addr: "https://flag:1", Token: "flag", CACert: filepath.Join(dir, "prod.crt"), Namespace: "shop"}},
		{"token file over the context's", settings{}, map[string]string{"MUSTER_CONFIG": config, "MUSTER_TOKEN_FILE": token, "MUSTER_CONTEXT": "prod"},
			settings{Addr: "https://prod:1", Token: "from-file", CACert: filepath.Join(dir, "prod.crt"), Namespace: "shop"}},
		{"token file by flag over a token in the environment", settings{TokenFile: token}, map[string]string{"MUSTER_TOKEN": "env"},
			settings{Addr: defaultAddr, Token: "from-file", Namespace: "default"}},
	} {
		got, err := c.flags.resolve(func(k string) string { return c.env[k] })
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got.TokenFile, got.context = "", ""
		if got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestSettingsThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte("contexts: {a: {colour: red}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env  map[string]string
		want string
	}{
		"unknown key":      {map[string]string{"MUSTER_CONFIG": file}, "colour"},
		"no such file":     {map[string]string{"MUSTER_CONFIG": filepath.Join(dir, "none")}, "the context file cannot be read"},
		"no such token":    {map[string]string{"MUSTER_TOKEN_FILE": filepath.Join(dir, "none")}, "the token cannot be read"},
		"empty token":      {map[string]string{"MUSTER_TOKEN_FILE": empty}, "is empty"},
		"half a key pair":  {map[string]string{"MUSTER_CLIENT_CERT": "x"}, "belong together"},
		"a bad address":    {map[string]string{"MUSTER_ADDR": "ftp://x"}, "is not an address of a node"},
		"context, no file": {map[string]string{"MUSTER_CONTEXT": "x", "XDG_CONFIG_HOME": dir}, "the context file cannot be read"},
	} {
		_, err, code := shell{env: c.env}.do(t, "get", "services")
		if code != exitError || !strings.Contains(err, c.want) {
			t.Errorf("%s: exit code %d: %s", name, code, err)
		}
	}
}
