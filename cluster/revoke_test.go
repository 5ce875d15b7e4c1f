package cluster

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
)

// A node that hears its leader and cannot prove that it has caught up lets
// nobody in; one that is cut off both ways goes by its staleness alone; and a
// leader who can be asked is enough.
func TestCurrentProvesWhatANodeKnows(t *testing.T) {
	l := newLab(t)
	l.wired = true
	l.tune = func(cfg *Config) { cfg.MaxStaleness = 4 * time.Second }
	nodes := l.form(3)
	lead := l.leader(nodes...)
	follower, other := nodes[0], nodes[1]
	switch lead {
	case nodes[0]:
		follower, other = nodes[1], nodes[2]
	case nodes[1]:
		other = nodes[2]
	}
	if err := follower.Current(t.Context()); err != nil {
		t.Fatalf("while nothing is wrong: %v", err)
	}
	// What it asks is lost, and what the leader says arrives.
	l.mu.Lock()
	for id := range l.nodes {
		if id != follower.ID() {
			l.cuts[follower.ID()+">"+id] = true
		}
	}
	l.mu.Unlock()
	l.eventually("the follower is refused its proof", func() error {
		if err := follower.Current(t.Context()); !fault.Is(err, fault.NotReady) {
			return fmt.Errorf("stale by %s: %v", follower.Staleness(), err)
		}
		return nil
	})
	l.join()
	l.eventually("it is let in again", func() error { return follower.Current(t.Context()) })

	l.isolate(follower)
	l.eventually("the follower hears no leader", func() error {
		if id, known := follower.Leader(); known || follower.Staleness() <= 2*lapse {
			return fmt.Errorf("%q, stale by %s", id, follower.Staleness())
		}
		return nil
	})
	if err := follower.Current(t.Context()); err != nil && !follower.unproven() { // a busy machine may have stood still
		t.Errorf("cut off: %v", err)
	}
	// What the leader says of it is never less than what it gives itself.
	l.eventually("its time is over", func() error {
		lead := l.leader(nodes...)
		left, stale := other.Grace(t.Context()), follower.Staleness()
		d, told := left[follower.ID()]
		if _, is := left[lead.ID()]; is || !told || d < 0 || d > 6*time.Second {
			return fmt.Errorf("%v of the leader %s", left, lead.ID()) // there may have been no leader
		}
		if d == 0 && stale < 4*time.Second {
			t.Errorf("its time is over, and it knows of no less than %s ago", stale)
		}
		if d > 0 {
			return fmt.Errorf("%s left", d)
		}
		return nil
	})
	// One that stood still knows no leader either, of a time when it could not
	// hear: it proves itself first.
	long := time.Now().Add(-5 * time.Second)
	follower.pulse.last.Store(&long)
	if err := follower.Current(t.Context()); !fault.Is(err, fault.NotReady) {
		t.Errorf("cut off, and it stood still: %v", err)
	}
	l.join()
	l.eventually("it has proved itself", func() error { return follower.Current(t.Context()) })
	lead = l.leader(nodes...)
	lead.pulse.last.Store(&long)
	if err := lead.Current(t.Context()); err != nil || lead.unproven() {
		t.Errorf("a leader that can prove itself: %v, %t", err, lead.unproven())
	}
}

// A node whose certificate is revoked is not let in, not dialled, and what was
// open is closed: it falls behind, and the others go on.
func TestARevokedNodeIsShutOut(t *testing.T) {
	l := newLab(t)
	var revoked atomic.Pointer[string]
	l.tune = func(cfg *Config) {
		own := cfg.NodeID
		cfg.Revoked = func(cert *x509.Certificate) bool {
			id := revoked.Load()
			return id != nil && own != *id && len(cert.URIs) == 1 && cert.URIs[0].Path == "/muster/node/"+*id
		}
	}
	nodes := l.form(3)
	lead := l.leader(nodes...)
	out := nodes[0]
	if out == lead {
		out = nodes[1]
	}
	id := out.ID()
	revoked.Store(&id)
	for _, n := range nodes {
		n.Recheck()
	}
	l.eventually("the node hears nothing more", func() error {
		if s := out.Staleness(); s < 2*time.Second {
			return fmt.Errorf("stale by %s", s)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := lead.ReadIndex(ctx); err != nil {
		t.Errorf("the others do not go on: %v", err)
	}
	if _, err := lead.CallNode(ctx, id, methodTerm, nil); err == nil {
		t.Error("the leader calls a node whose certificate is revoked")
	}
	revoked.Store(nil)
	l.eventually("it comes back when the revocation is taken back", func() error { return out.ReadIndex(t.Context()) })
}
