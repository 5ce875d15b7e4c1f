package journal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

const testHalf = 8 * block

// content is what a log should hold.
type content map[uint64]*raft.Log

func (c content) bounds() (first, last uint64) {
	if len(c) == 0 {
		return 0, 0
	}
	keys := slices.Sorted(maps.Keys(c))
	return keys[0], keys[len(keys)-1]
}

func (c content) store(logs []*raft.Log) {
	for _, l := range logs {
		c[l.Index] = l
	}
}

func (c content) delete(from, to uint64) {
	maps.DeleteFunc(c, func(i uint64, _ *raft.Log) bool { return i >= from && i <= to })
}

func same(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && a.AppendedAt.Equal(b.AppendedAt) &&
		bytes.Equal(a.Data, b.Data) && bytes.Equal(a.Extensions, b.Extensions)
}

// differs says how a log store differs from the content, up to some indexes
// beyond it.
func (c content) differs(s raft.LogStore) error {
	first, last := c.bounds()
	if got, err := s.FirstIndex(); err != nil || got != first {
		return fmt.Errorf("first index %d (%v), not %d", got, err, first)
	}
	if got, err := s.LastIndex(); err != nil || got != last {
		return fmt.Errorf("last index %d (%v), not %d", got, err, last)
	}
	from := first - min(first, 30)
	for i := from; i <= last+30; i++ {
		var got raft.Log
		err := s.GetLog(i, &got)
		want := c[i]
		if want == nil && !errors.Is(err, raft.ErrLogNotFound) {
			return fmt.Errorf("entry %d is there, or unreadable: %v", i, err)
		}
		if want != nil && (err != nil || !same(&got, want)) {
			return fmt.Errorf("entry %d is not what was stored: %v", i, err)
		}
	}
	return nil
}

// batch makes entries from index on; stamp tells them from others of the index.
func batch(first uint64, n, size int, stamp uint64) (logs []*raft.Log) {
	for i := range n {
		l := &raft.Log{Index: first + uint64(i), Term: stamp, Type: raft.LogType(stamp % 6), AppendedAt: time.Unix(int64(stamp), 7)}
		l.Data = bytes.Repeat([]byte{byte(stamp), byte(i)}, size/2)
		if stamp%3 == 0 {
			l.Extensions, l.AppendedAt = []byte("ext"), time.Time{}
		}
		logs = append(logs, l)
	}
	return logs
}

// drawBatch makes what raft may store on a log that ends with last: mostly what
// follows, and now and then a gap, an overwriting one, or one that does not fit.
func drawBatch(t *rapid.T, last uint64, stamp uint64) []*raft.Log {
	first := last + 1
	switch rapid.IntRange(0, 19).Draw(t, "kind") {
	case 0:
		first += rapid.Uint64Range(1, 20).Draw(t, "gap")
	case 1:
		first -= min(last, rapid.Uint64Range(0, 3).Draw(t, "back"))
	case 2:
		return batch(first, 2, testHalf, stamp)
	}
	return batch(first, rapid.IntRange(1, 4).Draw(t, "entries"), rapid.SampledFrom([]int{0, 6, 450, 4096, 9000}).Draw(t, "size"), stamp)
}

// drawRange makes what raft may delete: a beginning, an end, everything, or
// anything else.
func drawRange(t *rapid.T, first, last uint64) (from, to uint64) {
	mid := rapid.Uint64Range(first, max(first, last)).Draw(t, "mid")
	switch rapid.IntRange(0, 5).Draw(t, "part") {
	case 0, 1:
		return first, mid
	case 2, 3:
		return mid, last
	case 4:
		return first, last
	}
	return mid, min(last, mid+2)
}

