// Package cluster owns the nodes' agreement: Raft and its log, who is a
// member, the peer port with mutual TLS, calls between nodes, group commit and
// the proof that a read is not stale. It is handed a state machine and knows
// nothing of what the commands in the log mean. It refuses to decide: it never
// admits a change, never forwards a call twice, never believes gossip about
// who may vote.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/muster-registry/muster/cluster/journal"
	"github.com/muster-registry/muster/fault"
)

// Cluster is one node's membership in a cluster. Its methods may be called
// from any goroutine; Handle and OnLeadership only before Start.
type Cluster struct {
	cfg      Config
	machine  Machine
	log      *slog.Logger
	metrics  *metrics
	instance string // new at every start

	handlers map[string]handler
	onLead   []func(context.Context)

	port      *port
	link      Link // in the place of port and gossip; nil: those
	gossip    *gossip
	peers     *peers
	store     *raftboltdb.BoltStore
	journal   *journal.Log // in front of the store
	snaps     *raft.FileSnapshotStore
	trans     *transport
	raft      *raft.Raft
	roll      *roll // the machine, as raft has it
	notify    chan bool
	tenure    atomic.Pointer[tenure]
	proposals chan *proposal
	flying    atomic.Pointer[[]*proposal] // the batch that Raft has
	writes    writes
	points    *gather // leader: confirmed rounds
	reads     *gather // follower: questions to the leader
	fresh     atomic.Pointer[time.Time]
	advertise atomic.Pointer[string]
	trouble   atomic.Pointer[fault.Error] // why this node is in no cluster
	consent   consent
	refusals  *scarce
	joining   chan struct{} // held while a node is taken in, one at a time
	disk      string        // identity of the data directory; "": none, in simulations
	probation probation

	life     context.Context // ends when the node stops
	end      context.CancelFunc
	done     <-chan struct{}
	tasks    sync.WaitGroup
	stopping atomic.Bool
	living   living
	pulse    pulse
	contacts contacts
}

// Open checks the configuration and opens the log on disk. Nothing listens
// and nothing is dialled before Start. A missing gossip key is an error.
func Open(cfg Config, m Machine) (*Cluster, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if _, err := cfg.raftConfig(); err != nil {
		return nil, err
	}
	c := &Cluster{
		cfg: cfg, machine: m, log: cfg.Logger, instance: uuid.NewString(),
		handlers: map[string]handler{}, notify: make(chan bool, 64),
		proposals: make(chan *proposal, maxBatch), joining: make(chan struct{}, 1), refusals: newScarce(),
	}
	c.writes = writes{bound: cfg.Storage.Stall, reserve: cfg.Storage.Reserve, hold: cfg.Storage.BeforeWrite, open: map[uint64]time.Time{}}
	c.lookForRoom()
	c.life, c.end = context.WithCancel(context.Background())
	c.done = c.life.Done()
	c.points = &gather{ask: c.round, life: c.life}
	c.reads = &gather{ask: c.askLeader, life: c.life}
	c.peers = newPeers(c)
	c.gossip = &gossip{c: c}
	c.metrics = newMetrics(c, cfg.Registerer)
	if cfg.PeerAdvertise != "" {
		c.advertise.Store(&cfg.PeerAdvertise)
	}
	c.handleOwn()
	if err := c.openStore(); err != nil {
		c.end()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) openStore() error {
	dir := filepath.Join(c.cfg.DataDir, "raft")
	// Raft would make the folder of its snapshots open to others.
	if err := os.MkdirAll(filepath.Join(dir, "snapshots"), 0o700); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot make %s", dir)
	}
	if err := noteID(dir, c.cfg.NodeID); err != nil {
		return err
	}
	var err error
	if c.cfg.Network == nil {
		if c.disk, err = diskID(dir); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, "log.db")
	if err := shrink(path, shrinkLeast); err != nil {
		c.log.Warn("the Raft log on disk was not made smaller", "file", path, "error", err)
	}
	c.store, err = raftboltdb.New(raftboltdb.Options{
		Path: path, NoSync: c.cfg.Storage.NoSync, MsgpackUseNewTimeFormat: true, BoltOptions: storeOptions(),
	})
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot open the Raft log in %s: is another muster running on it?", dir)
	}
	c.journal, err = journal.Open(dir, checked{c.store}, journal.Options{NoSync: c.cfg.Storage.NoSync, Through: c.cfg.Storage.Journal, OnFailure: func(err error) {
		c.log.Error("this node takes no more log entries", "error", err)
	}})
	if err != nil {
		_ = c.store.Close()
		return err
	}
	// raft would make it readable for others, and everything in it.
	closed := filepath.Join(dir, "snapshots")
	if err := errors.Join(os.MkdirAll(closed, 0o700), os.Chmod(closed, 0o700)); err != nil {
		_ = c.journal.Close()
		_ = c.store.Close()
		return fault.Wrap(fault.Internal, err, "cannot make %s", closed)
	}
	c.snaps, err = raft.NewFileSnapshotStoreWithLogger(dir, c.cfg.Storage.SnapshotRetain, raftLogger(c.log))
	if err != nil {
		_ = c.journal.Close()
		_ = c.store.Close()
		return fault.Wrap(fault.Internal, err, "cannot open the snapshots in %s", dir)
	}
	return nil
}

