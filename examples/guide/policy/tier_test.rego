package api.registry.authz_test

import rego.v1

import data.api.registry.authz

registers(metadata) := {"action": "register", "resource": {"kind": "service", "metadata": metadata}}

test_a_service_has_a_tier if {
	count(authz.deny) == 1 with input as registers({})
	count(authz.deny) == 1 with input as registers({"tier": "lead"})
	count(authz.deny) == 0 with input as registers({"tier": "gold"})
}

test_instances_need_none if {
	count(authz.deny) == 0 with input as {"action": "register", "resource": {"kind": "instance", "metadata": {}}}
}
