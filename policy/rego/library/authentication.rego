# METADATA
# title: "API2: broken authentication"
# description: Who calls must be known, by means that cannot be guessed, read on the way or kept for ever.
package muster.rules.authentication

writing := {"POST", "PUT", "PATCH", "DELETE"}

reading := {"GET", "HEAD", "OPTIONS"}

# METADATA
# title: HTTP basic authentication
# description: Basic and digest send, or prove, the same password with every request.
# custom:
#   id: no-http-basic
#   severity: high
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": scheme.places, "message": message} if {
	about := rego.metadata.rule().custom
	some name, scheme in input.schemes
	scheme.type == "http"
	scheme.scheme in {"basic", "digest"}
	message := sprintf("the scheme %s is HTTP %s, which shows the same password with every request; use OAuth 2, OpenID Connect or mutual TLS", [name, scheme.scheme])
}

# METADATA
# title: API keys in the URL
# description: A key in a query or a path ends up in logs, histories and referrers.
# custom:
#   id: no-api-keys-in-url
#   severity: high
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": scheme.places, "message": message} if {
	about := rego.metadata.rule().custom
	some name, scheme in input.schemes
	scheme.type in {"apiKey", "httpApiKey"}
	scheme.in in {"query", "path"}
	message := sprintf("the scheme %s takes its key from the %s, where logs and histories keep it; send it in a header", [name, scheme.in])
}

# METADATA
# title: Credentials in the URL
# description: A parameter of a URL, or a server's URL itself, carries a password, a token or a secret.
# custom:
#   id: no-credentials-in-url
#   severity: high
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": shown.places, "message": shown.message} if {
	about := rego.metadata.rule().custom
	some shown in credentials
}

credentials contains {"places": parameter.places, "message": message} if {
	some parameter in input.parameters
	parameter.in in {"query", "path"}
	secret(parameter.words)
	message := sprintf("the %s parameter %s looks like a credential, which logs and histories keep; send it in a header or in the body", [parameter.in, parameter.name])
}

credentials contains {"places": server.places, "message": message} if {
	some server in input.servers
	server.credentials
	message := "the URL of the server holds a user or a password; take it out, and change it"
}

secret(words) if {
	some word in words
	word in {"password", "passwd", "pwd", "passphrase", "secret", "credential", "credentials", "apikey", "accesstoken", "jwt"}
	not words[count(words) - 1] in about_something
}

secret(words) if {
	words[i] == "api"
	words[i + 1] == "key"
	not words[count(words) - 1] in about_something
}

secret(words) if {
	"token" in words
	not words[count(words) - 1] in about_something
	count({w | some w in words} & {"page", "next", "previous", "prev", "sync", "continuation", "continue", "cursor", "delta", "paging", "pagination", "start", "resume", "list", "client"}) == 0
}

# The name of a thing that belongs to a credential is none itself.
about_something := {"id", "ids", "sid", "name", "type", "count", "status", "length", "policy", "expiry", "ttl", "hint"}

# METADATA
# title: Insecure authentication schemes
# description: Negotiate, NTLM and OAuth 1 are out of date.
# custom:
#   id: auth-insecure-schemes
#   severity: high
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": scheme.places, "message": message} if {
	about := rego.metadata.rule().custom
	some name, scheme in input.schemes
	scheme.type == "http"
	scheme.scheme in {"negotiate", "ntlm", "oauth"}
	message := sprintf("the scheme %s is HTTP %s, which is out of date; use OAuth 2, OpenID Connect or mutual TLS", [name, scheme.scheme])
}

# METADATA
# title: JWT best practices
# description: A scheme whose tokens are JWTs says that RFC 8725 is followed.
# custom:
#   id: jwt-best-practices
#   severity: low
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": scheme.places, "message": message} if {
	about := rego.metadata.rule().custom
	some name, scheme in input.schemes
	tokens(scheme)
	not regex.match(`(?i)RFC[ -]?8725`, scheme.description)
	message := sprintf("the scheme %s does not say that its tokens follow RFC 8725, JWT best practices; say so in its description", [name])
}

tokens(scheme) if scheme.type == "oauth2"

tokens(scheme) if lower(scheme.bearer_format) == "jwt"

# METADATA
# title: Access tokens that are renewed
# description: OAuth flows in which a person takes part have a refreshUrl, so that access tokens can be short-lived.
# custom:
#   id: short-lived-access-tokens
#   severity: low
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": scheme.places, "message": message} if {
	about := rego.metadata.rule().custom
	not startswith(input.dialect, "swagger")
	some name, scheme in input.schemes
	scheme.type == "oauth2"
	some flow in scheme.flows
	flow.name in {"authorizationCode", "password"}
	not flow.refresh
	message := sprintf("the flow %s of the scheme %s has no refreshUrl, so its access tokens must live long; add one", [flow.name, name])
}

# METADATA
# title: No implicit flow
# description: The implicit flow hands access tokens out in URLs (RFC 9700).
# custom:
#   id: no-implicit-flow
#   severity: medium
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": scheme.places, "message": message} if {
	about := rego.metadata.rule().custom
	some name, scheme in input.schemes
	scheme.type == "oauth2"
	some flow in scheme.flows
	flow.name == "implicit"
	message := sprintf("the scheme %s has the implicit flow, which hands out tokens in URLs; use the authorization code flow with PKCE", [name])
}

