package cluster

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/muster-registry/muster/fault"
)

// checked is the log store with a checksum in each entry, which the library's
// own does not have: an entry that a disk gives back with one bit turned would be
// applied, and told to followers, like any other. The checksum stands in the
// entry's extensions, on this node's disk alone; entries without one are of
// versions before this.
type checked struct{ *raftboltdb.BoltStore }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(l *raft.Log) []byte {
	var head [17]byte
	binary.BigEndian.PutUint64(head[:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	return binary.BigEndian.AppendUint32(nil, crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, l.Data))
}

// StoreLog is StoreLogs with one entry.
func (c checked) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

// StoreLogs leaves the entries as they are: others read them meanwhile.
func (c checked) StoreLogs(logs []*raft.Log) error {
	with := make([]*raft.Log, len(logs))
	for i, l := range logs {
		copied := *l
		copied.Extensions = checksum(l)
		with[i] = &copied
	}
	return c.BoltStore.StoreLogs(with)
}

// GetLog refuses an entry that is not the one that was stored.
func (c checked) GetLog(index uint64, l *raft.Log) error {
	if err := c.BoltStore.GetLog(index, l); err != nil {
		return err
	}
	if l.Index != index || len(l.Extensions) > 0 && string(l.Extensions) != string(checksum(l)) {
		return fmt.Errorf("entry %d of the Raft log is damaged: the disk gives back something else than was written", index)
	}
	l.Extensions = nil
	return nil
}

// newRaft is raft.NewRaft with an error where that panics: at an entry of the
// log that it cannot read.
func newRaft(rc *raft.Config, machine raft.FSM, logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore, trans raft.Transport) (r *raft.Raft, err error) {
	defer func() {
		if p := recover(); p != nil {
			cause, ok := p.(error)
			if !ok {
				panic(p)
			}
			err = fault.Wrap(fault.Internal, cause, "the Raft log cannot be read; if its disk is damaged, keep the data folder and start this node with an empty one: %v", cause)
		}
	}()
	return raft.NewRaft(rc, machine, logs, stable, snaps, trans)
}
