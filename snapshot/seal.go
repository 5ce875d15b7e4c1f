package snapshot

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"hash"
	"io"
)

const sealSize = sha256.Size + len(sealMagic)

// sealWriter hashes what passes through it, and writes the seal at the end.
type sealWriter struct {
	dst io.Writer
	sum hash.Hash
	n   int64
}

func (s *sealWriter) Write(p []byte) (int, error) {
	n, err := s.dst.Write(p)
	s.sum.Write(p[:n])
	s.n += int64(n)
	return n, err
}

func (s *sealWriter) seal() error {
	_, err := s.Write(append(s.sum.Sum(nil), sealMagic...))
	return err
}

// sealReader gives what lies before the seal, wherever the file ends: it holds
// the newest sealSize bytes back, and hashes the others.
type sealReader struct {
	src *bufio.Reader
	sum hash.Hash
	n   int64
	err error // of the source, when it is more than its end
}

func newSealReader(r io.Reader) *sealReader {
	return &sealReader{src: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
}

// start returns the first n bytes of the file, or as many as there are, without
// taking them.
func (s *sealReader) start(n int) ([]byte, error) {
	p, err := s.src.Peek(n)
	return p, s.note(err)
}

func (s *sealReader) Read(p []byte) (int, error) {
	if _, err := s.src.Peek(sealSize + 1); err != nil {
		if err := s.note(err); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}
	n, err := s.src.Read(p[:min(len(p), s.src.Buffered()-sealSize)])
	s.sum.Write(p[:n])
	s.n += int64(n)
	return n, err
}

// note tells the end of the file (nil) from a source that failed. A source that
// says itself that it ended too early is a file that ended too early.
func (s *sealReader) note(err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	s.err = err
	return err
}

// check reads what is left and returns nil when the seal is there and holds.
// Other errors than invalid_snapshot are the source's own.
func (s *sealReader) check() error {
	if s.err == nil {
		_, s.err = io.Copy(io.Discard, onlyReader{s})
	}
	if s.err != nil {
		return s.err
	}
	tail, _ := s.src.Peek(sealSize)
	if len(tail) < sealSize || string(tail[sha256.Size:]) != sealMagic {
		return invalid("the snapshot does not end with its end mark: it is truncated, or something was changed at its end; take another copy")
	}
	if subtle.ConstantTimeCompare(tail[:sha256.Size], s.sum.Sum(nil)) != 1 {
		return invalid("the snapshot is damaged: its checksum does not match its content; take another copy")
	}
	return nil
}

type onlyReader struct{ io.Reader }
