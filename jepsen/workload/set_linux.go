package workload

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// set is a growing set: in the end each node has what was acknowledged and
// nothing that was refused, and each node's audit trail has it once.
type set struct{ jepsen.Set }

func (*set) Config() map[string]any { return nil }

func (w *set) Begin(_ context.Context, s *Stage) error {
	w.Set = jepsen.Set{History: s.History, Service: "set", Patience: Patience}
	return nil
}

func (w *set) Step(ctx context.Context, _ *Stage, c *Caller) time.Duration {
	op := w.Add(ctx, c.Node.Client, c.Number, fmt.Sprintf("w%d-%d", c.Number, c.Count))
	if op.Outcome == jepsen.OK {
		return c.between(0, 4*time.Millisecond)
	}
	return c.between(10*time.Millisecond, 50*time.Millisecond)
}

func (w *set) Check(ctx context.Context, s *Stage) (string, error) {
	ops := s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.Write })
	if err := jepsen.CheckRevisions(ops); err != nil {
		return "", err
	}
	count, err := whole(ctx, s, w.Set, ops)
	if err != nil || s.Fresh {
		return fmt.Sprintf("%d acknowledged, all on each node", count), err
	}
	for _, n := range s.Nodes {
		// Lines are written a moment after the change is applied.
		err := settled(ctx, s, 30*time.Second, func() error {
			_, err := n.Audited(ctx, ops)
			return err
		})
		if err != nil {
			return "", fmt.Errorf("the audit trail of %s: %w", n.ID, err)
		}
	}
	return fmt.Sprintf("%d acknowledged, all on each node and once in each trail", count), nil
}

// whole demands that each node has exactly what callers were told.
func whole(ctx context.Context, s *Stage, w jepsen.Set, ops []jepsen.Op) (acknowledged int, err error) {
	var errs []error
	for _, n := range s.Nodes {
		found, err := w.Members(ctx, n.Client, "linearizable")
		if err != nil {
			return 0, err
		}
		acknowledged, err = jepsen.CheckSet(ops, found)
		if err != nil {
			errs = append(errs, fmt.Errorf("on %s: %w", n.ID, err))
		}
	}
	return acknowledged, errors.Join(errs...)
}