func bolt(t interface{ Fatal(...any) }, dir string, noSync bool) *raftboltdb.BoltStore {
	s, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, "log.db"), NoSync: noSync, MsgpackUseNewTimeFormat: true,
		BoltOptions: &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func must(t interface {
	Helper()
	Fatal(...any)
}, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestBehavesAsALog compares the journal in front of the real store with what
// was stored and deleted, over restarts with and without a word.
func TestBehavesAsALog(t *testing.T) {
	root := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "")
		must(t, err)
		defer os.RemoveAll(dir)
		opts := Options{Half: testHalf, NoSync: true, Delay: time.Hour}
		if rapid.Bool().Draw(t, "mover runs") {
			opts.Delay = time.Microsecond
		}
		under := bolt(t, dir, true)
		l, err := Open(dir, under, opts)
		must(t, err)
		want := content{}
		t.Repeat(map[string]func(*rapid.T){
			"store": func(t *rapid.T) {
				_, last := want.bounds()
				logs := drawBatch(t, last, uint64(rapid.IntRange(1, 255).Draw(t, "stamp")))
				want.store(logs)
				must(t, l.StoreLogs(logs))
			},
			"store more": func(t *rapid.T) {
				_, last := want.bounds()
				logs := drawBatch(t, last, uint64(rapid.IntRange(1, 255).Draw(t, "stamp")))
				want.store(logs)
				must(t, l.StoreLogs(logs))
			},
			"delete": func(t *rapid.T) {
				from, to := drawRange(t, first(want), last(want))
				want.delete(from, to)
				must(t, l.DeleteRange(from, to))
			},
			"move": func(t *rapid.T) { must(t, l.move()) },
			"restart": func(t *rapid.T) {
				if rapid.Bool().Draw(t, "closed") {
					must(t, l.Close())
					// A muster of before the journal may run in between.
					if cut := rapid.Uint64Range(0, 5).Draw(t, "cut"); cut > 0 && cut < last(want) {
						must(t, under.DeleteRange(cut, last(want)))
						want.delete(cut, last(want))
					}
				} else {
					abandon(l)
				}
				must(t, under.Close())
				under = bolt(t, dir, true)
				l, err = Open(dir, under, opts)
				must(t, err)
			},
			"": func(t *rapid.T) { must(t, want.differs(l)) },
		})
		must(t, l.Close())
		must(t, want.differs(under)) // after Close the store is complete without the journal
		must(t, under.Close())
	})
}

func first(c content) uint64 { f, _ := c.bounds(); return f }
func last(c content) uint64  { _, l := c.bounds(); return l }

// abandon ends a log's task and nothing else, as a killed process would.
func abandon(l *Log) {
	_ = l.fail(errors.New("abandoned"))
	close(l.stop)
	l.tasks.Wait()
	_ = l.file.Close()
}

func TestEntriesReadAsTheStoreReadsThem(t *testing.T) {
	dir := t.TempDir()
	under := bolt(t, dir, true)
	l, err := Open(dir, under, Options{Half: testHalf, Delay: time.Hour})
	must(t, err)
	at := time.Now()
	must(t, l.StoreLog(&raft.Log{Index: 1, Term: 1})) // an empty log: into the store
	must(t, l.StoreLogs([]*raft.Log{
		{Index: 2, Term: 3, Type: raft.LogConfiguration, Data: []byte("d"), Extensions: []byte("e"), AppendedAt: at},
		{Index: 3, Term: 4},
	}))
	abandon(l)
	l, err = Open(dir, under, Options{})
	must(t, err)
	var two, three raft.Log
	must(t, l.GetLog(2, &two))
	must(t, l.GetLog(3, &three))
	if !two.AppendedAt.Equal(at) || two.Type != raft.LogConfiguration || two.Term != 3 || string(two.Data)+string(two.Extensions) != "de" {
		t.Errorf("entry 2 came back as %+v", two)
	}
	if !three.AppendedAt.IsZero() || three.Data != nil || three.Extensions != nil {
		t.Errorf("entry 3 came back as %+v", three)
	}
	must(t, l.Close())
	must(t, under.Close())
}

// What an interrupted first start has left is made anew.
func TestAnUnfinishedFileIsMadeAnew(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "journal.new"), make([]byte, 3*block), 0o600))
	l, err := Open(dir, &memory{}, Options{Half: testHalf})
	must(t, err)
	must(t, l.Close())
	l, err = Open(dir, &memory{}, Options{}) // another default later: the file stays as it is
	must(t, err)
	if l.mark.half != testHalf {
		t.Errorf("halves of %d bytes", l.mark.half)
	}
	must(t, l.Close())
}

// An old data directory has no journal; and one without its log is refused.
func TestOtherDirectories(t *testing.T) {
	dir := t.TempDir()
	under := bolt(t, dir, true)
	must(t, under.StoreLogs(batch(5, 3, 10, 1)))
	l, err := Open(dir, under, Options{Half: testHalf, Delay: time.Hour})
	must(t, err)
	want := content{}
	want.store(batch(5, 3, 10, 1))
	must(t, want.differs(l))
	must(t, l.StoreLogs(batch(8, 1, 10, 2)))
	abandon(l)
	must(t, under.Close())
	must(t, os.Remove(filepath.Join(dir, "log.db")))
	under = bolt(t, dir, true)
	if _, err := Open(dir, under, Options{}); err == nil {
		t.Error("a journal was replayed onto a log that it does not belong to")
	}
	must(t, under.Close())
}

