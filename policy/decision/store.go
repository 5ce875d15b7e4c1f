package decision

import (
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/muster-registry/muster/fault"
)

// StoreOptions bound a store. The zero value of a field means its default.
type StoreOptions struct {
	MaxBytes int64         // on disk; 256 MiB
	MaxAge   time.Duration // of a record; 7 days
	Logger   *slog.Logger  // default: slog.Default
}

const (
	fullBlock     = 128 << 10 // bytes of records after which a block is written
	segmentSuffix = ".seg"
	parts         = 16 // a store is forgotten in parts of this share of its bounds
)

// Store keeps this node's newest decisions on its disk, sealed with a key of
// the node's own because inputs hold credentials. What goes beyond the bounds
// is forgotten, oldest first. It is safe for concurrent use.
//
// Decisions are found by the time in their id (UUID version 7), so that no
// more than one entry per block of records is held in memory.
type Store struct {
	dir   string
	opt   StoreOptions
	key   cipher.AEAD
	zip   *zstd.Encoder
	unzip *zstd.Decoder

	mu       sync.Mutex // guards all below
	segments []*segment // oldest first; the last one is written to
	file     *os.File
	plain    []byte // records of the block that is not written yet
	packed   []byte // of the block before, as memory to use again
	sealed   []byte // the same
	open     block
	bytes    int64
	closed   bool
}

// OpenStore opens the store in the folder, or makes it. A damaged segment is
// left out and logged.
func OpenStore(dir string, opt StoreOptions) (*Store, error) {
	if opt.MaxBytes <= 0 {
		opt.MaxBytes = 256 << 20
	}
	if opt.MaxAge <= 0 {
		opt.MaxAge = 7 * 24 * time.Hour
	}
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &Store{dir: dir, opt: opt}
	var err error
	if s.key, err = openKey(dir); err != nil {
		return nil, err
	}
	if s.zip, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10)); err != nil {
		return nil, err
	}
	if s.unzip, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxSealed)); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s, s.rotate(time.Now())
}

// load finds the segments of earlier runs.
func (s *Store) load() error {
	names, err := filepath.Glob(filepath.Join(s.dir, "*"+segmentSuffix))
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		seq, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), segmentSuffix), 16, 64)
		if err != nil {
			continue // not one of ours
		}
		g, err := openSegment(name, seq)
		if err != nil {
			s.opt.Logger.Warn("a segment of the decision store cannot be read and is left out", "file", name, "error", err)
			g = &segment{seq: seq, name: name}
			if info, err := os.Stat(name); err == nil {
				g.size = info.Size()
			}
		}
		s.segments = append(s.segments, g)
		s.bytes += g.size
	}
	return nil
}

// Append keeps the records, in memory until the block is full or flushed.
func (s *Store) Append(records ...*Record) error {
	var errs []error
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		errs = append(errs, s.append(r))
	}
	return errors.Join(errs...)
}

// append is called with mu held.
func (s *Store) append(r *Record) error {
	ms, ok := idTime(r.ID)
	if !ok {
		ms = r.Time.UnixMilli()
	}
	if s.closed {
		return &lostError{1, errClosed}
	}
	if s.open.records == 0 {
		s.open.first, s.open.last = ms, ms
	}
	s.open.records++
	s.open.first, s.open.last = min(s.open.first, ms), max(s.open.last, ms)
	if s.plain = r.frame(s.plain); len(s.plain) < fullBlock {
		return nil
	}
	return s.flush()
}

var errClosed = errors.New("the decision store is closed")

// Flush writes what is only in memory to the disk.
func (s *Store) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	return s.flush()
}

// flush is called with mu held. What cannot be written is given up, so that a
// full disk does not fill the memory as well.
func (s *Store) flush() error {
	if s.open.records == 0 {
		return nil
	}
	g := s.segments[len(s.segments)-1]
	s.packed = s.zip.EncodeAll(s.plain, s.packed[:0])
	s.sealed = g.seal(s.sealed[:0], s.key, s.open, s.packed)
	sealed := s.sealed
	b := parseHead(sealed, g.size)
	lost := s.open.records
	s.open = block{}
	if s.plain = s.plain[:0]; cap(s.plain) > 8*fullBlock {
		s.plain, s.packed, s.sealed = nil, nil, nil
	}
	if _, err := s.file.WriteAt(sealed, g.size); err != nil {
		return &lostError{lost, err}
	}
	g.blocks = append(g.blocks, b)
	g.size += int64(len(sealed))
	s.bytes += int64(len(sealed))
	now := time.Now()
	if g.size > s.segmentBytes() || now.Sub(g.began) > s.opt.MaxAge/parts {
		return s.rotate(now)
	}
	return nil
}

// lostError says that records could not be written and are given up.
type lostError struct {
	records uint32
	err     error
}

