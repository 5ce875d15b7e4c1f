package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
)

func (t *Trail) open() error {
	f, err := os.OpenFile(t.opt.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	at, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	t.file, t.size, t.begun = f, at.Size(), time.Now()
	return nil
}

// Reopen begins the file anew under its name, for who has moved it away.
func (t *Trail) Reopen() error {
	t.writing.Lock()
	defer t.writing.Unlock()
	// What the old file does not take goes to the new one.
	if err := t.write(true); err != nil {
		t.opt.Logger.Warn("the audit trail's old file was left before all was written to it", "error", err)
	}
	old := t.file
	if err := t.open(); err != nil {
		return err
	}
	t.begin(Reopened)
	return errors.Join(old.Close(), t.write(true))
}

func (t *Trail) begin(cause string) {
	t.encode(&Entry{Time: time.Now(), Type: Begin, Cause: cause, ClusterID: t.head.ClusterID, Revision: t.head.Revision})
}

// write puts what is encoded into the file. What cannot be written waits.
func (t *Trail) write(sync bool) error {
	if len(t.pending) > 0 {
		n, err := t.file.Write(t.pending)
		if err != nil {
			t.settle()
			return errors.Join(err, t.cut(n))
		}
		t.size += int64(n)
		t.mirror()
		t.pending = t.pending[:0]
		if cap(t.pending) > 1<<20 {
			t.pending = nil
		}
	}
	if !sync {
		return nil
	}
	if err := t.file.Sync(); err != nil {
		return err
	}
	return t.save()
}

// cut takes back the n bytes that a failed write has left.
func (t *Trail) cut(n int) error {
	if n == 0 {
		return nil
	}
	at, err := t.file.Stat()
	if err != nil {
		return err
	}
	return t.file.Truncate(at.Size() - int64(n))
}

// save keeps the head apart from the trail.
func (t *Trail) save() error {
	if t.head == t.saved || t.opt.HeadFile == "" {
		return nil
	}
	b, err := json.Marshal(t.head)
	if err != nil {
		return err
	}
	if err := Replace(t.opt.HeadFile, b); err != nil {
		return err
	}
	t.saved = t.head
	return nil
}

// Replace writes a file anew, readable for its owner alone. After a power cut the
// old content is there or the new one: without the sync it could be a name
// without content. For the rooms of the trail.
func Replace(path string, content []byte) error {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// rotate begins a new file when the old one is large or old enough. The old one
// is named by its last line.
func (t *Trail) rotate() error {
	large := t.opt.Size > 0 && t.size >= t.opt.Size
	old := t.opt.Age > 0 && t.size > 0 && time.Since(t.begun) >= t.opt.Age
	if !large && !old {
		return nil
	}
	if err := t.write(true); err != nil {
		return err
	}
	if err := os.Rename(t.opt.Path, fmt.Sprintf("%s.%012d", t.opt.Path, t.head.Seq)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	last := t.file
	if err := t.open(); err != nil {
		return err
	}
	t.begin(Rotation)
	return errors.Join(last.Close(), t.forget())
}

// forget removes the oldest of the replaced files.
func (t *Trail) forget() error {
	if t.opt.Keep == 0 || !t.asked {
		return nil
	}
	files, err := filepath.Glob(escape(t.opt.Path) + ".[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]")
	if err != nil {
		return err
	}
	slices.Sort(files)
	var errs []error
	for len(files) > t.opt.Keep {
		errs = append(errs, os.Remove(files[0]))
		files = files[1:]
	}
	return errors.Join(errs...)
}
