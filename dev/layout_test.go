package dev

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/node"
)

func TestPortsAreThoseOfTheContract(t *testing.T) {
	for _, c := range []struct {
		base, node int
		want       ports
	}{
		{8443, 1, ports{control: 8443, policy: 8181, metrics: 9090, peer: 8300, gossip: 7946, dns: 8600}},
		{8443, 3, ports{control: 8463, policy: 8201, metrics: 9110, peer: 8320, gossip: 7966, dns: 8620}},
		{20443, 2, ports{control: 20453, policy: 20191, metrics: 21100, peer: 20310, gossip: 19956, dns: 20610}},
	} {
		if got := (layout{PortBase: c.base}).ports(c.node); got != c.want {
			t.Errorf("node %d from %d on: %+v, want %+v", c.node, c.base, got, c.want)
		}
	}
}

// TestPreparedFolder looks at what nodes are given, without starting them.
func TestPreparedFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's here")
	l, err := open(Options{Dir: dir, Nodes: 3, PortBase: 20443})
	if err != nil {
		t.Fatal(err)
	}
	read := func() map[string]string {
		t.Helper()
		if err := l.prepare(time.Now()); err != nil {
			t.Fatal(err)
		}
		files := map[string]string{}
		err := filepath.Walk(dir, func(p string, i os.FileInfo, err error) error {
			if err != nil || i.IsDir() {
				if err == nil && i.Mode().Perm() != 0o700 {
					t.Errorf("%s: mode %v", p, i.Mode())
				}
				return err
			}
			if filepath.Ext(p) != ".crt" && i.Mode().Perm() != 0o600 {
				t.Errorf("%s: mode %v", p, i.Mode())
			}
			b, err := os.ReadFile(p)
			files[p] = string(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	first := read()
	if d := cmp.Diff(first, read()); d != "" {
		t.Errorf("preparing again changed: %s", d)
	}
	for i := 1; i <= 3; i++ {
		c, err := node.Load(l.path(nodeID(i), "muster.yaml"), func(string) string { return "" })
		if err != nil {
			t.Fatal(err)
		}
		if c.NodeID != nodeID(i) || c.Cluster.BootstrapExpect != 3 || len(c.Cluster.Join) != 3 || c.Secrets.OperatorToken == "" {
			t.Errorf("configuration: %+v", c)
		}
	}
	c, err := l.cluster(map[string]int{"n2": 7})
	if err != nil {
		t.Fatal(err)
	}
	if c.Nodes[1].PID != 7 || c.Nodes[1].Control != "https://127.0.0.1:20453" || c.Nodes[1].Dir != l.path("n2") {
		t.Errorf("node 2: %+v", c.Nodes[1])
	}
	if err := l.save(c); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", `. "$0" && echo "$MUSTER_ADDR $MUSTER_TOKEN $MUSTER_CACERT"`, l.path("env")).CombinedOutput()
	want := "https://127.0.0.1:20443,https://127.0.0.1:20453,https://127.0.0.1:20463 " + c.OperatorToken + " " + l.path("ca.crt")
	if err != nil || strings.TrimSpace(string(out)) != want {
		t.Errorf("a shell reads env as %q, want %q (%v)", out, want, err)
	}
	if _, err := open(Options{Dir: dir, Nodes: 5, PortBase: Recorded}); err == nil {
		t.Error("a cluster of 3 was opened as one of 5")
	}
	if again, err := open(Options{Dir: dir, PortBase: Recorded}); err != nil || again != l {
		t.Errorf("opened as %+v, want %+v (%v)", again, l, err)
	}
}
