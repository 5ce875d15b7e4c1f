package jepsen

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

const (
	maxStaleness = 3 * time.Second
	// The header counts whole milliseconds, and a clock's reading lies before
	// the answer's departure.
	rounding = 2 * time.Millisecond
)

// TestIsolatedReads: a node without its leader goes on answering local reads
// and decisions, says how old they are, never understates it, and gives none
// once they may be older than isolation.max_staleness. First the node that
// leads, then one that follows.
func TestIsolatedReads(t *testing.T) {
	x := cluster(t, map[string]any{"isolation": map[string]any{"max_staleness": maxStaleness.String()}})
	r := Registers{History: x.history, Patience: patience}
	x.do(x.Nodes[0], http.MethodPut, registerPath("clock"), `{"description":"0"}`)
	// The clock only moves on: its value tells how old a read is.
	ticks, at := 0, 0
	ticking := x.run(x.Nodes[:1], 1, func(ctx context.Context, _ *Node, _, _ int) time.Duration {
		ticks++
		if r.Set(ctx, x.Nodes[at].Client, 0, "clock", strconv.Itoa(ticks)).Outcome != OK {
			at = (at + 1) % len(x.Nodes)
		}
		return 20 * time.Millisecond
	})
	// Each way to look has callers of its own: a bounded one may wait.
	looking := x.run(x.Nodes, len(looks), func(ctx context.Context, n *Node, worker, _ int) time.Duration {
		x.lookLocally(ctx, n, worker)
		return 20 * time.Millisecond
	})
	x.fresh(x.Nodes[0], time.Now())

	for _, what := range []string{"leader", "follower"} {
		n, _ := x.leader()
		if what == "follower" {
			n = x.Nodes[(n.Number+1)%len(x.Nodes)]
		}
		cut := x.isolate(n, PeerLinks)
		time.Sleep(maxStaleness + 2*time.Second)
		x.heal()
		healed := time.Now()
		x.aged(n, what, cut, healed)
		x.next(healed, slack*5*time.Second)
		x.fresh(n, healed)
		t.Logf("the healed %s is fresh again %s after healing", what, since(healed))
	}
	ticking.stop()
	looking.stop()
	x.honest()
	x.converged()
}

// looks are the ways to ask a node for what it knows by itself.
var looks = []string{"read", "decision", "bounded"}

// bound is the max_staleness of a bounded look.
const bound = 500 * time.Millisecond

func (x *test) lookLocally(ctx context.Context, n *Node, worker int) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	how := looks[worker%len(looks)]
	op := Op{Worker: 10 + worker, Node: n.ID, Kind: Local, Detail: how}
	var a *Answer
	if how == "decision" {
		a = n.Call(ctx, http.MethodPost, "/v1/authorize", []byte(`{"input":{"action":"lookup"}}`))
		var decision struct {
			Allow *bool `json:"allow"`
		}
		if a.Outcome == OK && (json.Unmarshal(a.Body, &decision) != nil || decision.Allow == nil) {
			x.Errorf("%s gave no decision: %.200q", n.ID, a.Body)
		}
	} else {
		path := registerPath("clock")
		if how == "bounded" {
			path += "?max_staleness=" + bound.String()
		}
		if a = n.Call(ctx, http.MethodGet, path, nil); a.Outcome == OK {
			op.Key = "clock"
			op.Value, op.Revision = a.Register()
		}
	}
	if _, ok := a.Staleness(); a.Outcome == OK && !ok {
		x.Errorf("a %s by %s says nothing of its age: %v", how, n.ID, a.Header)
	}
	x.history.Add(op, a)
}

