package sim

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/cluster"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/lease"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
)

const methodSubmit = "sim.submit"

// Node is one process of a node: what package node makes of the rooms, without
// its edges.
type Node struct {
	ID      string
	dir     string
	seat    *seat
	changes *feed.Feed
	machine *fsm.Machine
	cluster *cluster.Cluster
	gate    *admit.Gate
	leases  *lease.Keeper
	beats   *lease.Batch
	running context.Context
	end     context.CancelFunc
}

// begin starts a process of the node on what its disk holds.
func (w *World) begin(id string, expect int) (n *Node, err error) {
	s := w.seat(id)
	n = &Node{ID: id, dir: s.dir, seat: s}
	n.running, n.end = context.WithCancel(context.Background())
	if n.machine, err = fsm.Open(filepath.Join(s.dir, "state"), fsm.Options{NoSync: true}); err != nil {
		return nil, err
	}
	n.machine.Record(&scribe{ledger: w.ledger, node: id})
	n.cluster, err = cluster.Open(cluster.Config{
		NodeID: id, DataDir: s.dir, PeerAddr: s.address, GossipAddr: s.address, GossipKey: make([]byte, 32),
		BootstrapExpect: expect, TrustDomain: "sim", Credentials: func() (*tls.Certificate, *x509.CertPool) { return nil, nil },
		Logger: w.log.With("node", id), Dial: w.Net.Dial(id), Network: w.Net, Timing: w.opts.Timing,
		Membership: w.opts.Membership,
		Storage: cluster.Storage{
			NoSync: true, Journal: s.paper.open,
			SnapshotThreshold: w.opts.SnapshotThreshold, SnapshotInterval: w.opts.SnapshotInterval, TrailingLogs: w.opts.TrailingLogs,
		},
	}, n.machine)
	if err != nil {
		return nil, errors.Join(err, n.machine.Close())
	}
	n.wire(w)
	go n.beats.Run(n.running)
	go w.follow(n)
	if err := n.cluster.Start(n.running); err != nil {
		return nil, errors.Join(err, n.machine.Close())
	}
	return n, nil
}

func (n *Node) wire(w *World) {
	n.gate = admit.New(n.admission, log{n}, engine{}, engine{}, again)
	n.gate.Setting(setting.Revocation, admit.Setting{Resource: string(setting.Revocation), Canonical: asIs})
	n.leases = lease.New(log{n}, 0, w.log)
	n.beats = lease.NewBatch(n.cluster.Call)
	n.cluster.Handle(methodSubmit, true, n.serveSubmit)
	n.cluster.Handle(lease.Method, true, func(ctx context.Context, _ string, p []byte) ([]byte, error) { return n.leases.Serve(ctx, p) })
	n.cluster.OnLeadership(func(ctx context.Context) {
		w.leaders.Add(1)
		n.leases.Run(ctx)
	})
	n.changes = feed.New(feed.Options{}, n.machine.View().Revision)
	n.machine.OnApply(n.applied)
}

func asIs(_ context.Context, _ admit.State, _ *command.Intent, _ *command.Command, p *command.Put) ([]byte, error) {
	return p.Spec, nil
}

func (n *Node) applied(v *fsm.View, ev fsm.Events) {
	n.tell(v, ev)
	if ev.Replaced {
		n.leases.Reset()
		return
	}
	var keys []lease.Key
	for _, k := range ev.Instances {
		part := strings.SplitN(k, "/", 3)
		keys = append(keys, lease.Key{Namespace: part[0], Service: part[1], ID: part[2]})
	}
	n.leases.Changed(keys, v.Registry)
}

func (n *Node) admission() admit.State {
	v := n.machine.View()
	return admit.State{Revision: v.Revision, Registry: v.Registry, Policy: v.Policy, Settings: v.Settings, Tokens: v.Tokens, Restore: v.Restoring, Repeat: n.machine.Repeat}
}

func again(err error) bool {
	return errors.Is(err, fsm.ErrStale) || errors.Is(err, fsm.ErrPolicyChanged) || errors.Is(err, fsm.ErrConditionsChanged) || errors.Is(err, setting.ErrStale) || errors.Is(err, policy.ErrOvertaken)
}

