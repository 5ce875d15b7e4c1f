package sim

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/muster-registry/muster/cluster/journal"
)

const pageSize = 4096

var errPower = errors.New("the power is gone")

type page [pageSize]byte

// paper is the file of one node's journal: what has been synced, and what has
// been written since. It outlives the node's processes.
type paper struct {
	mu    sync.Mutex // guards what follows
	rnd   *rand.Rand
	slow  time.Duration // a sync takes up to so long
	kept  map[int64]*page
	fresh map[int64]*page // as written; not all of it would outlive a power cut
	life  int             // of the process that may use it
	syncs int
}

func newPaper(seed uint64) *paper {
	return &paper{rnd: rand.New(rand.NewPCG(seed, 2)), slow: 2 * time.Millisecond, kept: map[int64]*page{}, fresh: map[int64]*page{}}
}

// open gives the journal of a new process the file. under is a file without
// content, for what was never written.
func (p *paper) open(under journal.File) journal.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at := range int64(2) { // the headers, which a new file has
		if p.kept[at] == nil {
			head := new(page)
			if _, err := under.ReadAt(head[:], at*pageSize); err != nil {
				panic(err)
			}
			p.kept[at] = head
		}
	}
	return &sheet{paper: p, life: p.life, under: under}
}

// cut ends the process and takes the power: of each page that was written and
// not synced, either the old or the new content is there, or half of it.
func (p *paper) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.life++
	for at, now := range p.fresh {
		was := p.kept[at]
		if was == nil {
			was = new(page)
		}
		next := *was
		switch p.rnd.IntN(4) {
		case 0:
			next = *now
		case 1:
			n := p.rnd.IntN(pageSize/512) * 512
			copy(next[:n], now[:n])
		}
		p.kept[at] = &next
	}
	clear(p.fresh)
}

// pace sets how long a sync may take, beyond the usual.
func (p *paper) pace(more time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = 2*time.Millisecond + more
}

func (p *paper) page(at int64) *page {
	if now := p.fresh[at]; now != nil {
		return now
	}
	return p.kept[at]
}

// sheet is a paper as one process has it open.
type sheet struct {
	*paper
	life  int
	under journal.File
}

func (s *sheet) ReadAt(b []byte, at int64) (int, error) {
	n, err := s.under.ReadAt(b, at)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 0; i < n; {
		no, off := (at+int64(i))/pageSize, (at+int64(i))%pageSize
		step := min(n-i, int(pageSize-off))
		if p := s.page(no); p != nil {
			copy(b[i:i+step], p[off:])
		}
		i += step
	}
	return n, err
}

func (s *sheet) WriteAt(b []byte, at int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life != s.paper.life {
		return 0, errPower
	}
	for i := 0; i < len(b); {
		no, off := (at+int64(i))/pageSize, (at+int64(i))%pageSize
		step := min(len(b)-i, int(pageSize-off))
		next := new(page)
		if was := s.page(no); was != nil {
			*next = *was
		} else if _, err := s.under.ReadAt(next[:], no*pageSize); err != nil && !errors.Is(err, io.EOF) {
			return i, err
		}
		copy(next[off:], b[i:i+step])
		s.fresh[no] = next
		i += step
	}
	return len(b), nil
}

// Sync takes its time, in which the power may go.
func (s *sheet) Sync() error {
	s.mu.Lock()
	what := maps.Clone(s.fresh)
	took := time.Duration(s.rnd.Int64N(int64(s.slow)))
	s.mu.Unlock()
	time.Sleep(took)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life != s.paper.life {
		return errPower
	}
	s.syncs++
	for at, p := range what {
		s.kept[at] = p
		if s.fresh[at] == p {
			delete(s.fresh, at)
		}
	}
	return nil
}

func (s *sheet) Close() error { return s.under.Close() }

// copyTree copies what a power cut leaves of a node's folder. The journal's file
// is on paper.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dest := filepath.Join(to, strings.TrimPrefix(path, from))
		switch {
		case d.IsDir():
			return os.MkdirAll(dest, 0o700)
		case strings.HasPrefix(d.Name(), "journal"):
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(dest, b, 0o600)
	})
}