// aged judges the local answers of a node during its isolation.
func (x *test) aged(n *Node, what string, cut, healed time.Time) {
	x.Helper()
	wrong := x.some()
	from, to := x.history.Since(cut), x.history.Since(healed)
	var oldest time.Duration
	var last, refused, bounded int64
	count := map[string]int{}
	for _, op := range x.history.Ops(func(op *Op) bool {
		return op.Kind == Local && op.Node == n.ID && op.Invoke >= from && op.Return < to
	}) {
		since := time.Duration(op.Invoke - from)
		age := time.Duration(op.Staleness) * time.Millisecond
		count[op.Detail+" "+string(op.Outcome)+" "+op.Code]++
		switch {
		case op.Outcome == OK:
			if oldest, last = max(oldest, age), op.Invoke-from; age < since-rounding {
				wrong("%s after its isolation %s %s says it is %s old: nothing newer can have reached it", since, what, n.ID, age)
			}
			if age > maxStaleness {
				wrong("%s %s answered with something %s old; isolation.max_staleness is %s", what, n.ID, age, maxStaleness)
			}
			if op.Detail == "bounded" {
				bounded = max(bounded, int64(since))
			}
		case op.Status != http.StatusServiceUnavailable || op.Code != "too_stale":
			wrong("isolated %s %s refused a local %s with %d %q %s", what, n.ID, op.Detail, op.Status, op.Code, op.Detail)
		case refused == 0 && op.Detail != "bounded":
			refused = op.Invoke - from
		}
	}
	x.Logf("isolated %s %s: %v; oldest answer %s, last %s after the cut; first refusal %s after it", what, n.ID, count, oldest,
		time.Duration(last).Round(time.Millisecond), time.Duration(refused).Round(time.Millisecond))
	if refused == 0 {
		x.Errorf("isolated %s %s never refused a local look-up", what, n.ID)
	}
	if time.Duration(bounded) > bound+rounding {
		x.Errorf("a look-up with max_staleness=%s was answered %s after the isolation", bound, time.Duration(bounded))
	}
	if oldest < maxStaleness/2 {
		x.Errorf("isolated %s %s stopped answering when its state was %s old; isolation.max_staleness is %s", what, n.ID, oldest, maxStaleness)
	}
	x.atLeast(count["read ok "]+count["decision ok "], 50, "local answers while isolated")
	x.atLeast(count["read failed too_stale"]+count["decision failed too_stale"], 20, "local answers refused as too old")
}

// fresh waits until the node answers local reads again.
func (x *test) fresh(n *Node, healed time.Time) {
	x.Helper()
	from := x.history.Since(healed)
	ctx, cancel := context.WithTimeout(x.ctx, slack*10*time.Second)
	defer cancel()
	x.must(Until(ctx, func() error {
		if x.history.Count(func(op *Op) bool {
			return op.Kind == Local && op.Node == n.ID && op.Outcome == OK && op.Invoke > from && op.Staleness < 500
		}) < 10 {
			return fmt.Errorf("%s does not answer local reads from a fresh state", n.ID)
		}
		return nil
	}))
}

// honest compares the age that each local read claims with its true age: how
// long ago the first newer value had been acknowledged.
func (x *test) honest() {
	x.Helper()
	wrong := x.some()
	// Values rise with the order of invocations.
	acknowledged := x.history.Ops(func(op *Op) bool { return op.Kind == Write && op.Key == "clock" && op.Outcome == OK })
	judged, worst := 0, time.Duration(0)
	for _, op := range x.history.Ops(func(op *Op) bool { return op.Kind == Local && op.Key == "clock" && op.Outcome == OK }) {
		seen, err := strconv.Atoi(op.Value)
		x.must(err)
		judged++
		for _, w := range acknowledged {
			value, _ := strconv.Atoi(w.Value)
			if value <= seen {
				continue
			}
			if truth := time.Duration(op.Invoke - w.Return); truth > 0 {
				worst = max(worst, truth)
				if claimed := time.Duration(op.Staleness) * time.Millisecond; claimed < truth-rounding {
					wrong("%s said its state was %s old; %s had been acknowledged %s before it was asked, and it showed %s", op.Node, claimed, w.Value, truth, op.Value)
				}
			}
			break
		}
	}
	x.Logf("the oldest local answer was truly %s old", worst.Round(time.Millisecond))
	x.atLeast(judged, 500, "local reads whose claimed age was compared with the true one")
	x.atLeast(len(acknowledged), 200, "ticks of the clock")
}
