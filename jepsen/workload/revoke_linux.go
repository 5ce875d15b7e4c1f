package workload

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/jepsen"
)

// revoke ends tokens one after the other under look-ups with all of them on all
// nodes. Once a revocation is answered, a node that the answer does not name as
// pending accepts the token for a second at most, and one that it names for no
// longer than isolation.max_staleness.
type revoke struct{ tokens []string }

const (
	tokens   = 60
	inForce  = time.Second
	isolated = 5 * time.Second // isolation.max_staleness
)

func (*revoke) Config() map[string]any {
	return map[string]any{"isolation": map[string]any{"max_staleness": isolated.String()}}
}

func (w *revoke) Begin(ctx context.Context, s *Stage) error {
	for range tokens {
		a, err := s.must(ctx, http.MethodPost, "/v1/tokens", `{"role":"viewer"}`)
		if err != nil {
			return err
		}
		var token struct{ Token string }
		if err := json.Unmarshal(a.Body, &token, json.MatchCaseInsensitiveNames(true)); err != nil {
			return err
		}
		w.tokens = append(w.tokens, token.Token)
	}
	_, err := s.Converge(ctx) // each node knows all tokens
	return err
}

// Step of the first caller revokes, of all but a few tokens that stay valid.
func (w *revoke) Step(ctx context.Context, s *Stage, c *Caller) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, 4*Patience)
	defer cancel()
	if c.Number > 0 {
		w.knock(ctx, s, c)
		return c.between(time.Millisecond, 5*time.Millisecond)
	}
	if c.Count < tokens*4/5 {
		w.end(ctx, s, c)
	}
	return c.between(200*time.Millisecond, 600*time.Millisecond)
}

// end revokes one token, tried until a node has done it.
func (w *revoke) end(ctx context.Context, s *Stage, c *Caller) {
	i := c.Count
	body := fmt.Appendf(nil, `{"kind":"token","value":%q,"reason":"test"}`, strings.Split(w.tokens[i], "_")[1])
	for ctx.Err() == nil {
		n := c.any(s)
		op := jepsen.Op{Worker: c.Number, Node: n.ID, Kind: jepsen.End, Key: fmt.Sprint(i)}
		a := n.Call(ctx, http.MethodPost, "/v1/revocations", body)
		if a.Outcome == jepsen.OK {
			var done struct {
				Pending []string `json:"pending"`
			}
			if err := json.Unmarshal(a.Body, &done); err != nil {
				a.Err = err
			}
			op.Value = strings.Join(done.Pending, " ")
		}
		s.History.Add(op, a)
		if a.Outcome == jepsen.OK {
			return
		}
		time.Sleep(c.between(10*time.Millisecond, 100*time.Millisecond))
	}
}

func (w *revoke) knock(ctx context.Context, s *Stage, c *Caller) {
	i := c.Rand.IntN(len(w.tokens))
	op := jepsen.Op{Worker: c.Number, Node: c.Node.ID, Kind: jepsen.Knock, Key: fmt.Sprint(i)}
	a := c.Node.Call(ctx, http.MethodGet, "/v1/services", nil, "Authorization", "Bearer "+w.tokens[i])
	s.History.Add(op, a)
}

func (w *revoke) Check(_ context.Context, s *Stage) (string, error) {
	var mistakes fewMistakes
	asked, ended := map[string]int64{}, map[string]jepsen.Op{}
	for _, op := range s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.End }) {
		if first, ok := asked[op.Key]; !ok || op.Invoke < first {
			asked[op.Key] = op.Invoke
		}
		if op.Outcome == jepsen.OK {
			ended[op.Key] = op
		}
	}
	denied, latest := 0, time.Duration(0)
	for _, op := range s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.Knock }) {
		first, wasAsked := asked[op.Key]
		e, done := ended[op.Key]
		switch {
		case op.Status == http.StatusUnauthorized && (!wasAsked || op.Return < first):
			mistakes.add("%s at %.3f s refused token %s, which was not revoked", op.Node, float64(op.Invoke)/1e9, op.Key)
		case op.Status == http.StatusUnauthorized:
			denied++
		case op.Outcome == jepsen.OK && done && op.Invoke > e.Return:
			late, most := time.Duration(op.Invoke-e.Return), s.Slack*inForce
			if words(e.Value)[op.Node] {
				most += isolated
			}
			if latest = max(latest, late); late > most {
				mistakes.add("%s at %.3f s accepted token %s %s after the answer to its revocation, which named as pending: %q", op.Node, float64(op.Invoke)/1e9, op.Key, late, e.Value)
			}
		}
	}
	if denied*int(s.Slack) < 60 || len(ended) < 3 {
		mistakes.add("%d revocations and %d refusals; the run shows nothing", len(ended), denied)
	}
	return fmt.Sprintf("%d tokens revoked, refused %d times; accepted at the latest %s after the answer", len(ended), denied, latest.Round(time.Millisecond)), mistakes.err()
}
