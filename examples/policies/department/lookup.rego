# Look-ups by Engineering, over https, by callers that muster knows.
#
# The usual printed form of this policy reads the token with io.jwt.decode and
# cannot work: that function gives no verdict. Here muster has authenticated
# the caller already; see ../department-jwt for a token that muster does not
# know how to check.
package api.security.authz

default allow := false

allow if count(deny) == 0

deny contains "the call is not encrypted: use https" if input.protocol != "https"

deny contains "the header X-Internal-Dept must be Engineering" if not from_engineering

deny contains "nobody is logged in: send a token or a client certificate" if not known_caller

from_engineering if input.headers["X-Internal-Dept"] == "Engineering"

known_caller if input.principal.kind in {"token", "spiffe", "oidc"}
