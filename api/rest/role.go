package rest

import (
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/setting"
)

// roleRoute offers the rules that give roles to credentials. They are the
// operator's alone: who may give roles has them all.
func roleRoute() settingRoute {
	return settingRoute{kind: setting.Role, resource: "role", base: "/v1/roles", one: "Role", many: "Roles",
		body: identity.Rule{}, answer: identity.Rule{}}
}
