# METADATA
# title: What the built-in roles may do
# description: |
#   Asked of every call, before any policy of yours. Nothing is allowed that no
#   row of grants allows. A credential that is limited to namespaces may do a row:
#   "namespaced": in its namespaces; across all, with the answer filtered;
#   "in_namespace": in its namespaces, never across all;
#   "cluster": not at all, since it concerns the whole cluster;
#   "anywhere": as if it had no limit.
package muster.roles

import rego.v1

default allow := false

# A caller holds its roles in its namespaces; where rules have given it several
# roles, each grant for itself. No namespaces means all of them.
held := input.principal.grants if {
	count(input.principal.grants) > 0
} else := [{"roles": input.principal.roles, "namespaces": input.principal.namespaces}]

allow if {
	some have in held
	some row in grants
	input.action in row.actions
	input.resource.kind in row.kinds
	some role in have.roles
	role in row.roles
	reaches(row.scope, have.namespaces)
}

reaches(_, namespaces) if count(namespaces) == 0

reaches("anywhere", _)

reaches("namespaced", _) if input.resource.namespace == ""

reaches(scope, namespaces) if {
	scope in {"namespaced", "in_namespace"}
	input.resource.namespace in namespaces
}

everyone := {"viewer", "publisher", "operator", "policy-admin", "break-glass"}

grants := [
	{
		"actions": {"lookup", "watch"},
		"kinds": {"service", "version", "instance"},
		"scope": "namespaced",
		"roles": everyone,
	},
	{
		"actions": {"register", "update", "delete", "heartbeat"},
		"kinds": {"service", "version", "instance"},
		"scope": "in_namespace",
		"roles": {"publisher", "operator"},
	},
	{
		"actions": {"issue"},
		"kinds": {"certificate"},
		"scope": "namespaced",
		"roles": everyone,
	},
	{
		"actions": {"spend"},
		"kinds": {"quota"},
		"scope": "namespaced",
		"roles": {"publisher", "operator"},
	},
	{
		"actions": {"authorize"},
		"kinds": {"decision"},
		"scope": "anywhere",
		"roles": everyone,
	},
	{
		"actions": {"read"},
		"kinds": {"cluster"},
		"scope": "anywhere",
		"roles": everyone,
	},
	{
		"actions": {"read"},
		"kinds": {"policy", "schema", "decision"},
		"scope": "cluster",
		"roles": {"policy-admin", "operator"},
	},
	{
		"actions": {"manage"},
		"kinds": {"policy", "schema"},
		"scope": "cluster",
		"roles": {"policy-admin", "operator"},
	},
	{
		"actions": {"read", "manage"},
		"kinds": {"cluster", "token", "key", "snapshot", "quota", "webhook", "revocation", "role", "audit"},
		"scope": "cluster",
		"roles": {"operator"},
	},
	{
		"actions": {"manage"},
		"kinds": {"break-glass"},
		"scope": "namespaced",
		"roles": {"break-glass"},
	},
	{
		"actions": {"read"},
		"kinds": {"break-glass"},
		"scope": "namespaced",
		"roles": {"break-glass", "policy-admin", "operator"},
	},
]
