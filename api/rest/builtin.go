package rest

import (
	"net/http"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry/definition"
)

// Builtin is the built-in policy of the roles.
type Builtin struct {
	Package string            `json:"package"`
	Modules map[string]string `json:"modules"` // Rego by file name, with its tests
}

// Library is the built-in rules about API definitions.
type Library struct {
	Rules   []definition.Rule `json:"rules"`
	Modules map[string]string `json:"modules"` // Rego by file name
}

func builtinRoutes() []Route {
	return []Route{{Method: http.MethodGet, Path: "/v1/policy/builtin", ID: "getBuiltinPolicy", Summary: "Get the policy that says what the built-in roles may do",
		Action: policy.Read, Kind: "cluster", Status: 200, Answer: Builtin{}, handle: getBuiltin},
		{Method: http.MethodGet, Path: "/v1/policy/library", ID: "getPolicyLibrary", Summary: "Get the built-in rules about API definitions",
			Action: policy.Read, Kind: "cluster", Status: 200, Answer: Library{}, handle: getLibrary}}
}

func getLibrary(c *call) error { return c.json(http.StatusOK, c.api.opt.Library) }

func getBuiltin(c *call) error {
	return c.json(http.StatusOK, Builtin{Package: "muster.roles", Modules: policy.Builtin()})
}
