package fsm_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/muster-registry/muster/fsm"
)

// A restored state that goes into a new file leads to what the same log leads to
// in the old one, and a crash finds the one file or the other, each with the
// state of its index, whatever is left of the new one beside the old one.
func TestCrashWhileAStateIsRestoredIntoANewFile(t *testing.T) {
	refilled := 0
	for seed := range 4 {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		logs := crashLog(t, seed)
		plain := open(t, t.TempDir())
		plain.ApplyBatch(logs)
		want := end{plain.View(), export(t, plain)}
		shut(t, plain)
		dir := t.TempDir()
		m, err := fsm.Open(dir, fsm.Options{FlushEvery: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		m.RefillAt(1)
		at := map[uint64]fsm.Hash{0: m.View().Hash}
		files := map[uint64][]byte{} // as they were flushed, by index
		flush := func() {
			m.Flush()
			b, err := os.ReadFile(filepath.Join(dir, "state.db"))
			if err != nil {
				t.Fatal(err)
			}
			used := len(bytes.TrimRight(b, "\x00")) // bbolt makes it larger ahead of what it writes
			files[m.AppliedIndex()] = b[:min(len(b), (used+1<<16-1)>>16<<16)]
		}
		before := stat(t, dir)
		for i, l := range logs {
			m.ApplyBatch(logs[i : i+1])
			at[l.Index], _ = m.HashAt(l.Index)
			if r.IntN(2) == 0 {
				flush()
			}
		}
		flush()
		if got := export(t, m); m.View().Hash != want.view.Hash || !bytes.Equal(got, want.file) {
			t.Fatalf("seed %d: the state is another", seed)
		}
		if !os.SameFile(before, stat(t, dir)) {
			refilled++
		}
		shut(t, m)
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Fatalf("left are %v, %v", left, err)
		}
		for index, file := range files {
			for _, beside := range files {
				dir := t.TempDir()
				half := beside[:r.IntN(len(beside)+1)]
				if err := os.WriteFile(filepath.Join(dir, "state.db"), file, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "state.db.refill"), half, 0o600); err != nil {
					t.Fatal(err)
				}
				if why := resume(t, dir, index, logs, at, want); why != "" {
					t.Fatalf("seed %d, a crash behind index %d with %d bytes of a new file: %s", seed, index, len(half), why)
				}
				if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
					t.Fatalf("left are %v, %v", left, err)
				}
				if r.IntN(8) > 0 {
					break // few pairs will do
				}
			}
		}
	}
	if refilled == 0 {
		t.Error("no state has gone into a new file")
	}
}

func stat(t *testing.T, dir string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	return info
}
