package nemesis

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// memberships are the faults of who belongs to the cluster. Each round ends with
// the members of the beginning.
func memberships() []Fault {
	return []Fault{
		{Name: "add-member", Spares: 1, Fresh: true, Strike: add},
		{Name: "remove-member", Fresh: true, Strike: remove},
		{Name: "replace-member", Fresh: true, Strike: replace},
	}
}

// add takes a node in that votes in the end, and takes it out again.
func add(ctx context.Context, s *Scene) (End, error) {
	n := s.Spares[0]
	if err := n.Start(); err != nil {
		return nil, err
	}
	s.History.Mark(n.ID, "started, to join")
	if err := s.votes(ctx, n.ID, true); err != nil {
		return nil, err
	}
	s.History.Mark(n.ID, "votes")
	return func(ctx context.Context) (string, error) {
		if err := s.dismiss(ctx, n); err != nil {
			return "", err
		}
		return n.ID + " joined, voted and was removed", nil
	}, nil
}

// remove takes a node out, whoever leads at times, and lets it join anew.
func remove(ctx context.Context, s *Scene) (End, error) {
	n := s.some(1)[0]
	if s.Round%2 == 1 {
		leader, _, err := s.leader(ctx)
		if err != nil {
			return nil, err
		}
		n = leader
	}
	if err := s.dismiss(ctx, n); err != nil {
		return nil, err
	}
	return func(ctx context.Context) (string, error) {
		return n.ID + " was removed, and joined with an empty disk", s.empty(ctx, n)
	}, nil
}

// replace kills a node and starts it at once under its name with an empty disk.
func replace(ctx context.Context, s *Scene) (End, error) {
	n := s.some(1)[0]
	s.killed(n)
	if err := n.Wipe(); err != nil {
		return nil, err
	}
	before, err := n.Count(takesPart)
	if err != nil {
		return nil, err
	}
	if err := n.Start(); err != nil {
		return nil, err
	}
	s.History.Mark(n.ID, "started with an empty disk")
	return func(ctx context.Context) (string, error) {
		if err := s.ready(ctx); err != nil {
			return "", err
		}
		if err := s.votes(ctx, n.ID, true); err != nil {
			return "", err
		}
		return n.ID + " lost its disk", s.elects(ctx, n, before)
	}, nil
}

// elects waits until a node that came with an empty disk takes part in
// elections again, which it had done so many times before: until then a second
// loss would be one too many.
func (s *Scene) elects(ctx context.Context, n *jepsen.Node, before int) error {
	ctx, cancel := context.WithTimeout(ctx, s.Slack*60*time.Second)
	defer cancel()
	return jepsen.Until(ctx, func() error {
		if count, err := n.Count(takesPart); err != nil || count == before {
			return fmt.Errorf("%s takes no part in elections yet: %v", n.ID, err)
		}
		return nil
	})
}

const takesPart = `msg="this node takes part in elections"`

// empty starts a node, whose disk is empty, and waits until it is one of the
// voters in every respect.
func (s *Scene) empty(ctx context.Context, n *jepsen.Node) error {
	before, err := n.Count(takesPart)
	if err != nil {
		return err
	}
	if err := s.start(ctx, n); err != nil {
		return err
	}
	if err := s.votes(ctx, n.ID, true); err != nil {
		return err
	}
	return s.elects(ctx, n, before)
}

// dismiss removes a node from the cluster, ends it and empties its disk.
func (s *Scene) dismiss(ctx context.Context, n *jepsen.Node) error {
	ctx, cancel := context.WithTimeout(ctx, s.Slack*60*time.Second)
	defer cancel()
	i := 0
	err := jepsen.Until(ctx, func() error {
		through := s.Others(n)[i%len(s.Others(n))]
		i++
		a := through.Call(ctx, http.MethodDelete, "/v1/cluster/members/"+n.ID, nil)
		if a.Outcome == jepsen.OK || a.Status == http.StatusNotFound {
			return nil
		}
		return fmt.Errorf("remove %s through %s: %s %.300s", n.ID, through.ID, a, a.Body)
	})
	if err != nil {
		return err
	}
	s.History.Mark(n.ID, "removed")
	if err := s.votes(ctx, n.ID, false); err != nil {
		return err
	}
	if err := n.Terminate(s.Slack * 15 * time.Second); err != nil {
		return err
	}
	s.History.Mark(n.ID, "ended, and its disk is emptied")
	return n.Wipe()
}

// votes waits until all others say that a node votes, or is no member.
func (s *Scene) votes(ctx context.Context, id string, want bool) error {
	ctx, cancel := context.WithTimeout(ctx, s.Slack*60*time.Second)
	defer cancel()
	return jepsen.Until(ctx, func() error {
		for _, n := range s.Nodes {
			if n.ID == id || !n.Running() {
				continue
			}
			status, err := n.Status(ctx)
			if err != nil {
				return err
			}
			role := "no member"
			for _, m := range status.Nodes {
				if m.ID == id {
					role = m.Role
				}
			}
			if got := role == "voter" || role == "leader"; got != want || !want && role != "no member" {
				return fmt.Errorf("%s says that %s is %s", n.ID, id, role)
			}
		}
		return nil
	})
}
