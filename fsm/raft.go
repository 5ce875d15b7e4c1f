package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"

	"github.com/muster-registry/muster/fault"
)

// imageMagic opens a Raft snapshot: a consistent copy of the state file, its
// length before it and its SHA-256 behind it.
const imageMagic = "MUSTERI1"

// Snapshot implements raft.FSM: it brings the state file up to the applied
// index and pins it in a read transaction. Writes go on meanwhile.
func (m *Machine) Snapshot() (raft.FSMSnapshot, error) {
	if err := m.Trouble(); err != nil {
		return nil, err // Raft believes that more was applied than was
	}
	tx, err := m.store.image()
	if err != nil {
		return nil, err
	}
	return &image{tx: tx}, nil
}

type image struct{ tx *bolt.Tx }

// Persist implements raft.FSMSnapshot.
func (i *image) Persist(sink raft.SnapshotSink) error {
	if err := writeImage(i.tx, sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (i *image) Release() { _ = i.tx.Rollback() }

func writeImage(tx *bolt.Tx, w io.Writer) error {
	head := binary.BigEndian.AppendUint64([]byte(imageMagic), uint64(tx.Size()))
	if _, err := w.Write(head); err != nil {
		return err
	}
	sum := sha256.New()
	if err := copyTo(tx, io.MultiWriter(w, sum)); err != nil {
		return err
	}
	_, err := w.Write(sum.Sum(nil))
	return err
}

// Restore implements raft.FSM: the whole state is replaced by the image, or,
// when the image is not whole, nothing is. Raft stops the node then. An image
// that is older than the state changes nothing either.
func (m *Machine) Restore(r io.ReadCloser) error {
	defer func() { _ = r.Close() }()
	path := m.path + ".restore"
	v, repeats, err := receiveState(r, path)
	if err != nil {
		if newer, ok := errors.AsType[*fault.Error](err); ok && newer.Code == fault.Conflict {
			m.halt.now(newer)
		}
		if gone := os.Remove(path); !errors.Is(gone, os.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		return err
	}
	// Raft installs a snapshot that came late, too. What was shown once must not
	// be taken back: raft applies the entries behind the snapshot again, and those
	// up to the applied index are skipped.
	if now := m.View(); v.ClusterID == now.ClusterID && v.Applied < now.Applied {
		return os.Remove(path)
	}
	if m.recorder != nil {
		m.recorder.Replaced(v.ClusterID, v.Revision)
		m.recorder.Sync()
	}
	if err := m.store.replace(path); err != nil {
		// The old file may be closed already: there is no state to go on with.
		panic(fmt.Sprintf("replace state file %s: %v", m.path, err))
	}
	m.repeats.Store(repeats)
	m.marks.add([]mark{{v.Applied, v.Hash}})
	m.publish(v, nil, Events{Policies: true, Replaced: true})
	return nil
}

// receiveState makes a state file of a Raft snapshot, and loads it.
func receiveState(r io.Reader, path string) (*View, *repeatTable, error) {
	magic := make([]byte, len(imageMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return nil, nil, fmt.Errorf("raft snapshot: read header: %w", err)
	}
	switch string(magic) {
	case seedMagic:
		v, err := receiveSeed(r, path)
		return v, newRepeats(), err
	case imageMagic:
		if err := receiveImage(r, path); err != nil {
			return nil, nil, err
		}
		return loadFile(path)
	}
	return nil, nil, fmt.Errorf("raft snapshot: begins with %q, not a muster state image", magic)
}

func receiveImage(r io.Reader, path string) error {
	head := make([]byte, 8)
	if _, err := io.ReadFull(r, head); err != nil {
		return fmt.Errorf("raft snapshot: read header: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	err = receive(f, r, int64(binary.BigEndian.Uint64(head)), sum)
	return errors.Join(err, f.Close())
}

func receive(f *os.File, r io.Reader, size int64, sum hash.Hash) error {
	if size < 0 {
		return fmt.Errorf("raft snapshot: impossible size %d", size)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err := io.CopyN(io.MultiWriter(w, sum), r, size); err != nil {
		return fmt.Errorf("raft snapshot: truncated: %w", err)
	}
	want := make([]byte, sum.Size())
	if _, err := io.ReadFull(r, want); err != nil {
		return fmt.Errorf("raft snapshot: truncated: %w", err)
	}
	if !bytes.Equal(want, sum.Sum(nil)) {
		return errors.New("raft snapshot: checksum differs from the content")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Sync()
}

func loadFile(path string) (*View, *repeatTable, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return nil, nil, err
	}
	v, repeats, err := load(db)
	return v, repeats, errors.Join(err, db.Close())
}
