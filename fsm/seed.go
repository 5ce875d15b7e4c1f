package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/snapshot"
)

// seedMagic opens the Raft snapshot of a state that Seed has made: its index and
// term, the length of the snapshot file that it was made of, that file, and at
// the end the SHA-256 of all before. It is a small part of the state file, and
// whoever takes it makes the same state file of it.
const seedMagic = "MUSTERI2"

// Seed makes a snapshot the state of a node that has none, as if it had been
// applied at the given Raft index and term. The state belongs to no cluster
// yet: the first leader gives it an id. The image is the Raft snapshot of that
// state, for any number of logs; the caller releases it. Errors: conflict where
// there is a state already, invalid_snapshot.
func Seed(dir string, r io.Reader, index, term uint64) (*Plan, raft.FSMSnapshot, error) {
	path := filepath.Join(dir, "state.db")
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return nil, nil, errors.Join(fault.New(fault.Conflict, "%s holds a state already", dir), err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(dir), "seed-*.snapshot")
	if err != nil {
		return nil, nil, err
	}
	image := &seedImage{file: f, index: index, term: term}
	// It gets its name when it is whole.
	next, err := seedFile(path+".part", io.TeeReader(r, f), index, term, snapshot.Read)
	if err == nil {
		err = os.Rename(path+".part", path)
	}
	if err != nil {
		image.Release()
		return nil, nil, err
	}
	return next.plan(), image, nil
}

// seedFile makes a state file of a snapshot, and the view of what was read the
// state in it. After an error there is no file.
func seedFile(path string, r io.Reader, index, term uint64, read reading) (next *rebuilt, err error) {
	err = writePages(path, true, func(file *pageWriter) error {
		if next, err = buildInto(r, file, read); err != nil {
			return err
		}
		v := next.view
		v.Applied, v.Term, v.Revision = index, term, next.header.Revision
		at := position{applied: index, term: term, revision: v.Revision, hash: v.Hash}
		if a := v.Policy.Active(); a != nil {
			at.policy = a.Number
		}
		file.bucket(metaBucket)
		for _, rec := range at.records() {
			file.put(rec.key, rec.value)
		}
		return nil
	})
	if err != nil {
		if !fault.Is(err, fault.InvalidSnapshot) {
			err = fmt.Errorf("write %s: %w", path, err)
		}
		return nil, err
	}
	return next, nil
}

// seedImage is a raft.FSMSnapshot that can be persisted again and again, also at
// the same time.
type seedImage struct {
	file        *os.File
	index, term uint64
}

// Persist implements raft.FSMSnapshot.
func (s *seedImage) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s *seedImage) write(w io.Writer) error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	sum := sha256.New()
	to := io.MultiWriter(w, sum)
	head := []byte(seedMagic)
	for _, n := range []uint64{s.index, s.term, uint64(size)} {
		head = binary.BigEndian.AppendUint64(head, n)
	}
	if _, err := to.Write(head); err != nil {
		return err
	}
	if _, err := io.Copy(to, io.NewSectionReader(s.file, 0, size)); err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

// Release implements raft.FSMSnapshot.
func (s *seedImage) Release() { _ = errors.Join(s.file.Close(), os.Remove(s.file.Name())) }

// receiveSeed makes a state file of a Raft snapshot that begins with seedMagic,
// which has been read, and gives the state.
func receiveSeed(r io.Reader, path string) (*View, error) {
	sum := sha256.New()
	_, _ = sum.Write([]byte(seedMagic))
	in := io.TeeReader(r, sum)
	var head [24]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, fmt.Errorf("raft snapshot: read header: %w", err)
	}
	size := int64(binary.BigEndian.Uint64(head[16:]))
	if size < 0 {
		return nil, fmt.Errorf("raft snapshot: impossible size %d", size)
	}
	next, err := seedFile(path, io.LimitReader(in, size), binary.BigEndian.Uint64(head[:]), binary.BigEndian.Uint64(head[8:]), snapshot.ReadKnown)
	if err != nil {
		return nil, fmt.Errorf("raft snapshot: %w", err)
	}
	want := make([]byte, sum.Size())
	if _, err := io.ReadFull(r, want); err != nil {
		return nil, fmt.Errorf("raft snapshot: truncated: %w", err)
	}
	if !bytes.Equal(want, sum.Sum(nil)) {
		return nil, errors.New("raft snapshot: checksum differs from the content")
	}
	return next.view, nil
}
