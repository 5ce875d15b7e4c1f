package xds

import (
	"cmp"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/muster-registry/muster/registry"
)

// maxRoutes bounds the routes of one service that are told apart; those of a
// service with more are one.
const maxRoutes = 1000

// instance is where a service runs, as far as a client needs to know.
type instance struct {
	Address string `json:"address"`
	Port    int    `json:"port"`
	Version string `json:"version"`
	Zone    string `json:"zone"`
	Weight  *int   `json:"weight"`
	Status  string `json:"status"`
}

// known are the instances as the registry has them.
func known(e *registry.Entry) []instance {
	all := make([]instance, 0, len(e.Instances()))
	for _, i := range e.Instances() {
		all = append(all, instance{Address: i.Address, Port: i.Port, Version: i.Version, Zone: i.Zone, Weight: &i.Weight, Status: i.Status})
	}
	return all
}

// build makes a resource of one type.
func build(t target, m *made, instances []instance, v variant) types.Resource {
	key := registry.Key{Namespace: m.service.Namespace, Service: m.service.Name}
	name := t.name(key)
	switch t.url {
	case resourcev3.ListenerType:
		return listener(name)
	case resourcev3.RouteType:
		return routes(key, m.versions, v.grpc)
	case resourcev3.ClusterType:
		return cluster(name, m.service)
	}
	return endpoints(name, of(t.versions, instances), v)
}

// of keeps the instances of some versions. One that names no version may be of
// any.
func of(versions string, instances []instance) (some []instance) {
	if versions == "" {
		return instances
	}
	names := strings.Split(versions, ",")
	for _, i := range instances {
		if i.Version == "" || slices.Contains(names, i.Version) {
			some = append(some, i)
		}
	}
	return some
}

// ads says that a resource comes over the same stream.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
}

// listener is an API listener: for who looks for the service by its name, and
// not for traffic that comes in.
func listener(name string) *listenerv3.Listener {
	return &listenerv3.Listener{Name: name, ApiListener: &listenerv3.ApiListener{ApiListener: packed(&hcmv3.HttpConnectionManager{
		StatPrefix:     name,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: name}},
		HttpFilters:    []*hcmv3.HttpFilter{{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&routerv3.Router{})}}},
	})}}
}

func packed(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic("xds: a message that was made here does not marshal: " + err.Error())
	}
	return a
}

// routes gives each registered route a name of its own, "GET /v1/items/{id}",
// and what is not registered the last one, "other". A route that only some
// versions have leads to their instances alone, all others to the service.
func routes(key registry.Key, versions []*registry.Version, grpc bool) *routev3.RouteConfiguration {
	name := target{}.name(key)
	to := map[string]*routev3.Route_Route{}
	lead := func(versions string) *routev3.Route_Route {
		if to[versions] == nil {
			to[versions] = &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: target{versions: versions}.name(key)}}}
		}
		return to[versions]
	}
	host := &routev3.VirtualHost{Name: name, Domains: []string{"*"}}
	for _, r := range registered(versions) {
		if grpc && r.Method != http.MethodPost {
			continue // gRPC makes no such call
		}
		host.Routes = append(host.Routes, &routev3.Route{Name: r.Method + " " + r.Path, Match: match(r.Route, grpc), Action: lead(r.versions)})
	}
	host.Routes = append(host.Routes, &routev3.Route{Name: "other", Action: lead(""), Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}})
	return &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{host}}
}

// route is one that some version has.
type route struct {
	registry.Route
	versions string // that have it, in order; "" where all have
}

// maxGroups bounds the sets of versions that routes are told apart by; those of
// a service with more lead to all instances.
const maxGroups = 100

// registered lists the routes of the versions that are to be called, those
// without a parameter first: the first that matches counts.
func registered(versions []*registry.Version) (all []route) {
	type id struct{ method, path string }
	by := map[id][]string{}
	called := 0
	for _, v := range versions {
		if v.Lifecycle != "published" && v.Lifecycle != "deprecated" {
			continue
		}
		called++
		for _, r := range v.Routes {
			one := id{strings.ToUpper(r.Method), r.Path}
			if one.method != "" && strings.HasPrefix(r.Path, "/") && !slices.Contains(by[one], v.Version) {
				by[one] = append(by[one], v.Version)
			}
		}
	}
	if len(by) > maxRoutes {
		return nil
	}
	for r, names := range by {
		one := route{Route: registry.Route{Method: r.method, Path: r.path}}
		if len(names) < called {
			slices.Sort(names)
			one.versions = strings.Join(names, ",")
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b route) int {
		return cmp.Or(strings.Count(a.Path, "{")-strings.Count(b.Path, "{"), strings.Compare(a.Path+" "+a.Method, b.Path+" "+b.Method))
	})
	if len(groups(all)) > maxGroups {
		for i := range all {
			all[i].versions = ""
		}
	}
	return all
}

// groups lists the sets of versions that routes lead to.
func groups(all []route) (some []string) {
	for _, r := range all {
		if r.versions != "" {
			some = append(some, r.versions)
		}
	}
	slices.Sort(some)
	return slices.Compact(some)
}

var parameter = regexp.MustCompile(`\{[^{}/]*\}`)

