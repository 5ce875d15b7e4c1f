package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/audit"
)

func TestAuditVerifyAndTail(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	trail, err := audit.Open(audit.Options{Path: file, Node: "n1", Logger: slog.New(slog.DiscardHandler)}, audit.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		t.Fatal(err)
	}
	for r := uint64(1); r <= 20; r++ {
		trail.Changed([]audit.Entry{{Time: time.Unix(int64(r), 0), Type: audit.Change, Revision: r, Principal: "token:ann"}})
	}
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	if out := (shell{}).ok(t, "audit", "verify", file); !strings.Contains(out, "21, from 1 to 21") || !strings.Contains(out, "to revision 20") {
		t.Errorf("verify says:\n%s", out)
	}
	for args, want := range map[string][]string{"": {`"revision":11,`, `"revision":20,`}, " --lines 1": {`"revision":20,`, `"revision":20,`}, " -l 100": {`"type":"begin"`, `"revision":20,`}} {
		lines := strings.Split(strings.TrimSpace((shell{}).ok(t, strings.Fields("audit tail "+file+args)...)), "\n")
		if !strings.Contains(lines[0], want[0]) || !strings.Contains(lines[len(lines)-1], want[1]) {
			t.Errorf("tail%s goes from\n%s\nto\n%s", args, lines[0], lines[len(lines)-1])
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(b), `"revision":7,"`, `"revision":8,"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, text, code := (shell{}).do(t, "audit", "verify", file); code != exitError || !strings.Contains(text, file+":8: it was altered") {
		t.Errorf("an altered line: exit code %d, %s", code, text)
	}
	if _, _, code := (shell{}).do(t, "audit", "verify"); code != exitUsage {
		t.Errorf("no file: exit code %d", code)
	}
}
