package api.registry.authz

import data.lib.tokens

default allow := false

allow if {
	tokens.claims.role == "publisher"
	tokens.claims.exp > time.now_ns()
}

deny contains "owner is missing: set owner" if input.resource.payload.owner == ""
