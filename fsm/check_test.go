package fsm_test

import (
	"bytes"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/muster-registry/muster/fsm"
)

// TestAChangedStateFileIsNotLoaded: a record or a position that is not what was
// written keeps the file from being loaded, before anybody is answered from it.
func TestAChangedStateFileIsNotLoaded(t *testing.T) {
	for name, change := range map[string]func(*bolt.Tx) error{
		"a record": func(tx *bolt.Tx) error {
			b := tx.Bucket([]byte("services"))
			key, record := b.Cursor().First()
			return b.Put(bytes.Clone(key), bytes.Replace(record, []byte(`"team"`), []byte(`"taem"`), 1))
		},
		"a record is gone": func(tx *bolt.Tx) error {
			b := tx.Bucket([]byte("services"))
			key, _ := b.Cursor().First()
			return b.Delete(bytes.Clone(key))
		},
		"the position": func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("meta")).Put([]byte("revision"), []byte{0, 0, 0, 0, 0, 0, 1, 0})
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m := open(t, dir)
			must(t, apply(t, m, service("cart", 0)))
			shut(t, m)
			shut(t, open(t, dir)) // as it is
			db, err := bolt.Open(dir+"/state.db", 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Update(change); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if m, err = fsm.Open(dir, fsm.Options{}); err == nil {
				_ = m.Close()
				t.Fatal("it is loaded")
			}
			if name != "a record is gone" && !strings.Contains(err.Error(), "empty one") { // the tables refuse that one
				t.Errorf("it does not say what to do: %v", err)
			}
		})
	}
}
