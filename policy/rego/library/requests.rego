# METADATA
# title: "API7 and API10: requests made for others"
# description: Where the API calls, or has others call, what a caller named.
package muster.rules.requests

# METADATA
# title: URLs from callers
# description: A parameter that is a URL may lead the server to places that its sender cannot reach.
# custom:
#   id: concerning-url-parameter
#   severity: low
#   owasp: API7:2023
#   nist: SP 800-204 access management
found contains {"about": about, "places": parameter.places, "message": message} if {
	about := rego.metadata.rule().custom
	some parameter in input.parameters
	takes_text(parameter)
	some word in parameter.words
	word in {"url", "urls", "uri", "uris", "href", "callback", "redirect", "webhook", "proxy"}
	not parameter.words[count(parameter.words) - 1] in {"id", "ids", "sid", "method", "name", "type", "count", "status", "event", "events", "enabled", "timeout"}
	message := sprintf("the parameter %s looks like a URL that the server may be made to call or to send others to; take ids, or check it against a list", [parameter.name])
}

takes_text(parameter) if count(parameter.types) == 0

takes_text(parameter) if "string" in parameter.types

# METADATA
# title: Callbacks by TLS
# description: A callback goes to https.
# custom:
#   id: no-callback-http
#   severity: high
#   owasp: API10:2023
#   nist: SP 800-204 secure communication
found contains {"about": about, "places": callback.places, "message": message} if {
	about := rego.metadata.rule().custom
	some callback in input.callbacks
	regex.match(`(?i)^(http|ws)://`, callback.url)
	message := sprintf("the callback goes to %s without TLS; use https", [callback.url])
}

# METADATA
# title: Links by TLS
# description: A link leads to a server by https.
# custom:
#   id: no-link-http
#   severity: medium
#   owasp: API10:2023
#   nist: SP 800-204 secure communication
found contains {"about": about, "places": link.places, "message": message} if {
	about := rego.metadata.rule().custom
	some link in input.links
	some protocol in link.protocols
	protocol in {"http", "ws"}
	message := sprintf("the link leads to %s without TLS; use https", [link.url])
}

# METADATA
# title: No references to elsewhere
# description: >-
#   A discriminator, a link, an example or a schema in another language refers to another document, which may change at any time. muster refuses
#   such a $ref wherever it would have to follow it, and never fetches one.
# custom:
#   id: no-external-ref
#   severity: medium
#   owasp: API10:2023
#   nist: SP 800-228 inventory
found contains {"about": about, "places": reference.places, "message": message} if {
	about := rego.metadata.rule().custom
	some reference in input.references
	message := sprintf("refers to %s, outside of this document, where it can change unseen; put what it names into the document", [reference.to])
}
