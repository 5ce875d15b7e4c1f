# Every service says how much it matters.
package api.registry.authz

import rego.v1

default allow := true

deny contains "set metadata.tier to gold, silver or bronze" if {
	input.resource.kind == "service"
	input.action in {"register", "update"}
	tier := object.get(input.resource.metadata, "tier", "")
	not tier in {"gold", "silver", "bronze"}
}
