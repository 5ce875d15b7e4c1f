package fsm_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/command"
)

// A state file whose disk is full holds nothing up: changes are applied and read,
// a snapshot says why there is none, and when there is room the file takes it all.
// So it is when the node ends first: the file is whole, of an earlier state.
func TestFullDisk(t *testing.T) {
	if os.Getenv("MUSTER_TEST_ROOT") == "" || runtime.GOOS != "linux" {
		t.Skip("needs root, for a disk of its own: MUSTER_TEST_ROOT=1")
	}
	dir := filepath.Join(t.TempDir(), "disk")
	tmpfs(t, dir, 4<<20)
	m := open(t, dir)
	big := func(name string) *command.Command {
		c := service(name, 0)
		c.GetPut().Spec = fmt.Appendf(nil, `{"protocol":"rest","owner":"team","description":%q,"tags":[],"metadata":{}}`, strings.Repeat("x", 4000))
		return c
	}
	for i := range 2000 {
		must(t, apply(t, m, big(fmt.Sprintf("s%d", i))))
	}
	if _, err := m.Snapshot(); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Fatalf("a snapshot of 8 MB on a disk of 4: %v", err)
	}
	hash, revision := m.View().Hash, m.View().Revision
	tmpfs(t, dir, 64<<20) // the same disk, grown
	deadline := time.Now().Add(time.Minute)
	for {
		s, err := m.Snapshot()
		if err == nil {
			s.Release()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	shut(t, m)
	m = open(t, dir)
	if got := m.View(); got.Hash != hash || got.Revision != revision {
		t.Errorf("revision %d, want %d", got.Revision, revision)
	}

	// Not all of what follows finds room before the node ends.
	tmpfs(t, dir, 24<<20)
	for i := range 8000 {
		must(t, apply(t, m, big(fmt.Sprintf("t%d", i))))
	}
	if err := m.Close(); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("it was closed with %v", err)
	}
	tmpfs(t, dir, 128<<20)
	m = open(t, dir)
	defer shut(t, m)
	at := m.AppliedIndex()
	if at < revision || at > 10_000 {
		t.Fatalf("the file is of entry %d", at)
	}
	for i := at - 2000; i < 8000; i++ { // as the log does
		must(t, apply(t, m, big(fmt.Sprintf("t%d", i))))
	}
	other := open(t, t.TempDir())
	defer shut(t, other)
	for i := range 2000 {
		must(t, apply(t, other, big(fmt.Sprintf("s%d", i))))
	}
	for i := range 8000 {
		must(t, apply(t, other, big(fmt.Sprintf("t%d", i))))
	}
	if a, b := m.View().Hash, other.View().Hash; !bytes.Equal([]byte(a.String()), []byte(b.String())) {
		t.Error("the states differ")
	}
}
