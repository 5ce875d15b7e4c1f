// Package node is the composition root: it makes one running node out of its
// configuration and the other rooms, and is the only room that knows them all.
// It holds no rule of its own; what crosses several rooms (a policy activation
// that waits for every node, a restore that is staged through the log) is put
// together here.
package node

import (
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/alarm"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/cluster"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/health"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/identity/provider"
	"github.com/muster-registry/muster/identity/spiffe"
	"github.com/muster-registry/muster/lease"
	"github.com/muster-registry/muster/pki/issuer"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/breakglass"
	"github.com/muster-registry/muster/policy/decision"
	"github.com/muster-registry/muster/policy/git"
	"github.com/muster-registry/muster/policy/rego"
	"github.com/muster-registry/muster/policy/rego/library"
	"github.com/muster-registry/muster/policy/shadow"
	"github.com/muster-registry/muster/policy/sign"
	"github.com/muster-registry/muster/quota"
	"github.com/muster-registry/muster/registry/definition"
	"github.com/muster-registry/muster/setting"
	"github.com/muster-registry/muster/trace"
)

// A node that shuts down waits so long for its callers, and then for its log.
const (
	drainTime = 5 * time.Second
	stopTime  = 30 * time.Second
)

// Node is one running node.
type Node struct {
	cfg             *Config
	version         string
	definitionRules rest.Library
	logger          *slog.Logger

	machine *fsm.Machine
	changes *feed.Feed
	cluster *cluster.Cluster
	engine  *rego.Engine
	shadow  *shadow.Shadow
	decider policy.Decider // the engine, and those who watch it: all decisions are made through it
	gate    *admit.Gate
	certs   *certificates
	access  access

	flow     *flow.Flow
	quotas   *quota.Keeper
	override *breakglass.Override // lifts refusals; stands between the engine and those who watch
	openings *breakglass.Keeper
	leases   *lease.Keeper
	beats    *lease.Batch
	checker  *health.Checker
	judge    *health.Judge
	metrics  *metrics
	alarms   *alarm.Board
	lookout  lookout
	clock    *identity.Clock // by which credentials end

	tickets   *tickets
	providers *provider.Set  // nil: none are configured
	issuer    *issuer.Issuer // nil: this node makes no certificates
	trust     *spiffe.Trust  // which authorities count for whom
	git       *git.Source    // nil: none is configured
	log       *decision.Log
	decisions *decision.Store
	masker    *decision.Masker
	trail     *audit.Trail // nil: none is kept
	saves     *scheduled   // nil: no snapshots are scheduled
	heads     heads
	mirror    *mirrored     // nil: the trail is not mirrored
	tracer    *trace.Tracer // nil: nothing is traced

	signatures *sign.Verifier
	ruled      chan struct{} // settings may have changed, for a node that insists on one

	everywhere  time.Duration // see variant
	beforeWrite func()

	policies chan *fsm.View // the newest view whose policies may need compiling
	draining atomic.Bool
	diverged *divergence
	split    atomic.Bool // this leader sees different states, and no majority for one
}

// Run runs one node until the context ends, then hands over the leadership,
// lets callers finish, and stops. The error says why the node could not start
// or had to stop.
func Run(ctx context.Context, cfg *Config, version string, logger *slog.Logger) error {
	return run(ctx, cfg, version, logger, variant{everywhere: everywhere})
}

// variant is what tests make different on one node.
type variant struct {
	without    []string      // built-ins that its engine lacks
	everywhere time.Duration // how long it waits for others around a change of the policies

	beforeWrite func()           // called before each write of the Raft log; nil: nothing
	wall        func() time.Time // its wall clock; nil: the system's
}

