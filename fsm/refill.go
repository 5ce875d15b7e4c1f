package fsm

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// A restored state goes into a new file, which takes the place of the state file
// when it is whole and synced: that is written in order, where a transaction of
// bbolt would also have to free every page of the state before. Until then a
// crash leaves the file as it was, for which the log has the rest.

// refillSuffix is that of the new file's name.
const refillSuffix = ".refill"

// refillLeast is how many bytes of restored records are worth a file of their own.
const refillLeast = 4 << 20

// refills reports whether the changes are better written as a new file.
func (s *store) refills(d *delta) bool {
	n := 0
	for _, records := range d.fill {
		for _, r := range records {
			n += len(r.key) + len(r.value)
		}
	}
	return n > 0 && n >= s.refillLeast && runtime.GOOS != "windows" // which cannot rename over a file in use
}

// refill makes the new file of the old one, in which it reads, and the changes,
// and opens it under the state file's name. After an error there is only the old
// one. The caller sees to it that nobody else writes.
func (s *store) refill(old *bolt.DB, d *delta) (*bolt.DB, error) {
	path := s.path + refillSuffix
	err := old.View(func(tx *bolt.Tx) error {
		return writePages(path, !s.opts.NoSync, func(w *pageWriter) error { return refillFrom(tx, d, w) })
	})
	if err != nil {
		return nil, err
	}
	db, err := bolt.Open(path, 0o600, boltOptions(s.opts.NoSync))
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	if err := errors.Join(os.Rename(path, s.path), syncDir(filepath.Dir(s.path))); err != nil {
		// Nobody knows which of the two files has the name after a power cut.
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// refillFrom writes what write would leave in the file.
func refillFrom(tx *bolt.Tx, d *delta, w *pageWriter) error {
	changes := maps.Clone(d.buckets)
	meta := map[string][]byte{}
	for _, r := range d.at.records() {
		meta[r.key] = r.value
	}
	changes[metaBucket] = meta
	names := map[string]bool{}
	for name := range changes {
		names[name] = true
	}
	for name := range d.fill {
		names[name] = true
	}
	err := tx.ForEach(func(name []byte, _ *bolt.Bucket) error {
		if !d.drop[string(name)] {
			names[string(name)] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		w.bucket(name)
		m := merger{w: w, changes: changes[name], keys: slices.Sorted(maps.Keys(changes[name]))}
		if !d.drop[name] {
			if b := tx.Bucket([]byte(name)); b != nil {
				_ = b.ForEach(func(k, v []byte) error { m.put(string(k), v); return nil })
			}
		}
		for _, r := range d.fill[name] {
			m.put(r.key, r.value)
		}
		m.rest()
		if w.err != nil {
			return w.err
		}
	}
	return nil
}

// merger puts records, by rising keys, with changes on top of them.
type merger struct {
	w       *pageWriter
	changes map[string][]byte // nil: removed
	keys    []string          // of the changes that are still to come
}

func (m *merger) put(key string, value []byte) {
	for len(m.keys) > 0 && m.keys[0] < key {
		m.change()
	}
	if len(m.keys) > 0 && m.keys[0] == key {
		m.change()
		return
	}
	m.w.put(key, value)
}

func (m *merger) change() {
	if v := m.changes[m.keys[0]]; v != nil {
		m.w.put(m.keys[0], v)
	}
	m.keys = m.keys[1:]
}

func (m *merger) rest() {
	for len(m.keys) > 0 {
		m.change()
	}
}
