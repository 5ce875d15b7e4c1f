package jepsen

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// inForceWithin is how long after the answer to a revocation a node may still
// accept the credential.
const inForceWithin = time.Second

// How long the nodes of the test go on without a leader, and how long its calls
// wait: for nodes that can be reached, and until the others must have ceased.
const graceInTest = 5 * time.Second

var (
	shortWait = slack * 3 * time.Second
	longWait  = slack * 15 * time.Second
)

// TestRevokeThenDeny: tokens are revoked one after the other under a constant
// load of look-ups with all of them on all nodes, while nothing is wrong, while
// a follower is cut off, while one stands still, and around a change of the
// leader. A second after a 200 no node accepts the token, whoever is cut off; and
// 200 comes, for who waits for it. A 202 names the node that is away and no other:
// it alone may accept the token, until the time that the answer says, and no longer
// than a second after it is back.
func TestRevokeThenDeny(t *testing.T) {
	thorough(t)
	needWorld(t)
	x := cluster(t, map[string]any{"isolation": map[string]any{"max_staleness": graceInTest.String()}})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	x.ctx = ctx
	r := &revocations{test: x, exempt: map[string][]span{}, ended: map[int]ending{}}
	const each, phases = 5, 4
	x.do(x.Nodes[0], http.MethodPut, "/v1/namespaces/"+namespace+"/services/open", `{}`)
	for range each*phases + each { // some are never revoked
		r.mint()
	}
	x.converged()
	looking := x.run(x.Nodes, 4, func(ctx context.Context, n *Node, worker, i int) time.Duration {
		r.look(ctx, n, (worker*7+i)%len(r.tokens))
		return time.Millisecond
	})
	r.revoke(each, x.Nodes, "")

	leader, _ := x.leader()
	follower := x.Nodes[(leader.Number+1)%len(x.Nodes)]
	cut := x.isolate(follower, PeerLinks)
	r.revoke(each, x.others(follower), follower.ID)
	healed := x.heal()
	r.exempt[follower.ID] = append(r.exempt[follower.ID], span{cut, healed.Add(slack * inForceWithin)})
	x.converged()

	paused := x.pause(follower)
	r.revoke(each, x.others(follower), follower.ID)
	r.exempt[follower.ID] = append(r.exempt[follower.ID], span{paused, time.Now()})
	x.resume(follower)
	x.converged()

	leader, _ = x.leader()
	x.isolate(leader, PeerLinks)
	cut = time.Now()
	r.revoke(each, x.others(leader), leader.ID)
	healed = x.heal()
	r.exempt[leader.ID] = append(r.exempt[leader.ID], span{cut, healed.Add(slack * inForceWithin)})
	x.converged()
	from := time.Now()
	r.until(from.Add(2 * inForceWithin)) // of looks at what is revoked by now
	looking.stop()
	r.judge()
}

// ending is the answer to a revocation.
type ending struct {
	asked, answered time.Time
	status          int
	pending         []string
	until           time.Time
}

// knock is one try with a token.
type knock struct {
	span
	node   string
	token  int
	status int
}

type revocations struct {
	*test
	tokens []string
	ended  map[int]ending
	exempt map[string][]span

	mu     sync.Mutex // guards knocks
	knocks []knock
}

func (r *revocations) mint() {
	r.Helper()
	answer := r.do(r.Nodes[0], http.MethodPost, "/v1/tokens", `{"role":"viewer"}`)
	var token struct{ Token string }
	r.must(json.Unmarshal(answer, &token, json.MatchCaseInsensitiveNames(true)))
	r.tokens = append(r.tokens, token.Token)
}