// match is by method and path; for gRPC clients, whose calls are all POST and
// which match no other pseudo-header, by the path alone.
func match(r registry.Route, grpc bool) *routev3.RouteMatch {
	m := &routev3.RouteMatch{}
	if !grpc {
		m.Headers = []*routev3.HeaderMatcher{{Name: ":method", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
			StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: r.Method}},
		}}}
	}
	if !strings.ContainsAny(r.Path, "{}") {
		m.PathSpecifier = &routev3.RouteMatch_Path{Path: r.Path}
		return m
	}
	var b strings.Builder
	rest := r.Path
	for at := parameter.FindStringIndex(rest); at != nil; at = parameter.FindStringIndex(rest) {
		b.WriteString(regexp.QuoteMeta(rest[:at[0]]) + "[^/]+")
		rest = rest[at[1]:]
	}
	b.WriteString(regexp.QuoteMeta(rest))
	m.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: b.String()}}
	return m
}

// cluster is all instances of a service, found over the same stream.
func cluster(name string, s *registry.Service) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, LbPolicy: clusterv3.Cluster_ROUND_ROBIN,
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{LocalityConfigSpecifier: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
			LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
		}},
	}
	if s.Protocol == "grpc" {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(&httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
			}},
		})}
	}
	return c
}

// health is how an instance's status reads there. What is not passing is not
// left out: a client may have nothing better.
var health = map[string]corev3.HealthStatus{
	registry.Passing: corev3.HealthStatus_HEALTHY, registry.Warning: corev3.HealthStatus_DEGRADED,
	registry.Critical: corev3.HealthStatus_UNHEALTHY, registry.Maintenance: corev3.HealthStatus_DRAINING,
}

// preference orders statuses from the best.
var preference = []string{registry.Passing, registry.Warning, registry.Maintenance, registry.Critical}

// endpoints are the instances by zone, those near to the client before others.
func endpoints(name string, instances []instance, v variant) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	byZone := map[string]*endpointv3.LocalityLbEndpoints{}
	for _, i := range distinct(instances, v.grpc) {
		l := byZone[i.Zone]
		if l == nil {
			l = &endpointv3.LocalityLbEndpoints{Locality: &corev3.Locality{Zone: i.Zone}, LoadBalancingWeight: wrapperspb.UInt32(0)}
			byZone[i.Zone] = l
			out.Endpoints = append(out.Endpoints, l)
		}
		status, known := health[i.Status]
		if !known {
			status = corev3.HealthStatus_UNHEALTHY // what a policy made of it
		}
		e := &endpointv3.LbEndpoint{HealthStatus: status, LoadBalancingWeight: wrapperspb.UInt32(1), HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: i.Address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(i.Port)},
			}}}},
		}}
		switch {
		case i.Weight == nil:
		case *i.Weight > 0:
			e.LoadBalancingWeight.Value = uint32(*i.Weight)
		case e.HealthStatus == corev3.HealthStatus_HEALTHY:
			e.HealthStatus = corev3.HealthStatus_DRAINING // there is no weight of 0
		}
		if e.HealthStatus == corev3.HealthStatus_HEALTHY {
			l.LoadBalancingWeight.Value += e.LoadBalancingWeight.Value
		}
		l.LbEndpoints = append(l.LbEndpoints, e)
	}
	for _, l := range out.Endpoints {
		l.LoadBalancingWeight.Value = max(1, l.LoadBalancingWeight.Value) // without a weight a zone is passed over
	}
	prioritise(out.Endpoints, v.zone, v.region)
	return out
}

// distinct gives the instances that the client can connect to in order of zone
// and address. Clients refuse an assignment in which an address stands twice:
// of several instances on one the best counts.
func distinct(instances []instance, grpc bool) []instance {
	out := make([]instance, 0, len(instances))
	for _, i := range instances {
		if i.Port < 1 || i.Port > 65535 {
			continue
		}
		if a, err := netip.ParseAddr(i.Address); err == nil {
			i.Address = a.String()
		} else if i.Address == "" || !grpc {
			continue // Envoy takes no names here, and would refuse all of it
		}
		out = append(out, i)
	}
	at := func(a, b instance) int {
		if n := strings.Compare(a.Address, b.Address); n != 0 {
			return n
		}
		return a.Port - b.Port
	}
	slices.SortStableFunc(out, func(a, b instance) int {
		if n := at(a, b); n != 0 {
			return n
		}
		return slices.Index(preference, a.Status) - slices.Index(preference, b.Status)
	})
	out = slices.CompactFunc(out, func(a, b instance) bool { return at(a, b) == 0 })
	slices.SortStableFunc(out, func(a, b instance) int { return strings.Compare(a.Zone, b.Zone) })
	return out
}

// prioritise puts the client's own zone first, then those of its region, then
// all others. Without an own zone there is no order.
func prioritise(zones []*endpointv3.LocalityLbEndpoints, own, region string) {
	rank := func(zone string) uint32 {
		switch {
		case own == "" && region == "":
			return 0
		case zone != "" && zone == own:
			return 0
		case region != "" && strings.HasPrefix(zone, region):
			return 1
		}
		return 2
	}
	var ranks []uint32
	for _, z := range zones {
		ranks = append(ranks, rank(z.Locality.Zone))
	}
	slices.Sort(ranks)
	ranks = slices.Compact(ranks) // clients want priorities without gaps
	for _, z := range zones {
		z.Priority = uint32(slices.Index(ranks, rank(z.Locality.Zone)))
	}
}
