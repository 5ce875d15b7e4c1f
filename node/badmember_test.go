package node_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/muster-registry/muster/fault"
)

// Bad input, row 19, end to end: who does not belong is not taken in, is told
// why, and changes nothing.
func TestStrangersAreNotTakenIn(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", cartPath, `{"owner":"shop"}`)
	before, members := e.states(t), e.members(t)
	seeds := tr.gossip(t, 3)

	unchanged := func(t *testing.T, stranger int) {
		t.Helper()
		nodes := tr.nodes
		tr.nodes = nodes[:3] // ask those of the cluster
		defer func() { tr.nodes = nodes }()
		if after := e.states(t); after != before {
			t.Errorf("the state changed:\nbefore %s\nafter  %s", before, after)
		}
		if now := e.members(t); now != members {
			t.Errorf("the members changed:\nbefore %s\nafter  %s", members, now)
		}
		for i := range 3 {
			if a := e.send(t, i, "HTTP/2.0", call{method: "GET", path: "/readyz"}); a.status != 200 {
				t.Errorf("node %d is not ready: %s", i+1, a.body)
			}
		}
		// What the stranger does not know it does not answer.
		tr.nodes = nodes
		e.once(t, stranger, "HTTP/2.0", call{method: "GET", path: cartPath}).want(t, 503, fault.NotReady)
		e.once(t, stranger, "HTTP/2.0", call{"PUT", cartPath, strings.NewReader(`{"owner":"x"}`), nil}).want(t, 503, fault.NotReady)
	}

	t.Run("a node id used twice", func(t *testing.T) {
		twin := tr.add("twin", "n2", 3, seeds...)
		tr.start(twin)
		until(t, "the twin is told", func() error { return e.refusedWith(t, twin, "n2") })
		unchanged(t, twin)
		tr.stop(twin)
		tr.nodes = tr.nodes[:3]
	})

	t.Run("a node of another cluster", func(t *testing.T) {
		// Two nodes form a cluster of their own; one of them strays.
		first := tr.add("far1", "f1", 2)
		second := tr.add("far2", "f2", 2, tr.gossip(t, first+1)[first])
		tr.start(first)
		tr.start(second)
		tr.awaitReady(first)
		tr.awaitReady(second)
		tr.stop(second)
		tr.stop(first)
		config, err := os.ReadFile(tr.nodes[first].config)
		must(t, err)
		must(t, os.WriteFile(tr.nodes[first].config, []byte(strings.Replace(string(config), "join: [", "join: ["+strings.Join(seeds, ", ")+", ", 1)), 0o600))
		tr.start(first)
		until(t, "the stranger sees that it has strayed", func() error { return e.refusedWith(t, first, "belongs to cluster") })
		unchanged(t, first)
	})

	e.mustDo(t, "DELETE", cartPath, "")
}

// refusedWith checks that a node is not ready, and says why in these words.
func (e *edge) refusedWith(t *testing.T, node int, why string) error {
	res, err := e.http["HTTP/2.0"].Get(e.tr.nodes[node].control + "/readyz")
	if err != nil {
		return err // it is starting
	}
	a := read(t, res)
	if a.status == 200 {
		t.Fatal("a stranger is ready")
	}
	if a.Code != fault.NotReady || !strings.Contains(a.Detail, "the node is in no cluster") || !strings.Contains(a.Detail, why) {
		return errors.New(a.Detail)
	}
	return nil
}

// members is the membership as the first node knows it, whoever leads: on a
// busy machine that may change by itself.
func (e *edge) members(t *testing.T) string {
	t.Helper()
	a := e.send(t, 0, "HTTP/2.0", call{method: "GET", path: "/v1/cluster/members?consistency=linearizable"})
	if a.status != 200 {
		t.Fatalf("members: %d %s", a.status, a.body)
	}
	return strings.ReplaceAll(string(a.body), `"role":"leader"`, `"role":"voter"`)
}

// gossip gives the gossip addresses of the first n nodes.
func (tr *trial) gossip(t *testing.T, n int) (addresses []string) {
	t.Helper()
	for _, node := range tr.nodes[:n] {
		config, err := os.ReadFile(node.config)
		must(t, err)
		_, rest, ok := strings.Cut(string(config), "gossip: \"")
		address, _, end := strings.Cut(rest, `"`)
		if !ok || !end {
			t.Fatalf("no gossip address in %s", node.config)
		}
		addresses = append(addresses, address)
	}
	return addresses
}
