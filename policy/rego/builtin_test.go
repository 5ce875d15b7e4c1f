package rego

import (
	"context"
	"testing"

	"github.com/open-policy-agent/opa/v1/rego"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/policy"
)

// published prepares the built-in policy as users can read it, by OPA alone.
func published(t *testing.T) func(testing.TB, policy.Principal, policy.Action, string, string) bool {
	t.Helper()
	options := []func(*rego.Rego){rego.Query("data.muster.roles.allow")}
	for name, text := range policy.Builtin() {
		options = append(options, rego.Module(name, text))
	}
	query, err := rego.New(options...).PrepareForEval(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return func(t testing.TB, p policy.Principal, action policy.Action, kind, namespace string) bool {
		grants := []any{}
		for _, g := range p.Grants {
			grants = append(grants, map[string]any{"roles": values(g.Roles), "namespaces": values(g.Namespaces)})
		}
		result, err := query.Eval(context.Background(), rego.EvalInput(map[string]any{
			"action": string(action), "resource": map[string]any{"kind": kind, "namespace": namespace},
			"principal": map[string]any{"roles": values(p.Roles), "namespaces": values(p.Namespaces), "grants": grants},
		}))
		if err != nil {
			t.Fatal(err)
		}
		return result.Allowed()
	}
}

func values(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}

// The policy that users read and the table that decides are the same, for every
// role, action, kind and namespace.
func TestTheBuiltInPolicyIsTheTable(t *testing.T) {
	asked := published(t)
	allowed := 0
	roles := append(policy.Roles(), "", "nonsense")
	actions := append(policy.Actions(), "nonsense")
	kinds := append(policy.Kinds(), "nonsense", "")
	for _, role := range roles {
		for _, limit := range [][]string{nil, {"shop"}, {"shop", "web"}} {
			p := policy.Principal{Roles: []string{role}, Namespaces: limit}
			for _, action := range actions {
				for _, kind := range kinds {
					for _, namespace := range []string{"", "shop", "bank"} {
						want := policy.Permit(p, action, kind, namespace) == nil
						if want {
							allowed++
						}
						if got := asked(t, p, action, kind, namespace); got != want {
							t.Errorf("%q limited to %v: %s %s in %q: the policy says %v, the table %v", role, limit, action, kind, namespace, got, want)
						}
					}
				}
			}
		}
	}
	if allowed == 0 {
		t.Error("nothing at all is allowed")
	}
}

func TestTheBuiltInPolicyIsTheTableForGrants(t *testing.T) {
	asked := published(t)
	namespaces := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"shop", "web", "bank"}), 0, 2, rapid.ID[string])
	roles := rapid.SliceOfNDistinct(rapid.SampledFrom(policy.Roles()), 1, 2, rapid.ID[string])
	rapid.Check(t, func(rt *rapid.T) {
		p := policy.Principal{Roles: policy.Roles()} // what grants must not be mixed up with
		for range rapid.IntRange(1, 3).Draw(rt, "grants") {
			p.Grants = append(p.Grants, policy.Grant{Roles: roles.Draw(rt, "roles"), Namespaces: namespaces.Draw(rt, "namespaces")})
		}
		action := rapid.SampledFrom(policy.Actions()).Draw(rt, "action")
		kind := rapid.SampledFrom(policy.Kinds()).Draw(rt, "kind")
		namespace := rapid.SampledFrom([]string{"", "shop", "bank"}).Draw(rt, "namespace")
		if got, want := asked(t, p, action, kind, namespace), policy.Permit(p, action, kind, namespace) == nil; got != want {
			rt.Fatalf("%v: %s %s in %q: the policy says %v, the table %v", p.Grants, action, kind, namespace, got, want)
		}
	})
}

// The tests that come with it pass, and it would be taken as a policy.
func TestTheBuiltInPolicyPassesItsOwnTests(t *testing.T) {
	report, err := engine(t).Check(t.Context(), &policy.Content{Modules: policy.Builtin()})
	if err != nil {
		t.Fatal(err)
	}
	if report.Tests.Passed < 7 || report.Tests.Failed > 0 {
		t.Errorf("tests: %+v", report.Tests)
	}
}
