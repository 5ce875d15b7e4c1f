package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/cluster/journal"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/trace"
	"github.com/prometheus/client_golang/prometheus"
)

// Config is what one node needs to be part of a cluster. Zero values of the
// optional fields mean the default named beside them.
type Config struct {
	NodeID  string // the identity, apart from any address; must be the one in the node's certificate
	DataDir string // raft/ is made in it

	PeerAddr      string // host:port to listen on; port 0 takes a free one
	PeerAdvertise string // host:port others dial; default: what PeerAddr became

	GossipAddr      string   // host:port for gossip, TCP and UDP
	GossipAdvertise string   // host:port others gossip to; default: GossipAddr
	GossipKey       []byte   // 16, 24 or 32 bytes; required
	Join            []string // gossip addresses to find the others by; the own one may be among them

	// BootstrapExpect is how many nodes form the cluster at its first start.
	// 0: this node only ever joins.
	BootstrapExpect int

	// MaxStaleness is how long this node answers callers without its leader, as
	// the leader gets to know it: see [Cluster.Grace]. 30 s; negative: without end.
	MaxStaleness time.Duration

	TrustDomain string
	// Credentials gives the node's certificate and the CAs that peers must be
	// signed by. It is asked at every handshake, so files can be replaced.
	Credentials func() (*tls.Certificate, *x509.CertPool)
	// Revoked says whether a node's certificate has been revoked. It is asked at
	// every handshake and by [Cluster.Recheck]. Optional: nothing is revoked.
	Revoked func(*x509.Certificate) bool

	Meta map[string]string // gossiped to the others; together at most about 400 bytes
	// StatusExtra gives a JSON object shown in Status, as it is. Optional.
	StatusExtra func() []byte
	// OnRefused is told of every connection the peer port refused, with the
	// certificate shown where there was one. Optional; must not block.
	OnRefused func(remote net.Addr, shown *x509.Certificate, why error)

	Logger     *slog.Logger          // default: slog.Default
	Registerer prometheus.Registerer // nil: metrics are counted, not registered
	Tracer     *trace.Tracer         // nil: nothing is traced
	// Dial opens outgoing connections to peer ports. Default: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Network takes the place of the peer port and the gossip. Default: those.
	Network Network

	// OnRemoved is told of a member that is gone, with one of the Removed…
	// reasons: on the node that removed it, and where that fell meanwhile on the
	// next leader as well, which does not know why. Optional; must not block.
	OnRemoved func(id, why string)

	// Format is the newest replicated format that this node knows. Default:
	// command.Format; another in tests of mixed versions.
	Format uint32

	Timing     Timing
	Storage    Storage
	Membership Membership
}

// Membership holds the rules by which the leader gives a vote, and removes who
// is dead.
type Membership struct {
	Stabilization time.Duration // a non-voter that was healthy for so long without a break votes; 10 s
	MaxContact    time.Duration // healthy: it heard from the leader no longer ago than this; 500 ms
	MaxTrailing   uint64        // healthy: it lacks no more log entries than this; 250
	DeadAfter     time.Duration // a member that has not answered for so long is removed; 0: never
	Every         time.Duration // between two looks of the leader at all members; 300 ms
	MinQuorum     int           // a dead voter stays where fewer voters than this would be left
	// Probation is the least time a node without a past stays out of elections:
	// whatever election it may have voted in before its disk was lost has been
	// decided by then. 10 s.
	Probation time.Duration
}

// Timing holds Raft's clocks and the poll for freshness.
type Timing struct {
	Heartbeat time.Duration // without a leader for one to two of these a follower seeks election; 500 ms
	Election  time.Duration // a candidate's patience; 500 ms
	Lease     time.Duration // a leader without a majority for so long steps down; 400 ms
	Commit    time.Duration // at most between a commit and its being told to idle followers; 10 ms
	Poll      time.Duration // between two proofs of freshness; 250 ms
}

// Storage holds what is kept on disk and in memory of the log.
type Storage struct {
	SnapshotThreshold uint64        // entries since the last snapshot; 65 536
	SnapshotInterval  time.Duration // between two looks at the threshold; 30 s
	TrailingLogs      uint64        // entries kept behind a snapshot; 16 384
	SnapshotRetain    int           // snapshots kept; 2
	NoSync            bool          // never outside of simulations: loses acknowledged writes
	// Journal is what the journal of the log reads and writes its file through,
	// and which decides what a sync is. Default: the file itself. For simulations.
	Journal     func(journal.File) journal.File
	Stall       time.Duration // how long a write to the log may take before this node leaves the lead to others; 2 s, negative: any time
	Reserve     uint64        // bytes that are to stay free on the disk; 0: none
	BeforeWrite func()        // called before each write of the log or of a vote; for tests of disks that stall
}

