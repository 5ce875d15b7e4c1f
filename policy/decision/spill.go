package decision

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
)

// spill is a file of events, one on a line, that are read in the order they
// were added. It begins anew when all have been read. The place that has been
// reached is not kept: after a restart, events are read again.
type spill struct {
	file *os.File
	size int64
	at   int64
}

// openSpill opens the file or makes it. A last line that was not written to
// its end is cut off.
func openSpill(name string) (*spill, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	s := &spill{file: f}
	r := bufio.NewReaderSize(f, 64<<10)
	whole := int64(0)
	for {
		part, err := r.ReadSlice('\n')
		s.size += int64(len(part))
		switch {
		case err == nil:
			whole = s.size
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			s.size = whole
			return s, s.file.Truncate(whole)
		default:
			return nil, errors.Join(err, f.Close())
		}
	}
}

func (s *spill) left() int64 { return s.size - s.at }

func (s *spill) add(event []byte) error {
	n, err := s.file.WriteAt(append(event[:len(event):len(event)], '\n'), s.size)
	if err != nil {
		return errors.Join(err, s.file.Truncate(s.size))
	}
	s.size += int64(n)
	return nil
}

// read gives the next events, about as many as most bytes hold and at least
// one, and where the one after them begins.
func (s *spill) read(most int) (events [][]byte, next int64, err error) {
	b := make([]byte, min(int64(most), s.left()))
	if _, err := s.file.ReadAt(b, s.at); err != nil {
		return nil, 0, err
	}
	end := bytes.LastIndexByte(b, '\n')
	if end < 0 { // one that is longer
		rest, err := bufio.NewReader(io.NewSectionReader(s.file, s.at, s.left())).ReadBytes('\n')
		if err != nil {
			return nil, 0, err
		}
		b, end = rest, len(rest)-1
	}
	return bytes.Split(b[:end], []byte{'\n'}), s.at + int64(end) + 1, nil
}

// done marks what stands before as read.
func (s *spill) done(next int64) error {
	if s.at = next; s.at < s.size {
		return nil
	}
	return s.reset()
}

func (s *spill) reset() error {
	s.at, s.size = 0, 0
	return s.file.Truncate(0)
}

func (s *spill) close() error { return s.file.Close() }
