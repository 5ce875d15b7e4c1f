package api.registry.authz_test

import data.api.registry.authz

# The private half of the example key in data.json. Make your own.
private := {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": "UtjTYyXMQOk3oVcSNfrrcmiMxDLbHAgOZHuA2I1ITpA", "y": "nESzDfi4StBMqOFq6dRrWJpJTR1yCm4IySyOifnf0mc", "d": "ywNvQw6EdFTt32o26ouwVlmTHv-HzC8-ugmui2KJ9yA"}

now := 1700000000

token(roles) = io.jwt.encode_sign({"typ": "JWT", "alg": "ES256"}, {
	"iss": "https://login.example", "aud": "muster", "exp": now + 60, "roles": roles,
}, private)

restricted(method, authorization) = {
	"attributes": {"request": {"http": {"method": method, "headers": {"authorization": authorization}}}},
	"principal": {"roles": ["publisher"]},
	"resource": {"metadata": {"security_level": "restricted"}, "payload": {"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": {}}},
}

test_an_admin_writes {
	call := restricted(["PUT", "POST"][_], concat(" ", ["Bearer", token(["dev", "api_admin"])]))
	authz.allow with input as call with time.now_ns as now * 1000000000
	count(authz.deny) == 0 with input as call with time.now_ns as now * 1000000000
}

test_a_publisher_alone_does_not {
	call := restricted("PUT", concat(" ", ["Bearer", token(["dev"])]))
	not authz.allow with input as call with time.now_ns as now * 1000000000
	authz.deny["a restricted resource needs a token with the role api_admin"] with input as call with time.now_ns as now * 1000000000
}

test_an_old_token_does_not {
	call := restricted("PUT", concat(" ", ["Bearer", token(["api_admin"])]))
	not authz.allow with input as call with time.now_ns as (now + 61) * 1000000000
}

test_a_definition_must_parse {
	call := restricted("PUT", concat(" ", ["Bearer", token(["api_admin"])]))
	broken := object.union(call, {"resource": {"metadata": {"security_level": "restricted"}, "payload": null}})
	not authz.allow with input as broken with time.now_ns as now * 1000000000
}

test_open_resources_are_open_to_publishers {
	authz.allow with input as {"principal": {"roles": ["publisher"]}, "resource": {"metadata": {}}}
	not authz.allow with input as {"principal": {"roles": ["viewer"]}, "resource": {"metadata": {}}}
}
