package audit

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
)

// Mirror takes the lines of a trail over, in their order, when they are in the
// file. It is called by one goroutine at a time and must not wait for others.
type Mirror interface {
	// Mirrored is the number of the last line that it has; 0: it begins now.
	// What it lacks is told to it at the start, without requests.
	Mirrored() uint64
	// Mirror takes lines over; they must not be kept.
	Mirror(lines []Mirrored)
}

// Mirrored is a line for a mirror.
type Mirrored struct {
	Seq     uint64
	Line    []byte  // without its end
	Request Request // as in Entry
}

// span is where a line stands in what is pending.
type span struct {
	seq      uint64
	from, to int
	request  Request
}

// settle renders the requests of lines that have to wait: a call holds more than
// what is carried of it.
func (t *Trail) settle() {
	for i := range t.spans {
		if r := t.spans[i].request; r != nil {
			if _, done := r.(Rendered); !done {
				t.spans[i].request = Rendered(r.AppendJSON(nil))
			}
		}
	}
}

// mirror hands over what was written.
func (t *Trail) mirror() {
	if len(t.spans) == 0 {
		return
	}
	for _, s := range t.spans {
		t.told = append(t.told, Mirrored{Seq: s.seq, Line: t.pending[s.from:s.to], Request: s.request})
	}
	t.opt.Mirror.Mirror(t.told)
	clear(t.spans)
	clear(t.told)
	if t.spans, t.told = t.spans[:0], t.told[:0]; cap(t.spans) > 1<<14 {
		t.spans, t.told = nil, nil
	}
}

// catchUp tells the mirror what a crash kept from it.
func (t *Trail) catchUp() error {
	if t.opt.Mirror == nil {
		return nil
	}
	after := t.opt.Mirror.Mirrored()
	if after == 0 || after >= t.head.Seq {
		return nil
	}
	files, err := siblings(t.opt.Path)
	if err != nil {
		return err
	}
	files, err = ordered(slices.DeleteFunc(files, func(f string) bool {
		_, err := ordered([]string{f})
		return err != nil && f != t.opt.Path // another program's
	}))
	if err != nil {
		return err
	}
	for _, f := range files {
		err := lines(f, func(line []byte, finished bool) error {
			if l, err := read(line); finished && err == nil && l.Seq > after {
				after = l.Seq
				t.opt.Mirror.Mirror([]Mirrored{{Seq: l.Seq, Line: line}})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// siblings lists the files of a trail: the one under its name first, since it may
// be moved away meanwhile, and those that were.
func siblings(path string) ([]string, error) {
	var files []string
	if _, err := os.Stat(path); err == nil {
		files = append(files, path)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, pattern := range []string{".*", "-*"} {
		more, err := filepath.Glob(escape(path) + pattern)
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	return files, nil
}
