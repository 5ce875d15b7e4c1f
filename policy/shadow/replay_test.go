package shadow_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/shadow"
)

// Decisions that were made are asked about again: at their own time, and only
// those that can be.
func TestReplay(t *testing.T) {
	x := newTrial(t, shadow.Options{})
	const night = `default allow := false
allow if time.clock(time.now_ns())[0] >= 6`
	x.activate(x.stage(module("api.security.authz", "allow := true")))
	candidate := x.stage(module("api.security.authz", night))
	table := x.txn.Commit()
	rev, _ := table.Get(candidate)
	var made []*shadow.Made
	for hour := range 24 {
		in := about("a")
		in.Time = time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC)
		d := x.engine.Decide(t.Context(), table.Active(), in)
		input, err := in.Document()
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, &shadow.Made{Past: policy.Past{Input: input, Time: in.Time}, EntryPoint: d.EntryPoint, Decision: d})
	}
	made = append(made,
		&shadow.Made{Past: policy.Past{Time: time.Now()}, Decision: policy.Decision{Allow: true}},                                                      // its input was not kept
		&shadow.Made{Past: policy.Past{Time: time.Now(), Input: []byte(`{"action":`)}, Decision: policy.Decision{Allow: true}},                         // nor can this be read
		&shadow.Made{Past: policy.Past{Time: time.Now(), Input: []byte(`{}`)}, Decision: policy.Decision{Missed: true, Reasons: []string{"too slow"}}}, // no answer
	)
	mask := func([]byte) []byte { return []byte(`"masked"`) }
	i := shadow.Replay(t.Context(), x.engine, rev, slices.Values(made), mask)
	if i.Revision != candidate || i.Evaluated != 24 || i.Dropped != 2 || len(i.Differences) != 1 || len(i.Nodes) != 1 || i.Nodes[0].Evaluated != 24 {
		t.Fatalf("%+v", i)
	}
	d := i.Differences[0]
	if d.Kind != policy.WouldDeny || d.Count != 6 || d.EntryPoint != policy.DefaultLookup || len(d.Examples) != policy.MaxExamples {
		t.Errorf("%+v", d)
	}
	for _, e := range d.Examples {
		if e.Time.Hour() >= 6 || string(e.Input) != `"masked"` || e.Active.PolicyRevision != 1 || e.Shadow.PolicyRevision != candidate {
			t.Errorf("%+v", e)
		}
	}
	if i := shadow.Replay(t.Context(), x.engine, table.Active(), slices.Values(made), mask); len(i.Differences) != 0 {
		t.Errorf("by the same revision: %+v", i.Differences)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if i := shadow.Replay(over, x.engine, rev, slices.Values(made), mask); i.Evaluated != 0 || i.Dropped != 26 {
		t.Errorf("when the time is over: %+v", i)
	}
}
