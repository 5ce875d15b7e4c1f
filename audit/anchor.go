package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// Anchor puts everything told so far on disk and gives the head of that, for
// whoever keeps it where this node's user cannot write. The error says that the
// trail cannot be written now.
func (t *Trail) Anchor() (Head, error) {
	t.drain(true)
	t.writing.Lock()
	defer t.writing.Unlock()
	if err := t.write(true); err != nil {
		return Head{}, err
	}
	t.anchored = t.head.Seq
	return t.head, nil
}

// News is how many lines came since the last Anchor, or since the start.
func (t *Trail) News() uint64 {
	t.writing.Lock()
	defer t.writing.Unlock()
	return t.head.Seq - t.anchored
}

// Differs is the error for a trail that is not the one it was.
type Differs struct{ Why string }

// Error says what is known to be missing.
func (d *Differs) Error() string { return d.Why }

// Holds checks that the line that was the head once is there, as it was. The
// error is [*Differs], or says that the files cannot be read.
func (t *Trail) Holds(h Head) error {
	t.writing.Lock()
	err := t.write(false)
	last := t.head.Seq
	t.writing.Unlock()
	if err != nil {
		return err
	}
	if h.Seq > last {
		err = &Differs{fmt.Sprintf("the audit trail ends with line %d, and the cluster knows its line %d: it was cut, or another was put in its place", last, h.Seq)}
	} else if h.Seq > 0 {
		err = holds(t.opt.Path, h)
	}
	t.writing.Lock()
	defer t.writing.Unlock()
	t.asked = true
	return err
}

func holds(path string, h Head) error {
	hash, err := hashOf(path, h.Seq)
	switch {
	case err != nil:
		return err
	case hash == "":
		return &Differs{fmt.Sprintf("line %d of the audit trail, which the cluster knows, is in none of its files: it was cut, or a file was taken away", h.Seq)}
	case hash != h.Hash:
		return &Differs{fmt.Sprintf("line %d of the audit trail is not the one that the cluster knows: it was altered, or another trail was put in its place", h.Seq)}
	}
	return nil
}

// Alarm writes a line that says what is wrong with the trail itself.
func (t *Trail) Alarm(e Entry) {
	e.Type = Alarmed
	t.Changed([]Entry{e})
}

// hashOf looks for a line in the files of a trail; "" where there is none.
func hashOf(path string, seq uint64) (hash string, err error) {
	files, err := siblings(path)
	if err != nil {
		return "", err
	}
	for _, f := range files {
		hash, err = hashIn(f, seq)
		if hash != "" {
			return hash, nil
		}
		if err != nil && f == path && !errors.Is(err, os.ErrNotExist) {
			return "", err // a sibling may be another program's
		}
	}
	return "", nil
}

// errEnough ends the reading of a file.
var errEnough = errors.New("enough was read")

func hashIn(file string, seq uint64) (hash string, err error) {
	begins := append(strconv.AppendUint([]byte(`{"seq":`), seq, 10), ',')
	err = lines(file, func(line []byte, finished bool) error {
		if finished && bytes.HasPrefix(line, begins) {
			if l, err := read(line); err == nil {
				hash = l.Hash
				return errEnough
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return hash, err
}