// failing is a file that loses its disk.
type failing struct {
	File
	write, sync error
	syncs       int
}

func (f *failing) WriteAt(b []byte, at int64) (int, error) {
	if f.write != nil {
		return 0, f.write
	}
	return f.File.WriteAt(b, at)
}

func (f *failing) Sync() error {
	f.syncs++
	return f.sync
}

// After an error nothing is tried again, and what was acknowledged can be read.
func TestAFailedDiskEndsAllChanges(t *testing.T) {
	lost := errors.New("lost")
	for name, breaks := range map[string]func(*failing, *memory){
		"write": func(f *failing, _ *memory) { f.write = lost },
		"sync":  func(f *failing, _ *memory) { f.sync = lost },
	} {
		t.Run(name, func(t *testing.T) {
			f, under := &failing{File: &image{b: fresh(testHalf)}}, &memory{}
			l, err := load(f, under)
			must(t, err)
			told := make(chan error, 8)
			l.failure = func(err error) { told <- err }
			want := content{}
			want.store(batch(1, 3, 10, 1))
			must(t, l.StoreLogs(batch(1, 1, 10, 1)))
			must(t, l.StoreLogs(batch(2, 2, 10, 1)))
			want[2], want[3] = batch(2, 2, 10, 1)[0], batch(2, 2, 10, 1)[1]
			breaks(f, under)
			if err := l.StoreLogs(batch(4, 1, 10, 1)); !errors.Is(err, lost) {
				t.Fatalf("a failed %s gave %v", name, err)
			}
			f.write, f.sync = nil, nil
			before := f.syncs
			for what, err := range map[string]error{
				"store": l.StoreLogs(batch(4, 1, 10, 1)), "delete": l.DeleteRange(1, 1), "delete all": l.DeleteRange(1, 4), "close": l.Close(),
			} {
				if !errors.Is(err, lost) {
					t.Errorf("%s after the failure: %v", what, err)
				}
			}
			if f.syncs != before {
				t.Error("a sync was tried again")
			}
			must(t, want.differs(l))
			if err := <-told; !errors.Is(err, lost) {
				t.Errorf("told of %v", err)
			}
		})
	}
}

// A store that fails ends all changes too; what it did not take is found in
// the journal at the next start.
func TestAFailedStoreLosesNothing(t *testing.T) {
	f, under := &image{b: fresh(testHalf)}, &memory{}
	l, err := load(f, under)
	must(t, err)
	want := content{}
	want.store(batch(1, 6, 10, 1))
	must(t, l.StoreLogs(batch(1, 6, 10, 1)[:1]))
	must(t, l.StoreLogs(batch(1, 6, 10, 1)[1:]))
	lost := errors.New("lost")
	under.fails = lost
	if err := l.move(); !errors.Is(err, lost) {
		t.Fatalf("the move gave %v", err)
	}
	under.fails = nil
	if err := l.StoreLogs(batch(7, 1, 10, 1)); !errors.Is(err, lost) {
		t.Errorf("an append after the failure gave %v", err)
	}
	must(t, want.differs(l))
	l, err = load(f, under)
	must(t, err)
	must(t, want.differs(l))
}

// Readers see each acknowledged entry while appends, moves and turns go on.
func TestReadersWhileAppending(t *testing.T) {
	dir := t.TempDir()
	under := bolt(t, dir, true)
	l, err := Open(dir, under, Options{Half: testHalf, Delay: time.Microsecond, NoSync: true})
	must(t, err)
	must(t, l.StoreLogs(batch(1, 1, 10, 1)))
	acked, done := make(chan uint64, 4096), make(chan error, 1)
	go func() {
		for i := range acked {
			for _, j := range []uint64{i, i - min(i, 5), i/2 + i/4} {
				var got raft.Log
				if err := l.GetLog(j, &got); j > 0 && (err != nil || got.Index != j) {
					done <- fmt.Errorf("entry %d of %d: %w", j, i, err)
					return
				}
			}
		}
		done <- nil
	}()
	for i := uint64(2); i < 2000; i++ {
		must(t, l.StoreLogs(batch(i, 1, 450, i)))
		if n, _ := l.LastIndex(); n != i {
			t.Fatalf("last index %d after storing %d", n, i)
		}
		acked <- i
	}
	close(acked)
	must(t, <-done)
	must(t, l.Close())
	must(t, under.Close())
}
