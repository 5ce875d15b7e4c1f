package jepsen

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/muster-registry/muster/client"
)

// A rolling restart is looked at through the Go client.
const (
	rollingServices  = 20
	rollingInstances = 3 // of each, all kept by their own clients
	rollingCallers   = 40
)

// rollingRate is how many look-ups a second are asked for; the rest of the
// machine is the nodes'.
var rollingRate = func() int {
	if os.Getenv(strictEnv) == "1" {
		return 2000
	}
	return 400
}()

// lookups is what callers of the Go client were told.
type lookups struct {
	asked, failed, short atomic.Int64
	first                sync.Once
	example              string
}

func (l *lookups) wrong(format string, args ...any) {
	l.first.Do(func() { l.example = fmt.Sprintf(format, args...) })
}

func (l *lookups) ask(ctx context.Context, c *client.Client, service string) {
	d, err := c.Discover(ctx, "default", service, client.Filter{})
	l.asked.Add(1)
	switch {
	case err != nil:
		l.failed.Add(1)
		l.wrong("%s: %v", service, err)
	case len(d.Instances) != rollingInstances:
		l.short.Add(1)
		l.wrong("%s: %d instances of %d at revision %d", service, len(d.Instances), rollingInstances, d.Revision)
	}
}

// TestRollingRestart restarts one node after the other under look-ups: whoever
// uses the Go client is told of all instances, each time.
func TestRollingRestart(t *testing.T) {
	x := cluster(t, nil)
	dial := func() *client.Client {
		var addresses []string
		for _, n := range x.Nodes {
			addresses = append(addresses, "https://"+n.host.Client+":"+controlPort)
		}
		c, err := client.New(client.Config{Addresses: addresses, CACert: x.CA, Token: x.Token})
		x.must(err)
		t.Cleanup(c.Close)
		return c
	}
	c := dial()
	ctx, stop := context.WithCancel(x.ctx)
	var kept sync.WaitGroup
	defer kept.Wait()
	defer stop()
	names := make([]string, rollingServices)
	for s := range names {
		names[s] = fmt.Sprintf("svc-%d", s)
		for i := range rollingInstances {
			ref := client.Ref{Kind: client.Instance, Namespace: "default", Service: names[s], Name: fmt.Sprintf("i%d", i)}
			spec := fmt.Appendf(nil, `{"address":"10.0.0.%d","port":8080,"ttl":"6s"}`, i+1)
			kept.Go(func() {
				if err := c.Keep(ctx, ref, spec, client.Write{CreateService: true}, nil); err != nil {
					t.Errorf("%s: %v", ref, err)
				}
			})
		}
	}
	x.must(Until(ctx, func() error {
		for _, name := range names {
			d, err := c.Discover(ctx, "default", name, client.Filter{Read: client.Read{Linearizable: true}})
			if err != nil || len(d.Instances) != rollingInstances {
				return fmt.Errorf("%s is not registered yet: %v", name, err)
			}
		}
		return nil
	}))
	before := x.registered(c, names)

	var l lookups
	begin := time.Now()
	asking, quit := context.WithCancel(ctx)
	var callers sync.WaitGroup
	for w := range rollingCallers {
		own := dial()
		callers.Go(func() {
			each := time.NewTicker(time.Second * rollingCallers / time.Duration(rollingRate))
			defer each.Stop()
			for i := w; asking.Err() == nil; i++ {
				l.ask(ctx, own, names[i%len(names)])
				select {
				case <-each.C:
				case <-asking.Done():
				}
			}
		})
	}
	defer callers.Wait()
	defer quit()
	for range 2 { // round the cluster twice
		for _, n := range slices.Clone(x.Nodes) {
			x.history.Mark(n.ID, "SIGTERM")
			x.must(n.process.Stop(stopsWithin))
			x.restart(n)
		}
	}
	quit()
	callers.Wait()
	took := time.Since(begin)
	rate := float64(l.asked.Load()) / took.Seconds()
	t.Logf("%d look-ups in %s, %.0f a second: %d failed, %d without all instances", l.asked.Load(), took.Round(time.Millisecond), rate, l.failed.Load(), l.short.Load())
	if l.failed.Load()+l.short.Load() > 0 {
		t.Errorf("the first: %s", l.example)
	}
	if slack == 1 && rate < float64(rollingRate)*9/10 || l.asked.Load() < 1000 {
		t.Errorf("%.0f look-ups a second show too little", rate)
	}
	if after := x.registered(c, names); after != before {
		t.Errorf("instances were registered anew or lost: before\n%s\nafter\n%s", before, after)
	}
}

// registered names all instances with the revisions in which they were made or
// changed: one that was lost on the way and came back has another.
func (x *test) registered(c *client.Client, names []string) (all string) {
	for _, name := range names {
		items, err := c.List(x.ctx, client.Instance, "default", name, client.Read{Linearizable: true})
		x.must(err)
		for _, i := range items {
			all += string(i) + "\n"
		}
	}
	return all
}
