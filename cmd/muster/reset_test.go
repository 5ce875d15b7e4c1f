package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
)

// The operator's token is lost: one node's disk is enough to make another, while
// the node runs and while all are stopped, and the old one is then good nowhere.
func TestOperatorReset(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev")
	d := startDev(t, dir, "--port-base", "0")
	try := func(token string, node int) fault.Code {
		s := d.shell()
		s.env["MUSTER_ADDR"], s.env["MUSTER_TOKEN"] = d.Nodes[node].Control, token
		out, errs, code := s.do(t, "token", "list", "-o", "json")
		switch {
		case code == 0:
			return ""
		case strings.Contains(out+errs, string(fault.Unauthenticated)):
			return fault.Unauthenticated
		}
		return fault.Code(errs)
	}
	agree := func(what, good, bad string) {
		t.Helper()
		eventually(t, time.Minute, func() error {
			for i := range d.Nodes {
				if code := try(good, i); code != "" {
					return fault.New(fault.NotReady, "the new token at %s: %s", d.Nodes[i].ID, code)
				}
				if code := try(bad, i); code != fault.Unauthenticated {
					return fault.New(fault.NotReady, "the old token at %s: %q", d.Nodes[i].ID, code)
				}
			}
			return nil
		})
	}
	reset := func(args ...string) string {
		t.Helper()
		out, errs, code := shell{}.do(t, append([]string{"cluster", "reset-operator", "--config", filepath.Join(d.node("n2").Dir, "muster.yaml")}, args...)...)
		if code != 0 || !strings.HasPrefix(out, "muster_") {
			t.Fatalf("reset: %d %s %s", code, out, errs)
		}
		return strings.TrimSpace(out)
	}
	first := reset()
	agree("on a running node", first, d.OperatorToken)

	d.stop(t)
	second := reset("--all-tokens")
	b, err := os.ReadFile(filepath.Join(d.node("n2").Dir, "data", "operator-reset"))
	if os.IsNotExist(err) {
		b, err = os.ReadFile(filepath.Join(d.node("n2").Dir, "operator-reset"))
	}
	if err != nil || strings.Contains(string(b), second) || strings.Contains(string(b), second[24:]) {
		t.Errorf("what lies on the disk: %v %s", err, b)
	}
	if _, _, code := (shell{}).do(t, "cluster", "reset-operator", "--config", filepath.Join(d.node("n2").Dir, "muster.yaml")); code == 0 {
		t.Error("a reset that was not carried out was replaced")
	}
	_ = os.Remove(filepath.Join(dir, "cluster.json"))
	d = startDev(t, dir)
	agree("on a stopped cluster", second, first)
	if code := try(d.OperatorToken, 0); code != fault.Unauthenticated {
		t.Errorf("the first token is good again: %q", code)
	}
}
