package nemesis

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// off is how far clocks are moved.
const off = time.Minute

// clocks are the faults of the time of day that nodes believe. The clock that
// only counts goes on.
func clocks() []Fault {
	return []Fault{
		{Name: "clock-leader", Missing: jepsen.Tamperable, Strike: clockLeader},
		{Name: "clocks", Missing: jepsen.Tamperable, Strike: clocksApart},
	}
}

// clockLeader sets the clock of the leader forwards by a minute, or back, in
// turn.
func clockLeader(ctx context.Context, s *Scene) (End, error) {
	leader, _, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	by := off
	if s.Round%2 == 1 {
		by = -off
	}
	return s.clocks(ctx, map[*jepsen.Node]time.Duration{leader: by})
}

// clocksApart sets the clock of each node forwards or back by a minute, or lets
// it be, so that some are two minutes apart.
func clocksApart(ctx context.Context, s *Scene) (End, error) {
	some := s.some(len(s.Nodes))
	by := map[*jepsen.Node]time.Duration{some[0]: off, some[1]: -off}
	for _, n := range some[2:] {
		by[n] = time.Duration(s.Rand.IntN(3)-1) * off
	}
	return s.clocks(ctx, by)
}

// clocks moves them, and sets them right in the end. What the nodes answer bears
// their time, and shows it.
func (s *Scene) clocks(ctx context.Context, by map[*jepsen.Node]time.Duration) (End, error) {
	what := ""
	for _, n := range s.Nodes {
		if by[n] == 0 {
			continue
		}
		s.History.Mark(n.ID, "clock set off by "+by[n].String())
		if err := n.SetClock(by[n]); err != nil {
			return nil, err
		}
		what += fmt.Sprintf(" %s %+.0f s", n.ID, by[n].Seconds())
	}
	struck := s.told(ctx, by)
	return func(ctx context.Context) (string, error) {
		lasting := s.told(ctx, by)
		var errs []error
		for n := range by {
			s.History.Mark(n.ID, "clock set right")
			errs = append(errs, n.SetClock(0))
		}
		if err := errors.Join(append(errs, struck, lasting)...); err != nil {
			return "", err
		}
		return "clocks set off:" + what, s.told(ctx, nil)
	}, nil
}

// told demands that each node's answers bear a time that is off as it should be.
func (s *Scene) told(ctx context.Context, by map[*jepsen.Node]time.Duration) error {
	for _, n := range s.Nodes {
		ctx, cancel := context.WithTimeout(ctx, s.Slack*10*time.Second)
		defer cancel()
		a := n.Call(ctx, http.MethodGet, "/livez", nil)
		is, err := a.ClockOff()
		if err != nil {
			return fmt.Errorf("%s: %s: %w", n.ID, a, err)
		}
		if (is - by[n]).Abs() > a.Took()+2*time.Second {
			return nothing(fmt.Sprintf("the clock of %s is off by %s instead of %s", n.ID, is, by[n]))
		}
	}
	return nil
}
