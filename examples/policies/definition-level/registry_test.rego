package api.registry.authz_test

import rego.v1

import data.api.registry.authz

version(level, findings, counts) := {"action": "register", "resource": {
	"kind": "version", "metadata": {"security_level": level},
	"findings": findings, "finding_counts": counts,
}}

basic := {"rule": "no-http-basic", "severity": "high", "path": "/components/securitySchemes/s", "message": "use OAuth 2"}

clean := {"high": 0, "medium": 0, "low": 3, "info": 9}

test_nothing_found if authz.allow with input as version("restricted", [], clean)

test_the_reasons_name_what_to_mend if {
	found := version("restricted", [basic], {"high": 1, "medium": 0, "low": 0, "info": 0})
	not authz.allow with input as found
	"no-http-basic (high) at /components/securitySchemes/s: use OAuth 2" in authz.deny with input as found
}

test_a_lower_level_asks_for_less if {
	some_medium := {"high": 0, "medium": 2, "low": 0, "info": 0}
	authz.allow with input as version("internal", [], some_medium)
	not authz.allow with input as version("restricted", [], some_medium)
}

test_public_asks_for_nothing if {
	authz.allow with input as version("public", [basic], {"high": 1, "medium": 0, "low": 0, "info": 0})
}

test_what_was_not_checked_satisfies_no_level if {
	not authz.allow with input as {"action": "register", "resource": {"kind": "version", "metadata": {"security_level": "internal"}, "findings": []}}
}

test_a_level_that_is_none if not authz.allow with input as version("secret", [], clean)

test_other_records_are_left_alone if {
	authz.allow with input as {"action": "register", "resource": {"kind": "service", "metadata": {"security_level": "secret"}}}
	authz.allow with input as {"action": "delete", "resource": {"kind": "version", "metadata": {"security_level": "restricted"}}}
}
