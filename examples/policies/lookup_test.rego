package api.security.authz_test

import data.api.security.authz

test_known_callers_may_look_up if {
	every kind in ["token", "spiffe", "oidc"] {
		authz.allow with input as {"principal": {"kind": kind}}
	}
}

test_strangers_may_not if {
	not authz.allow with input as {"principal": {"kind": "anonymous"}}
}

test_without_a_principal_nobody_may if not authz.allow with input as {}
