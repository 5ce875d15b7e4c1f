# METADATA
# title: What muster finds in a definition
# description: >-
#   Brings together what the rules found, under the severities and without what
#   the data of the active policy revision leaves out.
package muster.review

# findings is what muster asks for. Places is the number of a list of places in
# the definition: muster makes one finding of each, but those below what except
# names for the rule.
findings contains finding if {
	some found in data.muster.rules[_].found
	id := found.about.id
	not id in left_out
	finding := {
		"rule": id,
		"severity": object.get(chosen, id, object.get(found, "severity", found.about.severity)),
		"message": found.message,
		"places": found.places,
	}
}

# The data of a policy revision may name rules, or rules below a JSON pointer,
# that do not count:
#   {"muster": {"definition": {"ignore": ["string-limit", {"rule": "read-restricted", "path": "/paths/~1health"}]}}}
left_out contains id if {
	some id in data.muster.definition.ignore
	is_string(id)
}

except[id] contains path if {
	some exception in data.muster.definition.ignore
	id := exception.rule
	path := exception.path
	startswith(path, "/")
}

# and give rules another severity: {"muster": {"definition": {"severity": {"no-numeric-ids": "high"}}}}
chosen[id] := severity if {
	some id, severity in data.muster.definition.severity
	severity in severities
}

severities := {"high", "medium", "low", "info"}