func run(ctx context.Context, cfg *Config, version string, logger *slog.Logger, v variant) (err error) {
	n := &Node{everywhere: v.everywhere, beforeWrite: v.beforeWrite, cfg: cfg, version: version, logger: slog.New(trace.Logs(logger.Handler())).With("node", cfg.NodeID), policies: make(chan *fsm.View, 1), ruled: make(chan struct{}, 1)}
	n.lookout.self, n.clock = cfg.NodeID, identity.NewClock(v.wall)
	n.openAlarms()
	if err := n.openTrust(); err != nil {
		return err
	}
	certs, err := openCertificates(cfg.TLS, cfg.NodeID, cfg.Cluster.TrustDomain, n.trust, n.logger)
	if err != nil {
		return err
	}
	certs.now = n.clock.Now
	n.certs, n.tickets = certs, certs.tickets
	if err := n.checkSecretFiles(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	if n.diverged, err = openDivergence(cfg.DataDir); err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	if n.metrics, err = newMetrics(registry); err != nil {
		return err
	}
	registry.MustRegister(certs, n.trust)
	if err := n.openIssuer(); err != nil {
		return err
	}
	endTracing, err := n.openTracing(ctx, registry)
	if err != nil {
		return err
	}
	defer endTracing()
	n.openFlow()
	if n.machine, err = openState(cfg.DataDir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.machine.Close(), n.closeAudit()) }()
	if err := n.openAudit(registry); err != nil {
		return err
	}
	if err := n.openSnapshots(registry); err != nil {
		return err
	}
	n.changes = feed.New(feed.Options{Events: cfg.Watch.History, Bytes: int64(cfg.Watch.HistoryBytes), Registry: registry}, n.machine.View().Revision)
	n.engine = rego.New(rego.Options{
		Limit: cfg.Limits.Evaluation, ValidSchema: definition.Valid, MinCoverage: cfg.Policy.MinCoverage, Without: v.without,
		Logger: n.logger, Compiled: n.metrics.engineWatched(),
	})
	defer n.engine.Close()
	if err := n.openDecisionLog(registry); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.log.Close()) }()

	if n.cluster, err = cluster.Open(n.clusterConfig(certs, registry), n.machine); err != nil {
		return err
	}
	n.machine.Compact(n.roomToCompact)
	rules, err := library.New(library.Options{Logger: n.logger})
	if err != nil {
		return fmt.Errorf("the rules about definitions: %w", err)
	}
	if n.definitionRules.Modules, err = library.Modules(); err != nil {
		return fmt.Errorf("the rules about definitions: %w", err)
	}
	n.definitionRules.Rules = rules.Rules()
	n.wire(rules)
	if err := n.wireWebhooks(); err != nil {
		return err
	}
	if err := n.wireHealth(registry); err != nil {
		return err
	}
	if err := n.wireGit(); err != nil {
		return err
	}
	if err := n.wireProviders(registry); err != nil {
		return err
	}
	n.metrics.watch(n)
	n.watchAlarms(registry)
	return n.serve(ctx, certs, registry)
}

func (n *Node) clusterConfig(certs *certificates, reg prometheus.Registerer) cluster.Config {
	c := n.cfg
	stall := c.Raft.DiskStall
	if stall == 0 {
		stall = -1
	}
	return cluster.Config{
		NodeID: c.NodeID, DataDir: c.DataDir,
		PeerAddr: c.Listen.Peer, PeerAdvertise: c.Advertise.Peer,
		GossipAddr: c.Listen.Gossip, GossipAdvertise: c.Advertise.Gossip,
		GossipKey: c.Secrets.GossipKey, Join: c.Cluster.Join,
		BootstrapExpect: c.Cluster.BootstrapExpect,
		TrustDomain:     c.Cluster.TrustDomain, Credentials: certs.peer, Revoked: n.revokedNode,
		MaxStaleness: c.Isolation.MaxStaleness, Meta: n.card(),
		StatusExtra: n.statusExtra, OnRefused: n.refusedPeer, OnRemoved: n.removed, Membership: c.Cluster.rules(),
		Logger: n.logger, Registerer: reg, Tracer: n.tracer,
		Timing: cluster.Timing{
			Heartbeat: c.Raft.HeartbeatTimeout, Election: c.Raft.ElectionTimeout, Lease: c.Raft.LeaderLease,
			// A follower hears of a commit with the next entries, or after this.
			Commit: 10 * time.Millisecond,
		},
		Storage: cluster.Storage{
			SnapshotThreshold: c.Raft.SnapshotThreshold, SnapshotInterval: c.Raft.SnapshotInterval, TrailingLogs: c.Raft.TrailingLogs,
			Stall: stall, Reserve: uint64(c.Raft.DiskReserve), BeforeWrite: n.beforeWrite,
		},
	}
}

// openState loads the state.
func openState(dataDir string) (*fsm.Machine, error) {
	return fsm.Open(filepath.Join(dataDir, "state"), fsm.Options{})
}

// wire connects the rooms; nothing runs yet.
func (n *Node) wire(rules *library.Library) {
	n.openBreakGlass()
	n.shadow = shadow.New(shadow.Options{Engine: n.engine, Mask: n.masked, Logger: n.logger})
	n.decider = decision.Observed(n.override.Decider(n.engine), n.shadow, n.log, decisionsTold{n})
	n.gate = admit.New(n.admission, log{n}, n.decider, n.engine, again)
	n.wireKeys()
	n.wireBreakGlass()
	n.wireAccess()
	n.gate.Setting(setting.Schema, admit.Schemas())
	n.gate.Definitions(rules)
	n.leases = lease.New(log{n}, n.cfg.Health.PanicThreshold, n.logger)
	n.beats = lease.NewBatch(n.cluster.Call)

	n.wireQuotas()
	n.cluster.Handle(methodSubmit, true, n.serveSubmit)
	n.cluster.Handle(methodTry, true, n.serveSubmit)
	n.cluster.Handle(lease.Method, true, func(ctx context.Context, _ string, p []byte) ([]byte, error) { return n.leases.Serve(ctx, p) })
	n.cluster.Handle(methodReached, false, n.serveReached)
	n.cluster.Handle(methodPrepared, false, n.servePrepared)
	n.cluster.Handle(methodDecision, false, n.serveDecision)
	n.cluster.Handle(methodImpact, false, n.serveImpact)
	n.cluster.Handle(methodReplay, false, n.serveReplay)
	n.cluster.Handle(methodHead, true, n.serveHead)
	n.cluster.Handle(methodHashAt, false, n.serveHashAt)
	n.cluster.Handle(methodTickets, true, n.serveTickets)
	n.cluster.Handle(methodSaved, true, n.serveSaved)
	n.cluster.Handle(methodDiverged, false, n.serveDiverged)
	n.cluster.OnLeadership(n.lead)

	n.machine.OnApply(n.applied)
}

