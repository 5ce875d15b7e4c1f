package journal

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

// image is a file in memory without any power cuts.
type image struct{ b []byte }

func (f *image) ReadAt(b []byte, at int64) (int, error) {
	if at > int64(len(f.b)) {
		return 0, io.EOF
	}
	n := copy(b, f.b[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}
func (f *image) WriteAt(b []byte, at int64) (int, error) { return copy(f.b[at:], b), nil }
func (f *image) Sync() error                             { return nil }
func (f *image) Close() error                            { return nil }

// fresh is a file as create makes it.
func fresh(half int64) []byte {
	b := make([]byte, 2*block+2*half)
	empty := mark{generation: 1, half: half}.encode()
	copy(b, empty)
	copy(b[block:], empty)
	return b
}

// memory is a Store in memory.
type memory struct {
	mu    sync.Mutex
	c     content
	fails error
}

func (m *memory) read(f func(content)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m.c)
}
func (m *memory) change(f func(content)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails != nil {
		return m.fails
	}
	if m.c = maps.Clone(m.c); m.c == nil {
		m.c = content{}
	}
	f(m.c)
	return nil
}
func (m *memory) FirstIndex() (i uint64, err error) {
	m.read(func(c content) { i, _ = c.bounds() })
	return i, nil
}
func (m *memory) LastIndex() (i uint64, err error) {
	m.read(func(c content) { _, i = c.bounds() })
	return i, nil
}
func (m *memory) GetLog(i uint64, to *raft.Log) (err error) {
	m.read(func(c content) {
		if c[i] == nil {
			err = raft.ErrLogNotFound
		} else {
			*to = *c[i]
		}
	})
	return err
}
func (m *memory) StoreLog(l *raft.Log) error { return m.StoreLogs([]*raft.Log{l}) }
func (m *memory) StoreLogs(logs []*raft.Log) error {
	return m.change(func(c content) { c.store(logs) })
}
func (m *memory) DeleteRange(from, to uint64) error {
	return m.change(func(c content) { c.delete(from, to) })
}
func (m *memory) Sync() error { return nil }

var errPower = errors.New("the power is gone")

// machine is a computer with the journal's file and the store's. Each step on
// its way to the disk counts; when the steps are used up, nothing goes on.
type machine struct {
	mu     sync.Mutex
	steps  int
	disk   []byte  // what a power cut leaves of the file for certain
	writes []write // what may or may not have got there
	kept   content // what a power cut leaves of the store for certain
	seen   content // the store as running processes see it
	doing  content // and as a change under way would leave it; nil: none
}

type write struct {
	at int64
	b  []byte
}

// step counts one; m.mu is held. False: the power is gone.
func (m *machine) step() bool {
	m.steps--
	return m.steps >= 0
}

// cut takes the power, or only kills the process, and gives a machine started
// again. A power cut leaves any part of what was not synced; a kill leaves the
// page cache, which another power cut may still take.
func (m *machine) cut(power bool, r *rand.Rand) *machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := &machine{disk: append([]byte(nil), m.disk...), kept: m.kept, seen: m.seen}
	if m.doing != nil && r.IntN(2) == 0 {
		next.seen = m.doing
	}
	if !power {
		next.writes = append(next.writes, m.writes...)
		return next
	}
	if r.IntN(2) == 0 { // without the page cache
		next.seen = next.kept
	}
	next.kept = next.seen
	for _, w := range m.writes {
		tear(next.disk[w.at:], w.b, r)
	}
	return next
}

// tear lets some of b reach the disk.
func tear(disk, b []byte, r *rand.Rand) {
	at := r.IntN(len(b) + 1)
	if r.IntN(4) > 0 {
		at = min(at, r.IntN(40)) // inside of a header
	}
	switch r.IntN(5) {
	case 0: // nothing
	case 1:
		copy(disk, b)
	case 2: // up to any byte
		copy(disk, b[:at])
	case 3: // from any byte on
		copy(disk[at:], b[at:])
	case 4: // any sectors
		for n := 0; n < len(b); n += 512 {
			if r.IntN(2) == 0 {
				copy(disk[n:], b[n:min(len(b), n+512)])
			}
		}
	}
}

// simFile is the journal's file on a machine.
type simFile struct{ *machine }

func (f simFile) ReadAt(b []byte, at int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := append([]byte(nil), f.disk...)
	for _, w := range f.writes {
		copy(now[w.at:], w.b)
	}
	return (&image{now}).ReadAt(b, at)
}

func (f simFile) WriteAt(b []byte, at int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes = append(f.writes, write{at, append([]byte(nil), b...)})
	if !f.step() {
		return 0, errPower
	}
	return len(b), nil
}

