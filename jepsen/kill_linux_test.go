package jepsen

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"
)

var (
	failsOverWithin = slack * 2 * time.Second  // since the leader's death
	stopsWithin     = slack * 12 * time.Second // SIGTERM to the end, with calls under way
	restartsWithin  = slack * 20 * time.Second // unaided, all ready
)

// TestKill: SIGKILL of the leader, of a follower and of all at once, under a
// load of writes. All that was acknowledged is there after the restart.
func TestKill(t *testing.T) {
	x := cluster(t, nil)
	s := Set{History: x.history, Service: "set", Patience: patience}
	steady := Set{History: x.history, Service: "steady", Patience: patience}
	x.fill(steady, x.Nodes, "steady", 200)
	begin := time.Now()
	writing := x.writers(s, 3)
	x.next(time.Now(), slack*5*time.Second)

	var gaps []time.Duration
	for range 3 {
		leader, _ := x.leader()
		gaps = append(gaps, x.next(x.kill(leader), failsOverWithin))
		x.restart(leader)
		x.more(50, x.Nodes...)
	}
	slices.Sort(gaps)
	t.Logf("SIGKILL of the leader to the next acknowledged write: %v", gaps)

	leader, _ := x.leader()
	follower := x.Nodes[(leader.Number+1)%len(x.Nodes)]
	t.Logf("SIGKILL of a follower to the next acknowledged write: %s", x.next(x.kill(follower), failsOverWithin))
	x.restart(follower)

	watch := x.watch(steady.Service, 200, x.Nodes...)
	dead := x.kill(x.Nodes...)
	x.restart(x.Nodes...)
	t.Logf("SIGKILL of all, restart, next acknowledged write: %s", x.next(dead, restartsWithin))
	watch.done(300)
	x.more(50, x.Nodes...)
	writing.stop()
	x.intact(s, begin, 500)
}

// TestStop: SIGTERM of the leader, while callers hold connections on which they
// say nothing: the leadership is handed over, and the node ends well.
func TestStop(t *testing.T) {
	x := cluster(t, nil)
	s := Set{History: x.history, Service: "set", Patience: patience}
	begin := time.Now()
	writing := x.writers(s, 3)
	x.next(begin, slack*5*time.Second)
	leader, _ := x.leader()
	silent, err := net.Dial("tcp", leader.host.Client+":"+controlPort)
	x.must(err)
	t.Cleanup(func() { _ = silent.Close() }) // the node has closed it long since

	stopped := x.history.Mark(leader.ID, "SIGTERM")
	ended := make(chan error)
	go func() { ended <- leader.process.Stop(stopsWithin) }()
	t.Logf("SIGTERM of the leader to the next acknowledged write elsewhere: %s", x.elsewhere(leader, stopped))
	x.must(<-ended)
	t.Logf("the node ended well %s after SIGTERM", since(stopped))
	x.restart(leader)
	x.more(50, x.Nodes...)
	writing.stop()
	x.intact(s, begin, 300)
}

// elsewhere waits for a write through another node that began after the moment.
func (x *test) elsewhere(not *Node, after time.Time) (gap time.Duration) {
	x.Helper()
	from := x.history.Since(after)
	ctx, cancel := context.WithTimeout(x.ctx, slack*10*time.Second)
	defer cancel()
	x.must(Until(ctx, func() error {
		ops := x.history.Ops(func(op *Op) bool {
			return op.Node != not.ID && op.changed() && op.Outcome == OK && op.Invoke >= from
		})
		if len(ops) == 0 {
			return errors.New("no write was acknowledged by another node")
		}
		gap = time.Duration(ops[0].Return - from).Round(time.Millisecond)
		return nil
	}))
	if gap > failsOverWithin {
		x.Errorf("the next acknowledged write came after %s, more than %s", gap, failsOverWithin)
	}
	return gap
}

// kill ends nodes at once with SIGKILL and returns the moment.
func (x *test) kill(nodes ...*Node) time.Time {
	x.Helper()
	now := time.Now()
	ends := make(chan struct{})
	for _, n := range nodes {
		if !n.Running() {
			x.Fatalf("%s does not run", n.ID)
		}
		x.history.Mark(n.ID, "SIGKILL")
		go func() {
			n.Kill()
			ends <- struct{}{}
		}()
	}
	for range nodes {
		<-ends
	}
	return now
}

// restart starts nodes as they were started at first, and waits until all are
// ready.
func (x *test) restart(nodes ...*Node) {
	x.Helper()
	begin := time.Now()
	for _, n := range nodes {
		x.must(n.Start())
		x.history.Mark(n.ID, "started")
	}
	x.ready(begin, len(nodes))
}
