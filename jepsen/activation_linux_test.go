package jepsen

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

const (
	activationsEnv = "MUSTER_ACTIVATIONS" // how many; without it, few
	fewActivations = 60
	newEvery       = 10 // one activation in so many is of a revision just pushed

	// lookupWithin is what p99.9 of the look-ups keeps to on a machine of its
	// own; on a busy one, only far more is a failure.
	lookupWithin = 20 * time.Millisecond
	lookupMost   = time.Second
)

// TestActivations: revisions are activated one after the other under a constant
// load of look-ups on all nodes, while the leader is cut off, a follower is cut
// off and a node is killed and restarts. Each revision leaves its own mark, in
// a rule, in another module and in its data. No answer mixes two of them, none
// is lost, and once an activation has returned no live, connected node answers
// by an older one.
func TestActivations(t *testing.T) {
	thorough(t)
	needWorld(t)
	count := fewActivations
	if v := os.Getenv(activationsEnv); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < newEvery {
			t.Fatalf("%s is %q; it must be a number from %d", activationsEnv, v, newEvery)
		}
		count = n
	}
	x := cluster(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	t.Cleanup(cancel)
	x.ctx = ctx
	for _, service := range []string{"open", "closed"} {
		x.do(x.Nodes[0], http.MethodPut, "/v1/namespaces/"+namespace+"/services/"+service, `{}`)
		x.do(x.Nodes[0], http.MethodPut, "/v1/namespaces/"+namespace+"/services/"+service+"/instances/i1", `{"address":"10.0.0.1","port":80,"ttl":"1h"}`)
	}
	a := &activations{test: x, exempt: map[string][]span{}, marks: map[uint64]string{}}
	a.pair = [2]uint64{a.push(0), a.push(1)}
	a.activate(a.pair[0])
	begin := time.Now()
	looking := x.run(x.Nodes, 2, func(ctx context.Context, n *Node, worker, i int) time.Duration {
		a.look(ctx, n, i)
		return 2 * time.Millisecond
	})
	a.switchTo(count*2/10, x.Nodes)
	a.during("a follower is cut off", a.follower(), a.cut, count/10)
	a.switchTo(count*2/10, x.Nodes)
	leader, _ := x.leader()
	a.during("the leader is cut off", leader, a.cut, count/10)
	a.switchTo(count/10, x.Nodes)
	a.during("a node is killed and restarts", a.follower(), a.kill, count/10)
	a.switchTo(count-len(a.switches), x.Nodes)
	looking.stop()
	took := time.Since(begin)
	x.converged()
	a.judge(took)
}

// span is a stretch of time.
type span struct{ from, to time.Time }

func (s span) meets(o span) bool { return !s.to.Before(o.from) && !o.to.Before(s.from) }

// lookup is one answer a caller got.
type lookup struct {
	span
	node     string
	status   int
	err      string
	marks    []string
	revision uint64 // where the answer names it
}

// change is one activation, from its first try to its acknowledgement.
type change struct {
	span
	revision uint64
}

type activations struct {
	*test
	pair     [2]uint64
	pushed   int
	marks    map[uint64]string // by revision
	switches []change
	exempt   map[string][]span // by node: cut off, dead or not yet back

	mu      sync.Mutex // guards lookups
	lookups []lookup
}

// push stores a revision that leaves the mark m<i>.
func (a *activations) push(i int) uint64 {
	a.Helper()
	mark := fmt.Sprintf("m%d", i)
	body, err := json.Marshal(map[string]any{
		"modules": map[string]string{
			"mark.rego": fmt.Sprintf("package marks\n\nmodule := %q\n", mark),
			"authz.rego": fmt.Sprintf(`package api.security.authz

import data.marks

default allow := false

allow if input.resource.name != "closed"

found := {"rule": %q, "module": marks.module, "data": data.label.mark}

deny contains sprintf("%%s: %%s", [place, mark]) if {
	input.resource.name == "closed"
	some place, mark in found
}

filtered := {"marks": [mark | some mark in found]} if input.resource.name == "open"
`, mark),
		},
		"data": map[string]any{"label": map[string]string{"mark": mark}},
	})
	a.must(err)
	answer := a.persist(func(n *Node) *Answer { return n.Call(a.ctx, http.MethodPost, "/v1/policy/revisions", body) }, a.Nodes)
	var rev struct {
		Revision uint64 `json:"revision"`
	}
	a.must(json.Unmarshal(answer.Body, &rev))
	a.marks[rev.Revision] = mark
	a.pushed++
	return rev.Revision
}

