package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// A member goes, and the leader that decided it falls before it knows that it is
// done: every node says so as it applies the entry, and the next leader tells
// whom it concerns.
func TestRemovalOutlivesItsLeader(t *testing.T) {
	l := newLab(t)
	told := make(chan string, 64)
	l.wired = true
	l.tune = func(cfg *Config) {
		cfg.Timing.Heartbeat, cfg.Timing.Election, cfg.Timing.Lease = 2*time.Second, 2*time.Second, 2*time.Second
		cfg.OnRemoved = func(gone, why string) { told <- cfg.NodeID + ": " + gone + " " + why }
	}
	hears := func() string {
		t.Helper()
		select {
		case got := <-told:
			return got
		case <-time.After(2 * time.Minute):
			t.Fatal("nobody is told")
			return ""
		}
	}
	nodes := l.form(4)
	var leader, gone *node
	var rest []*node
	var fate chan error
	l.eventually("the removal is in the others' logs", func() error {
		leader = l.leader(nodes...)
		rest = others(nodes, leader)
		gone, rest = rest[0], rest[1:]
		// It sends, and hears nothing back.
		l.deaf(leader)
		fate = make(chan error, 1)
		go func(from *node, id raft.ServerID, fate chan<- error) {
			from.roll.leaves(id, from.Term(), RemovedDead)
			fate <- from.raft.RemoveServer(id, 0, 0).Error()
		}(leader, raft.ServerID(gone.ID()), fate)
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if !slices.ContainsFunc(rest, func(n *node) bool { return n.member(gone.ID()) != "" }) {
				return nil
			}
		}
		l.join() // it lost the lead before it had sent anything
		return errors.New("some have it not")
	})
	l.isolate(leader)
	l.leader(rest...)
	if got := hears(); got != rest[0].ID()+": "+gone.ID()+" before" && got != rest[1].ID()+": "+gone.ID()+" before" {
		t.Errorf("told %q", got)
	}
	for _, n := range rest {
		l.eventually(n.ID()+" has counted it", func() error {
			counted := n.metrics.removed
			if got := testutil.ToFloat64(counted.WithLabelValues(RemovedBefore)) + testutil.ToFloat64(counted.WithLabelValues(RemovedElsewhere)); got != 1 {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
	}
	// The one that fell says why, once it learns that it stands.
	l.join()
	if got, want := hears(), leader.ID()+": "+gone.ID()+" dead"; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	select {
	case err := <-fate:
		if err == nil {
			t.Error("the leader that fell was told that its removal is done")
		}
	case <-time.After(2 * time.Minute):
		t.Error("the leader that fell is not told what became of its removal")
	}
}

// What a node has said before it was started again it does not say again; where
// a snapshot takes it past a removal, it says so then.
func TestRollOverRestarts(t *testing.T) {
	var said bytes.Buffer
	c := &Cluster{cfg: Config{OnRemoved: func(string, string) {}}, log: slog.New(slog.NewTextHandler(&said, nil)), machine: newKV()}
	c.metrics = newMetrics(c, nil)
	of := func(names ...string) (conf raft.Configuration) {
		for _, id := range names {
			conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
		}
		return conf
	}
	entry := func(index uint64, names ...string) *raft.Log {
		return &raft.Log{Index: index, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(of(names...))}
	}
	gone := func(when string, want ...string) {
		t.Helper()
		var got []string
		for line := range strings.Lines(said.String()) {
			if _, id, is := strings.Cut(line, `msg="a node is no longer a member" id=`); is {
				got = append(got, strings.Fields(id)[0])
			}
		}
		if said.Reset(); !slices.Equal(got, want) {
			t.Errorf("%s: said of %v, want %v", when, got, want)
		}
	}
	log := []*raft.Log{entry(1, "n1", "n2", "n3", "n4"), entry(2, "n1", "n2", "n3"), entry(3, "n1", "n2")}
	r := c.newRoll(nil)
	r.ApplyBatch(log[:2])
	gone("at first", "n4")
	r = c.newRoll(nil) // on the state that it has on disk
	r.ApplyBatch(log[:2])
	gone("again")
	r.ApplyBatch(log[2:])
	gone("then", "n3")

	var err error
	c.snaps, err = raft.NewFileSnapshotStoreWithLogger(t.TempDir(), 1, raftLogger(slog.New(slog.DiscardHandler)))
	must(t, err)
	_, wires := raft.NewInmemTransport("")
	sink, err := c.snaps.Create(raft.SnapshotVersionMax, 9, 2, of("n1", "n5"), 9, wires)
	must(t, err)
	state, err := c.machine.Snapshot()
	must(t, err)
	must(t, state.Persist(sink))
	list, err := c.snaps.List()
	must(t, err)
	_, from, err := c.snaps.Open(list[0].ID)
	must(t, err)
	defer from.Close()
	must(t, r.Restore(from))
	gone("by the snapshot", "n2")
	r.ApplyBatch([]*raft.Log{entry(10, "n1")})
	gone("after it", "n5")
}
