package decision

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/muster-registry/muster/fault"
)

func record(t testing.TB, size int) *Record {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return &Record{
		ID: id.String(), Time: time.Now().UTC(), Node: "n1", PolicyRevision: 7, Revision: 1290, Engine: "opa", EntryPoint: "api/security/authz",
		Input:  []byte(fmt.Sprintf(`{"token":"s3cret-%s","pad":%q}`, id, strings.Repeat(id.String(), size/36))),
		Result: Result{Reasons: []string{"no"}}, TookNS: 1234, RequestID: "r-1",
		Trace: Trace{TraceID: "0af7651916cd43dd8448eb211c80319c", SpanID: "b7ad6b7169203331"}, Chance: []byte(`{"rand.intn":{"[\"x\",10]":3}}`),
	}
}

func openStore(t testing.TB, dir string, opt StoreOptions) *Store {
	t.Helper()
	opt.Logger = slog.New(slog.DiscardHandler)
	s, err := OpenStore(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func same(t *testing.T, got, want *Record) {
	t.Helper()
	if g, w := got.append(nil), want.append(nil); !bytes.Equal(g, w) {
		t.Errorf("%s\nwant\n%s", g, w)
	}
}

func TestDecisionsAreFoundAlsoAfterARestart(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, StoreOptions{})
	var kept []*Record
	for range 300 {
		r := record(t, 2000) // more than one block
		kept = append(kept, r)
		if err := s.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	look := func() {
		t.Helper()
		for _, i := range []int{0, 1, 150, 298, 299} {
			got, err := s.Get(kept[i].ID)
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, kept[i])
		}
		if _, err := s.Get(record(t, 0).ID); !fault.Is(err, fault.NotFound) {
			t.Errorf("an unknown decision: %v", err)
		}
	}
	look()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(record(t, 0)); err == nil {
		t.Error("a closed store takes records")
	}
	s = openStore(t, dir, StoreOptions{})
	look()
	next := record(t, 0)
	if err := s.Append(next); err != nil {
		t.Fatal(err)
	}
	n := 0
	for r := range s.Recent(time.Time{}, 10) {
		if n == 0 {
			same(t, r, next)
		} else {
			same(t, r, kept[len(kept)-n])
		}
		n++
	}
	if n != 10 {
		t.Errorf("%d recent records", n)
	}
	for r := range s.Recent(next.Time, 10) {
		if r.ID != next.ID {
			t.Errorf("%s is from before", r.ID)
		}
	}
}

func TestNothingOfAnInputIsReadableOnDisk(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, StoreOptions{})
	if err := s.Append(record(t, 100)); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("s3cret")) || bytes.Contains(b, []byte("authz")) {
			t.Errorf("%s holds an input in the clear", f.Name())
		}
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f.Name(), info.Mode(), err)
		}
	}
}

func TestTheStoreIsBounded(t *testing.T) {
	const most = 4 << 20
	s := openStore(t, t.TempDir(), StoreOptions{MaxBytes: most})
	var last *Record
	first := record(t, 0)
	if err := s.Append(first); err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 8<<10)
	for i := range 2000 { // 16 MiB that do not compress well
		last = record(t, 0)
		for j := range noise {
			noise[j] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+/"[(i*j*j+j*31+i)%64]
		}
		last.Input = []byte(fmt.Sprintf(`{"i":%d,"x":%q}`, i, uuid.NewString()+string(noise)+uuid.NewString()))
		if err := s.Append(last); err != nil {
			t.Fatal(err)
		}
		if s.Bytes() > most {
			t.Fatalf("%d bytes", s.Bytes())
		}
	}
	if got, err := s.Get(last.ID); err != nil {
		t.Error(err)
	} else {
		same(t, got, last)
	}
	if len(s.segments) > parts+1 {
		t.Errorf("%d segments", len(s.segments))
	}
}

