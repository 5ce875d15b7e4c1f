package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/fault"
)

// diskLevel is the feature level from which on members have disks in their
// places.
const diskLevel = 3

// A member's place is what Raft's configuration has as its address: host:port
// and the identity of its disk, as "10.0.0.1:8300#3fd1…". What a voter has
// promised stands on its disk, so a voter is its disk: one that comes back
// under the same name with another must not vote or acknowledge in its place,
// and neither must the old one when it has been replaced. Who asks for a vote,
// sends entries or confirms a read says which disk it means; any other refuses.
// It is for the one who is asked to check: the asker's configuration is the one
// by which majorities are counted.

func place(address, disk string) raft.ServerAddress {
	if disk != "" {
		address += "#" + disk
	}
	return raft.ServerAddress(address)
}

// placed is the inverse of place. disk is empty below feature level 3.
func placed(p raft.ServerAddress) (address, disk string) {
	address, disk, _ = strings.Cut(string(p), "#")
	return address, disk
}

// isDisk refuses what is meant for another disk; an empty one is any.
func (c *Cluster) isDisk(disk string) error {
	if disk != "" && c.disk != "" && disk != c.disk {
		return fault.New(fault.Conflict, "this is not the disk that the cluster knows node %s by: another has taken its place", c.cfg.NodeID)
	}
	return nil
}

const diskFile = "disk"

// diskID reads the identity of the data directory that dir is in, or makes one.
func diskID(dir string) (string, error) {
	path := filepath.Join(dir, diskFile)
	b, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(b)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fault.Wrap(fault.Internal, err, "cannot tell which disk this is")
	}
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	id := hex.EncodeToString(random[:])
	if err := keep(dir, diskFile, id+"\n"); err != nil {
		return "", fault.Wrap(fault.Internal, err, "cannot note which disk this is")
	}
	return id, nil
}

// keep writes a small file so that a power cut leaves all of it or none.
func keep(dir, name, content string) error {
	f, err := os.CreateTemp(dir, name+".*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
