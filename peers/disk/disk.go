package main

import (
	"errors"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const blockSize = 4096

// disk knows of each file what a power cut would take away. Names are durable at
// once: a rename whose file was not synced before shows as a file without content.
type disk struct {
	folder string

	mu     sync.Mutex // guards what follows, and the folder's files while one is written
	files  map[uint64]*file
	pause  time.Duration
	paused uint64 // syncs that were slow since the last change
}

// file is what was there at the last sync, where it has changed since.
type file struct {
	size   int64
	blocks map[int64][]byte // by number; shorter at the end of the file
}

// touch keeps what a change of a stretch will overwrite. The caller holds the
// lock; path leads to the file in the folder.
func (d *disk) touch(path string, from, to int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	about, err := f.Stat()
	if err != nil {
		return err
	}
	id := about.Sys().(*syscall.Stat_t).Ino
	old := d.files[id]
	if old == nil {
		old = &file{size: about.Size(), blocks: map[int64][]byte{}}
		d.files[id] = old
	}
	for b := from / blockSize; b*blockSize < min(to, old.size); b++ {
		if _, known := old.blocks[b]; known {
			continue
		}
		content := make([]byte, min(blockSize, old.size-b*blockSize))
		if n, err := f.ReadAt(content, b*blockSize); err != nil && !errors.Is(err, io.EOF) {
			return err
		} else if n < len(content) {
			content = content[:n]
		}
		old.blocks[b] = content
	}
	return nil
}

// synced makes a file's content durable.
func (d *disk) synced(path string) {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) == nil {
		d.mu.Lock()
		delete(d.files, st.Ino)
		d.mu.Unlock()
	}
}

// wait is what a slow disk takes for a sync.
func (d *disk) wait() {
	d.mu.Lock()
	pause := d.pause
	if pause > 0 {
		d.paused++
	}
	d.mu.Unlock()
	time.Sleep(pause)
}

// slow sets what a sync takes, and says how many were slow before.
func (d *disk) slow(pause time.Duration) (before uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before, d.pause, d.paused = d.paused, pause, 0
	return before
}

// lose is the power cut. Of each file that has changed since its last sync it
// takes changed blocks back, each by chance or all, as a disk does that writes in
// an order of its own. No process may have files open.
func (d *disk) lose(seed uint64) (lost, kept int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	chance := rand.New(rand.NewPCG(seed, 3))
	err = filepath.WalkDir(d.folder, func(path string, e iofs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			return err
		}
		old := d.files[st.Ino]
		if old == nil {
			return nil
		}
		l, k, err := back(path, old, chance, chance.IntN(2) == 0)
		lost, kept = lost+l, kept+k
		return err
	})
	d.files = map[uint64]*file{}
	return lost, kept, err
}

// back puts old blocks in place again, all of them or some.
func back(path string, old *file, chance *rand.Rand, all bool) (lost, kept int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, 0, err
	}
	about, err := f.Stat()
	if err == nil && (all || chance.IntN(2) == 0) && about.Size() != old.size {
		if about.Size() > old.size {
			lost += int((about.Size() - old.size + blockSize - 1) / blockSize)
		}
		err = f.Truncate(old.size)
	}
	for b, content := range old.blocks {
		if !all && chance.IntN(2) == 0 {
			kept++
			continue
		}
		_, werr := f.WriteAt(content, b*blockSize)
		err = errors.Join(err, werr)
		lost++
	}
	return lost, kept, errors.Join(err, f.Close())
}
