package consul

import (
	"net/http"
	"slices"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// Route is one call of Consul's API.
type Route struct {
	Method string
	Path   string // as http.ServeMux takes it
	ID     string // operation id

	Action policy.Action // what the caller's role must allow, on
	Kind   string        // this kind

	Summary string
	Query   []string // the parameters that it takes beside those that all take
	Answer  any      // a value of the type that is answered; nil: nothing, or true

	reads  bool // takes what settles how fresh an answer is
	body   bool // reads one
	handle func(*call) error
}

// Parameters lists the names of all query parameters.
func (r *Route) Parameters() []string {
	all := slices.Concat(r.Query, []string{"dc"})
	if !r.body {
		all = append(all, "ns")
	}
	if r.reads {
		all = append(all, "stale", "consistent", "cached", "index", "wait", "filter")
	}
	return all
}

// Body says whether the call reads one.
func (r *Route) Body() bool { return r.body }

// Table lists every call that this edge answers.
func Table() []Route { return routes() }

func routes() []Route {
	return append(append(agentRoutes(), catalogRoutes()...), statusRoutes()...)
}

func get(path, id, kind string, answer any, handle func(*call) error, summary string, query ...string) Route {
	return Route{Method: http.MethodGet, Path: path, ID: "consul:" + id, Action: policy.Lookup, Kind: kind, Summary: summary, Query: query, Answer: answer, reads: true, handle: handle}
}

func put(path, id string, action policy.Action, body bool, handle func(*call) error, summary string, query ...string) Route {
	return Route{Method: http.MethodPut, Path: path, ID: "consul:" + id, Action: action, Kind: registry.KindInstance, Summary: summary, Query: query, body: body, handle: handle}
}

// ofCluster makes a call about the cluster's members of a look-up.
func ofCluster(r Route) Route {
	r.Action = policy.Read
	return r
}

func agentRoutes() []Route {
	const base = "/v1/agent/"
	return []Route{
		ofCluster(get(base+"self", "agentSelf", "cluster", Self{}, agentSelf, "Tell about the node that answers")),
		ofCluster(get(base+"members", "agentMembers", "cluster", []Member{}, agentMembers, "List the members of the cluster")),
		get(base+"services", "agentServices", registry.KindInstance, map[string]AgentService{}, agentServices, "List instances by id"),
		get(base+"service/{id...}", "agentService", registry.KindInstance, HashedService{}, agentService, "Tell about an instance", "hash"),
		get(base+"checks", "agentChecks", registry.KindInstance, map[string]HealthCheck{}, agentChecks, "List checks by id"),
		get(base+"health/service/id/{id...}", "agentHealthID", registry.KindInstance, ServiceStatus{}, agentHealthID, "Tell how an instance is: 200, 429 for a warning, 503", "format"),
		get(base+"health/service/name/{service}", "agentHealthName", registry.KindService, []ServiceStatus{}, agentHealthName, "Tell how the instances of a service are: 200, 429 for a warning, 503", "format"),
		put(base+"service/register", "registerService", policy.Register, true, registerService, "Register an instance", "replace-existing-checks"),
		put(base+"service/deregister/{id...}", "deregisterService", policy.Delete, false, deregisterService, "Deregister an instance"),
		put(base+"service/maintenance/{id...}", "maintainService", policy.Update, false, maintainService, "Take an instance out of service, or back", "enable", "reason"),
		put(base+"check/register", "registerCheck", policy.Update, true, registerCheck, "Add a check to an instance"),
		put(base+"check/deregister/{id...}", "deregisterCheck", policy.Update, false, deregisterCheck, "Remove a check from its instance"),
		put(base+"check/pass/{id...}", "passCheck", policy.Heartbeat, false, passCheck, "Report that a check passes", "note"),
		put(base+"check/warn/{id...}", "warnCheck", policy.Update, false, warnCheck, "Report a warning of a check", "note"),
		put(base+"check/fail/{id...}", "failCheck", policy.Update, false, failCheck, "Report that a check fails", "note"),
		put(base+"check/update/{id...}", "updateCheck", policy.Update, true, updateCheck, "Report how a check is, with its output"),
	}
}

func catalogRoutes() []Route {
	const catalog, health = "/v1/catalog/", "/v1/health/"
	chosen := []string{"tag", "near", "node-meta"}
	return []Route{
		ofCluster(get(catalog+"datacenters", "catalogDatacenters", "cluster", []string{}, catalogDatacenters, "Name the datacenter")),
		get(catalog+"nodes", "catalogNodes", registry.KindInstance, []Node{}, catalogNodes, "List members and the nodes that registrations name", "near", "node-meta"),
		get(catalog+"services", "catalogServices", registry.KindService, Tags{}, catalogServices, "List services with their tags", "node-meta"),
		get(catalog+"service/{service}", "catalogService", registry.KindService, []CatalogService{}, catalogService, "Find the instances of a service", chosen...),
		get(catalog+"node/{node}", "catalogNode", registry.KindInstance, CatalogNode{}, catalogNode, "Tell what a node provides"),
		put(catalog+"register", "catalogRegister", policy.Register, true, catalogRegister, "Register an instance on a node of its own, with the states of its checks"),
		put(catalog+"deregister", "catalogDeregister", policy.Delete, true, catalogDeregister, "Deregister a node, an instance of it, or a check"),
		get(health+"service/{service}", "healthService", registry.KindService, []ServiceEntry{}, healthService, "Find the instances of a service with their checks", append(chosen, "passing")...),
		get(health+"checks/{service}", "healthChecks", registry.KindService, []HealthCheck{}, healthChecks, "List the checks of a service", chosen...),
		get(health+"node/{node}", "healthNode", registry.KindInstance, []HealthCheck{}, healthNode, "List the checks of a node"),
		get(health+"state/{state}", "healthState", registry.KindInstance, []HealthCheck{}, healthState, "List the checks in a state: any, passing, warning or critical", chosen...),
	}
}

func statusRoutes() []Route {
	return []Route{
		ofCluster(get("/v1/status/leader", "statusLeader", "cluster", "", statusLeader, "Name the leader's peer address")),
		ofCluster(get("/v1/status/peers", "statusPeers", "cluster", []string{}, statusPeers, "List the peer addresses of the voters")),
	}
}
