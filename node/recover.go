package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/muster-registry/muster/cluster"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
)

// Disk is what a stopped node's data directory holds.
type Disk struct {
	DataDir     string       `json:"data_dir"`
	NodeID      string       `json:"node_id"`
	ClusterID   string       `json:"cluster_id"`
	Term        uint64       `json:"term"`
	LastTerm    uint64       `json:"last_term"`
	LastIndex   uint64       `json:"last_index"`
	LastAt      time.Time    `json:"last_at,omitzero"` // when the leader made the last entry, by its clock
	Applied     uint64       `json:"applied"`          // what the state file includes; the log has the rest
	Revision    uint64       `json:"revision"`         // of the state file
	StateHash   string       `json:"state_hash"`       // of the state file
	Services    int          `json:"services"`
	Versions    int          `json:"versions"`
	Instances   int          `json:"instances"`
	OnProbation bool         `json:"on_probation"` // it came with an empty disk and had not caught up
	Diverged    bool         `json:"diverged"`     // its state was not the cluster's
	Members     []DiskMember `json:"members"`
}

// DiskMember is one member of the cluster as a disk knows it.
type DiskMember struct {
	ID      string `json:"id"`
	Address string `json:"address"` // of its peer port
	Voter   bool   `json:"voter"`
}

func (d *Disk) log() *cluster.Disk {
	return &cluster.Disk{LastTerm: d.LastTerm, LastIndex: d.LastIndex}
}

// Look reads what a stopped node's data directory holds and changes nothing.
// Errors: not_found, conflict while a node runs on it.
func Look(dataDir string) (*Disk, error) {
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return nil, err
	}
	log, err := cluster.Look(dir)
	if err != nil {
		return nil, err
	}
	v, err := fsm.Peek(filepath.Join(dir, "state"))
	if err != nil {
		return nil, fmt.Errorf("the state in %s cannot be read: %w", dir, err)
	}
	c := v.Registry.Counts()
	d := &Disk{
		DataDir: dir, NodeID: log.NodeID, ClusterID: v.ClusterID, Term: log.Term, LastTerm: log.LastTerm, LastIndex: log.LastIndex, LastAt: log.LastAt,
		Applied: v.Applied, Revision: v.Revision, StateHash: v.Hash.String(), Services: c.Services, Versions: c.Versions, Instances: c.Instances,
		OnProbation: log.OnProbation, Members: []DiskMember{},
	}
	if _, err := os.Stat(filepath.Join(dir, divergedFile)); err == nil {
		d.Diverged = true
	}
	for _, m := range log.Members {
		d.Members = append(d.Members, DiskMember(m))
	}
	return d, nil
}

// Loss is what is known when a cluster has lost its majority for good.
type Loss struct {
	Newest    *Disk    `json:"newest"` // the one to go on with
	ClusterID string   `json:"cluster_id"`
	Lost      []string `json:"lost"` // voters of which there is no disk
}

// Weigh chooses among the disks of stopped nodes the one to go on with.
// Errors: conflict where nothing is to be recovered, or the disks do not belong
// together.
func Weigh(disks []*Disk) (*Loss, error) {
	if len(disks) == 0 {
		return nil, fault.New(fault.BadRequest, "name at least one data directory")
	}
	l := &Loss{Lost: []string{}}
	seen := map[string]string{}
	for _, d := range disks {
		switch at, twice := seen[d.NodeID]; {
		case d.NodeID == "":
			return nil, fault.New(fault.BadRequest, "%s does not say whose it is: start that node once with this version, or take another disk", d.DataDir)
		case twice:
			return nil, fault.New(fault.Conflict, "%s and %s are both of node %s: name the one that ran last", at, d.DataDir, d.NodeID)
		case d.ClusterID != "" && l.ClusterID != "" && d.ClusterID != l.ClusterID:
			return nil, fault.New(fault.Conflict, "%s is of cluster %s, another of cluster %s", d.DataDir, d.ClusterID, l.ClusterID)
		}
		seen[d.NodeID] = d.DataDir
		if d.ClusterID != "" {
			l.ClusterID = d.ClusterID
		}
		if d.OnProbation || d.Diverged || len(d.Members) == 0 {
			continue
		}
		if l.Newest == nil || d.log().Newer(l.Newest.log()) {
			l.Newest = d
		}
	}
	if l.Newest == nil {
		return nil, fault.New(fault.Conflict, "none of these disks can be gone on with: each is empty, had not caught up, or differed from the cluster; restore a snapshot into a new cluster")
	}
	voters, there := 0, 0
	for _, m := range l.Newest.Members {
		if !m.Voter {
			continue
		}
		if voters++; seen[m.ID] != "" {
			there++
		} else {
			l.Lost = append(l.Lost, m.ID)
		}
	}
	if there > voters/2 {
		return nil, fault.New(fault.Conflict, "%d of the %d voters are there, which is a majority: start them, and nothing is lost", there, voters)
	}
	return l, nil
}

