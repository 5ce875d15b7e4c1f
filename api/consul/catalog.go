package consul

import (
	"cmp"
	"slices"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// nodeBody registers what is on a node that no agent runs on.
type nodeBody struct {
	ID, Node, Address, Datacenter, Namespace string
	TaggedAddresses                          map[string]string
	NodeMeta                                 map[string]string
	Service                                  *serviceBody
	Check                                    *stateBody
	Checks                                   []*stateBody
	SkipNodeUpdate                           bool
	Partition, Token, Locality, PeerName     foreign
}

// stateBody is a check as the catalog has it: a state that whoever registers
// it vouches for. Nobody runs its definition.
type stateBody struct {
	Node, CheckID, Name, Status, Notes, Output, ServiceID, ServiceName, Namespace, Type, Interval, Timeout string
	ServiceTags                                                                                            []string
	Definition                                                                                             any
	ExposedPort                                                                                            int
	CreateIndex, ModifyIndex                                                                               uint64
	Partition, PeerName                                                                                    foreign
}

// catalogRegister stores a service of a node, as its registrar says it is.
func catalogRegister(c *call) error {
	var b nodeBody
	if err := decode(c.body, &b); err != nil {
		return err
	}
	if err := c.checkNode(&b); err != nil {
		return err
	}
	s := b.Service
	s.Name = cmp.Or(s.Service, s.Name)
	service, err := named(s.Name)
	if err != nil {
		return err
	}
	id := cmp.Or(s.ID, s.Name)
	if err := printable("/Service/ID", id); err != nil {
		return err
	}
	s.ID, s.Address = id, cmp.Or(s.Address, b.Address)
	if err := c.confirm(); err != nil {
		return err
	}
	d := draft{service: service, id: externalID(b.Node, id), node: map[string]string{metaNode: b.Node, metaNodeAddr: b.Address}, body: s}
	if in, ok := c.State.Registry.Instance(c.namespace, service, recordID(id)); ok && knownAs(in, id) && in.Metadata[metaNode] == b.Node {
		d.id, d.node = in.ID, map[string]string{metaNode: b.Node}
		d.checks = slices.Clone(in.Checks)
	}
	if len(b.NodeMeta) > 0 {
		text, err := marshal(b.NodeMeta)
		if err != nil {
			return err
		}
		d.node[metaNodeMeta] = string(text)
	}
	states, err := b.states(id)
	if err != nil {
		return err
	}
	for _, st := range states {
		check := registry.Check{ID: st.CheckID, Name: cmp.Or(st.Name, st.CheckID), Type: registry.CheckTTL, Notes: st.Notes, InitialStatus: st.Status}
		d.checks = append(slices.DeleteFunc(d.checks, func(o registry.Check) bool { return o.ID == check.ID }), check)
	}
	if err := c.put(&d, door.Condition{}); err != nil {
		return err
	}
	return c.vouch(&d, states)
}

// vouch makes the states of the checks what the registration says, where they
// were there before.
func (c *call) vouch(d *draft, states []*stateBody) error {
	c.Look()
	in, ok := c.State.Registry.Instance(c.namespace, d.service, d.id)
	for _, st := range states {
		if ok {
			if _, now := in.Check(st.CheckID); now != nil && now.Status == st.Status && now.Output == registry.ClipOutput(st.Output) {
				continue
			}
		}
		if err := c.report(&registry.Instance{Service: d.service, ID: d.id}, st.CheckID, st.Status, st.Output); err != nil {
			return err
		}
	}
	c.send(200, "application/json", []byte("true"))
	return nil
}

func (c *call) checkNode(b *nodeBody) error {
	if err := offered(map[string]foreign{"Partition": b.Partition}); err != nil {
		return err
	}
	switch {
	case b.Datacenter != "" && b.Datacenter != c.api.opt.Datacenter:
		return noPath(b.Datacenter, c.api.opt.Datacenter)
	case b.Node == "" || b.Address == "":
		return fault.New(fault.BadRequest, "Must provide node and address")
	case b.Service == nil:
		return fault.New(fault.BadRequest, "muster keeps no nodes without a service; give Service, with the checks of it")
	}
	if err := printable("/Node", b.Node); err != nil {
		return err
	}
	if err := printable("/Address", b.Address); err != nil {
		return err
	}
	return b.Service.offered()
}

// states lists the checks; without a ServiceID they are about the service that
// is registered with them.
func (b *nodeBody) states(id string) (all []*stateBody, err error) {
	for _, st := range append([]*stateBody{b.Check}, b.Checks...) {
		if st == nil {
			continue
		}
		if st.ServiceID != "" && st.ServiceID != id {
			return nil, fault.New(fault.BadRequest, "a check is about the service %q, which is not the one registered with it", door.Clip(st.ServiceID))
		}
		if st.CheckID = cmp.Or(st.CheckID, st.Name); st.CheckID == "" {
			return nil, fault.New(fault.BadRequest, "Must provide CheckID or Name for a check")
		}
		st.Status = cmp.Or(st.Status, registry.Critical)
		if err := validState(st.Status); err != nil {
			return nil, err
		}
		all = append(all, st)
	}
	return all, nil
}

// catalogDeregister removes a service of a node, a check of it, or all that is
// on the node. What is not there is gone already.
func catalogDeregister(c *call) error {
	var b struct {
		Node, ServiceID, CheckID, Address, Datacenter, Namespace string
		Partition, PeerName, Token                               foreign
	}
	if err := decode(c.body, &b); err != nil {
		return err
	}
	switch {
	case b.Datacenter != "" && b.Datacenter != c.api.opt.Datacenter:
		return noPath(b.Datacenter, c.api.opt.Datacenter)
	case b.Node == "":
		return fault.New(fault.BadRequest, "Must provide node")
	}
	if err := c.confirm(); err != nil {
		return err
	}
	on := func(in *registry.Instance) bool {
		return in.Metadata[metaNode] == b.Node && (b.ServiceID == "" || idOf(in) == b.ServiceID) && (b.CheckID == "" || hasCheck(in, b.CheckID))
	}
	entries, _ := c.State.Registry.Entries(c.namespace, "", 0)
	for _, e := range entries {
		for _, in := range e.Instances() {
			if !on(in) {
				continue
			}
			if err := c.drop(in, b.CheckID); err != nil && !fault.Is(err, fault.InstanceNotFound) {
				return err
			}
		}
	}
	c.send(200, "application/json", []byte("true"))
	return nil
}

func (c *call) drop(in *registry.Instance, check string) error {
	if check == "" {
		return c.remove(in)
	}
	find := func() (*registry.Instance, error) {
		if now, ok := c.State.Registry.Instance(c.namespace, in.Service, in.ID); ok {
			return now, nil
		}
		return nil, unknownService(in.ID)
	}
	return c.amend(find, func(now *registry.Instance, s *registry.InstanceSpec) {
		s.Checks = slices.DeleteFunc(slices.Clone(now.Checks), func(o registry.Check) bool { return o.ID == check })
	})
}