func (e *lostError) Error() string {
	return fmt.Sprintf("%d decisions could not be kept: %v", e.records, e.err)
}

func (e *lostError) Unwrap() error { return e.err }

func (s *Store) segmentBytes() int64 { return s.opt.MaxBytes / parts }

// rotate begins a new segment and forgets what is too much or too old. It is
// called with mu held.
func (s *Store) rotate(now time.Time) error {
	seq := uint64(1)
	if n := len(s.segments); n > 0 {
		seq = s.segments[n-1].seq + 1
	}
	g, file, err := newSegment(filepath.Join(s.dir, fmt.Sprintf("%016x%s", seq, segmentSuffix)), seq, now)
	if err != nil {
		return fmt.Errorf("the decision store: %w", err)
	}
	if s.file != nil {
		err = s.file.Close()
	}
	s.file, s.segments = file, append(s.segments, g)
	s.bytes += g.size
	oldest := now.Add(-s.opt.MaxAge).UnixMilli()
	s.segments = slices.DeleteFunc(s.segments, func(old *segment) bool {
		if old == g || (len(old.blocks) > 0 && s.bytes <= s.opt.MaxBytes-s.segmentBytes() && old.last() >= oldest) {
			return false
		}
		if gone := os.Remove(old.name); gone != nil && !errors.Is(gone, os.ErrNotExist) {
			err = errors.Join(err, gone)
			return false
		}
		s.bytes -= old.size
		return true
	})
	return err
}

// Bytes is how much the store takes on the disk.
func (s *Store) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// part is a block with its segment.
type part struct {
	segment *segment
	block   block
}

// blocks lists the blocks that hold records of a time between both, in ms,
// newest first.
func (s *Store) blocks(from, to int64) []part {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		if err := s.flush(); err != nil {
			s.opt.Logger.Error("decision store", "error", err)
		}
	}
	var found []part
	for _, g := range s.segments {
		for _, b := range g.blocks {
			if b.last >= from && b.first <= to {
				found = append(found, part{g, b})
			}
		}
	}
	slices.Reverse(found)
	return found
}

// Get gives the record of a decision; not_found when this store has none, or
// has it no more.
func (s *Store) Get(id string) (*Record, error) {
	unknown := fault.New(fault.NotFound, "there is no record of decision %s: it is unknown, or too old to be kept", id)
	ms, ok := idTime(id)
	if !ok { // no decision has such an id, and to look for it would be to read the whole store
		return nil, unknown
	}
	var damage error
	for _, p := range s.blocks(ms, ms) {
		records, err := s.read(p)
		if errors.Is(err, os.ErrNotExist) {
			continue // forgotten meanwhile
		}
		damage = errors.Join(damage, err)
		for _, r := range records {
			if r.ID == id {
				return r, nil
			}
		}
	}
	if damage != nil {
		return nil, fault.Wrap(fault.Internal, damage, "the record of the decision may be in a part of the store that cannot be read; the node's log says why")
	}
	return nil, unknown
}

// Recent gives up to limit records that are not older than since, newest
// block first. A block that cannot be read is left out and logged.
func (s *Store) Recent(since time.Time, limit int) iter.Seq[*Record] {
	return func(yield func(*Record) bool) {
		from := int64(0)
		if !since.IsZero() {
			from = since.UnixMilli()
		}
		for _, p := range s.blocks(from, math.MaxInt64) {
			records, err := s.read(p)
			if errors.Is(err, os.ErrNotExist) {
				continue // forgotten meanwhile
			}
			if err != nil {
				s.opt.Logger.Error("decision store", "error", err)
				continue
			}
			for _, r := range slices.Backward(records) {
				if r.Time.Before(since) {
					continue
				}
				if limit--; limit < 0 || !yield(r) {
					return
				}
			}
		}
	}
}

func (s *Store) read(p part) ([]*Record, error) {
	plain, err := p.segment.read(s.key, s.unzip, p.block)
	if err != nil {
		return nil, err
	}
	var records []*Record
	for len(plain) > 0 {
		n, used := binary.Uvarint(plain)
		if used <= 0 || n > uint64(len(plain)-used) {
			return nil, errors.New("a block of decisions is cut off")
		}
		r, err := decode(plain[used : used+int(n)])
		if err != nil {
			return nil, err
		}
		records, plain = append(records, r), plain[used+int(n):]
	}
	return records, nil
}

// Close writes what is in memory and ends the use of the store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	err := s.flush()
	s.closed = true
	return errors.Join(err, s.file.Close(), s.zip.Close())
}

// idTime is the time in an id that is a UUID of version 7, in ms.
func idTime(id string) (ms int64, ok bool) {
	if len(id) != 36 || id[14] != '7' {
		return 0, false
	}
	var b [8]byte
	if _, err := hex.Decode(b[2:], []byte(id[:8]+id[9:13])); err != nil {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(b[:])), true
}
