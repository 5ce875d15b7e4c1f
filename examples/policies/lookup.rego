# Who may look services up: everyone that muster knows.
package api.security.authz

default allow := false

allow if input.principal.kind != "anonymous"
