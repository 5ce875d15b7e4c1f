# METADATA
# title: "API9: improper inventory"
# description: What runs where, in which version, for whom, and who looks after it.
package muster.rules.inventory

# METADATA
# title: Servers say who may reach them
# description: Each server has the extension x-internal, true or false.
# custom:
#   id: inventory-access
#   severity: info
#   owasp: API9:2023
#   nist: SP 800-228 inventory
found contains {"about": about, "places": server.places, "message": message} if {
	about := rego.metadata.rule().custom
	not startswith(input.dialect, "swagger")
	some server in input.servers
	not server.access
	message := "the server does not say who may reach it; add x-internal, true or false"
}

# METADATA
# title: Servers say which environment they are
# description: The name, the description or the extension x-environment of a server says whether it is for production, test, staging, …
# custom:
#   id: inventory-environment
#   severity: info
#   owasp: API9:2023
#   nist: SP 800-228 inventory
found contains {"about": about, "places": server.places, "message": message} if {
	about := rego.metadata.rule().custom
	not startswith(input.dialect, "swagger")
	some server in input.servers
	not "x-environment" in server.extensions
	not regex.match(`(?i)\b(prod|production|live|test|testing|qa|sit|uat|preprod|stag(e|ing)|sandbox|dev|development|local|demo|alpha|beta|mock|integration)\b`, concat(" ", [server.name, server.description]))
	message := "the server does not say which environment it is; say so in its description, or by x-environment"
}

# METADATA
# title: The version is set
# description: info.version is a version, not empty and not a place holder.
# custom:
#   id: version-set
#   severity: low
#   owasp: API9:2023
#   nist: SP 800-228 inventory
found contains {"about": about, "places": input.info.places, "message": message} if {
	about := rego.metadata.rule().custom
	not regex.match(`[0-9]`, input.info.version)
	message := sprintf("info.version is %q, which names no version; set it", [input.info.version])
}

# METADATA
# title: The lifecycle is set
# description: A version is published, deprecated or retired; a draft is what nobody has said anything about.
# custom:
#   id: lifecycle-set
#   severity: info
#   owasp: API9:2023
#   nist: SP 800-228 inventory
found contains {"about": about, "places": input.registry.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.registry.lifecycle == "draft"
	message := "the version is a draft; set its lifecycle when it is published"
}

# METADATA
# title: Someone owns it
# description: The service has an owner.
# custom:
#   id: owner-set
#   severity: low
#   owasp: API9:2023
#   nist: SP 800-228 inventory
found contains {"about": about, "places": input.registry.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.registry.owner == ""
	message := "the service has no owner, so nobody is told of what is found; set owner in the service"
}

# METADATA
# title: A route belongs to one version
# description: No two published versions of a service offer the same method on the same path.
# custom:
#   id: unique-routes
#   severity: low
#   owasp: API9:2023
#   nist: SP 800-228 inventory
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	some operation in input.operations
	count(operation.claimed) > 0
	message := sprintf("this route is also offered by the published version %s; deprecate that, or give one of them another path", [concat(", ", operation.claimed)])
}

# METADATA
# title: What was not read
# description: A schema is written in another language than JSON Schema, so nothing is known of what it lets through.
# custom:
#   id: schema-not-checked
#   severity: info
#   owasp: API9:2023
#   nist: SP 800-228 inventory
found contains {"about": about, "places": part.places, "message": message} if {
	about := rego.metadata.rule().custom
	some part in input.unread
	message := "the schema is not a JSON Schema and was not checked"
}
