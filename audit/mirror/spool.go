package mirror

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/audit"
)

// spool keeps events, one on a line, in files that follow upon each other. They
// are read in their order and removed when all of a file is done. How far it
// has come is kept in a file beside them.
//
// While they are read as fast as they come they stay in memory, behind all that is
// on disk, and never get there: of what a crash takes, the trail has the lines.
// They are written when they have waited for long, are many, or have to be read
// again.
type spool struct {
	dir   string
	bound int64
	size  int64 // after which the next file is begun

	files []uint64 // that are there; the last is written to
	sizes map[uint64]int64
	total int64 // of sizes
	out   *os.File
	last  uint64 // number of the last line that was added

	mem   []byte    // in memory alone: behind all that is on disk
	base  []byte    // the beginning of the room that mem is part of
	stuck bool      // mem could not be written
	lent  []*batch  // of mem, what was read and is not done, from its beginning
	taken int       // bytes of lent
	since time.Time // when mem was empty last, or some of it done

	in   *os.File // the file that is read
	got  []byte   // read from it last
	next place    // to read
	at   place    // done before here
}

// place is a position in the spool.
type place struct {
	File   uint64 `json:"file"`
	Offset int64  `json:"offset"`
	Seq    uint64 `json:"seq"` // of the last line before it, where that is known
}

const placeFile = "done"

// What stays in memory: so many bytes, so long.
const (
	maxHeld = 4 << 20 // and no more than a file of the spool
	maxHold = 2 * time.Second
)

// batch is what was read at one time.
type batch struct {
	seq  uint64 // of its last line
	end  place  // of it, on disk
	size int    // bytes, as long as it is in memory alone; 0: it is on disk
}

func openSpool(dir string, bound int64) (*spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &spool{dir: dir, bound: bound, size: min(8<<20, max(4<<10, bound/8)), sizes: map[uint64]int64{}}
	b, err := os.ReadFile(filepath.Join(dir, placeFile))
	if err == nil {
		err = json.Unmarshal(b, &s.at)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; remove it to send all again that waits", filepath.Join(dir, placeFile), err)
	}
	if err := s.find(); err != nil {
		return nil, err
	}
	s.next = s.at
	return s, s.open()
}

func (s *spool) name(file uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%016d.events", file))
}

// find looks for the files, cuts off a last line that was not finished, and
// reads which line it was.
func (s *spool) find() error {
	names, err := filepath.Glob(filepath.Join(s.dir, "*.events"))
	if err != nil {
		return err
	}
	s.last = s.at.Seq
	for _, name := range names {
		n, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), ".events"), 10, 64)
		if err != nil {
			continue
		}
		if n < s.at.File {
			if err := os.Remove(name); err != nil {
				return err
			}
			continue
		}
		s.files = append(s.files, n)
	}
	slices.Sort(s.files)
	for _, n := range s.files {
		whole, seq, err := wholeLines(s.name(n))
		if err != nil {
			return err
		}
		if err := os.Truncate(s.name(n), whole); err != nil {
			return err
		}
		s.sizes[n] = whole
		s.total += whole
		s.last = max(s.last, seq)
	}
	if len(s.files) == 0 {
		s.files = []uint64{s.at.File + 1}
	}
	if s.at.File < s.files[0] {
		s.at = place{File: s.files[0], Seq: s.at.Seq}
	}
	if at := s.sizes[s.at.File]; s.at.Offset > at {
		s.at.Offset = at
	}
	return nil
}

func wholeLines(name string) (whole int64, seq uint64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }()
	r := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return whole, seq, nil
		}
		if err != nil {
			return 0, 0, err
		}
		whole += int64(len(line))
		seq = max(seq, seqOf(line))
	}
}