# METADATA
# title: No password flow
# description: The password flow shows a person's password to the client (RFC 9700).
# custom:
#   id: no-password-flow
#   severity: high
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": scheme.places, "message": message} if {
	about := rego.metadata.rule().custom
	some name, scheme in input.schemes
	scheme.type == "oauth2"
	some flow in scheme.flows
	flow.name == "password"
	message := sprintf("the scheme %s has the password flow, which shows passwords to clients; use the authorization code flow with PKCE", [name])
}

# METADATA
# title: Writing needs security
# description: Every operation that writes asks for a security scheme, in each of its alternatives.
# custom:
#   id: write-restricted
#   severity: high
#   owasp: API2:2023
#   nist: SP 800-204 access management
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "openapi"
	some operation in input.operations
	operation.method in writing
	not operation.secured
	message := sprintf("this %s asks for no security scheme, so anyone may write; give it, or the document, security", [operation.method])
}

# METADATA
# title: Reading needs security
# description: Every operation that reads asks for a security scheme. Raise the severity where that is required.
# custom:
#   id: read-restricted
#   severity: low
#   owasp: API2:2023
#   nist: SP 800-204 access management
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "openapi"
	some operation in input.operations
	operation.method in reading
	not operation.secured
	message := sprintf("this %s asks for no security scheme, so anyone may read; give it, or the document, security", [operation.method])
}

# METADATA
# title: Security taken away
# description: An operation with a security of its own that is empty, or has an empty alternative, is open whatever the document asks for.
# custom:
#   id: no-open-security
#   severity: medium
#   owasp: API2:2023
#   nist: SP 800-204 access management
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	some operation in input.operations
	operation.opened
	message := "the operation's own security is empty or has an empty alternative, which opens it to anyone; take the empty part out"
}

# METADATA
# title: Security schemes are declared
# description: A security requirement names a scheme that the document defines.
# custom:
#   id: schemes-declared
#   severity: high
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": alternative.places, "message": message} if {
	about := rego.metadata.rule().custom
	some alternative in input.security
	some requirement in alternative.requirements
	not input.schemes[requirement.scheme]
	message := sprintf("the security scheme %s is asked for and not defined; define it among the security schemes", [requirement.scheme])
}

# METADATA
# title: Scopes are declared
# description: A scope that an operation asks for is declared by a flow of its OAuth scheme.
# custom:
#   id: scopes-declared
#   severity: medium
#   owasp: API2:2023
#   nist: SP 800-204B attribute-based access
found contains {"about": about, "places": alternative.places, "message": message} if {
	about := rego.metadata.rule().custom
	some alternative in input.security
	some requirement in alternative.requirements
	scheme := input.schemes[requirement.scheme]
	scheme.type == "oauth2"
	some scope in requirement.scopes
	not scope in declared[requirement.scheme]
	message := sprintf("the scope %s is asked for and no flow of the scheme %s declares it; add it to the flow's scopes", [scope, requirement.scheme])
}

declared[name] := {scope | some scope in scheme.flows[_].scopes} if some name, scheme in input.schemes

# METADATA
# title: Security schemes are used
# description: A security scheme that is defined is asked for somewhere.
# custom:
#   id: schemes-used
#   severity: low
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": scheme.places, "message": message} if {
	about := rego.metadata.rule().custom
	some name, scheme in input.schemes
	not scheme.used
	message := sprintf("the security scheme %s is defined and never asked for; ask for it, or take it out", [name])
}

# METADATA
# title: Servers of AsyncAPI ask for security
# description: A server asks for a security scheme, unless all operations on it do.
# custom:
#   id: server-security
#   severity: high
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": server.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "asyncapi"
	some server in input.servers
	not server.secured
	not all_secured
	message := sprintf("the server %s asks for no security scheme, so anyone may connect; give it, or each of its operations, security", [server.name])
}

all_secured if {
	count(input.operations) > 0
	every operation in input.operations { operation.secured }
}

# METADATA
# title: Operations of AsyncAPI without a server ask for security
# description: Where a document names no servers, each operation asks for a security scheme itself.
# custom:
#   id: operation-security
#   severity: medium
#   owasp: API2:2023
#   nist: SP 800-204 authentication
found contains {"about": about, "places": operation.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "asyncapi"
	count(input.servers) == 0
	some operation in input.operations
	not operation.secured
	message := "neither a server nor the operation asks for a security scheme; name the servers with their security, or give it to the operation"
}

# METADATA
# title: Passwords over TLS only
# description: SASL PLAIN and user names with passwords are sent over protocols with TLS.
# custom:
#   id: sasl-plain-over-tls
#   severity: high
#   owasp: API2:2023
#   nist: SP 800-204 secure communication
found contains {"about": about, "places": server.places, "message": message} if {
	about := rego.metadata.rule().custom
	input.kind == "asyncapi"
	some server in input.servers
	some protocol in server.protocols
	protocol in data.muster.rules.configuration.plain
	some scheme in server.schemes
	input.schemes[scheme].type in {"plain", "userPassword"}
	message := sprintf("the server %s takes passwords over %s, where they can be read on the way; use the protocol's form with TLS", [server.name, protocol])
}
