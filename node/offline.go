package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/muster-registry/muster/cluster"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
)

// RestoreOffline makes a snapshot the state of stopped nodes that have no data
// yet. At their start they are a new cluster, with an id of its own, of which
// they are the members; other nodes with empty data directories join it. Errors:
// conflict where there is data, which is left alone; invalid_snapshot.
func RestoreOffline(cfgs []*Config, r io.Reader, logger *slog.Logger) (_ *fsm.Plan, err error) {
	if err := mayBeMembers(cfgs); err != nil {
		return nil, err
	}
	// Everything is made beside its place. What is left of an attempt that was
	// cut off means nothing to a node.
	nodes := make([]cluster.Recovery, len(cfgs))
	for i, cfg := range cfgs {
		seed := filepath.Join(cfg.DataDir, "seed")
		if err := errors.Join(os.MkdirAll(cfg.DataDir, 0o700), os.RemoveAll(seed)); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(seed)) }()
		nodes[i] = cluster.Recovery{DataDir: seed, NodeID: cfg.NodeID, Address: cfg.Advertise.Peer, Logger: logger}
	}
	first := filepath.Join(nodes[0].DataDir, "state")
	plan, image, err := fsm.Seed(first, r, cluster.SeedIndex, cluster.SeedTerm)
	if err != nil {
		return nil, err
	}
	defer image.Release()
	errs := make([]error, len(nodes))
	var work sync.WaitGroup
	for i, n := range nodes[1:] {
		work.Go(func() {
			if errs[i] = os.MkdirAll(n.DataDir, 0o700); errs[i] == nil {
				errs[i] = copyTree(filepath.Join(n.DataDir, "state"), first)
			}
		})
	}
	work.Go(func() { errs[len(nodes)-1] = cluster.Seed(nodes, image) })
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, cfg := range cfgs {
		if err := settleSeed(cfg.DataDir); err != nil {
			return nil, err
		}
	}
	return plan, nil
}

// mayBeMembers refuses data directories that are in use, and nodes that could
// not be the members of one cluster.
func mayBeMembers(cfgs []*Config) error {
	seen := map[string]string{}
	for _, cfg := range cfgs {
		for _, part := range []string{"raft", "state"} {
			if _, err := os.Stat(filepath.Join(cfg.DataDir, part)); !errors.Is(err, fs.ErrNotExist) {
				return errors.Join(fault.New(fault.Conflict, "%s holds a node's data already: restore into an empty data_dir, or into the running cluster", cfg.DataDir), err)
			}
		}
		dir, err := filepath.Abs(cfg.DataDir)
		if err != nil {
			return err
		}
		for _, own := range []string{"node_id " + cfg.NodeID, "data_dir " + dir, "advertise.peer " + cfg.Advertise.Peer} {
			if other, taken := seen[own]; taken {
				return fault.New(fault.Conflict, "nodes %s and %s both have %s: each needs its own", other, cfg.NodeID, own)
			}
			seen[own] = cfg.NodeID
		}
		host, _, err := net.SplitHostPort(cfg.Advertise.Peer)
		if ip := net.ParseIP(host); len(cfgs) > 1 && (err != nil || host == "" || ip != nil && ip.IsUnspecified()) {
			// A member alone corrects its address itself; these have to find each other first.
			return fault.New(fault.BadRequest, "node %s: set advertise.peer to where the other nodes reach it; %q is not that", cfg.NodeID, cfg.Advertise.Peer)
		}
	}
	return nil
}

// settleSeed puts what was made beside it into the data directory.
func settleSeed(dataDir string) error {
	// The log first: a node that finds it without a state takes the state from
	// the image in it, but a state without its log would be taken for nothing.
	for _, part := range []string{"raft", "state"} {
		if err := os.Rename(filepath.Join(dataDir, "seed", part), filepath.Join(dataDir, part)); err != nil {
			return fmt.Errorf("empty %s and begin again: %w", dataDir, err)
		}
	}
	d, err := os.Open(dataDir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
