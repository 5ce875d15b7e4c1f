# What may stand in a definition depends on the security_level in its service's
# metadata: data.levels names, for each level, the severities of which nothing
# may be found.
package api.registry.authz

import rego.v1

default allow := false

# The roles have been checked before; this policy only adds to them.
allow if count(deny) == 0

storing if {
	input.resource.kind == "version"
	input.action in {"register", "update"}
}

level := object.get(input.resource.metadata, "security_level", "public")

deny contains message if {
	storing
	some finding in input.resource.findings
	finding.severity in data.levels[level]
	message := sprintf("%s (%s) at %s: %s", [finding.rule, finding.severity, finding.path, finding.message])
}

# Findings are listed up to a number; the counts are of all. A definition that
# was not checked has no counts, so it satisfies no level that asks for some.
deny contains message if {
	storing
	some severity in data.levels[level]
	not input.resource.finding_counts[severity] == 0
	message := sprintf("the service's security_level is %s, so its definitions must be checked and show nothing of severity %s", [level, severity])
}

deny contains message if {
	storing
	not data.levels[level]
	message := sprintf("the service's metadata.security_level is %v; use one of %s", [level, concat(", ", object.keys(data.levels))])
}
