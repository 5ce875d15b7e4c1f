# Look-ups by Engineering, over https, with a token whose signature, issuer
# and expiry this policy checks itself. The public keys come with the revision
# as data: {"jwt": {"issuer": "…", "audience": "…", "keys": [{"kty": …}]}}.
package api.security.authz

default allow := false

allow if {
	input.protocol == "https"
	input.headers["X-Internal-Dept"] == "Engineering"
	valid_token
}

# io.jwt.decode_verify checks exp and nbf itself, in the right unit.
valid_token if {
	[valid, _, claims] := io.jwt.decode_verify(input.token, {
		"cert": json.marshal({"keys": data.jwt.keys}),
		"alg": "ES256",
		"iss": data.jwt.issuer,
		"aud": data.jwt.audience,
		"time": time.now_ns(),
	})
	valid
	claims.exp # a token that never ends is refused
}

deny contains "the token is missing, expired, or not signed by the issuer: log in again" if not valid_token
