# In Rego v0: restricted resources are written by api_admins only, and only
# with a definition that parses. Others are open to publishers.
#
# Unlike the usual printed form it believes a token only after checking it,
# takes the Bearer prefix off, and asks for PUT, which is what muster's own
# registrations are. Data as in ../department-jwt.
package api.registry.authz

import input.attributes.request.http as http_request

default allow = false

allow {
	writing
	input.resource.metadata.security_level == "restricted"
	token.payload.roles[_] == "api_admin"
	is_valid_schema(input.resource.payload)
}

allow {
	not restricted
	input.principal.roles[_] == "publisher"
}

restricted {
	input.resource.metadata.security_level == "restricted"
}

writing {
	http_request.method == {"PUT", "POST"}[_]
}

token = {"payload": payload} {
	encoded := trim_prefix(http_request.headers.authorization, "Bearer ")
	[valid, _, payload] := io.jwt.decode_verify(encoded, {
		"cert": json.marshal({"keys": data.jwt.keys}),
		"alg": "ES256",
		"iss": data.jwt.issuer,
		"aud": data.jwt.audience,
		"time": time.now_ns(),
	})
	valid
	payload.exp # a token that never ends is refused
}

deny["a restricted resource needs a token with the role api_admin"] {
	restricted
	not is_admin
}

deny["the definition does not parse: check it with muster apply --dry-run=server"] {
	restricted
	not is_valid_schema(input.resource.payload)
}

is_admin {
	token.payload.roles[_] == "api_admin"
}
