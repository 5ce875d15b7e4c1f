package api.security.authz_test

import data.api.security.authz

good := {"protocol": "https", "headers": {"X-Internal-Dept": "Engineering"}, "principal": {"kind": "token"}}

test_engineering_may_look_up if {
	authz.allow with input as good
	count(authz.deny) == 0 with input as good
}

test_each_reason_alone if {
	every change, reason in {
		{"protocol": "http"}: "use https",
		{"headers": {"X-Internal-Dept": "Sales"}}: "X-Internal-Dept",
		{"principal": {"kind": "anonymous"}}: "nobody is logged in",
	} {
		call := object.union(good, change)
		not authz.allow with input as call
		messages := authz.deny with input as call
		count(messages) == 1
		some message in messages
		contains(message, reason)
	}
}

test_an_empty_call_is_refused if not authz.allow with input as {}
