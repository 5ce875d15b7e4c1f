package policy

import (
	"testing"

	"github.com/muster-registry/muster/fault"
)

// shadowed gives the number of the shadow, and checks that its state agrees.
func shadowed(t *testing.T, table *Table) uint64 {
	t.Helper()
	var found uint64
	all, _ := table.List(0, 1000)
	for _, r := range all {
		if r.State == Shadow {
			if found != 0 {
				t.Errorf("%d and %d are both shadows", found, r.Number)
			}
			found = r.Number
		}
	}
	var says uint64
	if s := table.Shadow(); s != nil {
		says = s.Number
	}
	if says != found {
		t.Errorf("the shadow is said to be %d and is %d", says, found)
	}
	return found
}

func TestOneShadowAtMost(t *testing.T) {
	x := NewTable().Txn(nil)
	for n := range uint64(3) {
		c, err := ParseContent([]byte(`{"modules":{"a.rego":"package a"}}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.Stage(stamp(n+1), Draft{Content: c.Encode(), Digest: c.Digest(), Report: Report{}.Encode(), Engine: "opa 1"}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(number uint64) {
		t.Helper()
		if got := shadowed(t, x.Commit()); got != number {
			t.Errorf("the shadow is %d, want %d", got, number)
		}
	}
	if _, err := x.Unshadow(stamp(4)); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if _, err := x.Activate(stamp(4), 1, 0, false); err != nil {
		t.Fatal(err)
	}
	for _, share := range []float64{0, -1, 1.5} {
		if _, err := x.Shadow(stamp(5), 2, share); !fault.Is(err, fault.InvalidField) {
			t.Errorf("share %v: %v", share, err)
		}
	}
	if _, err := x.Shadow(stamp(5), 1, 1); !fault.Is(err, fault.Conflict) {
		t.Errorf("the active one as its own shadow: %v", err)
	}
	if _, err := x.Shadow(stamp(5), 9, 1); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	want(0)
	r, err := x.Shadow(stamp(6), 2, 0.5)
	if err != nil || r.Share != 0.5 || r.Engine != "opa 1" {
		t.Fatalf("%+v, %v", r, err)
	}
	want(2)
	if _, err := x.Shadow(stamp(7), 3, 1); err != nil {
		t.Fatal(err)
	}
	want(3)
	if r, _ := x.Commit().Get(2); r.State != Staged || r.Share != 0 {
		t.Errorf("the shadow before is %s with share %v", r.State, r.Share)
	}
	if _, err := x.Activate(stamp(8), 3, 1, false); err != nil {
		t.Fatal(err)
	}
	want(0)
	if _, err := x.Shadow(stamp(9), 1, 1); err != nil {
		t.Fatalf("a retired one as shadow: %v", err)
	}
	want(1)
	if _, err := x.Unshadow(stamp(10)); err != nil {
		t.Fatal(err)
	}
	want(0)
	var steps []string
	r, _ = x.Commit().Get(1)
	for _, s := range r.Steps {
		steps = append(steps, s.Step)
	}
	if got := len(steps); got != 5 || steps[0] != "staged" || steps[1] != "active" || steps[2] != "retired" || steps[3] != "shadow" || steps[4] != "staged" {
		t.Errorf("history %v", steps)
	}
}

// A shadow takes the place of another while as many revisions are staged as are
// kept, and itself is the oldest of them.
func TestOldestStagedBecomesShadow(t *testing.T) {
	stored := map[string]string{}
	x := NewTable().Txn(func(bucket, key string, _, value []byte) {
		if stored[bucket+"/"+key] = string(value); value == nil {
			delete(stored, bucket+"/"+key)
		}
	})
	for n := range uint64(Kept + 1) {
		if _, err := x.Stage(stamp(n+1), Draft{Content: []byte(`{"modules":{"a.rego":"package a"}}`), Report: Report{}.Encode()}); err != nil {
			t.Fatal(err)
		}
		if n+1 == Kept {
			if _, err := x.Shadow(stamp(n+1), Kept, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := x.Shadow(stamp(Kept+2), 1, 0.5); err != nil {
		t.Fatal(err)
	}
	table := x.Commit()
	if got := shadowed(t, table); got != 1 || table.Len() != Kept+1 || len(stored) != Kept+1 {
		t.Errorf("the shadow is %d; %d revisions are known and %d stored, want 1 and %d", got, table.Len(), len(stored), Kept+1)
	}
	if _, err := x.Unshadow(stamp(Kept + 4)); err != nil {
		t.Fatal(err)
	}
	if table = x.Commit(); shadowed(t, table) != 0 || table.Len() != Kept {
		t.Errorf("%d revisions are kept, want %d", table.Len(), Kept)
	}
}
