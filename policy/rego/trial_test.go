package rego

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/muster-registry/muster/policy"
)

// tried are teams with tests, in packages of their own and in that of a team,
// one name twice and one test of several cases.
func tried() *policy.Content {
	c := teams(4)
	maps.Copy(c.Modules, map[string]string{
		"authz_test.rego": `package api.registry.authz_test

import data.api.registry.authz

call(ns, roles, payload) := {"action": "register", "principal": {"kind": "token", "roles": roles}, "resource": {"kind": "service", "namespace": ns, "payload": payload}}

test_publisher if authz.allow with input as call("t001", ["publisher"], {})

test_anonymous if not authz.allow with input as call("t001", [], {})

test_many[ns] if {
	some ns in ["t000", "t001", "t002"]
	authz.allow with input as call(ns, ["publisher"], {"instances": [1, 2]})
}

test_owner if "owner is missing: set owner" in authz.deny with input as call("t002", [], {"owner": ""})
`,
		"teams/t001_test.rego": `package teams.t001

test_small if small with input.resource.payload as {"instances": [1, 2]}

test_small if not small with input.resource.payload as {"instances": [1, 2, 3, 4, 5]}

test_level if {
	print("allow is", allow)
	not allow with data.lib.has_role as false
}
`,
	})
	return c
}

// outcome is all of a run but how long it took.
func outcome(run *TestRun, err error) string {
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, c := range run.Cases {
		c.Took = 0
		fmt.Fprintf(&b, "%+v\n", c)
	}
	if run.Coverage != nil {
		fmt.Fprintf(&b, "%+v", *run.Coverage)
	}
	return b.String()
}

// The tests of a revision that is made out of another come out as if all of it
// was compiled.
func TestTestsOfLinkedRevisions(t *testing.T) {
	for _, printing := range []bool{false, true} {
		kept, linked := engine(t, func(o *Options) { o.Print = printing }), 0
		again := func(c *policy.Content, what string) {
			got, want := outcome(kept.Test(t.Context(), c, "")), outcome(engine(t, func(o *Options) { o.Print = printing }).Test(t.Context(), c, ""))
			if got != want {
				t.Errorf("%s: %s\nfrom nothing: %s", what, got, want)
			}
			if kept.tested.Load().linked {
				linked++
			}
		}
		again(tried(), "at first")
		again(tried(), "the same again")
		if linked != 1 {
			t.Error("the same was compiled again")
		}
		for _, edit := range edits {
			c := tried()
			c.Modules["teams/t001.rego"] = strings.Replace(c.Modules["teams/t001.rego"], edit.from, edit.to, 1)
			again(c, edit.to)
		}
		if linked < 5 {
			t.Errorf("%d of %d were linked", linked, len(edits))
		}
		c := tried()
		c.Modules["teams/t001_test.rego"] = strings.Replace(c.Modules["teams/t001_test.rego"], "[1, 2]", "[1, 2, 3, 4]", 1)
		again(c, "a test that fails")
		c.Modules["teams/t001_test.rego"] += "\nbroken if nobody(1)\n"
		again(c, "a test that does not compile")
	}
}