// persist asks one node after the other until it is done. What was pushed or
// activated twice does no harm here.
func (a *activations) persist(ask func(*Node) *Answer, nodes []*Node) *Answer {
	a.Helper()
	var answer *Answer
	at := len(a.switches)
	ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
	defer cancel()
	a.must(Until(ctx, func() error {
		n := nodes[at%len(nodes)]
		at++
		if answer = ask(n); answer.Outcome == OK {
			return nil
		}
		err := fmt.Errorf("%s: %s %.300s", n.ID, answer, answer.Body)
		// 409: a node that was cut off or killed a moment ago counts as alive.
		if answer.Status != 0 && answer.Status < 500 && answer.Status != http.StatusConflict {
			return hopeless{err}
		}
		return err
	}))
	return answer
}

// activate makes the revision the active one, through the nodes that are
// connected.
func (a *activations) activate(revision uint64, through ...*Node) {
	a.Helper()
	if len(through) == 0 {
		through = a.Nodes
	}
	c := change{revision: revision, span: span{from: time.Now()}}
	a.persist(func(n *Node) *Answer {
		return n.Call(a.ctx, http.MethodPost, fmt.Sprintf("/v1/policy/revisions/%d/activate", revision), nil)
	}, through)
	c.to = time.Now()
	a.switches = append(a.switches, c)
}

// switchTo makes so many activations: back and forth between two revisions, and
// now and then one that no node has seen before.
func (a *activations) switchTo(count int, through []*Node) {
	a.Helper()
	for range count {
		i := len(a.switches)
		if i%newEvery == 0 {
			a.activate(a.push(a.pushed), through...)
			continue
		}
		a.activate(a.pair[i%2], through...)
	}
}

func (a *activations) follower() *Node {
	leader, _ := a.leader()
	return a.Nodes[(leader.Number+1)%len(a.Nodes)]
}

// during makes activations while a node is away, and waits until it is back.
// Meanwhile nobody holds it to what is active.
func (a *activations) during(what string, n *Node, begin func(*Node) (end func()), count int) {
	a.Helper()
	from := time.Now()
	end := begin(n)
	a.switchTo(count, a.others(n))
	end()
	a.back()
	a.exempt[n.ID] = append(a.exempt[n.ID], span{from, time.Now()})
	a.Logf("%s, %s: %d activations, and all nodes back, after %s", what, n.ID, count, since(from))
}

func (a *activations) cut(n *Node) func() {
	a.isolate(n, PeerLinks)
	return func() { a.heal() }
}

func (a *activations) kill(n *Node) func() {
	a.test.kill(n)
	return func() { a.restart(n) }
}

// back waits until each node counts all others among the living and decides by
// what is active.
func (a *activations) back() {
	a.Helper()
	want := a.marks[a.switches[len(a.switches)-1].revision]
	ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
	defer cancel()
	a.must(Until(ctx, func() error {
		for _, n := range a.Nodes {
			var members struct {
				Items []struct {
					ID    string `json:"id"`
					Alive bool   `json:"alive"`
				} `json:"items"`
			}
			answer := n.Call(ctx, http.MethodGet, "/v1/cluster/members", nil)
			if answer.Outcome != OK || json.Unmarshal(answer.Body, &members) != nil {
				return fmt.Errorf("%s: %s", n.ID, answer)
			}
			for _, m := range members.Items {
				if !m.Alive {
					return fmt.Errorf("%s takes %s for dead", n.ID, m.ID)
				}
			}
			if seen := lookUp(ctx, n, "open"); !slices.Contains(seen.marks, want) {
				return fmt.Errorf("%s answers by %v, %s is active", n.ID, seen.marks, want)
			}
		}
		return nil
	}))
}