// Machine is what cluster needs of the state machine.
//
// ApplyBatch answers each LogCommand with a []command.Result, one for each
// command of the batch in it, and each LogConfiguration with nil. It must
// count both towards AppliedIndex.
type Machine interface {
	raft.BatchingFSM
	// AppliedIndex is the index of the last entry whose effects can be read.
	AppliedIndex() uint64
	// AwaitApplied returns nil once AppliedIndex is at or past index, or the
	// context's error.
	AwaitApplied(ctx context.Context, index uint64) error
	// ClusterID is empty until a ClusterInit was applied.
	ClusterID() string
	// Level is the feature level: the newest format of the batches it has
	// applied, at least command.Base.
	Level() uint32
}

func orElse[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// check fills in defaults and refuses what cannot work.
func (cfg *Config) check() error {
	switch {
	case cfg.NodeID == "":
		return fault.New(fault.BadRequest, "the node has no id: set node.id")
	case cfg.DataDir == "":
		return fault.New(fault.BadRequest, "the node has no data directory")
	case cfg.TrustDomain == "" || cfg.Credentials == nil:
		return fault.New(fault.BadRequest, "the peer port needs a trust domain, a node certificate and its CA")
	case cfg.BootstrapExpect < 0:
		return fault.New(fault.BadRequest, "bootstrap_expect is negative")
	}
	switch len(cfg.GossipKey) {
	case 16, 24, 32:
	default:
		return fault.New(fault.BadRequest, "gossip needs a key of 16, 24 or 32 bytes, this one has %d: without a key muster does not start", len(cfg.GossipKey))
	}
	for _, a := range []string{cfg.PeerAddr, cfg.GossipAddr} {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return fault.New(fault.BadRequest, "%q is not host:port", a)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext
	}
	if cfg.OnRefused == nil {
		cfg.OnRefused = func(net.Addr, *x509.Certificate, error) {}
	}
	if cfg.StatusExtra == nil {
		cfg.StatusExtra = func() []byte { return nil }
	}
	if cfg.OnRemoved == nil {
		cfg.OnRemoved = func(string, string) {}
	}
	t, s, m := &cfg.Timing, &cfg.Storage, &cfg.Membership
	orElse(&cfg.MaxStaleness, 30*time.Second)
	orElse(&t.Heartbeat, 500*time.Millisecond)
	orElse(&t.Election, 500*time.Millisecond)
	orElse(&t.Lease, 400*time.Millisecond)
	orElse(&t.Commit, 10*time.Millisecond)
	orElse(&t.Poll, 250*time.Millisecond)
	orElse(&s.SnapshotThreshold, 65536)
	orElse(&s.SnapshotInterval, 30*time.Second)
	orElse(&s.TrailingLogs, 16384)
	orElse(&s.SnapshotRetain, 2)
	orElse(&cfg.Format, command.Format)
	orElse(&m.Stabilization, 10*time.Second)
	orElse(&m.Probation, 10*time.Second)
	orElse(&m.Every, stewardEvery)
	orElse(&m.MaxContact, 500*time.Millisecond)
	orElse(&m.MaxTrailing, 250)
	orElse(&s.Stall, 2*time.Second)
	s.Stall = max(s.Stall, 0)
	return nil
}

// raftConfig translates the settings. NotifyCh is set by the caller.
func (cfg *Config) raftConfig() (*raft.Config, error) {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(cfg.NodeID)
	rc.HeartbeatTimeout = cfg.Timing.Heartbeat
	rc.ElectionTimeout = cfg.Timing.Election
	rc.LeaderLeaseTimeout = cfg.Timing.Lease
	rc.CommitTimeout = cfg.Timing.Commit
	rc.MaxAppendEntries = maxAppendEntries
	rc.SnapshotThreshold = cfg.Storage.SnapshotThreshold
	rc.SnapshotInterval = cfg.Storage.SnapshotInterval
	rc.TrailingLogs = cfg.Storage.TrailingLogs
	rc.NoLegacyTelemetry = true
	// A removed node keeps its process: it answers, says why it is not ready,
	// and can be looked at.
	rc.ShutdownOnRemove = false
	rc.Logger = raftLogger(cfg.Logger)
	if err := raft.ValidateConfig(rc); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the Raft timings do not fit together: %s", fmt.Sprint(err))
	}
	return rc, nil
}
