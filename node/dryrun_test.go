package node_test

import (
	"strings"
	"testing"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

// TestADryRunChangesNothing asks a follower and the leader what would come of
// changes: the same answers and the same refusals, and nothing is stored.
func TestADryRunChangesNothing(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	ctx := t.Context()
	all := tr.client(operatorToken, 0, 1, 2)
	there := client.Ref{Kind: client.Service, Namespace: "default", Name: "there"}
	rec, err := all.Put(ctx, there, []byte(`{"owner":"a"}`), client.Write{})
	must(t, err)
	_, err = all.Push(ctx, []byte(`{"modules":{"authz.rego":"package api.registry.authz\n\nimport rego.v1\n\ndefault allow := true\n\ndeny contains \"no owner\" if {\n\tinput.resource.kind == \"service\"\n\tinput.action != \"delete\"\n\tinput.resource.payload.owner == \"\"\n}\n"}}`), true)
	must(t, err)
	try := client.Write{DryRun: true}
	for i, n := range tr.nodes {
		c := tr.client(operatorToken, i)
		c2 := tr.client(operatorToken, i)
		before, err := all.List(ctx, client.Service, "", "", client.Read{Linearizable: true})
		must(t, err)

		got, err := c.Put(ctx, cart, []byte(`{"owner":"b"}`), try)
		if err != nil || !got.Created || !strings.Contains(string(got.JSON), `"owner":"b"`) {
			t.Errorf("%s: a new service: %+v, %v", n.id, got, err)
		}
		got, err = c.Put(ctx, there, []byte(`{"owner":"b"}`), try)
		if err != nil || got.Created || !strings.Contains(string(got.JSON), `"owner":"b"`) {
			t.Errorf("%s: another owner: %+v, %v", n.id, got, err)
		}
		if _, err := c.Put(ctx, instanceRef("i1"), []byte(`{"address":"10.0.0.1","port":1}`), client.Write{DryRun: true, CreateService: true}); !fault.Is(err, fault.PolicyDenied) {
			t.Errorf("%s: the service that would be made has no owner: %v", n.id, err)
		}
		if err := c.Delete(ctx, there, try); err != nil {
			t.Errorf("%s: delete: %v", n.id, err)
		}
		role := client.Ref{Kind: client.Role, Name: "r"}
		if _, err := c.Put(ctx, role, []byte(`{"roles":["viewer"],"match":{"kind":"token","subject":"x"}}`), try); err != nil && !fault.Is(err, fault.InvalidField) {
			t.Errorf("%s: role: %v", n.id, err)
		}
		for what, refused := range map[string]struct {
			err  error
			code fault.Code
		}{
			"policy":       {second(c.Put(ctx, cart, []byte(`{}`), try)), fault.PolicyDenied},
			"mistake":      {second(c.Put(ctx, cart, []byte(`{"protocol":"smoke","owner":"b"}`), try)), fault.InvalidField},
			"match":        {second(c.Put(ctx, there, []byte(`{"owner":"b"}`), client.Write{DryRun: true, IfRevision: rec.Revision + 1000})), fault.RevisionMismatch},
			"create only":  {second(c.Put(ctx, there, []byte(`{"owner":"b"}`), client.Write{DryRun: true, CreateOnly: true})), fault.RevisionMismatch},
			"not there":    {c.Delete(ctx, cart, try), fault.ServiceNotFound},
			"no service":   {second(c.Put(ctx, instanceRef("i1"), []byte(`{"address":"10.0.0.1","port":1}`), try)), fault.ServiceNotFound},
			"unknown call": {second(tr.client("muster_nobody_x", i).Put(ctx, cart, []byte(`{"owner":"b"}`), try)), fault.Unauthenticated},
		} {
			if !fault.Is(refused.err, refused.code) {
				t.Errorf("%s: %s: %v instead of %s", n.id, what, refused.err, refused.code)
			}
		}
		after, err := c2.List(ctx, client.Service, "", "", client.Read{Linearizable: true})
		must(t, err)
		if len(after) != len(before) || string(after[0]) != string(before[0]) {
			t.Errorf("%s: something was stored: %s became %s", n.id, before, after)
		}
		if roles, err := c2.List(ctx, client.Role, "", "", client.Read{Linearizable: true}); err != nil || len(roles) != 0 {
			t.Errorf("%s: a role was stored: %s, %v", n.id, roles, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