// applied follows the state machine, on its goroutine.
func (n *Node) applied(v *fsm.View, ev fsm.Events) {
	n.tell(v, ev)
	if ev.Replaced {
		n.leases.Reset()
		n.checker.Reset()
	} else if len(ev.Instances) > 0 {
		keys := make([]lease.Key, 0, len(ev.Instances))
		for _, k := range ev.Instances {
			ns, rest, _ := strings.Cut(k, "/")
			svc, id, _ := strings.Cut(rest, "/")
			keys = append(keys, lease.Key{Namespace: ns, Service: svc, ID: id})
			n.checker.Changed(ns, svc, id, v.Registry)
		}
		n.leases.Changed(keys, v.Registry)
	}
	if len(ev.Settings) > 0 || ev.Replaced {
		n.openings.Changed()
	}
	if ev.Policies {
		n.shadow.Follow(v.Policy)
		select {
		case <-n.policies: // an older view that was not looked at yet
		default:
		}
		n.policies <- v
	}
}

// lead runs while this node leads.
func (n *Node) lead(ctx context.Context) {
	n.quotas.Lead()
	go n.watchRestores(ctx)
	go n.saveOnSchedule(ctx)
	go n.openings.Run(ctx)
	go n.compareStates(ctx)
	go n.stepAside(ctx)
	go n.lookout.run(ctx, n.cluster.Status)
	go n.sweepRevocations(ctx)
	n.leases.Run(ctx)
}

// serve runs everything until the context ends or a listener fails.
func (n *Node) serve(ctx context.Context, certs *certificates, reg *prometheus.Registry) error {
	running, stop := context.WithCancel(context.Background())
	defer stop()
	if a := n.machine.View().Policy.Active(); a != nil {
		// Decisions must not wait for the compiler.
		if err := n.engine.Prepare(ctx, a); err != nil {
			n.logger.Error("the active policy does not compile on this node, which is out of service until a revision is active that does",
				"policy_revision", a.Number, "error", err)
		}
	}
	n.shadow.Follow(n.machine.View().Policy)
	go n.shadow.Run(running)
	go n.beats.Run(running)
	go n.followCertificates(running, certs)
	go n.trust.Run(running)
	go n.quotas.Run(running)
	if n.providers != nil {
		go n.providers.Run(running)
	}
	go n.progress(running)
	go func() {
		for {
			select {
			case <-running.Done():
				return
			case v := <-n.policies:
				n.preparePolicies(running, v)
			}
		}
	}()

	servers, err := n.listen(certs, reg)
	if err != nil {
		return err
	}
	if err := n.cluster.Start(ctx); err != nil {
		for _, s := range servers {
			s.close()
		}
		return err
	}
	// These ask the leader, whom nobody knows before.
	go n.followTickets(running)
	go n.followHeads(running)
	go n.followReset(running)
	go n.alarms.Run(running)
	go n.followSaved(running)
	go n.checker.Run(running)
	if n.cfg.Policy.RequireSignature {
		go n.requireSignature(running)
	}
	failed := make(chan error, len(servers))
	for _, s := range servers {
		go func() { failed <- s.run() }()
	}
	go n.follow(running, certs)
	n.logger.Info("node is up", "control", n.cfg.Listen.Control, "policy", n.cfg.Listen.Policy, "peer", n.cfg.Listen.Peer, "version", n.version, "fips140", fips140.Enabled())
	select {
	case <-ctx.Done():
		n.logger.Info("shutting down")
		n.notify(daemon.SdNotifyStopping)
	case err = <-failed:
	case <-n.machine.Halted():
		err = n.machine.Trouble()
		n.logger.Error("this version is too old for the cluster, and stops", "error", err)
	}
	return errors.Join(err, n.shutdown(servers))
}

// shutdown drains: new calls are refused, the leadership goes to another node,
// calls under way finish.
func (n *Node) shutdown(servers []*server) error {
	n.draining.Store(true)
	n.changes.Close() // watchers go on elsewhere
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if n.cluster.IsLeader() && len(n.cluster.Members()) > 1 {
		if err := n.cluster.TransferLeader(ctx, ""); err != nil {
			n.logger.Warn("the leadership could not be handed over; the others will elect", "error", err)
		}
	}
	var errs []error
	for _, s := range servers {
		if err := s.Shutdown(ctx); err != nil {
			errs = append(errs, s.Close())
		}
	}
	n.lastHead()
	// Callers who used up all of the time must not take the log's along.
	stop, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	return errors.Join(append(errs, n.cluster.Shutdown(stop))...)
}
