package rest

import (
	"net/http"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// Route is one call: everything that is to be known about it stands here, and
// the mux, the checks before the handler and /openapi.json are made from it.
type Route struct {
	Method  string
	Path    string // as http.ServeMux takes it
	ID      string // operation id
	Summary string

	Open    bool          // answered without identity and before the node is ready
	Webhook bool          // takes the signature of a webhook in the place of a credential; the handler verifies it
	Action  policy.Action // what the caller's role must allow, on
	Kind    string        // this kind

	Status   int // of success
	Query    []Param
	Headers  []Param
	Reads    bool   // takes the parameters that settle how fresh an answer is
	Blocks   bool   // and index
	Pages    bool   // answers with a list of Answer, and takes limit and page_token
	Writes   bool   // takes If-Match, If-None-Match and Idempotency-Key
	Body     any    // a value of the type that is read; nil: none
	Media    string // of the body or the answer, where it is not JSON
	Answer   any    // a value of the type that is answered; nil: none
	Pending  any    // what 202 answers; nil: there is no 202
	Refusals []fault.Code

	handle func(*call) error
}

// decided says whether the policy has a say on the route.
func (r *Route) decided() bool {
	switch r.Kind {
	case registry.KindService, registry.KindVersion, registry.KindInstance:
		return true
	}
	return r.Action == policy.Authorize || r.Action == policy.Issue
}

// unsettled says that the route answers by what this node holds, and takes no
// parameters that settle how old that may be.
func (r *Route) unsettled() bool {
	return !r.Reads && !r.Action.Changes() && (r.Kind == "decision" || r.Kind == "policy")
}

// tried says whether the route takes dry_run: changes of what manifests
// describe do, and those of an instance's status.
func (r *Route) tried() bool {
	switch r.Kind {
	case "quota", "webhook", "schema", "role":
		return r.Writes
	}
	return r.Writes && r.decided()
}

// restoreID names the call that has a dry run of its own kind.
const restoreID = "restoreSnapshot"

// Param is a query parameter.
type Param struct {
	Name, Description string
	Type              string // string, integer, number, boolean
	Repeats           bool
}

// discoverID names the hot path.
const discoverID = "discover"

const (
	serviceBase  = "/v1/namespaces/{namespace}/services"
	servicePath  = serviceBase + "/{service}"
	versionPath  = servicePath + "/versions/{version}"
	instancePath = servicePath + "/instances/{instance}"
)

var (
	createServiceParam = Param{Name: "create_service", Type: "boolean", Description: "make the service when it is unknown"}
	selectionParams    = []Param{
		{Name: "status", Type: "string", Description: "any: not only passing instances"},
		{Name: "version", Type: "string", Description: "only instances of this version"},
		{Name: "tag", Type: "string", Repeats: true, Description: "only instances that carry all of the tags"},
		{Name: "zone", Type: "string", Description: "instances of this zone first"},
	}
)

// Table lists every call that this edge answers.
func Table() []Route { return routes() }

// routes is the table.
func routes() []Route {
	var all []Route
	for _, part := range [][]Route{serviceRoutes(), versionRoutes(), instanceRoutes(), discoveryRoutes(), prometheusRoutes(), watchRoutes(),
		policyRoutes(), builtinRoutes(), decisionRoutes(), shadowRoutes(), syncRoutes(), settingRoutes(), breakGlassRoutes(), revocationRoutes(), quotaRoutes(), tokenRoutes(), auditRoutes(), certificateRoutes(), clusterRoutes(), openRoutes()} {
		all = append(all, part...)
	}
	return all
}

func serviceRoutes() []Route {
	missing := []fault.Code{fault.ServiceNotFound}
	return []Route{
		{Method: http.MethodGet, Path: "/v1/services", ID: "listAllServices", Summary: "List the services of all namespaces",
			Action: policy.Lookup, Kind: registry.KindService, Status: 200, Reads: true, Blocks: true, Pages: true, Answer: registry.Service{}, handle: listServices},
		{Method: http.MethodGet, Path: serviceBase, ID: "listServices", Summary: "List the services of a namespace",
			Action: policy.Lookup, Kind: registry.KindService, Status: 200, Reads: true, Blocks: true, Pages: true, Answer: registry.Service{}, handle: listServices},
		{Method: http.MethodGet, Path: servicePath, ID: "getService", Summary: "Get a service",
			Action: policy.Lookup, Kind: registry.KindService, Status: 200, Reads: true, Blocks: true, Answer: registry.Service{}, Refusals: missing, handle: getService},
		{Method: http.MethodPut, Path: servicePath, ID: "putService", Summary: "Create or change a service",
			Action: policy.Register, Kind: registry.KindService, Status: 200, Writes: true, Body: registry.ServiceSpec{}, Answer: registry.Service{}, handle: putService},
		{Method: http.MethodDelete, Path: servicePath, ID: "deleteService", Summary: "Delete a service with its versions and instances",
			Action: policy.Delete, Kind: registry.KindService, Status: 204, Writes: true, Refusals: missing, handle: deleteService},
	}
}

func versionRoutes() []Route {
	missing := []fault.Code{fault.ServiceNotFound, fault.VersionNotFound}
	return []Route{
		{Method: http.MethodGet, Path: servicePath + "/versions", ID: "listVersions", Summary: "List the versions of a service",
			Action: policy.Lookup, Kind: registry.KindVersion, Status: 200, Reads: true, Pages: true, Answer: registry.Version{},
			Refusals: []fault.Code{fault.ServiceNotFound}, handle: listVersions},
		{Method: http.MethodGet, Path: versionPath, ID: "getVersion", Summary: "Get a version with its routes and findings",
			Action: policy.Lookup, Kind: registry.KindVersion, Status: 200, Reads: true, Blocks: true, Answer: registry.Version{}, Refusals: missing, handle: getVersion},
		{Method: http.MethodGet, Path: versionPath + "/document", ID: "getDocument", Summary: "Get the definition itself, byte for byte",
			Action: policy.Lookup, Kind: registry.KindVersion, Status: 200, Reads: true, Blocks: true, Media: "*/*", Refusals: missing, handle: getDocument},
		{Method: http.MethodPut, Path: versionPath, ID: "putVersion", Summary: "Create or replace a version by its definition",
			Action: policy.Register, Kind: registry.KindVersion, Status: 200, Writes: true, Body: VersionBody{}, Answer: registry.Version{},
			Refusals: []fault.Code{fault.ServiceNotFound, fault.InvalidDefinition}, handle: putVersion},
		{Method: http.MethodDelete, Path: versionPath, ID: "deleteVersion", Summary: "Delete a version",
			Action: policy.Delete, Kind: registry.KindVersion, Status: 204, Writes: true, Refusals: missing, handle: deleteVersion},
	}
}

func instanceRoutes() []Route {
	missing := []fault.Code{fault.ServiceNotFound, fault.InstanceNotFound}
	return []Route{
		{Method: http.MethodGet, Path: servicePath + "/instances", ID: "listInstances", Summary: "List the instances of a service",
			Action: policy.Lookup, Kind: registry.KindInstance, Status: 200, Reads: true, Blocks: true, Pages: true, Answer: registry.Instance{},
			Refusals: []fault.Code{fault.ServiceNotFound}, handle: listInstances},
		{Method: http.MethodGet, Path: instancePath, ID: "getInstance", Summary: "Get an instance",
			Action: policy.Lookup, Kind: registry.KindInstance, Status: 200, Reads: true, Blocks: true, Answer: registry.Instance{}, Refusals: missing, handle: getInstance},
		{Method: http.MethodPut, Path: instancePath, ID: "putInstance", Summary: "Register an instance or renew its lease",
			Action: policy.Register, Kind: registry.KindInstance, Status: 200, Writes: true, Query: []Param{createServiceParam},
			Body: registry.InstanceSpec{}, Answer: registry.Instance{}, Refusals: []fault.Code{fault.ServiceNotFound}, handle: putInstance},
		{Method: http.MethodDelete, Path: instancePath, ID: "deleteInstance", Summary: "Deregister an instance",
			Action: policy.Delete, Kind: registry.KindInstance, Status: 204, Writes: true, Refusals: missing, handle: deleteInstance},
		{Method: http.MethodPost, Path: instancePath + "/heartbeat", ID: "heartbeat", Summary: "Renew an instance's lease",
			Action: policy.Heartbeat, Kind: registry.KindInstance, Status: 204, Refusals: missing, handle: heartbeat},
		{Method: http.MethodPut, Path: instancePath + "/checks/{check}", ID: "putCheck", Summary: "Report about an instance's check of type ttl",
			Action: policy.Heartbeat, Kind: registry.KindInstance, Status: 204, Body: CheckBody{}, Refusals: append(missing, fault.NotFound), handle: putCheck},
		{Method: http.MethodPut, Path: instancePath + "/status", ID: "putStatus", Summary: "Set an instance's status",
			Action: policy.Update, Kind: registry.KindInstance, Status: 200, Writes: true, Body: StatusBody{}, Answer: registry.Instance{}, Refusals: missing, handle: putStatus},
	}
}

func discoveryRoutes() []Route {
	return []Route{
		{Method: http.MethodGet, Path: "/v1/discovery/{namespace}/{service}", ID: discoverID, Summary: "Find the instances of a service",
			Action: policy.Lookup, Kind: registry.KindService, Status: 200, Reads: true, Blocks: true, Query: selectionParams, Answer: Discovery{},
			Refusals: []fault.Code{fault.ServiceNotFound}, handle: discover},
		{Method: http.MethodGet, Path: "/v1/discovery", ID: "listDiscovery", Summary: "List the services the caller may see, with counts; with service=, find its instances",
			Action: policy.Lookup, Kind: registry.KindService, Status: 200, Reads: true, Blocks: true, Pages: true, Answer: DiscoveredService{},
			Query:    append([]Param{{Name: "namespace", Type: "string"}, {Name: "service", Type: "string"}}, selectionParams...),
			Refusals: []fault.Code{fault.ServiceNotFound}, handle: listDiscovery},
		{Method: http.MethodPost, Path: "/v1/authorize", ID: "authorize", Summary: "Ask the active policy about exactly the input given",
			Action: policy.Authorize, Kind: "decision", Status: 200, Body: AuthorizeBody{}, Answer: Verdict{}, handle: authorize},
	}
}

func policyRoutes() []Route {
	const base = "/v1/policy/revisions"
	return []Route{
		{Method: http.MethodPost, Path: base, ID: "pushPolicy", Summary: "Check and store a new policy revision",
			Action: policy.Manage, Kind: "policy", Status: 201, Writes: true, Body: policy.Push{}, Answer: policy.Revision{},
			Query: []Param{{Name: "activate", Type: "boolean", Description: "and make it the active one"},
				{Name: "shadow", Type: "boolean", Description: "and evaluate it beside the active one, without effect"},
				{Name: "share", Type: "number", Description: "of the decisions that the shadow sees, above 0 and at most 1 (default)"}},
			Headers:  []Param{{Name: signatureHeader, Type: "string", Description: "detached OpenPGP signature over the body, in base64"}},
			Refusals: []fault.Code{fault.InvalidPolicy, fault.Conflict}, handle: pushPolicy},
		{Method: http.MethodGet, Path: base, ID: "listPolicies", Summary: "List the policy revisions",
			Action: policy.Read, Kind: "policy", Status: 200, Reads: true, Pages: true, Answer: policy.Revision{}, handle: listPolicies},
		{Method: http.MethodGet, Path: base + "/{revision}", ID: "getPolicy", Summary: "Get a policy revision with its modules and data",
			Action: policy.Read, Kind: "policy", Status: 200, Reads: true, Answer: policy.Revision{}, Refusals: []fault.Code{fault.NotFound}, handle: getPolicy},
		{Method: http.MethodPost, Path: base + "/{revision}/activate", ID: "activatePolicy", Summary: "Make a policy revision the active one",
			Action: policy.Manage, Kind: "policy", Status: 200, Writes: true, Answer: policy.Revision{}, Refusals: []fault.Code{fault.NotFound, fault.Conflict}, handle: activatePolicy},
		{Method: http.MethodPost, Path: "/v1/policy/rollback", ID: "rollbackPolicy", Summary: "Go back to the policy revision that was active before",
			Action: policy.Manage, Kind: "policy", Status: 200, Writes: true, Answer: policy.Revision{}, Refusals: []fault.Code{fault.NotFound, fault.Conflict}, handle: rollbackPolicy},
	}
}

func tokenRoutes() []Route {
	return []Route{
		{Method: http.MethodPost, Path: "/v1/tokens", ID: "createToken", Summary: "Create a bearer token; its text is shown this once",
			Action: policy.Manage, Kind: "token", Status: 201, Writes: true, Body: TokenBody{}, Answer: NewToken{}, Refusals: []fault.Code{fault.Conflict}, handle: createToken},
		{Method: http.MethodGet, Path: "/v1/tokens", ID: "listTokens", Summary: "List the tokens, without their texts",
			Action: policy.Read, Kind: "token", Status: 200, Reads: true, Pages: true, Answer: identity.Token{}, handle: listTokens},
		{Method: http.MethodDelete, Path: "/v1/tokens/{token}", ID: "revokeToken", Summary: "Revoke a token",
			Action: policy.Manage, Kind: "token", Status: 204, Writes: true, Query: inForceParams, Pending: Outstanding{}, Refusals: []fault.Code{fault.NotFound}, handle: revokeToken},
	}
}

func clusterRoutes() []Route {
	return []Route{
		{Method: http.MethodGet, Path: "/v1/cluster/status", ID: "clusterStatus", Summary: "Tell how every node is",
			Action: policy.Read, Kind: "cluster", Status: 200, Answer: ClusterStatus{}, handle: clusterStatus},
		{Method: http.MethodGet, Path: "/v1/cluster/members", ID: "listMembers", Summary: "List the members of the cluster",
			Action: policy.Read, Kind: "cluster", Status: 200, Answer: Members{}, handle: listMembers},
		{Method: http.MethodPost, Path: "/v1/cluster/leader/transfer", ID: "transferLeader", Summary: "Hand the leadership over",
			Action: policy.Manage, Kind: "cluster", Status: 204, Body: TransferBody{}, Refusals: []fault.Code{fault.NotFound, fault.Conflict}, handle: transferLeader},
		{Method: http.MethodDelete, Path: "/v1/cluster/members/{member}", ID: "removeMember", Summary: "Remove a member for good",
			Action: policy.Manage, Kind: "cluster", Status: 204, Refusals: []fault.Code{fault.NotFound, fault.Conflict}, handle: removeMember},
		{Method: http.MethodGet, Path: "/v1/snapshot", ID: "saveSnapshot", Summary: "Save a consistent snapshot of everything",
			Action: policy.Read, Kind: "snapshot", Status: 200, Media: mediaStream, handle: saveSnapshot},
		{Method: http.MethodPut, Path: "/v1/snapshot", ID: restoreID, Summary: "Restore the whole cluster from a snapshot",
			Action: policy.Manage, Kind: "snapshot", Status: 200, Media: mediaStream, Answer: RestoreReport{},
			Query: []Param{{Name: "dry_run", Type: "boolean", Description: "check only"},
				{Name: "force", Type: "boolean", Description: "replace what is there, also by a snapshot of another cluster"}},
			Refusals: []fault.Code{fault.InvalidSnapshot, fault.Conflict}, handle: restoreSnapshot},
	}
}

func openRoutes() []Route {
	return []Route{
		{Method: http.MethodGet, Path: "/livez", ID: "livez", Summary: "Tell whether the process answers", Open: true, Status: 200, Media: mediaText, handle: livez},
		{Method: http.MethodGet, Path: "/readyz", ID: "readyz", Summary: "Tell whether the node has caught up", Open: true, Status: 200, Media: mediaText,
			Query: []Param{{Name: "verbose", Type: "boolean"}}, handle: readyz},
		{Method: http.MethodGet, Path: "/openapi.json", ID: "openapi", Summary: "Describe this API", Action: policy.Read, Kind: "cluster", Status: 200, Answer: map[string]any{}, handle: openapiDocument},
	}
}
