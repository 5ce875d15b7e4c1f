package fsm_test

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/snapshot"
)

func large4k(name string) *command.Command {
	c := service(name, 0)
	c.GetPut().Spec = fmt.Appendf(nil, `{"protocol":"rest","owner":"team","description":%q,"tags":[],"metadata":{}}`, strings.Repeat("x", 4000))
	return c
}

func remove(name string, observed uint64) *command.Command {
	return &command.Command{Time: began, Op: &command.Command_Delete{Delete: &command.Delete{Kind: command.Kind_SERVICE, Namespace: "default", Name: name, Observed: observed}}}
}

// A state file from which much was deleted becomes small, while it is read,
// written and exported as ever, and nothing is lost on the way.
func TestStateFileShrinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := open(t, dir)
	const services, stay = 1000, 20
	revisions := map[string]uint64{}
	for i := range services {
		name := fmt.Sprintf("s%d", i)
		revisions[name] = must(t, apply(t, m, large4k(name))).Revision
	}
	m.Flush()
	held, err := m.Snapshot() // a reader of the file that is replaced
	if err != nil {
		t.Fatal(err)
	}
	for i := stay; i < services; i++ {
		name := fmt.Sprintf("s%d", i)
		must(t, apply(t, m, remove(name, revisions[name])))
	}
	m.Flush()
	was := len(raftSnapshot(t, m)) // all pages that the file has, used or free
	m.CompactAt(1 << 20)
	m.Compact(func() (uint64, bool) { return math.MaxUint64, false })

	stop := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := m.Export(io.Discard, snapshot.Header{}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	written := 0
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-look.C {
		if written < 200 {
			must(t, apply(t, m, service(fmt.Sprintf("w%d", written), 0)))
			written++
		}
		if done, failed := m.Compactions(); failed > 0 {
			t.Fatalf("%d compactions failed", failed)
		} else if done > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the file was not compacted")
		}
	}
	close(stop)
	readers.Wait()
	if now := len(raftSnapshot(t, m)); now > was/3 {
		t.Errorf("of %d bytes %d are left", was, now)
	}
	must(t, apply(t, m, service("after", 0)))
	// Who read in the old file reads on.
	var image sink
	if err := held.Persist(&image); err != nil || image.Len() < was/2 {
		t.Errorf("the image from before has %d bytes: %v", image.Len(), err)
	}
	held.Release()
	want := m.View()
	shut(t, m)
	m = open(t, dir)
	defer shut(t, m)
	if got := m.View(); got.Hash != want.Hash || got.Applied != want.Applied || got.Registry.Counts().Services != stay+written+1 {
		t.Errorf("after the restart: entry %d of %d, %+v, %d written meanwhile", got.Applied, want.Applied, got.Registry.Counts(), written)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("left are %v, %v", files, err)
	}
}

// Without room for the copy, or without much to gain, the file stays as it is.
func TestStateFileStays(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		least int64
		room  uint64
	}{
		"no room":        {1 << 10, 1 << 10},
		"little to gain": {1 << 30, math.MaxUint64},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m := open(t, dir)
			defer shut(t, m)
			for i := range 500 {
				must(t, apply(t, m, large4k(fmt.Sprintf("s%d", i))))
			}
			for i := range 400 {
				must(t, apply(t, m, remove(fmt.Sprintf("s%d", i), uint64(i+1))))
			}
			m.Flush()
			asked := make(chan struct{}, 1)
			m.CompactAt(c.least)
			m.Compact(func() (uint64, bool) {
				select {
				case asked <- struct{}{}:
				default:
				}
				return c.room, false
			})
			for range 3 { // what was decided the first time has been done when it is asked again
				<-asked
			}
			if done, failed := m.Compactions(); done+failed != 0 {
				t.Errorf("it was compacted %d times, and %d times in vain", done, failed)
			}
		})
	}
}

