package fsm

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// A file that is written page by page is one of bbolt's: it finds everything in
// it, holds its pages together, and changes it like its own.
func TestPagesAreThoseOfBbolt(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round, sizes := range [][]int{{}, {0}, {1}, {2}, {40, 0, 3}, {1, 300, 3000}, {30000}} {
		want := map[string]map[string][]byte{}
		for b, size := range sizes {
			records := map[string][]byte{}
			for i := range size {
				key := fmt.Sprintf("%0*d", 1+r.IntN(1+round*40), i)
				n := r.IntN(200)
				if r.IntN(50) == 0 {
					n = r.IntN(20000)
				}
				records[key] = bytes.Repeat([]byte{byte(i)}, n)
			}
			want[fmt.Sprintf("bucket %d", len(sizes)-b)] = records // not in the order of names
		}
		path := filepath.Join(t.TempDir(), "state.db")
		err := writePages(path, false, func(w *pageWriter) error {
			for b := range sizes {
				name := fmt.Sprintf("bucket %d", len(sizes)-b)
				w.bucket(name)
				for _, k := range slices.Sorted(maps.Keys(want[name])) {
					w.put(k, want[name][k])
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		db, err := bolt.Open(path, 0o600, boltOptions(true))
		if err != nil {
			t.Fatal(err)
		}
		holds(t, db, want)
		if n := db.Stats().FreePageN; n != 0 {
			t.Errorf("round %d: %d pages are free", round, n)
		}
		// Many of them go, so that pages are merged, and others come.
		err = db.Update(func(tx *bolt.Tx) error {
			for name, records := range want {
				b := tx.Bucket([]byte(name))
				for k := range records {
					if r.IntN(8) > 0 {
						delete(records, k)
						if err := b.Delete([]byte(k)); err != nil {
							return err
						}
					}
				}
				for i := range 50 {
					k := fmt.Sprintf("%d new", i)
					records[k] = []byte(k)
					if err := b.Put([]byte(k), []byte(k)); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		holds(t, db, want)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func holds(t *testing.T, db *bolt.DB, want map[string]map[string][]byte) {
	t.Helper()
	err := db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		buckets := 0
		err := tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			buckets++
			n := 0
			if err := b.ForEach(func(k, v []byte) error { n++; return same(want[string(name)], k, v) }); err != nil {
				return err
			}
			if n != len(want[string(name)]) {
				return fmt.Errorf("%d records in %s, want %d", n, name, len(want[string(name)]))
			}
			for k, v := range want[string(name)] {
				if !bytes.Equal(b.Get([]byte(k)), v) {
					return fmt.Errorf("%q is not found in %s", k, name)
				}
			}
			return nil
		})
		if err == nil && buckets != len(want) {
			err = fmt.Errorf("%d buckets, want %d", buckets, len(want))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func same(want map[string][]byte, k, v []byte) error {
	if w, ok := want[string(k)]; !ok || !bytes.Equal(w, v) {
		return fmt.Errorf("%q has %d bytes, want %d (%t)", k, len(v), len(w), ok)
	}
	return nil
}