// revoke ends so many tokens. Where a node is away, the answers may name it and
// no other; the first of them has no reason to wait for it, and the next waits
// until it has ceased.
func (r *revocations) revoke(count int, through []*Node, away string) {
	r.Helper()
	for k := range count {
		wait := longWait
		if k == 0 {
			wait = shortWait
		}
		i := len(r.ended)
		e := r.end(i, through, wait)
		r.ended[i] = e
		switch {
		case e.status == http.StatusOK && len(e.pending) == 0:
		case e.status == http.StatusAccepted && k == 0 && slices.Equal(e.pending, []string{away}) && !e.until.IsZero():
		default:
			r.Errorf("revocation %d: %d after %s, pending %v until %s; away is %q", i, e.status, e.answered.Sub(e.asked).Round(time.Millisecond), e.pending, e.until, away)
		}
		if k < 2 {
			r.Logf("with %q away, waiting for %s: %d after %s", away, wait, e.status, e.answered.Sub(e.asked).Round(time.Millisecond))
		}
	}
}

func (r *revocations) end(i int, through []*Node, wait time.Duration) (e ending) {
	r.Helper()
	id := strings.Split(r.tokens[i], "_")[1]
	body := fmt.Appendf(nil, `{"kind":"token","value":%q,"reason":"test"}`, id)
	ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
	defer cancel()
	at := i
	r.must(Until(ctx, func() error {
		n := through[at%len(through)]
		at++
		if e.asked.IsZero() { // a try without an answer may have done it
			e.asked = time.Now()
		}
		answer := n.Call(ctx, http.MethodPost, "/v1/revocations?wait="+wait.String(), body)
		if answer.Status != http.StatusOK && answer.Status != http.StatusAccepted {
			return fmt.Errorf("%s: %s %.300s", n.ID, answer, answer.Body)
		}
		e.answered, e.status = answer.Return, answer.Status
		var done struct {
			Pending   []string  `json:"pending"`
			InForceAt time.Time `json:"in_force_at"`
		}
		err := json.Unmarshal(answer.Body, &done)
		e.pending, e.until = done.Pending, done.InForceAt
		return err
	}))
	return e
}

func (r *revocations) look(ctx context.Context, n *Node, token int) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer := n.Call(ctx, http.MethodGet, "/v1/services", nil, "Authorization", "Bearer "+r.tokens[token])
	r.mu.Lock()
	defer r.mu.Unlock()
	r.knocks = append(r.knocks, knock{span{answer.Invoke, answer.Return}, n.ID, token, answer.Status})
}

// until waits for looks that began after a moment.
func (r *revocations) until(moment time.Time) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
	defer cancel()
	r.must(Until(ctx, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.knocks) > 0 && r.knocks[len(r.knocks)-1].from.After(moment) {
			return nil
		}
		return fmt.Errorf("no look-up began after %s", moment.Format(time.StampMilli))
	}))
}

func (r *revocations) judge() {
	r.Helper()
	complain := r.some()
	denied, accepted := 0, 0
	var latest time.Duration
	for _, k := range r.knocks {
		e, ended := r.ended[k.token]
		switch {
		case k.status == http.StatusUnauthorized && (!ended || k.to.Before(e.asked)):
			complain("%s at %s: refused token %d, which was not revoked", k.node, k.from.Format(time.StampMilli), k.token)
		case k.status == http.StatusUnauthorized:
			denied++
		case k.status == http.StatusOK && !ended:
			accepted++
		case k.status == http.StatusOK && slices.Contains(e.pending, k.node) && k.from.Before(e.until) && slices.ContainsFunc(r.exempt[k.node], func(s span) bool { return !k.from.Before(s.from) && !k.from.After(s.to) }):
			// cut off or standing still, as the answer said
		case k.status == http.StatusOK && k.from.After(e.answered):
			late := k.from.Sub(e.answered)
			latest = max(latest, late)
			if late > inForceWithin {
				complain("%s at %s: accepted token %d %s after the answer to its revocation", k.node, k.from.Format(time.StampMilli), k.token, late)
			}
		}
	}
	r.atLeast(denied, 500, "look-ups refused for their revoked token")
	r.atLeast(accepted, 500, "look-ups with tokens that were never revoked")
	r.Logf("%d revocations, %d look-ups; accepted at the latest %s after the answer", len(r.ended), len(r.knocks), latest)
}
