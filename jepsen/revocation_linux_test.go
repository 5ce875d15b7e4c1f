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

// TestRevokeThenDeny: tokens are revoked one after the other under a constant
// load of look-ups with all of them on all nodes, while nothing is wrong, while
// a follower is cut off, while one stands still, and around a change of the
// leader. A second after the answer no node that it does not name as pending
// accepts the token, nor does one that was cut off or stood still once it has been
// back for a second.
func TestRevokeThenDeny(t *testing.T) {
	needWorld(t)
	x := cluster(t, nil)
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
	r.exempt[follower.ID] = append(r.exempt[follower.ID], span{cut, healed.Add(inForceWithin)})
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
	r.exempt[leader.ID] = append(r.exempt[leader.ID], span{cut, healed.Add(inForceWithin)})
	x.converged()
	from := time.Now()
	r.until(from.Add(2 * inForceWithin)) // of looks at what is revoked by now
	looking.stop()
	r.judge()
}

// ending is the answer to a revocation.
type ending struct {
	asked, answered time.Time
	pending         []string
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
// no other.
func (r *revocations) revoke(count int, through []*Node, away string) {
	r.Helper()
	for range count {
		i := len(r.ended)
		id := strings.Split(r.tokens[i], "_")[1]
		body := fmt.Appendf(nil, `{"kind":"token","value":%q,"reason":"test"}`, id)
		e := ending{}
		ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
		at := i
		r.must(until(ctx, func() error {
			n := through[at%len(through)]
			at++
			e.asked = time.Now()
			answer := n.Call(ctx, http.MethodPost, "/v1/revocations", body)
			if answer.Status != http.StatusOK {
				return fmt.Errorf("%s: %s %.300s", n.ID, answer, answer.Body)
			}
			e.answered = answer.Return
			var done struct {
				Pending []string `json:"pending"`
			}
			err := json.Unmarshal(answer.Body, &done)
			e.pending = done.Pending
			return err
		}))
		cancel()
		for _, n := range e.pending {
			if n != away {
				r.Errorf("the answer says that %s was not reached, and it is not away", n)
			}
		}
		r.ended[i] = e
	}
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
	r.must(until(ctx, func() error {
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
		case k.status == http.StatusOK && slices.ContainsFunc(r.exempt[k.node], func(s span) bool { return !k.from.Before(s.from) && !k.from.After(s.to) }):
			// cut off or standing still, and named as pending
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
