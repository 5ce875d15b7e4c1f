package fsm_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
)

func head(node string, seq uint64, hash string) *command.Command {
	return &command.Command{Principal: "node:" + node, Time: began, Op: &command.Command_AuditHead{AuditHead: &command.AuditHead{Node: node, Seq: seq, Hash: hash}}}
}

// TestAuditHeads: what the cluster knows of a trail never goes back, is no change
// of the state, and outlives a restart, a Raft snapshot and a restore of another
// state.
func TestAuditHeads(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	must(t, apply(t, m, service("cart", 0)))
	before := m.View()
	must(t, apply(t, m, head("n1", 7, "aa")))
	must(t, apply(t, m, head("n1", 7, "aa"))) // told twice
	must(t, apply(t, m, head("n1", 9, "bb")))
	must(t, apply(t, m, head("n2", 3, "cc")))
	if v := m.View(); v.Revision != before.Revision || v.Hash != before.Hash || len(before.Heads) != 0 {
		t.Errorf("heads changed the state: revision %d, was %d; the view of before has %v", v.Revision, before.Revision, before.Heads)
	}
	for _, wrong := range []*command.Command{head("n1", 8, "aa"), head("n1", 9, "ff")} {
		if r := apply(t, m, wrong); !fault.Is(r.Err, fault.Conflict) {
			t.Errorf("a head that goes back: %v", r.Err)
		}
	}
	if r := apply(t, m, head("n3", 0, "")); !fault.Is(r.Err, fault.NotFound) {
		t.Errorf("forgetting what is not known: %v", r.Err)
	}
	check := func(m *fsm.Machine) {
		t.Helper()
		if h := m.View().Heads; len(h) != 2 || h["n1"].Seq != 9 || h["n1"].Hash != "bb" || h["n2"].Seq != 3 || h["n1"].Time != began {
			t.Errorf("the heads are %v", h)
		}
	}
	check(m)
	image := raftSnapshot(t, m)

	other := open(t, t.TempDir())
	defer shut(t, other)
	must(t, apply(t, other, head("n1", 1_000_000, "of another cluster")))
	file := export(t, other)
	must(t, restore(t, m, file))
	check(m)
	shut(t, m)
	m = open(t, dir)
	defer shut(t, m)
	check(m)
	if err := other.Restore(io.NopCloser(bytes.NewReader(image))); err != nil {
		t.Fatal(err)
	}
	check(other)

	was := m.View().Revision
	if r := must(t, apply(t, m, head("n1", 0, ""))); r.Revision != was+1 {
		t.Errorf("who has a trail accepted makes a change: revision %d after %d", r.Revision, was)
	}
	must(t, apply(t, m, head("n1", 2, "dd")))
	if h := m.View().Heads["n1"]; h.Seq != 2 {
		t.Errorf("after it was forgotten: %v", h)
	}
}
