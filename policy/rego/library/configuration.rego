# METADATA
# title: "API8: security misconfiguration"
# description: Servers, transport and answers to errors.
package muster.rules.configuration

# METADATA
# title: Servers by TLS
# description: A server has an https or wss URL. Plain http to the same machine is not judged here but by internal-host.
# custom:
#   id: no-server-http
#   severity: high
#   owasp: API8:2023
#   nist: SP 800-204 secure communication
found contains {"about": about, "places": server.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "openapi"
	not startswith(input.dialect, "swagger")
	some server in input.servers
	some protocol in server.protocols
	not protocol in {"https", "wss"}
	not loopback(server.host)
	message := sprintf("the server %s is reached by %s, without TLS; use https or wss", [server.url, protocol])
}

# METADATA
# title: Schemes with TLS
# description: The schemes of a Swagger document are https and wss.
# custom:
#   id: no-scheme-http
#   severity: high
#   owasp: API8:2023
#   nist: SP 800-204 secure communication
found contains {"about": about, "places": server.places, "message": message} if {
	about := rego.metadata.rule().custom
	startswith(input.dialect, "swagger")
	some server in input.servers
	some protocol in server.protocols
	not protocol in {"https", "wss"}
	message := sprintf("the scheme %s is without TLS; use https or wss", [protocol])
}

# METADATA
# title: Protocols with TLS
# description: The servers of an AsyncAPI document use a protocol with TLS (https, wss, amqps, mqtts, secure-mqtt, kafka-secure, stomps, …).
# custom:
#   id: no-plain-protocol
#   severity: high
#   owasp: API8:2023
#   nist: SP 800-204 secure communication
found contains {"about": about, "places": server.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "asyncapi"
	some server in input.servers
	some protocol in server.protocols
	protocol in plain
	not loopback(server.host)
	message := sprintf("the server %s speaks %s, without TLS; use %s", [server.name, protocol, instead(protocol)])
}

plain := {"http", "ws", "amqp", "amqp1", "mqtt", "mqtt5", "kafka", "stomp", "nats", "redis", "jms", "solace", "pulsar", "ibmmq"}

with_tls := {"http": "https", "ws": "wss", "amqp": "amqps", "mqtt": "secure-mqtt or mqtts", "mqtt5": "secure-mqtt or mqtts", "kafka": "kafka-secure", "stomp": "stomps", "redis": "rediss", "pulsar": "pulsar+ssl"}

instead(protocol) := with_tls[protocol]

instead(protocol) := "its form with TLS" if not with_tls[protocol]

# METADATA
# title: Protocols that are known
# description: The protocol of an AsyncAPI server is one of which muster knows whether it has TLS.
# custom:
#   id: protocol-known
#   severity: info
#   owasp: API8:2023
#   nist: SP 800-204 secure communication
found contains {"about": about, "places": server.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "asyncapi"
	some server in input.servers
	some protocol in server.protocols
	not protocol in plain
	not protocol in {"https", "wss", "amqps", "amqp1s", "mqtts", "secure-mqtt", "kafka-secure", "stomps", "rediss", "pulsar+ssl", "tls", "nats+tls", "ibmmq-secure", "sns", "sqs", "googlepubsub", "mercure"}
	message := sprintf("whether the protocol %s of the server %s has TLS is not known here", [protocol, server.name])
}

# METADATA
# title: Internal hosts
# description: A server that others are to use is not on the reader's own machine, at a private address or under an internal name, unless it says so by x-internal.
# custom:
#   id: internal-host
#   severity: low
#   owasp: API8:2023
#   nist: SP 800-228 inventory
found contains {"about": about, "places": server.places, "message": message} if {
	about := rego.metadata.rule().custom
	some server in input.servers
	inside(server.host)
	not "x-internal" in server.extensions
	message := sprintf("the host %s is an internal one; take it out of what is published, or mark the server by x-internal", [server.host])
}

loopback(host) if regex.match(`^(localhost|.*\.localhost|127\.[0-9.]+|::1|0\.0\.0\.0)$`, host)

inside(host) if loopback(host)

inside(host) if regex.match(`^(10\.[0-9.]+|192\.168\.[0-9.]+|172\.(1[6-9]|2[0-9]|3[01])\.[0-9.]+|169\.254\.[0-9.]+|f[cd][0-9a-f:]+|fe80[0-9a-f:]+)$`, host)

inside(host) if regex.match(`\.(internal|intranet|local|lan|corp|private|svc|cluster\.local)$`, host)

# METADATA
# title: OAuth by TLS
# description: The URLs of OAuth flows are https.
# custom:
#   id: no-oauth-http
#   severity: high
#   owasp: API8:2023
#   nist: SP 800-204 secure communication
found contains {"about": about, "places": scheme.places, "message": message} if {
	about := rego.metadata.rule().custom
	some name, scheme in input.schemes
	some url in scheme.flows[_].urls
	regex.match(`(?i)^http://`, url)
	message := sprintf("the scheme %s sends callers to %s without TLS; use https", [name, url])
}

# METADATA
# title: CORS is defined
# description: Some answer of an operation names the header Access-Control-Allow-Origin, so that what browsers may do is a decision.
# custom:
#   id: define-cors-origin
#   severity: info
#   owasp: API8:2023
#   nist: SP 800-204 access management
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "openapi"
	some operation in input.operations
	not "access-control-allow-origin" in operation.answer_headers
	message := "no answer defines Access-Control-Allow-Origin, so which web sites may call is left open; define the header"
}

# METADATA
# title: Answers to bad input
# description: An operation documents the answer 400, 422 or 4XX, or a default one.
# custom:
#   id: define-error-validation
#   severity: low
#   owasp: API8:2023
#   nist: SP 800-228 runtime protection
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "openapi"
	some operation in input.operations
	not operation.answers["400"]
	not operation.answers["422"]
	not operation.answers["4XX"]
	not operation.answers.DEFAULT
	message := "no answer to bad input is documented; add 400 or 422"
}

# METADATA
# title: Answers to unknown callers
# description: An operation that asks for security documents the answer 401 or 4XX.
# custom:
#   id: define-error-responses-401
#   severity: low
#   owasp: API8:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "openapi"
	some operation in input.operations
	operation.asks
	not operation.answers["401"]
	not operation.answers["4XX"]
	message := "the operation asks for security and does not document the answer 401; add it"
}

# METADATA
# title: Answers to failures
# description: An operation documents the answer 500 or 5XX, or a default one.
# custom:
#   id: define-error-responses-500
#   severity: info
#   owasp: API8:2023
#   nist: SP 800-228 runtime protection
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "openapi"
	some operation in input.operations
	not operation.answers["500"]
	not operation.answers["5XX"]
	not operation.answers.DEFAULT
	message := "no answer to a failure of the server is documented; add 500"
}
