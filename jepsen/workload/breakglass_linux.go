package workload

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/jepsen"
)

// breakGlass lifts the refusals of a policy in one namespace after the other,
// and ends that again, under writes to it through all nodes. While it is open
// nothing is refused, before and behind it nothing is let through, whatever the
// nodes' clocks say; one that nobody ends is over when its time is.
type breakGlass struct {
	breaker string        // token
	ward    atomic.Int64  // the namespace that is opened next, or is open
	brief   time.Time     // when the opening is over that nobody ends
	waits   time.Duration // that an opening and its end last
}

const (
	frozen     = "the ward is closed"
	briefWard  = "ward-brief"
	briefTTL   = 5 * time.Second
	noticeable = 5 * time.Second // late, of an end that was told in advance
)

func (*breakGlass) Config() map[string]any { return nil }

func (w *breakGlass) Begin(ctx context.Context, s *Stage) error {
	w.waits = 400 * time.Millisecond
	a, err := s.must(ctx, http.MethodPost, "/v1/tokens", `{"role":"break-glass"}`)
	if err != nil {
		return err
	}
	var token struct{ Token string }
	if err := json.Unmarshal(a.Body, &token, json.MatchCaseInsensitiveNames(true)); err != nil {
		return err
	}
	w.breaker = token.Token
	policy, err := json.Marshal(map[string]any{"modules": map[string]string{"ward.rego": fmt.Sprintf(
		"package api.registry.authz\n\ndefault allow := true\n\ndeny contains %q if startswith(input.resource.namespace, \"ward\")\n", frozen)}})
	if err != nil {
		return err
	}
	if _, err := s.must(ctx, http.MethodPost, "/v1/policy/revisions?activate=true", string(policy)); err != nil {
		return err
	}
	if _, err := s.Converge(ctx); err != nil { // each node knows the token
		return err
	}
	_, err = s.must(ctx, http.MethodPost, "/v1/break-glass", opening(briefWard, briefTTL), "Authorization", "Bearer "+w.breaker)
	w.brief = time.Now().Add(briefTTL)
	return err
}

func opening(namespace string, ttl time.Duration) string {
	return fmt.Sprintf(`{"namespace":%q,"ttl":%q,"reason":"test"}`, namespace, ttl)
}

// Step of the first caller opens and ends, the others write.
func (w *breakGlass) Step(ctx context.Context, s *Stage, c *Caller) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, 4*Patience)
	defer cancel()
	if c.Number > 0 {
		w.write(ctx, s, c)
		return c.between(2*time.Millisecond, 10*time.Millisecond)
	}
	ward := fmt.Sprintf("ward%d", w.ward.Load())
	auth := []string{"Authorization", "Bearer " + w.breaker}
	// Longer than clocks are off, so that no clock ends it.
	w.insist(ctx, s, c, jepsen.Op{Kind: jepsen.Open, Key: ward}, http.MethodPost, "/v1/break-glass", []byte(opening(ward, time.Hour)), auth)
	time.Sleep(c.between(w.waits/2, w.waits))
	w.insist(ctx, s, c, jepsen.Op{Kind: jepsen.Shut, Key: ward}, http.MethodDelete, "/v1/break-glass/"+ward, nil, auth)
	time.Sleep(c.between(w.waits/4, w.waits/2))
	w.ward.Add(1)
	return c.between(w.waits/4, w.waits/2)
}

// insist makes a change through one node after the other until it is done.
func (w *breakGlass) insist(ctx context.Context, s *Stage, c *Caller, op jepsen.Op, method, path string, body []byte, header []string) {
	for ctx.Err() == nil {
		n := c.any(s)
		op.Worker, op.Node = c.Number, n.ID
		call, cancel := context.WithTimeout(ctx, Patience)
		a := n.Call(call, method, path, body, header...)
		cancel()
		s.History.Add(op, a)
		if a.Outcome == jepsen.OK || a.Code == "not_found" { // ended by one of unknown outcome
			return
		}
		time.Sleep(c.between(10*time.Millisecond, 100*time.Millisecond))
	}
}

