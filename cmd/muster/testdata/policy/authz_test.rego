package authz_test

import data.api.registry.authz

test_no_owner if {
	authz.deny["owner is missing: set owner"] with input as {"resource": {"payload": {"owner": ""}}}
}

test_publisher if {
	print("no token is", data.published)
	authz.allow with input as {"headers": {}}
}

todo_test_expired if false
