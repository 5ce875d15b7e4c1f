package node

import (
	"net/http"

	"github.com/muster-registry/muster/api/consul"
	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/api/rest"
)

// ConsulSettings say what Consul's clients get to see.
type ConsulSettings struct {
	Datacenter string `yaml:"datacenter"` // the name of this cluster; the same on all nodes
}

// Peers implements consul.Backend.
func (b backend) Peers() (peers []consul.Peer, leader string) {
	for _, m := range b.cluster.Members() {
		peers = append(peers, consul.Peer{ID: m.ID, Address: m.Address, Role: m.Role, Alive: m.Alive})
	}
	leader, _ = b.cluster.Leader()
	return peers, leader
}

// withConsul answers Consul's paths, and leaves the others to the registry's own
// API.
func (n *Node) withConsul(in *door.Door, api http.Handler) (http.Handler, error) {
	edge, err := consul.New(backend{n}, in, consul.Options{
		Logger: n.logger, Datacenter: n.cfg.Consul.Datacenter, Version: n.version, MaxBody: int64(n.cfg.Limits.Body),
		Traced: n.tracer != nil, Observe: n.metrics.observe,
	})
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if consul.Owns(r.URL.Path) {
			edge.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	}), nil
}

// consulCalls describes Consul's calls for /openapi.json.
func consulCalls() (all []rest.Foreign) {
	for _, r := range consul.Table() {
		f := rest.Foreign{Method: r.Method, Path: r.Path, ID: r.ID, Summary: r.Summary, Tag: "consul", Body: r.Body(), Answer: r.Answer}
		for _, name := range r.Parameters() {
			f.Query = append(f.Query, rest.Param{Name: name, Type: "string", Repeats: name == "tag" || name == "node-meta"})
		}
		all = append(all, f)
	}
	return all
}
