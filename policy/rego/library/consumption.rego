# METADATA
# title: "API3, API4 and API6: unbounded input and use"
# description: What a caller may send, and how often, has limits that the definition names.
package muster.rules.consumption

# METADATA
# title: Objects are closed or bounded
# description: >-
#   An object that comes in takes no properties that it does not name, or at most so many (maxProperties). Objects of answers, and those that
#   are part of an allOf, need not be closed; that a schema says nothing at all is less than that it says true.
# custom:
#   id: additional-properties
#   severity: low
#   owasp: API3:2023
#   nist: SP 800-228 runtime protection
found contains {"about": about, "places": schema.places, "message": message, "severity": severity} if {
	about := rego.metadata.rule().custom
	some schema in input.schemas
	schema.type == "object"
	not schema.composed
	not schema.max_properties
	schema.unevaluated != "closed"
	[severity, message] := openness(schema)
}

openness(schema) := [weight(schema, "low"), message] if {
	schema.additional in {"open", "schema"}
	message := "the object takes any number of properties that it does not name; set additionalProperties to false, or maxProperties"
}

openness(schema) := ["info", message] if {
	schema.additional == "absent"
	schema.side in {"request", "both"}
	message := "the object does not say that it takes no other properties than it names; set additionalProperties to false, or maxProperties"
}

# METADATA
# title: Arrays have a limit
# description: An array says how many items it has at most (maxItems).
# custom:
#   id: array-limit
#   severity: low
#   owasp: API4:2023
#   nist: SP 800-228 runtime protection
found contains {"about": about, "places": schema.places, "message": message, "severity": weight(schema, about.severity)} if {
	about := rego.metadata.rule().custom
	some schema in input.schemas
	schema.type == "array"
	not schema.max_items
	message := "the array may have any number of items; set maxItems"
}

# METADATA
# title: Strings have a limit
# description: A string says how long it is at most (maxLength), or which values it may have (enum, const); date, time, uuid and addresses have a length of their own.
# custom:
#   id: string-limit
#   severity: low
#   owasp: API4:2023
#   nist: SP 800-228 runtime protection
found contains {"about": about, "places": schema.places, "message": message, "severity": weight(schema, about.severity)} if {
	about := rego.metadata.rule().custom
	some schema in input.schemas
	schema.type == "string"
	not schema.max_length
	not schema.enum
	not lower(schema.format) in bounded
	message := "the string may have any length; set maxLength, enum or const"
}

bounded := {"date", "date-time", "time", "duration", "uuid", "guid", "ulid", "ipv4", "ipv6", "int32", "int64"}

# METADATA
# title: Strings are of a kind
# description: A string says what it looks like, by format, pattern, enum or const.
# custom:
#   id: string-restricted
#   severity: info
#   owasp: API4:2023
#   nist: SP 800-228 runtime protection
found contains {"about": about, "places": schema.places, "message": message} if {
	about := rego.metadata.rule().custom
	some schema in input.schemas
	schema.type == "string"
	schema.side in {"request", "both", "none"}
	not schema.pattern
	not schema.enum
	schema.format == ""
	message := "the string may hold anything; set pattern, format, enum or const"
}

# METADATA
# title: Integers have a range
# description: An integer has a minimum and a maximum, or the format int32 or int64.
# custom:
#   id: integer-limit
#   severity: low
#   owasp: API4:2023
#   nist: SP 800-228 runtime protection
found contains {"about": about, "places": schema.places, "message": message, "severity": weight(schema, about.severity)} if {
	about := rego.metadata.rule().custom
	some schema in input.schemas
	schema.type == "integer"
	not schema.enum
	not schema.format in {"int32", "int64"}
	not in_range(schema)
	message := "the integer has no range; set minimum and maximum, or the format int32 or int64"
}

in_range(schema) if {
	schema.minimum
	schema.maximum
}

# What only goes out costs its receiver, not the API.
weight(schema, _) := "info" if schema.side == "answer"

weight(schema, severity) := severity if schema.side != "answer"

# METADATA
# title: Answers say when it is too much
# description: Each operation documents the answer 429.
# custom:
#   id: rate-limit-responses-429
#   severity: medium
#   owasp: API4:2023
#   nist: SP 800-204 throttling
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "openapi"
	some operation in input.operations
	not operation.answers["429"]
	not operation.answers["4XX"]
	message := "the answer 429 is not documented, so nothing says that use is limited; add it, with Retry-After"
}

# METADATA
# title: Answers say when to come back
# description: An answer 429 has Retry-After or rate-limit fields.
# custom:
#   id: rate-limit-retry-after
#   severity: low
#   owasp: API4:2023
#   nist: SP 800-204 throttling
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	some operation in input.operations
	headers := operation.answers["429"]
	not limited(headers)
	message := "the answer 429 has neither Retry-After nor rate-limit fields among its headers, so callers cannot know when to come back; add one"
}

# METADATA
# title: Answers show the limit
# description: Some answer of an operation carries rate-limit fields (RateLimit, X-RateLimit-…, X-Rate-Limit-…) or Retry-After.
# custom:
#   id: rate-limit
#   severity: info
#   owasp: API4:2023
#   nist: SP 800-204 throttling
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "openapi"
	some operation in input.operations
	not limited(operation.answer_headers)
	message := "no answer carries rate-limit fields, so callers cannot keep within a limit; add RateLimit to the headers of the answers"
}

limited(headers) if {
	some header in headers
	regex.match(`^((x-)?rate-?limit|retry-after)`, header)
}

# METADATA
# title: Sensitive flows are limited
# description: >-
#   An operation that writes in a sensitive business flow, by its tags (payments, orders, bookings, …) or by the extension x-sensitive-flow, documents 429,
#   takes an Idempotency-Key, or has an extension x-rate-limit.
# custom:
#   id: business-flow-limit
#   severity: medium
#   owasp: API6:2023
#   nist: SP 800-204 throttling
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	some operation in input.operations
	operation.method in {"POST", "PUT", "PATCH", "DELETE"}
	sensitive(operation)
	not operation.answers["429"]
	not operation.answers["4XX"]
	not guarded(operation)
	message := "the operation belongs to a sensitive flow and has neither a limit (429) nor an Idempotency-Key, so it can be run in bulk; add one"
}

sensitive(operation) if {
	some extension in operation.extensions
	extension in {"x-sensitive-flow", "x-business-flow"}
}

sensitive(operation) if {
	some tag in operation.tags
	some word in regex.split(`[^a-z]+`, lower(tag))
	trim_suffix(word, "s") in {
		"payment", "checkout", "order", "purchase", "booking", "reservation", "transfer", "withdrawal", "payout",
		"refund", "signup", "registration", "login", "voucher", "coupon", "giftcard",
	}
}

guarded(operation) if {
	some header in operation.headers
	header in {"idempotency-key", "x-idempotency-key"}
}

guarded(operation) if {
	some extension in operation.extensions
	extension in {"x-rate-limit", "x-ratelimit", "x-throttling"}
}