// seqOf reads the number of a line, which is its first member.
func seqOf(line []byte) uint64 {
	digits, _, _ := bytes.Cut(bytes.TrimPrefix(line, []byte(`{"seq":`)), []byte(","))
	n, err := strconv.ParseUint(string(digits), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (s *spool) open() (err error) {
	s.out, err = os.OpenFile(s.name(s.files[len(s.files)-1]), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return err
}

// waiting is how many bytes are not done.
func (s *spool) waiting() int64 {
	return s.total - s.at.Offset + int64(len(s.mem))
}

// behind is how many bytes on disk have not been read.
func (s *spool) behind() (n int64) {
	for _, f := range s.files {
		if f >= s.next.File {
			n += s.sizes[f]
		}
	}
	return n - s.next.Offset
}

// add takes a line, and reports whether there is room for its event.
func (s *spool) add(l audit.Mirrored, dropped uint64) bool {
	if len(s.mem) > s.held() && !s.stuck {
		_ = s.flush() // what is wrong is told by write
	}
	if len(s.mem) == 0 {
		s.mem, s.since = s.base[:0], time.Now()
	}
	room := s.bound - s.waiting()
	if s.stuck {
		room = min(room, int64(2*s.held()-len(s.mem)))
	}
	before, place := len(s.mem), cap(s.mem)
	if s.mem = append(event(s.mem, l, dropped), '\n'); cap(s.mem) != place {
		s.base = s.mem[:0]
	}
	if int64(len(s.mem)-before) > room {
		s.mem = s.mem[:before]
		return false
	}
	s.last = l.Seq
	return true
}

func (s *spool) held() int { return int(min(maxHeld, s.size)) }

// write puts what was added on disk, unless it may stay in memory. What cannot be
// put there stays, too.
func (s *spool) write() error {
	known := s.at.Seq > 0 || s.total > 0 // else a crash would leave nothing to go on from
	if known && s.behind() == 0 && len(s.mem) <= s.held() && time.Since(s.since) < maxHold {
		return nil
	}
	return s.flush()
}

// flush puts all on disk that is in memory.
func (s *spool) flush() (err error) {
	if len(s.mem) == 0 {
		return nil
	}
	defer func() { s.stuck = err != nil }()
	file := s.files[len(s.files)-1]
	if s.sizes[file] > 0 && s.sizes[file]+int64(len(s.mem)) > s.size {
		s.files = append(s.files, file+1)
		old := s.out
		if err := s.open(); err != nil {
			s.files = s.files[:len(s.files)-1]
			s.out = old
			return err
		}
		_ = old.Close()
		file++
	}
	if _, err := s.out.Write(s.mem); err != nil {
		return errors.Join(err, os.Truncate(s.name(file), s.sizes[file]))
	}
	end := place{File: file, Offset: s.sizes[file]}
	for _, b := range s.lent {
		end.Offset, end.Seq = end.Offset+int64(b.size), b.seq
		b.end, b.size = end, 0
	}
	if len(s.lent) > 0 {
		s.next = end
	}
	s.sizes[file] += int64(len(s.mem))
	s.total += int64(len(s.mem))
	s.empty()
	return nil
}

// empty forgets what is in memory. Who was lent some of it may still read that.
func (s *spool) empty() {
	if len(s.lent) > 0 || cap(s.base) > maxHeld {
		s.base = nil
	}
	s.mem, s.lent, s.taken = nil, nil, 0
}

// read gives the next events, about as many as most bytes hold and at least one,
// and which they are; none when all was read. They are gone with the next read.
func (s *spool) read(most int) (events [][]byte, _ *batch, err error) {
	for s.next.Offset >= s.sizes[s.next.File] {
		if s.next.File >= s.files[len(s.files)-1] {
			return s.lend(most)
		}
		s.next = place{File: s.next.File + 1, Seq: s.next.Seq}
		s.forget()
	}
	if s.in == nil || s.in.Name() != s.name(s.next.File) {
		s.forget()
		if s.in, err = os.Open(s.name(s.next.File)); err != nil {
			return nil, nil, err
		}
	}
	left := s.sizes[s.next.File] - s.next.Offset
	s.got = slices.Grow(s.got[:0], int(min(int64(most), left)))
	b := s.got[:min(int64(most), left)]
	if _, err := s.in.ReadAt(b, s.next.Offset); err != nil {
		return nil, nil, err
	}
	stop := bytes.LastIndexByte(b, '\n')
	if stop < 0 { // one that is longer
		if b, err = bufio.NewReader(io.NewSectionReader(s.in, s.next.Offset, left)).ReadBytes('\n'); err != nil {
			return nil, nil, err
		}
		stop = len(b) - 1
	}
	events = bytes.Split(b[:stop], []byte{'\n'})
	s.next.Offset += int64(stop) + 1
	s.next.Seq = seqOf(events[len(events)-1])
	return events, &batch{seq: s.next.Seq, end: s.next}, nil
}

// lend is read of what is in memory.
func (s *spool) lend(most int) (events [][]byte, _ *batch, err error) {
	rest := s.mem[s.taken:]
	if len(rest) == 0 {
		return nil, nil, nil
	}
	size := bytes.LastIndexByte(rest[:min(most, len(rest))], '\n') + 1
	if size == 0 { // one that is longer
		size = bytes.IndexByte(rest, '\n') + 1
	}
	events = bytes.Split(rest[:size-1], []byte{'\n'})
	b := &batch{seq: seqOf(events[len(events)-1]), size: size}
	s.lent, s.taken = append(s.lent, b), s.taken+size
	return events, b, nil
}

func (s *spool) forget() {
	if s.in != nil {
		_ = s.in.Close()
		s.in = nil
	}
}

// rewind goes back to what is not done, which goes to the disk.
func (s *spool) rewind() error {
	err := s.flush()
	s.next, s.lent, s.taken = s.at, nil, 0
	return err
}

// done removes a batch, which is the first that is not done. What save has kept
// may be of before: then some is there again after a crash.
func (s *spool) done(b *batch) error {
	if b.size > 0 {
		file := s.files[len(s.files)-1]
		s.at = place{File: file, Offset: s.sizes[file], Seq: b.seq}
		s.next = s.at
		s.mem, s.lent, s.taken, s.since = s.mem[b.size:], s.lent[1:], s.taken-b.size, time.Now()
		if len(s.lent) == 0 && len(s.mem) < cap(s.base)/2 {
			s.mem = append(s.base[:0], s.mem...)
		}
	} else {
		s.at = b.end
	}
	for len(s.files) > 1 && (s.files[0] < s.at.File || s.files[0] == s.at.File && s.at.Offset >= s.sizes[s.at.File]) {
		gone := s.files[0]
		if s.in != nil && s.in.Name() == s.name(gone) {
			s.forget()
		}
		if err := os.Remove(s.name(gone)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		s.total -= s.sizes[gone]
		delete(s.sizes, gone)
		s.files = s.files[1:]
		if s.at.File == gone {
			s.at = place{File: s.files[0], Seq: s.at.Seq}
		}
		if s.next.File == gone {
			s.next = s.at
		}
	}
	return nil
}

// save keeps how far it has come. It may be called at any time, by one goroutine.
func (s *spool) save(at place) error {
	b, err := json.Marshal(at)
	if err != nil {
		return err
	}
	return audit.Replace(filepath.Join(s.dir, placeFile), b)
}

func (s *spool) close() error {
	s.forget()
	return errors.Join(s.flush(), s.out.Close())
}
