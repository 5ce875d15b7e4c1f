package nemesis

import (
	"context"
	"fmt"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// processes are the faults of the nodes' processes.
func processes() []Fault {
	return []Fault{
		{Name: "kill-leader", Hold: short, Strike: func(ctx context.Context, s *Scene) (End, error) {
			leader, _, err := s.leader(ctx)
			if err != nil {
				return nil, err
			}
			return s.kill(leader)
		}},
		{Name: "kill-one", Hold: short, Strike: func(_ context.Context, s *Scene) (End, error) { return s.kill(s.some(1)...) }},
		{Name: "kill-all", Hold: short, Strike: func(_ context.Context, s *Scene) (End, error) { return s.kill(s.Nodes...) }},
		{Name: "pause-leader", Hold: [2]time.Duration{time.Second, 8 * time.Second}, Strike: pause},
	}
}

var short = [2]time.Duration{500 * time.Millisecond, 2 * time.Second}

// kill ends nodes at once with SIGKILL; the end starts them again.
func (s *Scene) kill(nodes ...*jepsen.Node) (End, error) {
	for _, n := range nodes {
		if !n.Running() {
			return nil, fmt.Errorf("%s does not run", n.ID)
		}
	}
	s.killed(nodes...)
	return func(ctx context.Context) (string, error) {
		for _, n := range nodes {
			if n.Running() {
				return "", nothing(n.ID + " still runs")
			}
		}
		return "SIGKILL of " + names(nodes), s.start(ctx, nodes...)
	}, nil
}

func (s *Scene) killed(nodes ...*jepsen.Node) {
	ends := make(chan struct{})
	for _, n := range nodes {
		s.History.Mark(n.ID, "SIGKILL")
		go func() {
			n.Kill()
			ends <- struct{}{}
		}()
	}
	for range nodes {
		<-ends
	}
}

func (s *Scene) start(ctx context.Context, nodes ...*jepsen.Node) error {
	for _, n := range nodes {
		if err := n.Start(); err != nil {
			return err
		}
		s.History.Mark(n.ID, "started")
	}
	return s.ready(ctx)
}

// pause is SIGSTOP of the leader.
func pause(ctx context.Context, s *Scene) (End, error) {
	leader, _, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	began := s.History.Mark(leader.ID, "SIGSTOP")
	if err := leader.Pause(); err != nil {
		return nil, err
	}
	return func(context.Context) (string, error) {
		state, err := leader.State()
		if err != nil {
			return "", err
		}
		s.History.Mark(leader.ID, "SIGCONT")
		if err := leader.Resume(); err != nil {
			return "", err
		}
		if state != "T" {
			return "", nothing(fmt.Sprintf("the process of %s is in state %s", leader.ID, state))
		}
		return fmt.Sprintf("leader %s stood still for %s", leader.ID, time.Since(began).Round(time.Millisecond)), nil
	}, nil
}
