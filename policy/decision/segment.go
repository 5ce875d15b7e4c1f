package decision

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
)

// A segment is a file of blocks, and is only ever appended to. A block is a
// header, a nonce, and the sealed, compressed records. The header is
// authenticated with the records, and so is the place of the block, so that
// none can be moved; it is in the clear, so that a start reads headers only.
const (
	magic       = "MUSTERD1"
	segmentHead = len(magic) + 16 // and random bytes, which tell two segments apart
	blockHead   = 4 + 4 + 8 + 8   // sealed bytes, records, first and last time in ms
	nonceSize   = 12
	maxSealed   = 1 << 28
)

// block is what is known of one without reading it.
type block struct {
	at          int64 // of its header
	sealed      uint32
	records     uint32
	first, last int64 // ms since 1970
}

type segment struct {
	seq    uint64
	name   string
	head   [segmentHead]byte
	size   int64
	began  time.Time
	blocks []block
}

// last is the newest time in the segment, in ms.
func (s *segment) last() (ms int64) {
	for _, b := range s.blocks {
		ms = max(ms, b.last)
	}
	return ms
}

// newSegment makes an empty segment and gives its open file.
func newSegment(name string, seq uint64, now time.Time) (*segment, *os.File, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, err
	}
	s := &segment{seq: seq, name: name, size: int64(segmentHead), began: now}
	copy(s.head[:], magic)
	_, _ = rand.Read(s.head[len(magic):]) // never fails
	if _, err := f.Write(s.head[:]); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return s, f, nil
}

// openSegment reads the headers of a segment. What was not written to its end
// is left out.
func openSegment(name string, seq uint64) (*segment, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s := &segment{seq: seq, name: name, began: info.ModTime()}
	if _, err := io.ReadFull(f, s.head[:]); err != nil || string(s.head[:len(magic)]) != magic {
		return nil, errors.New("it is not a segment of decisions")
	}
	s.size = int64(segmentHead)
	var head [blockHead]byte
	for {
		if _, err := f.ReadAt(head[:], s.size); err != nil {
			return s, nil // its end
		}
		b := parseHead(head[:], s.size)
		end := b.at + blockHead + nonceSize + int64(b.sealed)
		if b.sealed > maxSealed || end > info.Size() {
			return s, nil
		}
		s.blocks, s.size = append(s.blocks, b), end
	}
}

func parseHead(h []byte, at int64) block {
	return block{
		at: at, sealed: binary.BigEndian.Uint32(h), records: binary.BigEndian.Uint32(h[4:]),
		first: int64(binary.BigEndian.Uint64(h[8:])), last: int64(binary.BigEndian.Uint64(h[16:])),
	}
}

// seal gives the bytes of a block that will stand at the end of the segment,
// in the memory given where that is enough.
func (s *segment) seal(room []byte, key cipher.AEAD, b block, plain []byte) []byte {
	b.at, b.sealed = s.size, uint32(len(plain)+key.Overhead())
	out := slices.Grow(room, blockHead+nonceSize+int(b.sealed))[:blockHead+nonceSize]
	binary.BigEndian.PutUint32(out, b.sealed)
	binary.BigEndian.PutUint32(out[4:], b.records)
	binary.BigEndian.PutUint64(out[8:], uint64(b.first))
	binary.BigEndian.PutUint64(out[16:], uint64(b.last))
	nonce := out[blockHead:]
	_, _ = rand.Read(nonce) // never fails
	return key.Seal(out, nonce, plain, s.place(out[:blockHead], b.at))
}

// place is what is authenticated beside the records.
func (s *segment) place(head []byte, at int64) []byte {
	more := append(append([]byte{}, s.head[:]...), head...)
	return binary.BigEndian.AppendUint64(more, uint64(at))
}

// read opens a block and gives its records one after the other.
func (s *segment) read(key cipher.AEAD, unzip *zstd.Decoder, b block) ([]byte, error) {
	f, err := os.Open(s.name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw := make([]byte, blockHead+nonceSize+int(b.sealed))
	if _, err := f.ReadAt(raw, b.at); err != nil {
		return nil, err
	}
	nonce := raw[blockHead : blockHead+nonceSize]
	plain, err := key.Open(nil, nonce, raw[blockHead+nonceSize:], s.place(raw[:blockHead], b.at))
	if err != nil {
		return nil, fmt.Errorf("%s at byte %d: the records were altered, or sealed with another key", s.name, b.at)
	}
	return unzip.DecodeAll(plain, nil)
}
