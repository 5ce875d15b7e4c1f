package rego

import (
	"fmt"
	"testing"

	"github.com/muster-registry/muster/policy"
)

// teams is a policy as large organisations have them: an entry point that asks
// the module of the team whose namespace it is, and a library that all use.
func teams(n int) *policy.Content {
	c := &policy.Content{Modules: map[string]string{
		"authz.rego": "package api.registry.authz\n\nimport data.lib\n\ndefault allow := false\n\nallow if {\n\tlib.authenticated\n\tdata.teams[input.resource.namespace].allow\n}\n\n" +
			"deny contains message if some message in data.teams[input.resource.namespace].deny\n",
		"lib.rego": "package lib\n\nauthenticated if input.principal.kind != \"anonymous\"\n\nhas_role(role) if role in input.principal.roles\n\n" +
			"encrypted(server) if startswith(lower(server.url), \"https://\")\n\nowner := input.resource.payload.owner\n",
	}}
	for i := range n {
		c.Modules[fmt.Sprintf("teams/t%03d.rego", i)] = team(i, 3)
	}
	return c
}

func team(i, replicas int) string {
	return fmt.Sprintf(`# METADATA
# title: rules of team %[1]d
package teams["t%03[1]d"]

import data.lib

default allow := false

allow if {
	input.action in {"register", "update"}
	lib.has_role("publisher")
	small
}

allow if {
	input.action == "delete"
	lib.has_role("owner-%[1]d")
}

small if count(object.get(input.resource.payload, "instances", [])) <= %[2]d

deny contains "owner is missing: set owner" if {
	input.resource.kind == "service"
	lib.owner == ""
}

deny contains message if {
	some server in input.resource.payload.servers
	not lib.encrypted(server)
	message := sprintf("%%s is not encrypted: use https", [server.url])
}

deny contains message if {
	some path, operations in input.resource.payload.paths
	some method, operation in operations
	method in {"post", "put", "patch", "delete"}
	object.get(operation, "security", []) == []
	message := sprintf("%%s %%s has no security", [upper(method), path])
}

contacts := {person | some person in data.people; person.team == "t%03[1]d"}

on_call := [person.name | some person in contacts; person.on_call]
`, i, replicas)
}

// One of 500 modules changes; the rest is as it was in the revision before.
func BenchmarkPrepareAfterOneChange(b *testing.B) {
	for _, n := range []int{50, 500} {
		b.Run(fmt.Sprintf("%d modules", n), func(b *testing.B) {
			e := engine(b, func(o *Options) { o.Sets = 3 })
			c := teams(n)
			if err := e.Prepare(b.Context(), stage(b, c)); err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				c.Modules["teams/t007.rego"] = team(7, 4+i)
				rev := stage(b, c)
				b.StartTimer()
				if err := e.Prepare(b.Context(), rev); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
