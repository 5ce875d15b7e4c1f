package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"go.etcd.io/bbolt"
)

// shrinkLeast is how many bytes of free pages, beside half of the file, are
// worth a copy of the log store.
const shrinkLeast = 32 << 20

// shrink gives free pages of the store behind the journal back to the disk, by a
// copy that takes its name. bbolt uses them again and never returns them, so
// that the largest log there ever was would stay. Nothing else has the store open
// yet. Until the copy has the name, a crash leaves the store as it was.
func shrink(path string, least int64) (err error) {
	part := path + ".compact"
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() < least || runtime.GOOS == "windows" { // which cannot rename a file in use
		return nil
	}
	old, err := bbolt.Open(path, 0o600, storeOptions())
	if err != nil {
		return nil // whoever opens it next says so
	}
	defer func() { err = errors.Join(err, old.Close()) }() // until then nobody else gets in
	free := int64(old.Stats().FreePageN) * int64(old.Info().PageSize)
	left, _, known := room(filepath.Dir(path))
	if free < least || free < info.Size()/2 || known && left/2 < uint64(info.Size()-free) {
		return nil
	}
	if err := copyStore(part, old); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func copyStore(to string, from *bbolt.DB) error {
	db, err := bbolt.Open(to, 0o600, storeOptions())
	if err != nil {
		return err
	}
	return errors.Join(bbolt.Compact(db, from, 4<<20), db.Close())
}

func storeOptions() *bbolt.Options {
	return &bbolt.Options{Timeout: 2 * time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType}
}
