package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unpacked gives the files of a support bundle.
func unpacked(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimPrefix(h.Name, "muster-debug/")] = string(b)
	}
}

// TestDebug: a bundle has what helps, no secret, and is made of what there is.
func TestDebug(t *testing.T) {
	d := startDev(t, filepath.Join(t.TempDir(), "dev"), "--nodes", "1", "--port-base", "0")
	n := d.Nodes[0]
	config := write(t, "muster.yaml", `# the password is planted-in-a-comment
node_id: n1
data_dir: `+n.Dir+`
audit: {path: `+filepath.Join(n.Dir, "audit.log")+`}
gossip_key: cGxhbnRlZC1nb3NzaXAta2V5
policy:
  git: {url: "https://user:planted-in-a-url@git.example/p", token_file: /etc/muster/git.token}
  decision_log: {http: {url: "https://logs.example/x", key: logs.key}}
tls: {key: node.key}
quota: {redis_password: planted-password}
headers: [planted-header]
notes: ["-----BEGIN PRIVATE KEY-----planted-pem"]
`)
	file := filepath.Join(t.TempDir(), "bundle.tar.gz")
	out, text, code := d.shell().do(t, "debug", file, "--config", config, "--metrics", n.Metrics, "--log", filepath.Join(n.Dir, "muster.log"), "--profile", "0")
	if code != 0 || strings.TrimSpace(out) != file {
		t.Fatalf("exit code %d: %s %s", code, out, text)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	got := unpacked(t, file)
	for name, has := range map[string]string{
		"version.json": `"version"`, "cluster/status.json": `"leader":"n1"`, "cluster/members.json": `"n1"`, "cluster/policies.json": "[]",
		"metrics-1/readyz.txt": "ok", "metrics-1/metrics.txt": "muster_is_leader", "node/config.yaml": "node_id: n1", "node/audit.log": `"seq":1`,
		"logs/1-muster.log": "node is up", "report.txt": "profiles are off",
	} {
		if !strings.Contains(got[name], has) {
			t.Errorf("%s lacks %s: %.200s", name, has, got[name])
		}
	}
	contains(t, got["node/config.yaml"], "https://(hidden)@git.example/p", "token_file: /etc/muster/git.token", "key: node.key", "gossip_key: (hidden)")
	key, err := os.ReadFile(filepath.Join(d.dir, "gossip.key"))
	if err != nil {
		key = []byte("none")
	}
	for name, text := range got {
		for _, secret := range []string{"planted", "cGxhbnRlZC1nb3NzaXAta2V5", d.OperatorToken, strings.TrimSpace(string(key))} {
			if secret != "none" && strings.Contains(text, secret) {
				t.Errorf("%s holds the secret %s", name, secret)
			}
		}
	}

	// Nobody is there: the bundle says so and has the rest.
	d.stop(t)
	s := d.shell()
	out, text, code = s.do(t, "debug", file, "--config", config, "--metrics", n.Metrics, "--unit", "no-such-unit", "--timeout", "1s")
	if code != 0 || !strings.Contains(text, "could not be had") {
		t.Fatalf("exit code %d: %s %s", code, out, text)
	}
	got = unpacked(t, file)
	contains(t, got["report.txt"], "missing  cluster/status.json", "missing  metrics-1/metrics.txt", "missing  logs/journal.txt", "ok       node/audit.log")
	if got["node/audit.log"] == "" || got["cluster/status.json"] != "" {
		t.Errorf("%d files", len(got))
	}
}
