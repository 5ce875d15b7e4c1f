# METADATA
# title: "API1 and API5: broken authorization"
# description: What a caller may reach must not follow from guessing an id or a path.
package muster.rules.authorization

# METADATA
# title: Ids that cannot be guessed
# description: Ids in parameters are not integers, which can be counted up; where they have a format, it is one of random ids.
# custom:
#   id: no-numeric-ids
#   severity: medium
#   owasp: API1:2023
#   nist: SP 800-204 access management
found contains {"about": about, "places": guessable.places, "message": guessable.message} if {
	about := rego.metadata.rule().custom
	some guessable in ids
}

ids contains {"places": parameter.places, "message": message} if {
	some parameter in input.parameters
	identifies(parameter)
	some kind in parameter.types
	kind in {"integer", "number"}
	message := sprintf("the parameter %s is an id of type %s, which a caller can count up; use UUIDs", [parameter.name, kind])
}

ids contains {"places": parameter.places, "message": message} if {
	some parameter in input.parameters
	identifies(parameter)
	"string" in parameter.types
	parameter.format != ""
	not lower(parameter.format) in {"uuid", "guid", "ulid", "ksuid", "nanoid", "cuid", "uri", "email"}
	message := sprintf("the parameter %s is an id of format %s; where an id has a format, use uuid", [parameter.name, parameter.format])
}

identifies(parameter) if {
	parameter.in in {"path", "query", "formData"}
	parameter.words[count(parameter.words) - 1] in {"id", "ids"}
}

# METADATA
# title: Administration asks for more
# description: Operations under an admin path ask for another security scheme, or other scopes, than the rest.
# custom:
#   id: admin-security-unique
#   severity: medium
#   owasp: API5:2023
#   nist: SP 800-204B attribute-based access
found contains {"about": about, "places": alternative.places, "message": message} if {
	about := rego.metadata.rule().custom
	some alternative in input.security
	alternative.admin
	alternative.requirements in ordinary
	message := "the operation is under an admin path and asks for no more than operations that are not; give it a scheme or a scope of its own"
}

ordinary contains alternative.requirements if {
	some alternative in input.security
	not alternative.admin
}