// Start listens on the peer and gossip ports, starts Raft from what the disk
// holds, and goes on in the background: it forms a cluster, or joins one, or
// takes up its place again. Ready says when that is done.
func (c *Cluster) Start(ctx context.Context) error {
	if err := c.open(ctx); err != nil {
		return err
	}
	if err := c.startRaft(); err != nil {
		c.close()
		return err
	}
	c.spawn(c.watchLeadership)
	c.spawn(c.propose)
	if c.link == nil {
		c.spawn(c.port.serve)
		c.spawn(c.servePeers)
		if err := c.gossip.start(); err != nil {
			return errors.Join(fault.Wrap(fault.Internal, err, "cannot gossip on %s", c.cfg.GossipAddr), c.Shutdown(ctx))
		}
		c.spawn(c.gossip.keep)
		c.spawn(c.gossip.tell)
	}
	c.spawn(c.settle)
	c.spawn(c.poll)
	c.spawn(c.keepPulse)
	c.spawn(c.succeed)
	c.spawn(c.mindDisk)
	return nil
}

func (c *Cluster) startRaft() error {
	rc, err := c.cfg.raftConfig()
	if err != nil {
		return err
	}
	rc.NotifyCh = c.notify
	list, err := c.snaps.List()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot list the Raft snapshots")
	}
	// Without a restore the checksum of the snapshot is not looked at either,
	// so it is left out only when the machine's own disk is as new.
	rc.NoSnapshotRestoreOnStart = len(list) == 0 || c.machine.AppliedIndex() >= list[0].Index
	if err := c.beginProbation(c.store); err != nil {
		return err
	}
	c.trans = c.newTransport()
	c.spawn(c.trans.filter)
	c.roll = c.newRoll(list)
	var machine raft.FSM = c.roll
	if c.cfg.Tracer != nil {
		machine = timedMachine{c.roll}
	}
	c.raft, err = newRaft(rc, machine, &cache{LogStore: watchedLog{c.journal, &c.writes}}, watchedStable{c.store, c}, c.snaps, c.trans)
	if err != nil {
		_ = c.trans.Close()
		return fault.Wrap(fault.Internal, err, "Raft cannot start from %s", c.cfg.DataDir)
	}
	c.roll.raft.Store(c.raft)
	return nil
}

// spawn runs a task that Shutdown waits for.
func (c *Cluster) spawn(task func()) {
	c.tasks.Add(1)
	go func() {
		defer c.tasks.Done()
		task()
	}()
}

// Shutdown hands the leadership over, leaves the gossip, and stops. When the
// context ends first, what is left is cut off; nothing acknowledged is lost.
func (c *Cluster) Shutdown(ctx context.Context) error {
	if c.stopping.Swap(true) {
		return nil
	}
	if c.raft != nil && c.raft.State() == raft.Leader && c.voters() > 1 {
		if err := c.transfer(ctx, ""); err != nil {
			c.log.Warn("the leadership could not be handed over; the others will elect", "error", err)
		}
	}
	c.gossip.leave()
	return c.Halt(ctx)
}

// Halt ends everything on this node, as a crash would for the others. It is
// Shutdown without a word to them.
func (c *Cluster) Halt(ctx context.Context) error {
	c.stopping.Store(true)
	c.end()
	c.close()
	if list := c.gossip.list.Load(); list != nil {
		_ = list.Shutdown()
	}
	var err error
	if c.raft != nil {
		err = wait(ctx, c.raft.Shutdown())
	}
	if err == nil {
		c.tasks.Wait()
	}
	if e := errors.Join(c.journal.Close(), c.store.Close()); err == nil {
		err = e
	}
	c.metrics.unregister(c.cfg.Registerer)
	if err != nil {
		return fmt.Errorf("the node did not stop cleanly: %w", err)
	}
	return nil
}

// wait is a future's Error with a context.
func wait(ctx context.Context, f raft.Future) error {
	ch := make(chan error, 1)
	go func() { ch <- f.Error() }()
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ID is this node's id.
func (c *Cluster) ID() string { return c.cfg.NodeID }

// Address is where others reach this node's peer port; known after Start.
func (c *Cluster) Address() string {
	if a := c.advertise.Load(); a != nil {
		return *a
	}
	return ""
}

// Ready returns nil once this node has caught up with the cluster since its
// start, and is not stopping; else a not_ready that says why. A node cut off
// later stays ready and grows stale: see Staleness.
func (c *Cluster) Ready() error {
	switch {
	case c.stopping.Load():
		return fault.New(fault.NotReady, "the node is stopping")
	case c.fresh.Load() != nil:
		return nil
	case c.trouble.Load() != nil:
		return fault.Wrap(fault.NotReady, c.trouble.Load(), "the node is in no cluster: %s", c.trouble.Load().Detail)
	case c.raft == nil:
		return fault.New(fault.NotReady, "the node is starting")
	}
	if _, known := c.Leader(); !known {
		return fault.New(fault.NotReady, "the node knows of no leader yet")
	}
	return fault.New(fault.NotReady, "the node is catching up: it has applied %d of %d entries it knows of", c.machine.AppliedIndex(), c.raft.CommitIndex())
}