// log is the replicated log as the gate and the leases see it; what they stamp
// is by the node's own clock.
type log struct{ *Node }

func (l log) Propose(ctx context.Context, c *command.Command) (*command.Receipt, error) {
	c.Time += l.seat.skew.Load()
	return l.cluster.Propose(ctx, c)
}

func (l log) ReadIndex(ctx context.Context) error { return l.cluster.ReadIndex(ctx) }

func (l log) Registry() *registry.Snapshot { return l.machine.View().Registry }

// Submit has the leader execute an intent, as an edge of this node does.
func (n *Node) Submit(ctx context.Context, in *command.Intent) (*command.Receipt, error) {
	return alive(n, func() (*command.Receipt, error) {
		if n.cluster.IsLeader() {
			r, err := n.gate.Execute(ctx, in)
			if !fault.Is(err, fault.NoLeader) || fault.From(err).Outcome == fault.Unknown {
				return r, err
			}
		}
		payload, err := proto.Marshal(in)
		if err != nil {
			return nil, err
		}
		raw, err := n.cluster.Call(ctx, methodSubmit, payload)
		if err != nil {
			return nil, err
		}
		r := new(command.Receipt)
		return r, proto.Unmarshal(raw, r)
	})
}

func (n *Node) serveSubmit(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	in := new(command.Intent)
	if err := proto.Unmarshal(payload, in); err != nil {
		return nil, err
	}
	r, err := n.gate.Execute(ctx, in)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(r)
}

// Read gives the view as of a moment after the call: linearizable.
func (n *Node) Read(ctx context.Context) (*fsm.View, error) {
	return alive(n, func() (*fsm.View, error) {
		if err := n.cluster.ReadIndex(ctx); err != nil {
			return nil, err
		}
		return n.machine.View(), nil
	})
}

// Local gives the view as it is and how old it may be, as a node that
// answers gives it.
func (n *Node) Local(context.Context) (v *fsm.View, age time.Duration, err error) {
	v, err = alive(n, func() (*fsm.View, error) {
		if err := n.cluster.Ready(); err != nil {
			return nil, err
		}
		age = n.cluster.Staleness()
		return n.machine.View(), nil
	})
	return v, age, err
}

// Await gives the view once it has a revision.
func (n *Node) Await(ctx context.Context, revision uint64) (*fsm.View, error) {
	return alive(n, func() (*fsm.View, error) {
		err := n.machine.AwaitRevision(ctx, revision)
		return n.machine.View(), err
	})
}

// Beat is the heartbeat of an instance, at this node.
func (n *Node) Beat(ctx context.Context, service, id string) error {
	_, err := alive(n, func() (struct{}, error) {
		return struct{}{}, n.beats.Beat(ctx, lease.Key{Namespace: namespace, Service: service, ID: id})
	})
	return err
}

// alive lets nothing out of a process that has ended: whoever asked it hears
// that the connection broke.
func alive[T any](n *Node, do func() (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	done := make(chan answer, 1)
	go func() {
		v, err := do()
		done <- answer{v, err}
	}()
	var none T
	select {
	case a := <-done:
		if n.running.Err() == nil {
			return a.v, a.err
		}
	case <-n.running.Done():
	}
	return none, fault.Lost(fault.NoLeader, nil, "node %s has ended", n.ID)
}

// crash ends the process as a power cut does: nothing more goes out, and what
// was not synced may be gone. settled waits until nobody in the bubble runs.
func (w *World) crash(n *Node, settled func()) error {
	s := w.seat(n.ID)
	n.end()
	w.Net.Detach(n.ID)
	s.paper.cut()
	settled()
	next := w.folder(n.ID)
	if err := copyTree(n.dir, next); err != nil {
		return fmt.Errorf("what the crash of %s leaves: %w", n.ID, err)
	}
	s.dir = next
	return n.halt()
}

// halt ends what is left of a process.
func (n *Node) halt() error {
	n.end()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	_ = n.cluster.Halt(ctx) // its disk may be gone
	return n.machine.Close()
}
