package workload

import (
	"context"
	"fmt"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// register is compare-and-set registers, read linearizably, through all nodes.
type register struct{ jepsen.Registers }

func (*register) Config() map[string]any { return nil }

func (r *register) Begin(_ context.Context, s *Stage) error {
	r.Registers = jepsen.Registers{History: s.History, Patience: Patience}
	return nil
}

func (r *register) Step(ctx context.Context, s *Stage, c *Caller) time.Duration {
	// New registers every other second keep each history short enough to be
	// searched, and still cross every fault.
	key := fmt.Sprintf("r%d-%d", int(time.Since(s.Begun)/(2*time.Second)), c.Rand.IntN(3))
	value := fmt.Sprintf("%d-%d", c.Number, c.Count)
	var op jepsen.Op
	if c.Rand.IntN(8) == 0 {
		op = r.Set(ctx, c.Node.Client, c.Number, key, value)
	} else if op = r.Get(ctx, c.Node.Client, c.Number, key); op.Outcome == jepsen.OK {
		op = r.Swap(ctx, c.Node.Client, op, value)
	}
	if op.Outcome == jepsen.OK {
		return c.between(time.Millisecond, 8*time.Millisecond)
	}
	return c.between(10*time.Millisecond, 40*time.Millisecond)
}

func (r *register) Check(_ context.Context, s *Stage) (string, error) {
	ops := s.History.Ops(nil)
	if err := jepsen.CheckRegisters(ops, s.Slack*30*time.Second, s.Folder); err != nil {
		return "", err
	}
	return "linearizable", jepsen.CheckRevisions(ops)
}
