package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/muster-registry/muster/snapshot"
)

const (
	// beforeRestore begins the names of the snapshots that a restore takes first.
	beforeRestore = "before-restore-"
	keepBefore    = 3 // of them
)

// Snapshot implements rest.Backend.
func (b backend) Snapshot(_ context.Context, w io.Writer) error { return b.export(w) }

func (n *Node) export(w io.Writer) error {
	return n.machine.Export(w, snapshot.Header{CreatedAt: time.Now().UTC(), MusterVersion: n.version})
}

// saveBefore saves this node's state in data_dir before a restore replaces it,
// and removes all but the newest few of such files. It adds to done the bytes
// that it has got through so far.
func (n *Node) saveBefore(done *atomic.Int64) (name string, err error) {
	name = filepath.Join(n.cfg.DataDir, beforeRestore+time.Now().UTC().Format("20060102T150405.000Z")+".snapshot")
	if _, err := n.saveTo(name, done); err != nil {
		return "", fmt.Errorf("the present state could not be saved before the restore, which is given up: %w", err)
	}
	all, err := filepath.Glob(filepath.Join(n.cfg.DataDir, beforeRestore+"*.snapshot"))
	if err != nil {
		return "", err
	}
	slices.Sort(all) // by time
	for len(all) > keepBefore {
		if err := os.Remove(all[0]); err != nil {
			n.logger.Warn("an old snapshot from before a restore could not be removed", "file", all[0], "error", err)
		}
		all = all[1:]
	}
	return name, nil
}

// saveTo writes a snapshot of the local state and reads it again from the file
// before it gets its name. It adds to done the bytes written and read so far.
func (n *Node) saveTo(name string, done *atomic.Int64) (_ *snapshot.Summary, err error) {
	f, err := os.OpenFile(name+".part", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := n.export(io.MultiWriter(f, counter{done})); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	sum, err := snapshot.Verify(io.TeeReader(f, counter{done}))
	if err != nil {
		return nil, err
	}
	return sum, os.Rename(f.Name(), name)
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

// Write implements io.Writer.
func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}
