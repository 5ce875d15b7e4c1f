package audit_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/muster-registry/muster/audit"
)

// FuzzVerify: a file that somebody made up is no trail, unless each line's hash
// is right; reading it ends.
func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"seq":1,"type":"start","time":"2026-01-01T00:00:00Z","node":"n1","previous":"","hash":""}` + "\n"))
	f.Add([]byte("{}\n{}"))
	f.Add([]byte("\n\n"))
	f.Add([]byte{0x1f, 0x8b, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(t.TempDir(), "audit.log")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := audit.Verify(file)
		if err == nil && r.Lines == 0 {
			t.Fatalf("%q is a trail without lines", b)
		}
	})
}
