package api.registry.authz

import input.attributes.request.http as http_request

default allow = false

allow {
http_request.method == "POST"
input.resource.metadata.security_level == "restricted"
token.payload.roles[_] == "api_admin"
is_valid_schema(input.resource.payload)
}

token = {"payload": payload} {
[_, payload, _] := io.jwt.decode(http_request.headers.authorization)
}