func TestOldDecisionsAreForgotten(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, StoreOptions{MaxAge: time.Hour})
	old := record(t, 0)
	// An id from two hours ago.
	id := uuid.MustParse(old.ID)
	ms := time.Now().Add(-2 * time.Hour).UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	old.ID = id.String()
	if err := s.Append(old); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(old.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, StoreOptions{MaxAge: time.Hour})
	if _, err := s.Get(old.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}

// A crash can cut a file off, and a disk can spoil it: the rest stays readable,
// and what was spoilt is never given out.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, StoreOptions{})
	a, b := record(t, 100), record(t, 100)
	for _, r := range []*Record{a, b} {
		if err := s.Append(r); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	name := s.segments[0].name
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	spoil := func(content []byte) *Store {
		t.Helper()
		copied := t.TempDir()
		key, err := os.ReadFile(filepath.Join(dir, keyFile))
		if err != nil {
			t.Fatal(err)
		}
		for file, content := range map[string][]byte{keyFile: key, filepath.Base(name): content} {
			if err := os.WriteFile(filepath.Join(copied, file), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return openStore(t, copied, StoreOptions{})
	}
	for cut := range len(whole) {
		if cut%7 != 0 && cut < len(whole)-3 {
			continue
		}
		if _, err := spoil(whole[:cut]).Get(b.ID); err == nil {
			t.Fatalf("cut at %d: found", cut)
		}
	}
	if got, err := spoil(whole[:len(whole)-1]).Get(a.ID); err != nil {
		t.Error(err)
	} else {
		same(t, got, a)
	}
	for at := 0; at < len(whole); at += 5 {
		changed := bytes.Clone(whole)
		changed[at] ^= 1
		st := spoil(changed)
		for _, want := range []*Record{a, b} {
			if got, err := st.Get(want.ID); err == nil {
				same(t, got, want)
			}
		}
		// What is no id of a decision is not looked for in what cannot be read.
		if _, err := st.Get("anything"); !fault.Is(err, fault.NotFound) {
			t.Errorf("changed at %d: %v", at, err)
		}
		for r := range st.Recent(time.Time{}, 10) {
			if r.ID != a.ID && r.ID != b.ID {
				t.Errorf("an invented record: %+v", r)
			}
		}
	}
}

func TestTheKeyIsTheOwners(t *testing.T) {
	dir := t.TempDir()
	if err := openStore(t, dir, StoreOptions{}).Close(); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, keyFile)
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(dir, StoreOptions{}); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(key, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(dir, StoreOptions{}); err == nil || !strings.Contains(err.Error(), "32") {
		t.Errorf("%v", err)
	}
}

func TestReadersAndWritersAtOnce(t *testing.T) {
	s := openStore(t, t.TempDir(), StoreOptions{MaxBytes: 1 << 20})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				r := record(t, 500)
				if err := s.Append(r); err != nil {
					t.Error(err)
				}
				if got, err := s.Get(r.ID); err != nil {
					t.Error(err)
				} else if got.ID != r.ID {
					t.Errorf("%s is not %s", got.ID, r.ID)
				}
				for range s.Recent(time.Time{}, 3) {
				}
			}
		})
	}
	wg.Wait()
}

func TestTraceparent(t *testing.T) {
	good := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	want := Trace{"0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"}
	for parent, want := range map[string]Trace{
		good:                                  want,
		"cc" + good[2:] + "-what-comes-later": want,
		"":                                    {},
		"00":                                  {},
		good + "-more":                        {},
		"ff" + good[2:]:                       {},
		strings.ToUpper(good):                 {},
		"00-" + strings.Repeat("0", 32) + good[35:]:                     {},
		good[:36] + strings.Repeat("0", 16) + "-01":                     {},
		"00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01":        {},
		"00-0af7651916cd43dd8448eb211c8031zz-b7ad6b7169203331-01":       {},
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\nx: y": {},
	} {
		if got := ParseTrace(parent); got != want {
			t.Errorf("%q: %+v", parent, got)
		}
	}
}
