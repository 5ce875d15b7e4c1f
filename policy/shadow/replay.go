package shadow

import (
	"context"
	"iter"

	"github.com/muster-registry/muster/policy"
)

// Replayer makes a decision again by any revision.
type Replayer interface {
	Replay(ctx context.Context, rev *policy.Revision, past *policy.Past) (policy.Decision, error)
}

// Made is a decision as it was made.
type Made struct {
	policy.Past
	EntryPoint string // that was asked, "a/b"; [policy.Past.EntryPoint] only where the caller named it
	Decision   policy.Decision
}

// Replay asks the revision what it would have answered, and compares. What
// cannot be made again, or not before the context ends, is counted as dropped.
func Replay(ctx context.Context, engine Replayer, rev *policy.Revision, made iter.Seq[*Made], mask func(input []byte) []byte) *policy.Impact {
	tally := NewTally(mask)
	for m := range made {
		if m.Decision.Missed {
			continue // it was no answer
		}
		if len(m.Input) == 0 || ctx.Err() != nil {
			tally.Drop()
			continue
		}
		other, err := engine.Replay(ctx, rev, &m.Past)
		if err != nil || (other.Missed && ctx.Err() != nil) {
			tally.Drop()
			continue
		}
		other.PolicyRevision = rev.Number
		tally.Add(Case{EntryPoint: m.EntryPoint, Time: m.Time, Active: &m.Decision, Other: &other,
			Input: func() ([]byte, error) { return m.Input, nil }})
	}
	i := tally.Impact()
	i.Revision = rev.Number
	i.Nodes = []policy.NodeImpact{{Evaluated: i.Evaluated, Dropped: i.Dropped}}
	return i
}
