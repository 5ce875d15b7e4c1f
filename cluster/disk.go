package cluster

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/muster-registry/muster/cluster/journal"
	"github.com/muster-registry/muster/fault"
)

// Disk is what the Raft log in a node's data directory says.
type Disk struct {
	NodeID    string // "" where the data is from before this was noted
	Term      uint64 // the newest the node took part in
	LastIndex uint64 // of the log, or of the Raft snapshot where that is newer
	LastTerm  uint64 // of the entry at LastIndex
	LastAt    time.Time
	Members   []DiskMember
	// OnProbation says that the node came with an empty disk and had not caught up.
	OnProbation bool
}

// DiskMember is one member of the cluster as a disk knows it.
type DiskMember struct {
	ID      string
	Address string
	Voter   bool
}

// Newer reports whether d is at least as far as other by Raft's rule: whoever
// it holds for has every entry that was acknowledged and that other has.
func (d *Disk) Newer(other *Disk) bool {
	return d.LastTerm > other.LastTerm || d.LastTerm == other.LastTerm && d.LastIndex > other.LastIndex
}

// Look reads what the data directory of a stopped node holds and changes
// nothing. Errors: not_found where there is no log, conflict while a node runs
// on it.
func Look(dataDir string) (*Disk, error) {
	dir := filepath.Join(dataDir, "raft")
	if _, err := os.Stat(filepath.Join(dir, "log.db")); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "%s holds no node's data: name what data_dir in the node's configuration says", dataDir)
	}
	store, err := raftboltdb.New(raftboltdb.Options{
		Path: filepath.Join(dir, "log.db"), BoltOptions: &bbolt.Options{ReadOnly: true, Timeout: 2 * time.Second},
	})
	if err != nil {
		return nil, unopened(dataDir, err)
	}
	defer store.Close()
	d := &Disk{}
	if d.NodeID, err = notedID(dir); err != nil {
		return nil, err
	}
	if d.Term, err = store.GetUint64([]byte("CurrentTerm")); err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, fault.Wrap(fault.Internal, err, "the Raft log in %s cannot be read", dir)
	}
	if err := d.read(dir, store); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the Raft log in %s cannot be read: %v", dir, err)
	}
	if _, err := os.Stat(filepath.Join(dir, probationMark)); err == nil {
		d.OnProbation = true
	}
	return d, nil
}

// unopened words why a log could not be opened.
func unopened(dataDir string, err error) error {
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fault.New(fault.Conflict, "a node is running on %s: stop it first", dataDir)
	}
	return fault.Wrap(fault.Internal, err, "the Raft log in %s cannot be opened: %v", dataDir, err)
}

// read takes the newest of snapshots, store and journal.
func (d *Disk) read(dir string, store *raftboltdb.BoltStore) error {
	snaps, err := raft.NewFileSnapshotStore(dir, 1, io.Discard)
	if err != nil {
		return err
	}
	list, err := snaps.List()
	if err != nil {
		return err
	}
	if len(list) > 0 {
		d.LastIndex, d.LastTerm = list[0].Index, list[0].Term
		d.configuration(list[0].Configuration)
	}
	first, err := store.FirstIndex()
	if err != nil {
		return err
	}
	last, err := store.LastIndex()
	if err != nil {
		return err
	}
	for i := max(first, d.LastIndex+1); i <= last && i > 0; i++ {
		var l raft.Log
		if err := (checked{store}).GetLog(i, &l); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		d.entry(&l)
	}
	logs, err := journal.Peek(dir, last)
	if err != nil {
		return err
	}
	for _, l := range logs {
		if l.Index > d.LastIndex {
			d.entry(l)
		}
	}
	return nil
}

func (d *Disk) entry(l *raft.Log) {
	d.LastIndex, d.LastTerm, d.LastAt = l.Index, l.Term, l.AppendedAt
	if l.Type == raft.LogConfiguration {
		d.configuration(raft.DecodeConfiguration(l.Data))
	}
}

func (d *Disk) configuration(c raft.Configuration) {
	d.Members = nil
	for _, s := range c.Servers {
		address, _ := placed(s.Address)
		d.Members = append(d.Members, DiskMember{ID: string(s.ID), Address: address, Voter: s.Suffrage == raft.Voter})
	}
}

const idFile = "node"

// notedID gives the id of the node whose log is in dir, "" where none is noted.
func notedID(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, idFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fault.Wrap(fault.Internal, err, "cannot tell whose data %s is", dir)
	}
	return strings.TrimSpace(string(b)), nil
}

// noteID notes whose log this is, and refuses that of another: under another
// name a node would vote a second time.
func noteID(dir, id string) error {
	was, err := notedID(dir)
	switch {
	case err != nil:
		return err
	case was == id:
		return nil
	case was != "":
		return fault.New(fault.Conflict, "the data in %s is of node %s, and this node is %s: give it its own data_dir, or an empty one", filepath.Dir(dir), was, id)
	}
	if err := os.WriteFile(filepath.Join(dir, idFile), []byte(id+"\n"), 0o600); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot note whose data %s is", dir)
	}
	return nil
}
