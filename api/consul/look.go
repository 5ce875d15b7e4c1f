package consul

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// found is one instance as the caller may see it.
type found struct {
	service  string
	id       string // in the registry
	address  string
	port     int
	status   string
	weight   int
	tags     []string
	metadata map[string]string

	record *registry.Instance // nil where a policy made the instance up
	// changed says that a policy put something in the place of what is stored:
	// what a check says of itself is then left out.
	changed bool
}

func foundRecord(in *registry.Instance) found {
	return found{service: in.Service, id: in.ID, address: in.Address, port: in.Port, status: in.Status, weight: in.Weight,
		tags: in.Tags, metadata: in.Metadata, record: in}
}

// named gives a service's name as muster has it: Consul compares names without
// regard to case.
func named(service string) (string, error) {
	name := strings.ToLower(service)
	if err := registry.ValidName(name); err != nil {
		return "", fault.Invalid("/Name", "%s: the names of services are DNS labels here", fault.From(err).Fields[0].Message)
	}
	return name, nil
}

// provide looks up the instances of a service, in order, and the index of
// their last change. Who asks for another index waits for it.
func (c *call) provide(given string) (all []found, index uint64, err error) {
	service, err := named(given)
	if err != nil {
		return nil, 0, err
	}
	c.like("GET", "/v1/discovery/"+c.namespace+"/"+service+"?status=any")
	revision := func(s *door.State) uint64 {
		if e, ok := s.Registry.Discover(c.namespace, service); ok {
			return e.Revision()
		}
		// A service that is not there is waited for; what has changed last is
		// that one went.
		return min(c.api.backend.Feed().Extinct(c.namespace), s.Revision)
	}
	if err := c.View(c.q.rd, &door.Changes{Scope: feed.Scope{Namespace: c.namespace, Service: service}, Revision: revision}); err != nil {
		return nil, 0, err
	}
	index = revision(c.State)
	f, err := c.Discover(c.namespace, service, registry.Query{AnyStatus: true})
	if fault.Is(err, fault.ServiceNotFound) {
		return nil, index, nil
	}
	if err != nil {
		return nil, 0, err
	}
	if f.Decision.Filtered != nil {
		all, err = replaced(f.Entry, f.Body)
		return all, index, err
	}
	return records(f.Entry), index, nil
}

func records(e *registry.Entry) []found {
	all := make([]found, 0, len(e.Instances()))
	for _, in := range e.Instances() {
		all = append(all, foundRecord(in))
	}
	return all
}

// replaced reads what a policy put in the place of discovery's answer.
func replaced(e *registry.Entry, body []byte) ([]found, error) {
	shown, err := door.Replaced[struct {
		ID       string            `json:"id"`
		Address  string            `json:"address"`
		Port     int               `json:"port"`
		Weight   int               `json:"weight"`
		Status   string            `json:"status"`
		Tags     []string          `json:"tags"`
		Metadata map[string]string `json:"metadata"`
	}](body)
	if err != nil {
		return nil, err
	}
	var all []found
	for _, in := range shown {
		one := found{service: e.Service(), id: in.ID, address: in.Address, port: in.Port, status: in.Status, weight: in.Weight,
			tags: in.Tags, metadata: in.Metadata, changed: true}
		for _, rec := range e.Instances() {
			if rec.ID == in.ID {
				one.record = rec
			}
		}
		all = append(all, one)
	}
	return all, nil
}

// everywhere looks up all instances of the namespace that the caller may see,
// in order of service and id, and the index of their last change.
func (c *call) everywhere() (all []found, index uint64, err error) {
	c.like("GET", "/v1/discovery?namespace="+c.namespace)
	// The feed may be ahead of the state.
	revision := func(s *door.State) uint64 {
		return min(c.api.backend.Feed().Changed(c.namespace), s.Revision)
	}
	if err := c.View(c.q.rd, &door.Changes{Scope: feed.Scope{Namespace: c.namespace}, Revision: revision}); err != nil {
		return nil, 0, err
	}
	index = revision(c.State)
	entries, _ := c.State.Registry.Entries(c.namespace, "", 0)
	for _, e := range entries {
		some, err := c.visible(e)
		if err != nil {
			return nil, 0, err
		}
		all = append(all, some...)
	}
	return all, index, nil
}

// visible gives the instances of one service as the caller may see them, none
// where the policy refuses.
func (c *call) visible(e *registry.Entry) ([]found, error) {
	if len(e.Instances()) == 0 {
		return nil, nil
	}
	if !c.Policed() {
		return records(e), nil
	}
	body := e.Answer(registry.Query{AnyStatus: true})
	res := policy.Resource{Kind: registry.KindService, Namespace: e.Namespace(), Name: e.Service(), Payload: body}
	if s, ok := c.State.Registry.Service(e.Namespace(), e.Service()); ok {
		res.Holder = s.JSON
	}
	shown, err := c.Visible(res, body)
	switch {
	case err != nil || shown == nil:
		return nil, err
	case &shown[0] == &body[0]:
		return records(e), nil
	}
	return replaced(e, shown)
}

