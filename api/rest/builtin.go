package rest

import (
	"net/http"

	"github.com/muster-registry/muster/policy"
)

// Builtin is the built-in policy of the roles.
type Builtin struct {
	Package string            `json:"package"`
	Modules map[string]string `json:"modules"` // Rego by file name, with its tests
}

func builtinRoutes() []Route {
	return []Route{{Method: http.MethodGet, Path: "/v1/policy/builtin", ID: "getBuiltinPolicy", Summary: "Get the policy that says what the built-in roles may do",
		Action: policy.Read, Kind: "cluster", Status: 200, Answer: Builtin{}, handle: getBuiltin}}
}

func getBuiltin(c *call) error {
	return c.json(http.StatusOK, Builtin{Package: "muster.roles", Modules: policy.Builtin()})
}
