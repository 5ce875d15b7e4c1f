package audit

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/go-json-experiment/json"
)

// maxLine bounds a line that is read. Names and paths are far shorter.
const maxLine = 1 << 20

// resume finds where the chain ended. A line that a crash left unfinished is
// taken off. missing is how many lines the head file knows of that are not
// there.
func (t *Trail) resume() (missing uint64, err error) {
	t.head = Head{Hash: zero}
	var kept Head
	b, err := os.ReadFile(t.opt.HeadFile)
	if err == nil {
		err = json.Unmarshal(b, &kept)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) && t.opt.HeadFile != "" {
		return 0, fmt.Errorf("%s: %w; remove it to go on without", t.opt.HeadFile, err)
	}
	found, whole, err := last(t.opt.Path, kept)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return 0, err
	case found.Seq == 0 && !ours(t.opt.Path):
		return 0, fmt.Errorf("%s is there and is not an audit trail; name another file", t.opt.Path)
	default:
		if err := os.Truncate(t.opt.Path, whole); err != nil {
			return 0, err
		}
	}
	if found.Seq == 0 { // it was moved away, perhaps
		if found, err = newest(t.opt.Path); err != nil {
			return 0, err
		}
	}
	if found.Seq > 0 {
		t.head = found
	}
	if kept.Seq > t.head.Seq {
		missing = kept.Seq - t.head.Seq
		revision := t.head.Revision // what came after it is told to be missing
		t.head = kept
		t.head.Revision = revision
	}
	return missing, nil
}

// ours reports whether a file without a whole line may be the beginning of a
// trail that a crash left unfinished.
func ours(path string) bool {
	b, err := os.ReadFile(path)
	const first = `{"seq":`
	return err == nil && (len(b) < len(first) && strings.HasPrefix(first, string(b)) || bytes.HasPrefix(b, []byte(first)))
}

// newest looks for the end of the chain in the files that were moved away from
// path, by muster or by logrotate.
func newest(path string) (head Head, err error) {
	files, err := siblings(path)
	if err != nil {
		return head, err
	}
	for _, f := range files {
		h, _, err := last(f, Head{})
		if err != nil {
			continue // another program's
		}
		if h.Seq > head.Seq {
			head = h
		}
	}
	return head, nil
}

func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// last reads a file to its last good line, from the head that stood before it as
// far as the file does not say. whole is the length of its finished lines.
func last(path string, before Head) (head Head, whole int64, err error) {
	head = Head{ClusterID: before.ClusterID}
	err = lines(path, func(line []byte, finished bool) error {
		if !finished {
			return nil
		}
		whole += int64(len(line)) + 1
		if l, err := read(line); err == nil {
			head.after(&l.Entry, l.Hash)
		}
		return nil
	})
	return head, whole, err
}

// lines calls f with each line of a file, which may be compressed, without its
// end; finished is false for a last line that has none.
func lines(path string, f func(line []byte, finished bool) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	var r io.Reader = file
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(file); err != nil {
			return err
		}
	}
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("a line is longer than %d bytes: it is not a trail", maxLine)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if len(line) > 0 {
			if err := f(bytes.TrimSuffix(line, []byte{'\n'}), err == nil); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}
