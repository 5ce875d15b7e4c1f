package api.registry.authz_test

import data.api.registry.authz

publisher := {"id": "ci", "kind": "token", "roles": ["publisher"]}

service(payload) := {
	"action": "register", "principal": publisher,
	"resource": {"kind": "service", "metadata": {}, "payload": payload},
}

version(url, metadata) := {
	"action": "register", "principal": publisher,
	"resource": {"kind": "version", "metadata": metadata, "payload": {"servers": [{"url": url}]}},
}

test_a_publisher_may_register if {
	authz.allow with input as service({"owner": "shop"})
	count(authz.deny) == 0 with input as service({"owner": "shop"})
}

test_a_viewer_may_not if {
	viewer := object.union(service({"owner": "shop"}), {"principal": {"roles": ["viewer"]}})
	not authz.allow with input as viewer
}

test_a_service_needs_an_owner if {
	every payload in [{}, {"owner": ""}] {
		some message in authz.deny with input as service(payload)
		startswith(message, "owner is missing")
	}
}

test_plain_http_is_refused if {
	some message in authz.deny with input as version("http://cart.example", {})
	contains(message, "http://cart.example is not encrypted")
}

test_plain_http_is_allowed_where_metadata_says_so if {
	count(authz.deny) == 0 with input as version("http://cart.example", {"allow_plain_http": true})
}

test_https_is_fine if {
	count(authz.deny) == 0 with input as version("https://cart.example", {})
}

test_a_deletion_needs_no_owner if {
	deletion := {"action": "delete", "principal": publisher, "resource": {"kind": "service", "metadata": {}, "payload": null}}
	authz.allow with input as deletion
	count(authz.deny) == 0 with input as deletion
}