// What is not worth a copy is, as soon as the disk is nearly full.
func TestStateFileShrinksWhereTheDiskIsNearlyFull(t *testing.T) {
	t.Parallel()
	m := open(t, t.TempDir())
	defer shut(t, m)
	for i := range 1500 {
		must(t, apply(t, m, large4k(fmt.Sprintf("s%d", i))))
	}
	for i := range 1400 {
		must(t, apply(t, m, remove(fmt.Sprintf("s%d", i), uint64(i+1))))
	}
	m.Flush()
	was := len(raftSnapshot(t, m))
	var scarce atomic.Bool
	asked := make(chan struct{}, 1)
	m.Compact(func() (uint64, bool) {
		select {
		case asked <- struct{}{}:
		default:
		}
		return math.MaxUint64, scarce.Load()
	})
	for range 3 {
		<-asked
	}
	if done, failed := m.Compactions(); done+failed != 0 {
		t.Fatalf("%d MiB were worth it", was>>20)
	}
	scarce.Store(true)
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-look.C {
		if done, failed := m.Compactions(); failed > 0 || time.Now().After(deadline) {
			t.Fatalf("%d compactions failed, or none was begun", failed)
		} else if done > 0 {
			break
		}
	}
	if now := len(raftSnapshot(t, m)); now > was/3 {
		t.Errorf("of %d bytes %d are left", was, now)
	}
}

// Law 11 for compactions: whatever is in the folder between any two steps of one
// is enough to start from, with nothing lost that was in the file, and so is a
// copy of which a crash has left any part.
func TestCrashWhileTheFileIsCompacted(t *testing.T) {
	t.Parallel()
	logs := crashLog(t, 1)
	dir := t.TempDir()
	m, err := fsm.Open(dir, fsm.Options{FlushEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	at := map[uint64]fsm.Hash{0: m.View().Hash}
	type moment struct {
		name    string
		files   map[string][]byte
		flushed uint64
	}
	var moments []moment
	flushed := uint64(0)
	keep := func(name string) {
		files := map[string][]byte{}
		for _, f := range []string{"state.db", "state.db.compact"} {
			if b, err := os.ReadFile(filepath.Join(dir, f)); err == nil {
				files[f] = b
			}
		}
		moments = append(moments, moment{name, files, flushed})
		if copied := files["state.db.compact"]; copied != nil {
			moments = append(moments, moment{name + ", half of the copy", map[string][]byte{"state.db": files["state.db"], "state.db.compact": copied[:len(copied)/2]}, flushed})
		}
	}
	next := 0
	more := func() {
		end := min(next+max(1, len(logs)/9), len(logs))
		m.ApplyBatch(logs[next:end])
		next = end
		m.Flush()
		flushed = m.AppliedIndex()
	}
	for next < len(logs) {
		more()
		err := m.CompactBySteps(func(step string) {
			keep(step)
			more()
			keep(step + " and written")
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range logs {
		at[uint64(i+1)], _ = m.HashAt(uint64(i + 1))
	}
	want := end{m.View(), export(t, m)}
	shut(t, m)
	for _, c := range moments {
		back := t.TempDir()
		for f, b := range c.files {
			if err := os.WriteFile(filepath.Join(back, f), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if why := resume(t, back, c.flushed, logs, at, want); why != "" {
			t.Errorf("a crash when the file was %s: %s", c.name, why)
		}
	}
}

// A Raft snapshot that replaces the state while the file is compacted does not
// wait for it, and is what stays.
func TestReplacedWhileTheFileIsCompacted(t *testing.T) {
	t.Parallel()
	source := open(t, t.TempDir())
	for i := range 50 {
		must(t, apply(t, source, service(fmt.Sprintf("new%d", i), 0)))
	}
	image, want := raftSnapshot(t, source), source.View().Hash
	shut(t, source)
	dir := t.TempDir()
	m := open(t, dir)
	must(t, apply(t, m, large4k("old")))
	m.Flush()
	err := m.CompactBySteps(func(step string) {
		if step == "caught up" {
			if err := m.Restore(io.NopCloser(bytes.NewReader(image))); err != nil {
				t.Fatal(err)
			}
		}
	})
	if err == nil {
		t.Error("the copy of the old file has become the new one")
	}
	shut(t, m)
	m = open(t, dir)
	defer shut(t, m)
	if m.View().Hash != want {
		t.Error("the state is another")
	}
}
