package cluster

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// Whoever empties one disk after the other, and waits each time until the node
// says that it votes, loses neither the quorum nor a record.
func TestOneDiskAfterTheOther(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.wired, l.tune = true, func(cfg *Config) { cfg.Membership.Probation = 2 * time.Second }
	nodes := l.form(3)
	l.seated(l.leader(nodes...))
	_, err := nodes[0].Call(within(t, 30*time.Second), "put", []byte("precious"))
	must(t, err)
	for i, n := range nodes {
		if err := n.Votes(); err != nil {
			t.Fatalf("%s is a founder: %v", n.ID(), err)
		}
		l.crash(n)
		must(t, os.RemoveAll(n.cfg.DataDir))
		delete(l.disks, n.cfg.DataDir)
		n = l.start(n.cfg)
		nodes[i] = n
		early := n.Votes() == nil
		l.eventually(n.ID()+" votes", func() error {
			if err := n.Ready(); err != nil {
				return err
			}
			return n.Votes()
		})
		if s, member := l.leader(nodes...).server(n.ID()); early || !member || s.Suffrage != 0 || n.probation.on.Load() {
			t.Fatalf("%s says that it votes, and to the leader the members are %s", n.ID(), roles(l.leader(nodes...)))
		}
		if voters, there := n.Quorum(); voters != 3 {
			t.Errorf("%s knows %d of %d voters", n.ID(), there, voters)
		}
	}
	for _, n := range nodes {
		if n.kv.get("precious") == "" {
			t.Errorf("%s has not what was written before", n.ID())
		}
		_, err := n.Call(within(t, 30*time.Second), "put", fmt.Append(nil, "after on ", n.ID()))
		must(t, err)
	}
}
