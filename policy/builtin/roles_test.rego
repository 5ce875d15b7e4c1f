package muster.roles_test

import data.muster.roles
import rego.v1

ask(principal, action, kind, namespace) := {
	"action": action,
	"principal": principal,
	"resource": {"kind": kind, "namespace": namespace},
}

who(role, namespaces) := {"roles": [role], "namespaces": namespaces}

test_nobody_may_do_nothing if {
	not roles.allow with input as ask({"roles": [], "namespaces": []}, "lookup", "service", "shop")
}

test_a_viewer_reads_and_does_not_write if {
	roles.allow with input as ask(who("viewer", []), "lookup", "service", "shop")
	not roles.allow with input as ask(who("viewer", []), "register", "service", "shop")
}

test_a_publisher_writes_in_its_namespaces if {
	roles.allow with input as ask(who("publisher", ["shop"]), "register", "service", "shop")
	not roles.allow with input as ask(who("publisher", ["shop"]), "register", "service", "bank")
	not roles.allow with input as ask(who("publisher", ["shop"]), "register", "service", "")
}

test_an_operator_runs_the_cluster if {
	roles.allow with input as ask(who("operator", []), "manage", "token", "")
	roles.allow with input as ask(who("operator", []), "manage", "role", "")
	not roles.allow with input as ask(who("operator", ["shop"]), "manage", "token", "")
	not roles.allow with input as ask(who("policy-admin", []), "manage", "role", "")
}

test_a_policy_admin_manages_policies if {
	roles.allow with input as ask(who("policy-admin", []), "manage", "policy", "")
	not roles.allow with input as ask(who("publisher", []), "manage", "policy", "")
}

test_only_break_glass_breaks_the_glass if {
	roles.allow with input as ask(who("break-glass", []), "manage", "break-glass", "shop")
	not roles.allow with input as ask(who("operator", []), "manage", "break-glass", "shop")
}

test_grants_do_not_mix if {
	both := {
		"roles": ["operator", "viewer"],
		"namespaces": [],
		"grants": [
			{"roles": ["viewer"], "namespaces": []},
			{"roles": ["publisher"], "namespaces": ["shop"]},
		],
	}
	roles.allow with input as ask(both, "register", "service", "shop")
	roles.allow with input as ask(both, "lookup", "service", "bank")
	not roles.allow with input as ask(both, "register", "service", "bank")
	not roles.allow with input as ask(both, "manage", "token", "")
}