func (f simFile) Sync() error {
	f.mu.Lock()
	n := len(f.writes)
	ok := f.step()
	f.mu.Unlock()
	if !ok {
		return errPower
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.step() {
		return errPower
	}
	for _, w := range f.writes[:n] {
		copy(f.disk[w.at:], w.b)
	}
	f.writes = f.writes[n:]
	return nil
}

func (f simFile) Close() error { return nil }

// simStore is the store on a machine. It has one writer at a time, as bbolt.
type simStore struct {
	*machine
	writer sync.Mutex
}

func (s *simStore) view() *memory {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &memory{c: s.seen}
}
func (s *simStore) FirstIndex() (uint64, error)         { return s.view().FirstIndex() }
func (s *simStore) LastIndex() (uint64, error)          { return s.view().LastIndex() }
func (s *simStore) GetLog(i uint64, to *raft.Log) error { return s.view().GetLog(i, to) }
func (s *simStore) StoreLog(l *raft.Log) error          { return s.StoreLogs([]*raft.Log{l}) }
func (s *simStore) StoreLogs(logs []*raft.Log) error {
	return s.change(func(c content) { c.store(logs) })
}
func (s *simStore) DeleteRange(from, to uint64) error {
	return s.change(func(c content) { c.delete(from, to) })
}
func (s *simStore) Sync() error { return s.change(func(content) {}) }

func (s *simStore) change(f func(content)) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	s.mu.Lock()
	after := maps.Clone(s.seen)
	if after == nil {
		after = content{}
	}
	f(after)
	s.doing = after
	ok := s.step()
	s.mu.Unlock()
	if !ok {
		return errPower
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.step() {
		return errPower
	}
	s.seen, s.kept, s.doing = after, after, nil
	return nil
}

// TestPowerCuts lets the power go, or the process be killed, at any step of any
// operation, also of the way back, and looks for exactly what was acknowledged:
// with the operation that was under way or without it, and nothing between.
func TestPowerCuts(t *testing.T) {
	for range 10 {
		rapid.Check(t, powerCuts)
	}
}

func powerCuts(t *rapid.T) {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "tears"), 1))
	m := &machine{disk: fresh(testHalf)}
	acked, maybe := content{}, content{} // maybe: had the operation under way been done
	for range rapid.IntRange(1, 8).Draw(t, "lives") {
		m.steps = 1 << 30
		calm := rapid.IntRange(-4, 25).Draw(t, "operations")
		if calm < 0 {
			m.steps = rapid.IntRange(0, 10).Draw(t, "steps back")
		}
		l, err := load(simFile{m}, &simStore{machine: m})
		if err == nil {
			acked = settle(t, l, acked, maybe)
			if maybe, err = live(t, l, acked, calm); err == nil {
				m.steps = min(m.steps, rapid.IntRange(0, 12).Draw(t, "steps"))
				maybe, err = live(t, l, acked, 5)
			}
		}
		if err != nil && !errors.Is(err, errPower) {
			t.Fatalf("without any damage: %v", err)
		}
		m = m.cut(rapid.Bool().Draw(t, "power cut"), r)
	}
	m.steps = 1 << 30
	l, err := load(simFile{m}, &simStore{machine: m})
	must(t, err)
	settle(t, l, acked, maybe)
}

// settle finds out which of the two a log holds.
func settle(t *rapid.T, l *Log, acked, maybe content) content {
	err := acked.differs(l)
	if err == nil {
		return acked
	}
	if err2 := maybe.differs(l); err2 != nil {
		t.Fatalf("after the crash: not what was acknowledged: %v; and not with what was under way: %v", err, err2)
	}
	return maybe
}

// live changes a log until the power goes, or n times. acked becomes what was
// acknowledged.
func live(t *rapid.T, l *Log, acked content, n int) (maybe content, err error) {
	for range n {
		maybe = maps.Clone(acked)
		switch rapid.IntRange(0, 9).Draw(t, "operation") {
		default:
			logs := drawBatch(t, last(acked), uint64(rapid.IntRange(1, 255).Draw(t, "stamp")))
			maybe.store(logs)
			err = l.StoreLogs(logs)
		case 0, 3:
			from, to := drawRange(t, first(acked), last(acked))
			maybe.delete(from, to)
			err = l.DeleteRange(from, to)
		case 1:
			err = l.move()
		case 2:
			err = l.Close()
		}
		if errors.Is(err, errClosed) {
			return maps.Clone(acked), nil
		}
		if err != nil {
			return maybe, err
		}
		clear(acked)
		maps.Copy(acked, maybe)
		if err := acked.differs(l); err != nil {
			t.Fatalf("while running: %v", err)
		}
	}
	return maps.Clone(acked), nil
}

// TestPowerCutsWhileMoving is the same with moves and compaction going on
// beside the appends.
func TestPowerCutsWhileMoving(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		m := &machine{disk: fresh(testHalf), steps: 40 + r.IntN(400)}
		l, err := load(simFile{m}, &simStore{machine: m})
		must(t, err)
		var beside sync.WaitGroup
		beside.Go(func() {
			for l.move() == nil {
			}
		})
		var deleted uint64 // up to here; may be deleted up to deleting
		deleting := uint64(0)
		beside.Go(func() {
			for {
				n, _ := l.LastIndex()
				if n < deleting+20 {
					if _, err := l.state(); err != nil {
						return
					}
					continue
				}
				deleting += 7
				if l.DeleteRange(1, deleting) != nil {
					return
				}
				deleted = deleting
			}
		})
		acked := uint64(0)
		for err == nil {
			if err = l.StoreLogs(batch(acked+1, 2, 450, acked%250+1)); err == nil {
				acked += 2
			}
		}
		beside.Wait()
		m = m.cut(seed%4 > 0, r)
		m.steps = 1 << 30
		if l, err = load(simFile{m}, &simStore{machine: m}); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		want := content{}
		for i := uint64(0); i < acked; i += 2 {
			want.store(batch(i+1, 2, 450, i%250+1))
		}
		if n, _ := l.LastIndex(); n > acked {
			want.store(batch(acked+1, 2, 450, acked%250+1))
		}
		if n, _ := l.FirstIndex(); n > deleted+1 {
			deleted = deleting
		}
		want.delete(1, deleted)
		if err := want.differs(l); err != nil {
			t.Fatalf("seed %d, acknowledged %d, deleted %d: %v", seed, acked, deleted, err)
		}
	}
}