// The names in an instance's metadata under which stands what only Consul has.
const (
	reserved     = "consul-" // begins them
	metaID       = "consul-id"
	metaNode     = "consul-node"
	metaNodeAddr = "consul-node-address"
	metaNodeMeta = "consul-node-meta"        // JSON
	metaTagged   = "consul-tagged-addresses" // JSON
	metaOverride = "consul-enable-tag-override"
	metaReason   = "consul-maintenance-reason" // counts during maintenance only
)

// consulID is the id as the client gave it.
func (f *found) consulID() string { return cmp.Or(f.metadata[metaID], f.id) }

// node is the name of the node: that which the registration named, or the
// member that took it; of an instance that came otherwise, its address.
func (f *found) node() string { return cmp.Or(f.metadata[metaNode], f.address) }

// meta is the metadata that the client gave.
func (f *found) meta() map[string]string {
	out := make(map[string]string, len(f.metadata))
	for k, v := range f.metadata {
		if !strings.HasPrefix(k, reserved) {
			out[k] = v
		}
	}
	return out
}

// member reads one of the metadata that are JSON; what cannot be read is not
// there.
func member[T any](f *found, name string) (out map[string]T) {
	if text, ok := f.metadata[name]; ok && json.Unmarshal([]byte(text), &out) != nil {
		return nil
	}
	return out
}

func (f *found) nodeMeta() map[string]string { return orEmpty(member[string](f, metaNodeMeta)) }

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func (f *found) revisions() (created, modified uint64) {
	if f.record == nil {
		return 0, 0
	}
	return f.record.Revision, f.record.Revision
}

// peers is what the call has looked up of the cluster's members.
type peers map[string]string // host by id

func (c *call) peers() peers {
	all, _ := c.api.backend.Peers()
	p := make(peers, len(all))
	for _, m := range all {
		p[m.ID] = door.Host(m.Address)
	}
	return p
}

// nodeAddress is where the node is.
func (f *found) nodeAddress(p peers) string {
	if a := f.metadata[metaNodeAddr]; a != "" {
		return a
	}
	return cmp.Or(p[f.metadata[metaNode]], f.address)
}

func (c *call) shapeNode(f *found, p peers) Node {
	address := f.nodeAddress(p)
	created, modified := f.revisions()
	return Node{Node: f.node(), Address: address, Datacenter: c.api.opt.Datacenter, Meta: f.nodeMeta(),
		TaggedAddresses: map[string]string{"lan": address, "wan": address}, CreateIndex: created, ModifyIndex: modified}
}

func (c *call) shapeService(f *found) AgentService {
	created, modified := f.revisions()
	return AgentService{ID: f.consulID(), Service: f.service, Tags: tagsOf(f), Meta: f.meta(), Port: f.port, Address: f.address,
		TaggedAddresses: member[ServiceAddress](f, metaTagged), Weights: Weights{f.weight, 1}, EnableTagOverride: f.metadata[metaOverride] != "",
		Datacenter: c.api.opt.Datacenter, CreateIndex: created, ModifyIndex: modified}
}

// tagsOf gives the tags, an empty list where there are none.
func tagsOf(f *found) []string {
	if f.tags == nil {
		return []string{}
	}
	return f.tags
}

func (c *call) shapeCatalog(f *found, p peers) CatalogService {
	s, n := c.shapeService(f), c.shapeNode(f, p)
	return CatalogService{Node: n.Node, Address: n.Address, Datacenter: n.Datacenter, TaggedAddresses: n.TaggedAddresses, NodeMeta: n.Meta,
		ServiceID: s.ID, ServiceName: s.Service, ServiceAddress: s.Address, ServiceTaggedAddresses: s.TaggedAddresses, ServiceTags: s.Tags,
		ServiceMeta: s.Meta, ServicePort: s.Port, ServiceWeights: s.Weights, ServiceEnableTagOverride: s.EnableTagOverride,
		CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex}
}

// chosen keeps the instances that the query asks for: all of its tags, all of
// its node's metadata; those that are near come first.
func (c *call) chosen(all []found) []found {
	q := &c.q
	all = slices.DeleteFunc(all, func(f found) bool {
		for _, tag := range q.tags {
			if !slices.ContainsFunc(f.tags, func(t string) bool { return strings.EqualFold(t, tag) }) {
				return true
			}
		}
		return !q.hasNodeMeta(f.nodeMeta())
	})
	if q.near == "" {
		return all
	}
	near := func(f *found) int {
		switch {
		case q.near == "_ip" && f.address == c.Source(), q.near == "_agent" && f.node() == c.api.backend.NodeID(), f.node() == q.near:
			return 0
		}
		return math.MaxInt
	}
	slices.SortStableFunc(all, func(a, b found) int { return cmp.Compare(near(&a), near(&b)) })
	return all
}

func (q *query) hasNodeMeta(meta map[string]string) bool {
	for _, want := range q.nodeMeta {
		if v, ok := meta[want[0]]; !ok || v != want[1] {
			return false
		}
	}
	return true
}