// Search says where to look for nodes that live, beside the addresses that the
// disks know: a node may have moved.
type Search struct {
	Peers  []string // addresses of peer ports
	Config *Config  // whose gossip is asked as well; nil: none
}

// Living asks at the address of each voter, and where else it is told to look,
// whether a node is there. Any one that answers is a conflict: it may be part of
// a cluster that lives, beside which another would be made; also one that says it
// is the node of a disk before us, which is not in use and so a copy.
func (l *Loss) Living(ctx context.Context, here []*Disk, s Search) error {
	var gossip []cluster.Neighbour
	if s.Config != nil {
		var err error
		if gossip, err = cluster.Seek(s.Config.Secrets.GossipKey, s.Config.Listen.Gossip, s.Config.Cluster.Join); err != nil {
			return err
		}
	}
	if len(gossip) > 0 {
		g := gossip[0]
		return fault.New(fault.Conflict, "node %s lives, by gossip, and its peer port is %s: if it has a leader, nothing is lost; if it has not, stop it, and name its disk as well; a node that has just ended is forgotten within seconds", g.ID, g.Address)
	}
	ask := func(address, of string, silence bool) error {
		switch id, other := cluster.Probe(ctx, address); {
		case id != "":
			return fault.New(fault.Conflict, "node %s is running at %s: if it has a leader, nothing is lost; if it has not, stop it, and name its disk as well", id, address)
		case other == cluster.Silent && silence:
			return fault.New(fault.Conflict, "at %s, %s, is %s: it may be a node, standing still; end it first", address, of, other)
		}
		return nil
	}
	for _, m := range l.Newest.Members {
		// A silent program at the address of a disk before us is not its node, which could not stand still without the disk.
		ours := slices.ContainsFunc(here, func(d *Disk) bool { return d.NodeID == m.ID })
		if err := ask(m.Address, "the address of node "+m.ID, !ours); err != nil {
			return err
		}
	}
	for _, address := range s.Peers {
		if err := ask(address, "which was named", true); err != nil {
			return err
		}
	}
	return nil
}

// Recover makes the newest disk's node the only member of its cluster. What the
// disk held before is copied to the folder that is returned.
func (l *Loss) Recover(now time.Time, logger *slog.Logger) (kept string, err error) {
	d := l.Newest
	address := ""
	for _, x := range d.Members {
		if x.ID == d.NodeID {
			address = x.Address
		}
	}
	if address == "" {
		return "", fault.New(fault.Conflict, "node %s was no member of the cluster any more", d.NodeID)
	}
	if again, err := Look(d.DataDir); err != nil {
		return "", err
	} else if again.LastIndex != d.LastIndex || again.LastTerm != d.LastTerm {
		return "", fault.New(fault.Conflict, "%s has changed since it was looked at: is its node being started?", d.DataDir)
	}
	m, err := fsm.Open(filepath.Join(d.DataDir, "state"), fsm.Options{}) // from here on no node can start there
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	kept = filepath.Join(d.DataDir, "before-recover-"+now.UTC().Format("20060102T150405Z"))
	if err := os.Mkdir(kept, 0o700); err != nil {
		return "", err
	}
	for _, part := range []string{"raft", "state"} {
		if err := copyTree(filepath.Join(kept, part), filepath.Join(d.DataDir, part)); err != nil {
			return "", errors.Join(fmt.Errorf("nothing was changed: a copy could not be made: %w", err), os.RemoveAll(kept))
		}
	}
	if err := cluster.Recover(cluster.Recovery{DataDir: d.DataDir, NodeID: d.NodeID, Address: address, Logger: logger}, m); err != nil {
		return "", fmt.Errorf("what the disk held is in %s: %w", kept, err)
	}
	return kept, nil
}

// copyTree copies a folder of files and folders, each synced.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.Mkdir(filepath.Join(to, rel), 0o700)
		}
		return copyFile(filepath.Join(to, rel), path)
	})
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}
