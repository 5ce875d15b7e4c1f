package workload

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// quota spends from one limit through all nodes, far beyond what it gives. The
// cluster as a whole allows what the limit says; each election, and each node
// that is cut off, may add what the manual says, and no more.
type quota struct{}

const (
	rate  = 300 // hits a second
	burst = 300
	hits  = 5 // of a question
)

func (*quota) Config() map[string]any { return nil }

func (*quota) Begin(ctx context.Context, s *Stage) error {
	_, err := s.must(ctx, http.MethodPut, "/v1/quotas", fmt.Sprintf(
		`{"quota_management":{"backend":"embedded","overrides":[{"service_id":"one","requests_per_second":%d,"burst_capacity":%d}]}}`, rate, burst))
	if err != nil {
		return err
	}
	_, err = s.Converge(ctx) // each node knows the limit
	return err
}

func (*quota) Step(ctx context.Context, s *Stage, c *Caller) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	op := jepsen.Op{Worker: c.Number, Node: c.Node.ID, Kind: jepsen.Spend, Key: "one"}
	a := c.Node.Call(ctx, http.MethodPost, "/v1/quota/check", fmt.Appendf(nil, `{"service_id":"one","hits":%d}`, hits))
	s.History.Add(op, a)
	return c.between(time.Millisecond, 8*time.Millisecond)
}

func (*quota) Check(_ context.Context, s *Stage) (string, error) {
	events, err := s.Events()
	if err != nil {
		return "", err
	}
	elections := 0
	for _, e := range events {
		if e.What == jepsen.Led && e.At.After(s.Begun) {
			elections++
		}
	}
	allowed, refused, first, last := 0, 0, int64(0), int64(0)
	for _, op := range s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.Spend }) {
		if first == 0 {
			first = op.Invoke
		}
		last = max(last, op.Return)
		switch {
		case op.Outcome == jepsen.OK:
			allowed += hits
		case op.Code == "rate_limited":
			refused += hits
		}
	}
	seconds := time.Duration(last - first).Seconds()
	due := rate*seconds + burst
	// A node without its leader grants its part, one of n, beside what the
	// leader's nodes get; a leader that is cut off all of them. A new leader
	// begins with at most a second's worth.
	most := due*1.1 + rate*seconds*float64(len(s.Nodes)-1)/float64(len(s.Nodes)) + float64(elections*rate)
	if elections == 0 {
		most = due * 1.1
	}
	seen := fmt.Sprintf("%d hits allowed of %.0f due, %d refused, %d elections", allowed, due, refused, elections)
	if float64(allowed) > most {
		return "", fmt.Errorf("%s: more than %.0f", seen, most)
	}
	if allowed < burst || refused < burst {
		return "", fmt.Errorf("%s; the run shows nothing", seen)
	}
	return seen, nil
}
