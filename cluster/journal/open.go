package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"github.com/muster-registry/muster/fault"
)

const maxHalf = 1 << 30

// File is what the journal needs of its file.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Close() error
}

// disk is a file whose Sync is a datasync.
type disk struct {
	*os.File
	noSync bool
}

func (d disk) Sync() error {
	if d.noSync {
		return nil
	}
	return datasync(d.File)
}

// Open opens the journal in the directory, or makes an empty one, in front of
// under. What the journal holds beyond the end of under is moved there before
// Open returns. A journal that is damaged in a way that no crash explains, or
// that belongs to another log, is an error and is left as it is.
func Open(dir string, under Store, o Options) (*Log, error) {
	path := filepath.Join(dir, "journal")
	if o.Half == 0 {
		o.Half = 16 << 20
	}
	if o.Delay == 0 {
		o.Delay = time.Second
	}
	if o.Half < block || o.Half > maxHalf || o.Half%block != 0 {
		return nil, fault.New(fault.BadRequest, "the journal cannot have halves of %d bytes", o.Half)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err = create(dir, path, o); err == nil {
			f, err = os.OpenFile(path, os.O_RDWR, 0)
		}
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot open the journal of the Raft log %s", path)
	}
	var through File = disk{f, o.NoSync}
	if o.Through != nil {
		through = o.Through(through)
	}
	l, err := load(through, under)
	if err != nil {
		_ = f.Close()
		return nil, fault.Wrap(fault.Internal, err,
			"cannot take over the journal of the Raft log %s; if its disk is damaged, remove this node from the cluster and let it join again with an empty data directory", path)
	}
	l.failure, l.delay = o.OnFailure, o.Delay
	l.tasks.Go(l.moves)
	return l, nil
}

// create makes an empty journal under its name when it is whole. It is filled,
// so that later writes go to blocks the file system has prepared already and
// have nothing but themselves to make durable.
func create(dir, path string, o Options) (err error) {
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size := 2*block + 2*o.Half
	if o.NoSync {
		err = f.Truncate(size)
	} else {
		_, err = io.CopyN(f, zeros{}, size)
	}
	if err != nil {
		return err
	}
	empty := mark{generation: 1, half: o.Half}.encode()
	if _, err := f.WriteAt(append(empty, empty...), 0); err != nil {
		return err
	}
	if o.NoSync {
		return os.Rename(path+".new", path)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// load takes over what the file holds; see the package comment. No background
// task is started.
func load(f File, under Store) (*Log, error) {
	l := &Log{under: under, file: f, wake: make(chan struct{}, 1), full: make(chan struct{}, 1), stop: make(chan struct{}), buf: make([]byte, 1<<20)}
	// What a killed process wrote and did not sync can be read but may still be
	// lost: a header above all, beside which the other one is written over.
	err := f.Sync()
	if err != nil {
		return nil, err
	}
	if l.mark, l.slot, err = readMarks(f); err != nil {
		return nil, err
	}
	if l.end, err = under.LastIndex(); err != nil {
		return nil, err
	}
	logs, err := l.mark.held(f, l.end)
	if err != nil {
		return nil, err
	}
	if len(logs) > 0 {
		if err := under.StoreLogs(logs); err != nil {
			return nil, err
		}
		l.end = logs[len(logs)-1].Index
	}
	l.last = l.end
	if err := under.Sync(); err != nil {
		return nil, err
	}
	if err := l.reset(); err != nil {
		return nil, err
	}
	return l, nil
}

// held gives what the file holds beyond end, the last index of its store.
func (m mark) held(f io.ReaderAt, end uint64) ([]*raft.Log, error) {
	halves := make([]byte, 2*m.half)
	if n, err := f.ReadAt(halves, 2*block); n < len(halves) {
		return nil, fmt.Errorf("it is shorter than its header says: %w", err)
	}
	logs, err := m.replay(halves)
	if err != nil {
		return nil, err
	}
	for i := 1; i < len(logs); i++ {
		if logs[i].Index != logs[i-1].Index+1 {
			return nil, fmt.Errorf("entry %d is followed by entry %d", logs[i-1].Index, logs[i].Index)
		}
	}
	for len(logs) > 0 && logs[0].Index <= end {
		logs = logs[1:]
	}
	if len(logs) > 0 && !follow(end, logs) {
		return nil, fmt.Errorf("the log ends with entry %d and the journal goes on with entry %d", end, logs[0].Index)
	}
	return logs, nil
}
