package jepsen

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// TestRestartedFollower: a follower that restarts gives the whole list or none,
// from its first moment on: once after a short stop, once after it has missed
// so much that the leader's log no longer reaches back and a snapshot comes.
func TestRestartedFollower(t *testing.T) {
	x := cluster(t, map[string]any{"raft": map[string]any{"snapshot_threshold": 64, "trailing_logs": 32, "snapshot_interval": "1s"}})
	s := Set{History: x.history, Service: "list", Patience: patience}
	total := 1500
	x.fill(s, x.Nodes, "first", total)
	for round, missed := range []int{0, 20, 1000} {
		leader, _ := x.leader()
		follower := x.Nodes[(leader.Number+1+round)%len(x.Nodes)]
		if follower == leader {
			follower = x.Nodes[(leader.Number+1)%len(x.Nodes)]
		}
		others := x.others(follower)
		status, err := leader.Status(x.ctx)
		x.must(err)
		applied := status.Applied(leader.ID)
		x.kill(follower)
		x.fill(s, others, fmt.Sprintf("missed%d", round), missed)
		if missed >= 1000 {
			x.compacted(others, applied)
		}
		total += missed
		watch := x.watch(s.Service, total, follower)
		begin := time.Now()
		x.must(follower.Start())
		x.history.Mark(follower.ID, "started")
		x.ready(begin, 1)
		watch.done(100)
		if installed := x.metric(follower, "raft_rpc_installSnapshot_count"); (installed > 0) != (missed >= 1000) {
			t.Errorf("%s missed %d writes and was sent %v snapshots", follower.ID, missed, installed)
		}
	}
	x.converged()
	found, err := s.Members(x.ctx, x.Nodes[0].Client, "linearizable")
	x.must(err)
	if len(found) != total {
		t.Errorf("%d instances of %d", len(found), total)
	}
}

func (x *test) others(n *Node) (nodes []*Node) {
	for _, o := range x.Nodes {
		if o != n {
			nodes = append(nodes, o)
		}
	}
	return nodes
}

// compacted waits until the nodes' logs no longer reach back to the index.
func (x *test) compacted(nodes []*Node, index uint64) {
	x.Helper()
	ctx, cancel := context.WithTimeout(x.ctx, slack*15*time.Second)
	defer cancel()
	x.must(Until(ctx, func() error {
		for _, n := range nodes {
			last, err := n.Snapshot()
			if err != nil {
				return err
			}
			if last < index+100 { // well behind what the log keeps
				return fmt.Errorf("the last Raft snapshot of %s is of index %d", n.ID, last)
			}
		}
		return nil
	}))
}

// metric reads one metric without labels.
func (x *test) metric(n *Node, name string) float64 {
	x.Helper()
	value, err := n.Metric(x.ctx, name)
	x.must(err)
	return value
}

func (x *test) ready(begin time.Time, restarted int) {
	x.Helper()
	ctx, cancel := context.WithTimeout(x.ctx, restartsWithin)
	defer cancel()
	x.must(x.AwaitReady(ctx))
	x.Logf("%d restarted, all ready after %s", restarted, since(begin))
}

// look is what callers saw of nodes from their first moment on.
type look struct {
	x       *test
	cancel  context.CancelFunc
	callers sync.WaitGroup

	mu    sync.Mutex // guards what follows
	seen  map[string]int
	wrong []string
}

// watch asks the nodes over and over, hundreds of times a second, for a service
// with count instances, in each way that a look-up can be made.
func (x *test) watch(service string, count int, nodes ...*Node) *look {
	ctx, cancel := context.WithCancel(x.ctx)
	l := &look{x: x, cancel: cancel, seen: map[string]int{}}
	paths := []string{
		"/v1/discovery/" + namespace + "/" + service,
		"/v1/discovery/" + namespace + "/" + service + "?status=any",
		"/v1/discovery?namespace=" + namespace + "&service=" + service,
		"/v1/namespaces/" + namespace + "/services/" + service + "/instances?limit=1000",
		"/v1/namespaces/" + namespace + "/services",
		"/v1/discovery",
	}
	for _, n := range nodes {
		for _, path := range paths {
			l.callers.Go(func() {
				for ctx.Err() == nil {
					call, stop := context.WithTimeout(ctx, patience)
					l.note(n, path, count, n.Call(call, http.MethodGet, path, nil))
					stop()
					time.Sleep(3 * time.Millisecond)
				}
			})
		}
	}
	x.Cleanup(l.cancel)
	return l
}

func (l *look) note(n *Node, path string, count int, a *Answer) {
	what, fine := a.String(), false
	switch {
	case a.Refused:
		what, fine = "connection refused", true
	case a.Status == 0:
		// The connection broke, or the test is over: no answer at all.
		what, fine = "no answer", true
	case a.Status == http.StatusServiceUnavailable && a.Code == "not_ready":
		what, fine = "503 not_ready", true
	case a.Outcome == OK:
		got, err := a.listed()
		what, fine = fmt.Sprintf("%d entries", got), err == nil && got > 0
		if got == min(count, 1000) || got == count {
			what = "whole"
		} else if path == "/v1/discovery" || path == "/v1/namespaces/"+namespace+"/services" {
			what = "services"
		} else {
			fine = false
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[what]++
	if !fine && len(l.wrong) < 10 {
		l.wrong = append(l.wrong, fmt.Sprintf("%s GET %s: %s (%s, %.120s)", n.ID, path, what, a, a.Body))
	}
}

// listed counts the entries of a list, whichever it is.
func (a *Answer) listed() (int, error) {
	var list struct {
		Items     []struct{} `json:"items"`
		Instances []struct{} `json:"instances"`
	}
	err := json.Unmarshal(a.Body, &list)
	return len(list.Items) + len(list.Instances), err
}

// done ends the watch and demands that there was nothing but the whole, or
// nothing; and enough of both.
func (l *look) done(least int) {
	l.x.Helper()
	ctx, cancel := context.WithTimeout(l.x.ctx, restartsWithin)
	defer cancel()
	l.x.must(Until(ctx, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.seen["whole"] < least {
			return fmt.Errorf("look-ups so far: %v", l.seen)
		}
		return nil
	}))
	l.cancel()
	l.callers.Wait()
	l.x.Logf("look-ups since the first moment: %v", l.seen)
	for _, w := range l.wrong {
		l.x.Errorf("a restarted node gave neither the whole nor not_ready: %s", w)
	}
	l.x.atLeast(l.seen["connection refused"]+l.seen["503 not_ready"], least, "look-ups refused before the node was ready")
	l.x.atLeast(l.seen["whole"], least, "look-ups answered in whole")
}
