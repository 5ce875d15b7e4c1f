package jepsen

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/muster-registry/muster/client"
)

// upgradeEnv names a muster of the next feature level, as `make upgrade` builds it.
const upgradeEnv = "MUSTER_BIN_NEXT"

// writes are services that one writer each has put, one after the other.
type writes struct {
	acknowledged atomic.Int64
	failed       atomic.Int64
	first        sync.Once
	example      string
}

func (w *writes) put(ctx context.Context, c *client.Client, name string) bool {
	_, err := c.Put(ctx, client.Ref{Kind: client.Service, Namespace: "default", Name: name}, []byte(`{"owner":"upgrade"}`), client.Write{})
	switch {
	case err == nil:
		w.acknowledged.Add(1)
		return true
	case ctx.Err() == nil:
		w.failed.Add(1)
		w.first.Do(func() { w.example = fmt.Sprintf("%s: %v", name, err) })
	}
	return false
}

// TestUpgrade takes three nodes from one version to the next under writes and
// look-ups: none fails, nothing is lost, versions are mixed meanwhile, and the
// feature level rises with the last node. The way back is refused in words.
func TestUpgrade(t *testing.T) {
	next := os.Getenv(upgradeEnv)
	if next == "" {
		t.Skipf("LEFT OUT: %s is not set; make upgrade builds the other version and runs this", upgradeEnv)
	}
	x := cluster(t, nil)
	var addresses []string
	for _, n := range x.Nodes {
		addresses = append(addresses, "https://"+n.host.Client+":"+controlPort)
	}
	c, err := client.New(client.Config{Addresses: addresses, CACert: x.CA, Token: x.Token})
	x.must(err)
	t.Cleanup(c.Close)
	level := func() int {
		v, err := x.Nodes[0].Metric(x.ctx, "muster_feature_level")
		if err != nil {
			return 0
		}
		return int(v)
	}
	x.must(Until(x.ctx, func() error { // a new cluster rises to what its version knows
		if level() < 3 {
			return fmt.Errorf("level %d", level())
		}
		return nil
	}))
	before := level()
	ref := client.Ref{Kind: client.Instance, Namespace: "default", Service: "kept", Name: "i1"}
	_, err = c.Put(x.ctx, ref, []byte(`{"address":"10.0.0.1","port":80,"ttl":"0s"}`), client.Write{CreateService: true})
	x.must(err)
	asking, quit := context.WithCancel(x.ctx)
	defer quit()
	var w writes
	var failed, asked atomic.Int64
	var workers sync.WaitGroup
	names := make([][]string, 8)
	for i := range names {
		workers.Go(func() {
			for seq := 0; asking.Err() == nil; seq++ {
				if name := fmt.Sprintf("w%d-%d", i, seq); w.put(asking, c, name) {
					names[i] = append(names[i], name)
				}
				d, err := c.Discover(asking, "default", "kept", client.Filter{})
				if asking.Err() != nil {
					return
				}
				asked.Add(1)
				if err != nil || len(d.Instances) != 1 {
					failed.Add(1)
					w.first.Do(func() { w.example = fmt.Sprintf("look-up: %v", err) })
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	for i, n := range x.Nodes {
		x.must(n.Terminate(stopsWithin))
		n.Use(next)
		x.restart(n)
		if i < len(x.Nodes)-1 && level() > before {
			t.Errorf("the level rose to %d with %s still to come", level(), x.Nodes[i+1].ID)
		}
	}
	x.must(Until(x.ctx, func() error {
		if level() != before+1 {
			return fmt.Errorf("level %d after all nodes were upgraded", level())
		}
		return nil
	}))
	quit()
	workers.Wait()
	x.Logf("%d writes acknowledged, %d failed; %d look-ups, %d failed", w.acknowledged.Load(), w.failed.Load(), asked.Load(), failed.Load())
	if w.failed.Load()+failed.Load() > 0 {
		t.Errorf("the first: %s", w.example)
	}
	x.atLeast(int(w.acknowledged.Load()), 100, "writes acknowledged")
	for _, own := range names {
		for _, name := range own {
			if _, err := c.Get(x.ctx, client.Ref{Kind: client.Service, Namespace: "default", Name: name}, client.Read{}); err != nil {
				t.Errorf("lost: %s: %v", name, err)
			}
		}
	}
	x.converged()

	n := x.Nodes[2] // and back
	x.must(n.Terminate(stopsWithin))
	n.Use(x.Binary())
	x.must(n.Start())
	select {
	case <-n.Ended():
	case <-x.ctx.Done():
		t.Fatal("the old version goes on")
	}
	if told, err := n.Count(fmt.Sprintf("needs feature level %d", before+1)); err != nil || told == 0 {
		t.Errorf("the old version did not say why it stops: %v", err)
	}
	if panics, err := n.Count("panic:"); err != nil || panics > 0 {
		t.Errorf("it panicked: %v", err)
	}
	n.Use(next)
	x.restart(n)
	x.converged()
}
