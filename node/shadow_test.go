package node_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// impact reads a report on how a revision differs.
func impact(t *testing.T, v jsontext.Value, err error) *policy.Impact {
	t.Helper()
	must(t, err)
	var i policy.Impact
	must(t, json.Unmarshal(v, &i))
	return &i
}

// TestShadowAndReplayOverAllNodes: what a revision would change is told from the
// decisions of all nodes, while it is the shadow and afterwards, and none of
// its answers has any effect.
func TestShadowAndReplayOverAllNodes(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	ctx := t.Context()
	c := tr.client(tr.token, 0, 1)
	_, err := c.Put(ctx, cart, []byte(`{}`), client.Write{})
	must(t, err)
	_, err = c.Push(ctx, lookups(`allow := true`), true)
	must(t, err)
	rev, err := c.PushShadow(ctx, lookups("default allow := true\n\ndeny contains \"no carts\" if input.resource.name == \"cart\""), 1)
	must(t, err)
	candidate := number(t, rev)

	const each = 20
	for i := range tr.nodes {
		for range each {
			if _, err := tr.client(tr.token, i).Discover(ctx, "default", "cart", client.Filter{}); err != nil {
				t.Fatalf("the shadow has an effect on node %d: %v", i+1, err)
			}
		}
	}
	check := func(what string, i *policy.Impact) error {
		if i.Revision != candidate || i.Active == 0 || i.Dropped != 0 {
			t.Fatalf("%s: %+v", what, i)
		}
		for _, n := range i.Nodes {
			if n.Problem != "" || n.Evaluated < each {
				return fmt.Errorf("%s: node %s: %+v", what, n.Node, n)
			}
		}
		if len(i.Nodes) != 3 || len(i.Differences) != 1 || i.Differences[0].Count != 3*each {
			return fmt.Errorf("%s: %+v", what, i)
		}
		d := i.Differences[0]
		if d.Kind != policy.WouldDeny || d.Reason != "no carts" || d.EntryPoint != policy.DefaultLookup || len(d.Examples) != policy.MaxExamples {
			t.Errorf("%s: %+v", what, d)
		}
		for _, e := range d.Examples {
			if !strings.Contains(string(e.Input), `"name":"cart"`) || strings.Contains(string(e.Input), tr.token) ||
				!e.Active.Allow || e.Shadow.Allow || e.Shadow.PolicyRevision != candidate || e.DecisionID == "" {
				t.Errorf("%s: example %+v", what, e)
			}
		}
		return nil
	}
	for i := range tr.nodes {
		tr.eventually("every node tells of all", func() error {
			v, err := tr.client(tr.token, i).ShadowReport(ctx)
			return check("report", impact(t, v, err))
		})
	}
	_, err = c.StopShadow(ctx)
	must(t, err)
	if _, err := c.ShadowReport(ctx); !fault.Is(err, fault.NotFound) {
		t.Errorf("a report without a shadow: %v", err)
	}
	tr.eventually("the decisions are made again", func() error {
		v, err := c.ReplayPolicy(ctx, candidate, 0, 1000)
		return check("replay", impact(t, v, err))
	})
	v, err := c.ReplayPolicy(ctx, candidate, 0, 5)
	if i := impact(t, v, err); i.Evaluated > 15 {
		t.Errorf("more than 5 decisions of each node: %+v", i)
	}

	tr.stop(2)
	_, err = c.Shadow(ctx, candidate, 1)
	must(t, err)
	tr.eventually("a node that is away is named", func() error {
		v, err := c.ShadowReport(ctx)
		i := impact(t, v, err)
		if len(i.Nodes) != 3 || i.Nodes[2].Node != tr.nodes[2].id || i.Nodes[2].Problem == "" {
			return fmt.Errorf("%+v", i.Nodes)
		}
		return nil
	})
}
