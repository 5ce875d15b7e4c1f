package nemesis

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// lags are the faults that let nodes fall behind.
func lags() []Fault {
	return []Fault{
		{Name: "delay", Strike: delay},
		{Name: "behind", Strike: behind, Config: map[string]any{"raft": map[string]any{"snapshot_threshold": 64, "trailing_logs": 32, "snapshot_interval": "1s"}}},
	}
}

// delay holds up what the leader and the others say to each other, in one
// direction or both, by less or more than it takes to lose the leadership.
func delay(ctx context.Context, s *Scene) (End, error) {
	leader, _, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	least := time.Duration(20+s.Rand.IntN(400)) * time.Millisecond
	pairs := oneWay(leader, s)
	if s.Round%2 == 1 {
		pairs = both([]*jepsen.Node{leader}, s.Others(leader))
	}
	relay, err := s.Net.Delay(least, least+least/2, pairs...)
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("packets of leader %s, %d directions, held up by %s and more", leader.ID, len(pairs), least)
	s.History.Mark("", what)
	return func(context.Context) (string, error) {
		count, err := relay.Close()
		s.History.Mark("", "no delay")
		if err == nil && count == 0 {
			err = nothing("no packet was held up")
		}
		return fmt.Sprintf("%s: %d packets", what, count), err
	}, nil
}

const tookSnapshot = `msg="Installed remote snapshot"`

// behind cuts a follower off until the others' logs no longer reach back to
// what it has: it needs a Raft snapshot then.
func behind(ctx context.Context, s *Scene) (End, error) {
	n, err := s.follower(ctx)
	if err != nil {
		return nil, err
	}
	lost, err := s.Net.Lost()
	if err != nil {
		return nil, err
	}
	status, err := n.Status(ctx)
	if err != nil {
		return nil, err
	}
	applied := status.Applied(n.ID)
	installed, err := n.Count(tookSnapshot)
	if err != nil {
		return nil, err
	}
	if err := s.Net.Isolate(n.Number, jepsen.PeerLinks); err != nil {
		return nil, err
	}
	s.History.Mark(n.ID, "cut off until it needs a snapshot")
	if err := s.compacted(ctx, s.Others(n), applied); err != nil {
		return nil, err
	}
	return func(ctx context.Context) (string, error) {
		what, err := s.heal(n.ID+" was cut off", lost)
		if err != nil {
			return "", err
		}
		ctx, cancel := context.WithTimeout(ctx, s.Slack*30*time.Second)
		defer cancel()
		err = jepsen.Until(ctx, func() error {
			if count, err := n.Count(tookSnapshot); err != nil || count == installed {
				return nothing(fmt.Sprintf("%s has taken over no snapshot: %v", n.ID, err))
			}
			return nil
		})
		return what + ", and took over a Raft snapshot", err
	}, nil
}

// compacted makes changes through the nodes until none of their logs reaches
// back to the index.
func (s *Scene) compacted(ctx context.Context, nodes []*jepsen.Node, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, s.Slack*60*time.Second)
	defer cancel()
	i := 0
	return jepsen.Until(ctx, func() error {
		for range 20 {
			call, done := context.WithTimeout(ctx, 5*time.Second)
			nodes[i%len(nodes)].Call(call, http.MethodPut, fmt.Sprintf("/v1/namespaces/ballast/services/b%d", i%50), fmt.Appendf(nil, `{"description":"%d"}`, i))
			done()
			i++
		}
		for _, n := range nodes {
			last, err := n.Snapshot()
			if err != nil {
				return err
			}
			if last < index+100 {
				return fmt.Errorf("the last Raft snapshot of %s is of index %d, %d was applied", n.ID, last, index)
			}
		}
		return nil
	})
}
