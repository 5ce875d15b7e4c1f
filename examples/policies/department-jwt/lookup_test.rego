package api.security.authz_test

import data.api.security.authz

# The private half of the example key in data.json. Make your own.
private := {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": "UtjTYyXMQOk3oVcSNfrrcmiMxDLbHAgOZHuA2I1ITpA", "y": "nESzDfi4StBMqOFq6dRrWJpJTR1yCm4IySyOifnf0mc", "d": "ywNvQw6EdFTt32o26ouwVlmTHv-HzC8-ugmui2KJ9yA"}

now := 1700000000

token(claims) := io.jwt.encode_sign({"typ": "JWT", "alg": "ES256"}, claims, private)

claims := {"iss": "https://login.example", "aud": "muster", "sub": "ann", "exp": now + 60}

call(token) := {"protocol": "https", "headers": {"X-Internal-Dept": "Engineering"}, "token": token}

test_a_signed_token_is_good if {
	authz.allow with input as call(token(claims)) with time.now_ns as now * 1000000000
}

test_an_expired_token_is_not if {
	not authz.allow with input as call(token(claims)) with time.now_ns as (now + 61) * 1000000000
}

test_a_token_without_an_expiry_is_not if {
	endless := token(object.remove(claims, ["exp"]))
	not authz.allow with input as call(endless) with time.now_ns as now * 1000000000
}

test_a_token_of_somebody_else_is_not if {
	every change in [{"iss": "https://evil.example"}, {"aud": "other"}] {
		foreign := token(object.union(claims, change))
		not authz.allow with input as call(foreign) with time.now_ns as now * 1000000000
	}
}

test_a_token_with_another_signature_is_not if {
	[header, payload, _] := split(token(claims), ".")
	forged := concat(".", [header, payload, base64url.encode_no_pad("forged")])
	not authz.allow with input as call(forged) with time.now_ns as now * 1000000000
	"the token is missing, expired, or not signed by the issuer: log in again" in authz.deny with input as call(forged)
}

test_http_is_refused if {
	plain := object.union(call(token(claims)), {"protocol": "http"})
	not authz.allow with input as plain with time.now_ns as now * 1000000000
}
