package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/muster-registry/muster/cluster/journal"
	"github.com/muster-registry/muster/fault"
)

// Recovery says which node is to be a cluster of its own.
type Recovery struct {
	DataDir string
	NodeID  string
	Address string // of its peer port
	Logger  *slog.Logger
}

// Recover makes the stopped node with this data directory the only member of
// its cluster, with everything that its log holds, acknowledged or not. m is
// its own state machine, which nothing else uses. It can be run again after a
// crash. Only for a cluster whose majority is lost for good: nodes that are
// alive would go on beside it. Errors: conflict while a node runs there.
func Recover(r Recovery, m Machine) error {
	return r.open(func(store *raftboltdb.BoltStore, logs *journal.Log, snaps *raft.FileSnapshotStore) error {
		rc := raft.DefaultConfig()
		rc.LocalID, rc.Logger = raft.ServerID(r.NodeID), raftLogger(r.Logger)
		_, trans := raft.NewInmemTransport("")
		return raft.RecoverCluster(rc, released{m}, logs, store, snaps, trans, r.alone())
	})
}

// released is a machine whose images are released when they are written:
// raft.RecoverCluster does not, and the machine could not be closed.
type released struct{ Machine }

// Snapshot implements raft.FSM.
func (r released) Snapshot() (raft.FSMSnapshot, error) {
	image, err := r.Machine.Snapshot()
	return releasedImage{image}, err
}

type releasedImage struct{ raft.FSMSnapshot }

// Persist implements raft.FSMSnapshot.
func (i releasedImage) Persist(sink raft.SnapshotSink) error {
	defer i.Release()
	return i.FSMSnapshot.Persist(sink)
}

// Seed makes a state, at [SeedIndex] and [SeedTerm], the beginning of a new
// cluster, whose members are the nodes with these data directories. It refuses
// with conflict where there is a log or a Raft snapshot already. image is
// persisted once for each, at the same time.
func Seed(nodes []Recovery, image raft.FSMSnapshot) error {
	if len(nodes) == 1 { // it notes its disk itself, as in any cluster of one
		return nodes[0].seed(nodes[0].alone(), image)
	}
	var all raft.Configuration
	for _, r := range nodes {
		dir := filepath.Join(r.DataDir, "raft")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot make %s", dir)
		}
		disk, err := diskID(dir)
		if err != nil {
			return err
		}
		all.Servers = append(all.Servers, raft.Server{ID: raft.ServerID(r.NodeID), Address: place(r.Address, disk)})
	}
	errs := make([]error, len(nodes))
	var work sync.WaitGroup
	for i, r := range nodes {
		work.Go(func() { errs[i] = r.seed(all, image) })
	}
	work.Wait()
	return errors.Join(errs...)
}

func (r Recovery) seed(members raft.Configuration, image raft.FSMSnapshot) error {
	return r.open(func(store *raftboltdb.BoltStore, logs *journal.Log, snaps *raft.FileSnapshotStore) error {
		had, err := raft.HasExistingState(logs, store, snaps)
		if err != nil {
			return err
		}
		if had {
			return fault.New(fault.Conflict, "%s holds a node's data already", r.DataDir)
		}
		if err := store.SetUint64([]byte("CurrentTerm"), SeedTerm); err != nil {
			return err
		}
		_, trans := raft.NewInmemTransport("")
		sink, err := snaps.Create(1, SeedIndex, SeedTerm, members, 1, trans)
		if err != nil {
			return err
		}
		return image.Persist(sink)
	})
}

// SeedIndex and SeedTerm are where the state of a new cluster stands that was
// not made by its log.
const (
	SeedIndex = 1
	SeedTerm  = 1
)

func (r Recovery) alone() raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(r.NodeID), Address: raft.ServerAddress(r.Address)}}}
}

// open opens log, journal and Raft snapshots as a node does, for use.
func (r Recovery) open(use func(*raftboltdb.BoltStore, *journal.Log, *raft.FileSnapshotStore) error) (err error) {
	c := &Cluster{cfg: Config{NodeID: r.NodeID, DataDir: r.DataDir, Logger: r.Logger}, log: r.Logger}
	c.cfg.Storage.SnapshotRetain = 2
	if err := c.openStore(); err != nil {
		if errors.Is(err, bolterrors.ErrTimeout) {
			return unopened(r.DataDir, err)
		}
		return err
	}
	defer func() { err = errors.Join(err, c.journal.Close(), c.store.Close()) }()
	if err := use(c.store, c.journal, c.snaps); err != nil {
		if _, ok := errors.AsType[*fault.Error](err); ok {
			return err
		}
		return fault.Wrap(fault.Internal, err, "the Raft log in %s could not be changed: %v", filepath.Join(r.DataDir, "raft"), err)
	}
	return nil
}

// What Probe found at an address.
const (
	Nobody   = ""
	Silent   = "something that takes connections and does not answer"
	Stranger = "another program"
)

// Probe tells who is at a peer address: the id of a muster node, or [Nobody],
// [Silent] (a node that stands still looks so) or [Stranger]. It needs no
// credentials: a listener shows its certificate first.
func Probe(ctx context.Context, address string) (node, otherwise string) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", Nobody
	}
	defer conn.Close()
	heard := &counted{Conn: conn}
	client := tls.Client(heard, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protoPeer},
		InsecureSkipVerify: true, // nothing is sent, and nothing believed but that somebody is there
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, u := range cs.PeerCertificates[0].URIs {
				if _, id, ok := strings.Cut(u.String(), "/muster/node/"); ok {
					node = id
				}
			}
			return nil
		},
	})
	err = client.HandshakeContext(ctx)
	switch {
	case node != "":
		return node, ""
	case err != nil && heard.n == 0 && ctx.Err() != nil:
		return "", Silent
	}
	return "", Stranger
}

// counted counts what was read.
type counted struct {
	net.Conn
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n += n
	return n, err
}
