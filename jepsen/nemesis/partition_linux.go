package nemesis

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// partitions are the faults of the network between nodes. Callers reach every
// node all the time.
func partitions() []Fault {
	return []Fault{
		partition("minority", func(_ context.Context, s *Scene) (string, []jepsen.Pair, error) {
			away := s.some(max(1, s.minority()))
			return names(away) + " cut off the rest", both(away, s.without(away)), nil
		}),
		partition("ring", ring),
		partition("bridge", func(_ context.Context, s *Scene) (string, []jepsen.Pair, error) {
			order := s.some(len(s.Nodes))
			half := (len(order) - 1) / 2
			left, right := order[:half], order[half+1:]
			return names(left) + " and " + names(right) + " meet in " + order[half].ID + " alone", both(left, right), nil
		}),
		partition("isolated-leader", isolatedLeader),
		partition("one-way-out", func(ctx context.Context, s *Scene) (string, []jepsen.Pair, error) {
			leader, _, err := s.leader(ctx)
			return "nobody hears the leader", oneWay(leader, s), err
		}),
		partition("one-way-in", func(ctx context.Context, s *Scene) (string, []jepsen.Pair, error) {
			leader, _, err := s.leader(ctx)
			var pairs []jepsen.Pair
			for _, p := range oneWay(leader, s) {
				pairs = append(pairs, jepsen.Pair{From: p.To, To: p.From})
			}
			return "the leader hears nobody", pairs, err
		}),
		{Name: "flapping", Strike: flap, Hold: [2]time.Duration{3 * time.Second, 5 * time.Second}},
	}
}

func isolatedLeader(ctx context.Context, s *Scene) (string, []jepsen.Pair, error) {
	leader, _, err := s.leader(ctx)
	if err != nil {
		return "", nil, err
	}
	return "the leader cut off", both([]*jepsen.Node{leader}, s.Others(leader)), nil
}

// ring lets each node see a majority, and no two of them the same: with five
// each sees its two neighbours. With three it is a bridge.
func ring(_ context.Context, s *Scene) (string, []jepsen.Pair, error) {
	order := s.some(len(s.Nodes))
	n, reach := len(order), len(order)/4
	if n == 3 {
		return "ring " + names(order) + ", open at its end", both(order[:1], order[2:]), nil
	}
	var pairs []jepsen.Pair
	for i := range order {
		for j := range order {
			if apart := min((i-j+n)%n, (j-i+n)%n); apart > reach {
				pairs = append(pairs, jepsen.Pair{From: order[i].Number, To: order[j].Number})
			}
		}
	}
	return "ring " + names(order), pairs, nil
}

// partition is a fault that loses packets between pairs of nodes until it ends.
func partition(name string, choose func(context.Context, *Scene) (string, []jepsen.Pair, error)) Fault {
	return Fault{Name: name, Strike: func(ctx context.Context, s *Scene) (End, error) {
		what, pairs, err := choose(ctx, s)
		if err != nil {
			return nil, err
		}
		before, err := s.Net.Lost()
		if err != nil {
			return nil, err
		}
		if err := s.Net.Cut(pairs...); err != nil {
			return nil, err
		}
		s.History.Mark("", what)
		return func(context.Context) (string, error) { return s.heal(what, before) }, nil
	}}
}

// heal ends all cuts and demands that packets were lost since.
func (s *Scene) heal(what string, before uint64) (string, error) {
	after, err := s.Net.Lost()
	if err != nil {
		return "", err
	}
	if err := s.Net.Heal(); err != nil {
		return "", err
	}
	s.History.Mark("", "healed")
	if after == before {
		return "", nothing("no packet was lost to " + what)
	}
	return fmt.Sprintf("%s: %d packets lost", what, after-before), nil
}

// flap cuts whoever leads off and heals it, several times a second.
func flap(ctx context.Context, s *Scene) (End, error) {
	before, err := s.Net.Lost()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var flapping sync.WaitGroup
	cuts, failed := 0, error(nil)
	s.History.Mark("", "flapping")
	rounds := make([]time.Duration, 64)
	for i := range rounds {
		rounds[i] = time.Duration(100+s.Rand.IntN(500)) * time.Millisecond
	}
	victim, _, err := s.leader(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	flapping.Go(func() {
		for i := 0; ctx.Err() == nil && failed == nil; i++ {
			if i%2 == 0 {
				failed = s.Net.Isolate(victim.Number, jepsen.PeerLinks)
				cuts++
			} else {
				failed = s.Net.Heal()
			}
			select {
			case <-ctx.Done():
			case <-time.After(rounds[i%len(rounds)]):
			}
		}
	})
	return func(context.Context) (string, error) {
		cancel()
		flapping.Wait()
		if failed != nil {
			return "", failed
		}
		return s.heal(fmt.Sprintf("%s cut off and healed %d times", victim.ID, cuts), before)
	}, nil
}

func both(a, b []*jepsen.Node) (pairs []jepsen.Pair) {
	for _, x := range a {
		for _, y := range b {
			pairs = append(pairs, jepsen.Pair{From: x.Number, To: y.Number}, jepsen.Pair{From: y.Number, To: x.Number})
		}
	}
	return pairs
}

func oneWay(from *jepsen.Node, s *Scene) (pairs []jepsen.Pair) {
	if from == nil {
		return nil
	}
	for _, to := range s.Others(from) {
		pairs = append(pairs, jepsen.Pair{From: from.Number, To: to.Number})
	}
	return pairs
}

func (s *Scene) without(nodes []*jepsen.Node) (rest []*jepsen.Node) {
	away := map[*jepsen.Node]bool{}
	for _, n := range nodes {
		away[n] = true
	}
	for _, n := range s.Nodes {
		if !away[n] {
			rest = append(rest, n)
		}
	}
	return rest
}
