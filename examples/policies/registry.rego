# Who may change the registry, and what a service needs to be in it.
# Asked for every registration, update and deletion.
package api.registry.authz

default allow := false

allow if {
	some role in input.principal.roles
	role in {"publisher", "operator"}
}

deny contains "owner is missing: set owner to the team that answers for this service" if {
	writes("service")
	object.get(input.resource.payload, "owner", "") == ""
}

deny contains message if {
	writes("version")
	not plain_http_agreed
	some server in input.resource.payload.servers
	startswith(lower(server.url), "http://")
	message := sprintf("server %s is not encrypted: use https, or set metadata.allow_plain_http to true on the service", [server.url])
}

writes(kind) if {
	input.action in {"register", "update"}
	input.resource.kind == kind
}

plain_http_agreed if input.resource.metadata.allow_plain_http == true