func (w *breakGlass) write(ctx context.Context, s *Stage, c *Caller) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	ward := fmt.Sprintf("ward%d", w.ward.Load())
	op := jepsen.Op{Worker: c.Number, Node: c.Node.ID, Kind: jepsen.Write, Key: ward}
	a := c.Node.Call(ctx, http.MethodPut, fmt.Sprintf("/v1/namespaces/%s/services/w%d-%d", ward, c.Number, c.Count), []byte(`{}`))
	switch {
	case a.Outcome == jepsen.OK:
		op.Revision = a.Revision()
	case refusedBy(a, frozen): // as it should be, while it is closed
		op.Value = frozen
	}
	s.History.Add(op, a)
}

func refusedBy(a *jepsen.Answer, reason string) bool {
	return a.Code == "policy_denied" && strings.Contains(string(a.Body), reason)
}

// ward is one namespace: the calls that opened and ended it.
type ward struct {
	begun, open     int64 // first call to open it, first answer that it is; 0: none
	ending          int64 // first call to end it; 0: none
	shut            uint64
	unknownOpenings bool
}

func (w *breakGlass) Check(ctx context.Context, s *Stage) (string, error) {
	wards := map[string]*ward{}
	for _, op := range s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.Open || op.Kind == jepsen.Shut }) {
		of := wards[op.Key]
		if of == nil {
			of = &ward{begun: op.Invoke}
			wards[op.Key] = of
		}
		switch {
		case op.Kind == jepsen.Open && op.Outcome == jepsen.OK:
			of.open = op.Return
		case op.Kind == jepsen.Open:
			of.unknownOpenings = of.unknownOpenings || op.Outcome == jepsen.Unknown
		default:
			if of.ending == 0 {
				of.ending = op.Invoke
			}
			if op.Outcome == jepsen.OK {
				of.shut = op.At
			}
		}
	}
	var mistakes fewMistakes
	let, refused, after := 0, 0, 0
	for _, op := range s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.Write }) {
		of := wards[op.Key]
		switch {
		case op.Outcome == jepsen.OK && (of == nil || op.Return < of.begun):
			mistakes.add("%s at %.3f s let a write to %s through, which nobody had opened", op.Node, float64(op.Invoke)/1e9, op.Key)
		case op.Outcome == jepsen.OK && of.shut > 0 && op.Revision > of.shut && !of.unknownOpenings:
			mistakes.add("%s at %.3f s let a write to %s through at revision %d, and it was closed at %d", op.Node, float64(op.Invoke)/1e9, op.Key, op.Revision, of.shut)
		case op.Outcome == jepsen.OK:
			let++
		case op.Value == frozen && of != nil && of.open > 0 && of.open < op.Invoke && (of.ending == 0 || op.Return < of.ending):
			mistakes.add("%s at %.3f s refused a write to %s, which was open", op.Node, float64(op.Invoke)/1e9, op.Key)
		case op.Value == frozen:
			if refused++; of != nil && of.shut > 0 {
				after++
			}
		}
	}
	if let*int(s.Slack) < 30 || refused*int(s.Slack) < 30 || after == 0 {
		mistakes.add("%d writes were let through and %d refused, %d of them to what had been open; the run shows nothing", let, refused, after)
	}
	if err := mistakes.err(); err != nil {
		return "", err
	}
	late, err := w.over(ctx, s)
	return fmt.Sprintf("%d times opened and closed, %d writes let through, %d refused; the one that nobody closed was over when looked for, %s after its time", len(wards), let, refused, late.Round(time.Millisecond)), err
}

// over waits for the end of the opening that nobody ends.
func (w *breakGlass) over(ctx context.Context, s *Stage) (late time.Duration, err error) {
	within := max(0, time.Until(w.brief))/s.Slack + noticeable
	err = settled(ctx, s, within, func() error {
		for _, n := range s.Nodes {
			a := n.Call(ctx, http.MethodPut, "/v1/namespaces/"+briefWard+"/services/"+n.ID, []byte(`{}`))
			if !refusedBy(a, frozen) {
				return fmt.Errorf("the end of %s was at %s, and %s answers %s %.200s", briefWard, w.brief.Format(time.TimeOnly), n.ID, a, a.Body)
			}
		}
		return nil
	})
	return max(0, time.Since(w.brief)), err
}
