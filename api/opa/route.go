package opa

import (
	"net/http"
	"strings"

	"github.com/muster-registry/muster/policy"
)

// route is one call of the API.
type route struct {
	pattern string // of http.ServeMux, as OPA has them
	handler string // OPA's name for it, in metrics
	open    bool   // answered without a credential
	action  policy.Action
	kind    string
	handle  func(*call) error
}

const hotPattern = "POST /v1/data/{path...}"

// routes lists every call. Questions need what POST /v1/authorize needs;
// policies are read and changed by those who manage them.
func routes() []route {
	ask := func(pattern, handler string, handle func(*call) error) route {
		return route{pattern, handler, false, policy.Authorize, "decision", handle}
	}
	read := func(pattern, handler string, handle func(*call) error) route {
		return route{pattern, handler, false, policy.Read, "policy", handle}
	}
	change := func(pattern, handler string, handle func(*call) error) route {
		return route{pattern, handler, false, policy.Manage, "policy", handle}
	}
	look := func(pattern, handler string, handle func(*call) error) route {
		return route{pattern, handler, false, policy.Read, "cluster", handle}
	}
	return []route{
		ask(hotPattern, "v1/data", postData),
		ask("POST /v1/data", "v1/data", postData),
		ask("GET /v1/data/{path...}", "v1/data", getData),
		ask("GET /v1/data", "v1/data", getData),
		ask("POST /v0/data/{path...}", "v0/data", postDataV0),
		ask("POST /v0/data", "v0/data", postDataV0),
		ask("POST /{$}", "index", postMain),
		ask("GET /v1/query", "v1/query", getQuery),
		ask("POST /v1/query", "v1/query", postQuery),
		ask("POST /v1/compile", "v1/compile", postCompile),

		change("PUT /v1/data/{path...}", "v1/data", putData),
		change("PUT /v1/data", "v1/data", putData),
		change("PATCH /v1/data/{path...}", "v1/data", patchData),
		change("PATCH /v1/data", "v1/data", patchData),
		change("DELETE /v1/data/{path...}", "v1/data", deleteData),
		read("GET /v1/policies", "v1/policies", listPolicies),
		read("GET /v1/policies/{path...}", "v1/policies", getPolicy),
		change("PUT /v1/policies/{path...}", "v1/policies", putPolicy),
		change("DELETE /v1/policies/{path...}", "v1/policies", deletePolicy),

		look("GET /v1/config", "v1/config", getConfig),
		look("GET /v1/status", "v1/status", getStatus),
		look("GET /{$}", "index", getIndex),
		{"GET /health", "health", true, "", "", getHealth},

		look("/v0/data/{path...}", "catchall", notAllowed),
		look("/v0/data", "catchall", notAllowed),
		look("/v1/data/{path...}", "catchall", notAllowed),
		look("/v1/data", "catchall", notAllowed),
		look("/v1/policies", "catchall", notAllowed),
		look("/v1/policies/{path...}", "catchall", notAllowed),
		look("/v1/query/{path...}", "catchall", notAllowed),
		look("/v1/query", "catchall", notAllowed),
		look("/v1/compile", "catchall", notAllowed),
		look("/v1/config", "catchall", notAllowed),
		look("/v1/status", "catchall", notAllowed),
		look("/", "catchall", notFound),
	}
}

func notAllowed(c *call) error {
	c.WriteHeader(http.StatusMethodNotAllowed)
	return nil
}

func notFound(c *call) error {
	http.NotFound(c, c.r)
	return nil
}

// Call is one call of the API, for those who check that each asks for a role.
type Call struct {
	Method, Path string // GET where every method is answered alike
	Open         bool   // answered without a credential
	Action       policy.Action
	Kind         string
}

// Table lists every call that this edge answers.
func Table() []Call {
	var all []Call
	for _, r := range routes() {
		method, path, ok := strings.Cut(r.pattern, " ")
		if !ok {
			method, path = http.MethodOptions, r.pattern // every method that no other pattern has
		}
		all = append(all, Call{method, path, r.open, r.action, r.kind})
	}
	return all
}
