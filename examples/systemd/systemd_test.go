// Package systemd tests the unit beside it with systemd's own program.
package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// exposure is the most that systemd-analyze security may give the unit, from 0
// (safe) to 10. What is left is that a registry listens on the network.
const exposure = "1.2"

func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("LEFT OUT: systemd-analyze is not installed")
	}
	b, err := os.ReadFile("muster.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "muster.service")
	// Its program is looked for, so one that is there stands in for it.
	if err := os.WriteFile(unit, []byte(strings.Replace(string(b), "/usr/local/bin/muster", "/bin/true", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", unit).CombinedOutput()
	if err != nil || strings.Contains(string(out), "muster.service") {
		t.Errorf("verify: %v\n%s", err, out)
	}
	out, err = exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+strings.ReplaceAll(exposure, ".", ""), unit).CombinedOutput()
	if err != nil {
		t.Errorf("the exposure is above %s: %v\n%s", exposure, err, out)
	}
	t.Log(string(out[max(0, len(out)-80):]))
	for _, is := range []string{"Type=notify", "User=muster", "UMask=0077", "StateDirectory=muster", "CapabilityBoundingSet=\n"} {
		if !strings.Contains(string(b), is) {
			t.Errorf("the unit lacks %s", is)
		}
	}
}
