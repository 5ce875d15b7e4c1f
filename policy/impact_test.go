package policy

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// What nodes counted adds up, whatever the order, and stays bounded.
func TestImpactsMerge(t *testing.T) {
	part := func(node string, since int64, reasons int) *Impact {
		i := &Impact{Revision: 2, Active: 1, Since: time.Unix(since, 0), Evaluated: 1000, Dropped: 3, Nodes: []NodeImpact{{Node: node}}}
		for n := range reasons {
			i.Differences = append(i.Differences, Difference{EntryPoint: "a/b", Kind: WouldDeny, Reason: fmt.Sprint("r", n), Count: uint64(n) + 1,
				Examples: []Example{{DecisionID: node + fmt.Sprint(n)}, {DecisionID: node}, {DecisionID: node}}})
		}
		return i
	}
	total := &Impact{Revision: 2, Active: 1}
	total.Merge(part("n1", 200, 60))
	total.Merge(&Impact{Nodes: []NodeImpact{{Node: "n3", Problem: "the node is not alive"}}})
	total.Merge(part("n2", 100, 150))
	if total.Evaluated != 2000 || total.Dropped != 6 || !total.Since.Equal(time.Unix(100, 0)) || len(total.Nodes) != 3 {
		t.Errorf("%+v", total)
	}
	var count uint64
	others := 0
	for at, d := range total.Differences {
		count += d.Count
		if at > 0 && d.Count > total.Differences[at-1].Count {
			t.Errorf("%d after %d", d.Count, total.Differences[at-1].Count)
		}
		if len(d.Examples) > MaxExamples {
			t.Errorf("%s has %d examples", d.Reason, len(d.Examples))
		}
		if d.Reason == OtherReasons {
			others++
		}
	}
	if want := uint64(60*61/2 + 150*151/2); count != want {
		t.Errorf("%d differences are counted of %d", count, want)
	}
	if len(total.Differences) != MaxDifferences+1 || others != 1 {
		t.Errorf("%d are told apart, %d are the others", len(total.Differences), others)
	}
}

func TestPlacesTellNothingOfValues(t *testing.T) {
	for _, c := range []struct {
		before, after string
		want          []string
	}{
		{`{"a":1,"b":{"c":[1,2]}}`, `{"b":{"c":[1,2]}, "a":1}`, nil},
		{`{"a":1,"b":{"c":[1,2],"d/e":1}}`, `{"a":2,"b":{"c":[1,3]}}`, []string{"/a", "/b/c", "/b/d~1e"}},
		{`[1]`, `{"a":1}`, []string{""}}, // as a whole
		{`1`, `not json`, []string{""}},
	} {
		if got := Places([]byte(c.before), []byte(c.after), 10); !slices.Equal(got, c.want) {
			t.Errorf("%s, %s: %q, want %q", c.before, c.after, got, c.want)
		}
	}
	if got := Places([]byte(`{"a":1,"b":1}`), []byte(`{"a":2,"b":2}`), 1); len(got) != 1 {
		t.Errorf("%q", got)
	}
}
