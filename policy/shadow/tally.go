package shadow

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"github.com/muster-registry/muster/policy"
)

const (
	maxInput  = 64 << 10 // bytes of an example's input; a larger one is left out
	maxPlaces = 20       // of one example's filtered
)

// Case is one decision that was made, and the answer another revision gives.
type Case struct {
	EntryPoint string // "a/b"
	Time       time.Time
	Active     *policy.Decision
	Other      *policy.Decision
	// Input gives the input document; it is asked only for examples.
	Input func() ([]byte, error)
}

// Tally counts differences and keeps a few of them as examples. It is safe for
// concurrent use.
type Tally struct {
	mask func(input []byte) []byte

	mu     sync.Mutex // guards impact
	impact policy.Impact
}

// NewTally makes an empty one. Mask takes out of an input what nobody may see;
// nil: examples carry no input.
func NewTally(mask func(input []byte) []byte) *Tally {
	return &Tally{mask: mask, impact: policy.Impact{Differences: []policy.Difference{}, Nodes: []policy.NodeImpact{}}}
}

// Add counts one case and says in which way it differs; "" where it does not.
func (t *Tally) Add(c Case) policy.DifferenceKind {
	kind, reason := compare(c.Active, c.Other)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.impact.Evaluated++
	if kind == "" {
		return ""
	}
	d := policy.Difference{EntryPoint: c.EntryPoint, Kind: kind, Reason: reason, Count: 1, Examples: []policy.Example{}}
	if t.wants(d) {
		d.Examples = append(d.Examples, t.example(c, kind))
	}
	t.impact.Merge(&policy.Impact{Differences: []policy.Difference{d}})
	return kind
}

// Drop counts what was not evaluated.
func (t *Tally) Drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.impact.Dropped++
}

// Impact gives the figures so far.
func (t *Tally) Impact() *policy.Impact {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.impact
	out.Nodes, out.Differences = []policy.NodeImpact{}, slices.Clone(t.impact.Differences)
	for i := range out.Differences {
		out.Differences[i].Examples = slices.Clone(out.Differences[i].Examples)
	}
	return &out
}

// wants says whether the difference could do with another example.
func (t *Tally) wants(d policy.Difference) bool {
	for _, o := range t.impact.Differences {
		if o.EntryPoint == d.EntryPoint && o.Kind == d.Kind && o.Reason == d.Reason {
			return len(o.Examples) < policy.MaxExamples
		}
	}
	return len(t.impact.Differences) < policy.MaxDifferences
}

func (t *Tally) example(c Case, kind policy.DifferenceKind) policy.Example {
	e := policy.Example{DecisionID: c.Active.ID, Time: c.Time.UTC(), Active: answer(c.Active), Shadow: answer(c.Other)}
	if kind == policy.DiffersByFiltered {
		e.Filtered = policy.Places(c.Active.Filtered, c.Other.Filtered, maxPlaces)
	}
	if t.mask == nil {
		return e
	}
	if input, err := c.Input(); err == nil && len(input) <= maxInput {
		e.Input = t.mask(input)
	}
	return e
}

func answer(d *policy.Decision) policy.Answer {
	reasons := d.Reasons
	if reasons == nil {
		reasons = []string{}
	}
	return policy.Answer{Allow: d.Allow, Reasons: reasons, PolicyRevision: d.PolicyRevision, Filtered: d.Filtered != nil}
}

// compare says how other differs from what was answered, and why.
func compare(active, other *policy.Decision) (kind policy.DifferenceKind, reason string) {
	switch {
	case other.Missed:
		return policy.DiffersByError, first(other.Reasons)
	case active.Allow && !other.Allow:
		return policy.WouldDeny, first(other.Reasons)
	case !active.Allow && other.Allow:
		return policy.WouldAllow, first(active.Reasons)
	case !active.Allow:
		if odd := oddReason(active.Reasons, other.Reasons); odd != "" {
			return policy.DiffersByReasons, odd
		}
	case active.Result != nil && !bytes.Equal(active.Result, other.Result):
		return policy.DiffersByResult, ""
	case (active.Filtered == nil) != (other.Filtered == nil):
		return policy.DiffersByFiltered, ""
	case !bytes.Equal(active.Filtered, other.Filtered) && len(policy.Places(active.Filtered, other.Filtered, 1)) > 0:
		return policy.DiffersByFiltered, ""
	}
	return "", ""
}

func first(reasons []string) string {
	if len(reasons) == 0 {
		return ""
	}
	return reasons[0]
}

// oddReason is the first reason that only one of the two gives: the new one's,
// if it has any.
func oddReason(active, other []string) string {
	for _, r := range other {
		if !slices.Contains(active, r) {
			return r
		}
	}
	for _, r := range active {
		if !slices.Contains(other, r) {
			return r
		}
	}
	return ""
}