// look makes one look-up, allowed and denied in turn, and remembers it.
func (a *activations) look(ctx context.Context, n *Node, i int) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l := lookUp(ctx, n, []string{"open", "closed"}[i%2])
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lookups = append(a.lookups, l)
}

func lookUp(ctx context.Context, n *Node, service string) lookup {
	answer := n.Call(ctx, http.MethodGet, "/v1/discovery/"+namespace+"/"+service, nil)
	l := lookup{span: span{answer.Invoke, answer.Return}, node: n.ID, status: answer.Status}
	var body struct {
		Marks          []string `json:"marks"`
		Reasons        []string `json:"reasons"`
		PolicyRevision uint64   `json:"policy_revision"`
	}
	_ = json.Unmarshal(answer.Body, &body) // without marks it is no good answer
	expected := map[string]int{"open": http.StatusOK, "closed": http.StatusForbidden}[service]
	l.marks, l.revision = body.Marks, body.PolicyRevision
	for _, reason := range body.Reasons {
		_, mark, _ := strings.Cut(reason, ": ")
		l.marks = append(l.marks, mark)
	}
	if answer.Status != expected {
		l.err = answer.String()
	}
	return l
}

// judge holds all look-ups against all activations.
func (a *activations) judge(took time.Duration) {
	a.Helper()
	complain := a.some()
	var times []time.Duration
	denied, away := 0, 0
	for _, l := range a.lookups {
		free := slices.ContainsFunc(a.exempt[l.node], l.meets)
		if free {
			away++
		} else {
			times = append(times, l.to.Sub(l.from))
		}
		if l.err != "" || len(l.marks) != 3 {
			if !free {
				complain("%s at %s: a look-up was lost: %d %s, marks %v", l.node, l.from.Format(time.StampMilli), l.status, l.err, l.marks)
			}
			continue
		}
		mark := l.marks[0]
		if slices.ContainsFunc(l.marks, func(m string) bool { return m != mark }) {
			complain("%s: one decision mixes revisions: %v", l.node, l.marks)
		}
		if l.status == http.StatusForbidden {
			denied++
			if a.marks[l.revision] != mark {
				complain("%s: the answer names policy revision %d, whose mark is %s, and carries %s", l.node, l.revision, a.marks[l.revision], mark)
			}
		}
		if !free && !slices.Contains(a.active(l.span), mark) {
			complain("%s at %s: answers by %s when only %v was active", l.node, l.from.Format(time.StampMilli), mark, a.active(l.span))
		}
	}
	slices.Sort(times)
	at := func(share float64) time.Duration {
		return times[int(share*float64(len(times)-1))].Round(10 * time.Microsecond)
	}
	a.atLeast(len(a.switches), fewActivations-1, "activations")
	a.atLeast(len(times), 1000, "look-ups on live, connected nodes")
	a.atLeast(denied, 500, "of all look-ups refused by the policy, as they should be")
	a.Logf("%d more while their node was cut off or down; %.0f look-ups/s; p50 %s, p99 %s, p99.9 %s (the aim is %s), slowest %s",
		away, float64(len(a.lookups))/took.Seconds(), at(.5), at(.99), at(.999), lookupWithin, at(1))
	most := lookupMost
	if slack == 1 {
		most = lookupWithin
	}
	if at(.999) > most {
		a.Errorf("p99.9 of the look-ups is %s, more than %s", at(.999), most)
	}
	var each []time.Duration
	for _, c := range a.switches {
		each = append(each, c.to.Sub(c.from))
	}
	slices.Sort(each)
	a.Logf("an activation took %s in the middle, %s at most", each[len(each)/2].Round(time.Millisecond), each[len(each)-1].Round(time.Millisecond))
}

// active gives the marks of all revisions that may have been active at some
// moment of the span.
func (a *activations) active(s span) (marks []string) {
	for i, c := range a.switches {
		// It begins at its first try, and ends when the next has returned.
		if c.from.After(s.to) || (i+1 < len(a.switches) && a.switches[i+1].to.Before(s.from)) {
			continue
		}
		marks = append(marks, a.marks[c.revision])
	}
	return marks
}
