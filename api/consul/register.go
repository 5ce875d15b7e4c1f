package consul

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// serviceBody registers a service with the agent, or within the catalog, which
// calls its name Service.
type serviceBody struct {
	ID, Name, Service string
	Tags              []string
	Address           string
	Port              int
	Meta              map[string]string
	EnableTagOverride *bool
	Weights           *Weights
	TaggedAddresses   map[string]ServiceAddress
	Locality          *struct{ Region, Zone string }
	Check             *checkBody
	Checks            []*checkBody
	Namespace         string

	Kind, Proxy, Connect, SocketPath, Partition, Token, Ports foreign
	// What answers have and registrations repeat, without effect.
	Datacenter, PeerName     string
	CreateIndex, ModifyIndex uint64
	ContentHash              string
}

func (b *serviceBody) offered() error {
	return offered(map[string]foreign{"Kind": b.Kind, "Proxy": b.Proxy, "Connect": b.Connect, "SocketPath": b.SocketPath, "Partition": b.Partition,
		"Token": b.Token, "Ports": b.Ports})
}

// draft is a registration on its way to be a record.
type draft struct {
	service, id string // of the record
	node        map[string]string
	body        *serviceBody
	checks      []registry.Check
}

// spec gives the canonical spec of the instance.
func (d *draft) spec(namespace string) ([]byte, error) {
	b := d.body
	meta := map[string]string{}
	for k, v := range b.Meta {
		if strings.HasPrefix(strings.ToLower(k), reserved) {
			return nil, fault.Invalid("/Meta/"+k, "names that begin with consul- are reserved")
		}
		meta[k] = v
	}
	maps.Copy(meta, d.node)
	if id := cmp.Or(b.ID, b.Name, b.Service); id != d.id {
		meta[metaID] = id
	}
	if len(b.TaggedAddresses) > 0 {
		text, err := marshal(b.TaggedAddresses)
		if err != nil {
			return nil, err
		}
		meta[metaTagged] = string(text)
	}
	if b.EnableTagOverride != nil && *b.EnableTagOverride {
		meta[metaOverride] = "true"
	}
	in := map[string]any{"address": b.Address, "port": b.Port, "metadata": meta, "ttl": "0s", "deregister_after": d.removal().String()}
	if len(b.Tags) > 0 {
		in["tags"] = b.Tags
	}
	if b.Weights != nil {
		in["weight"] = b.Weights.Passing
	}
	if b.Locality != nil && b.Locality.Zone != "" {
		in["zone"] = b.Locality.Zone
	}
	if len(d.checks) > 0 {
		in["checks"] = d.checks
	}
	body, err := marshal(in)
	if err != nil {
		return nil, err
	}
	return registry.CanonicalInstance(namespace, d.service, d.id, body)
}

// removal is how long the instance may be critical before it is removed: the
// shortest that one of its checks names.
func (d *draft) removal() (shortest duration) {
	for _, b := range append([]*checkBody{d.body.Check}, d.body.Checks...) {
		if b == nil {
			continue
		}
		if after := b.DeregisterCriticalServiceAfter; after > 0 && (shortest == 0 || after < shortest) {
			shortest = after
		}
	}
	if shortest > 0 {
		shortest = max(shortest, minRemoval)
	}
	return shortest
}

// registerService registers an instance with the agent, which is the cluster.
func registerService(c *call) error {
	var b serviceBody
	if err := decode(c.body, &b); err != nil {
		return err
	}
	if err := b.offered(); err != nil {
		return err
	}
	if b.Name = cmp.Or(b.Name, b.Service); b.Name == "" {
		return fault.New(fault.BadRequest, "Missing service name")
	}
	id := cmp.Or(b.ID, b.Name)
	if err := printable("/ID", id); err != nil {
		return err
	}
	service, err := named(b.Name)
	if err != nil {
		return err
	}
	if err := c.confirm(); err != nil {
		return err
	}
	// The service runs where it is registered from: Consul's agent is on the
	// same host.
	b.Address = cmp.Or(b.Address, c.Source())
	d := draft{service: service, id: recordID(id), node: map[string]string{metaNode: c.api.backend.NodeID()}, body: &b}
	if d.checks, err = b.checks(id); err != nil {
		return err
	}
	before, err := c.instance(id)
	if err != nil && !fault.Is(err, fault.InstanceNotFound) {
		return err
	}
	if before != nil && before.Service == service && before.Status == registry.Maintenance && before.Metadata[metaReason] != "" {
		d.node[metaReason] = before.Metadata[metaReason] // the maintenance goes on
	}
	if before != nil && before.Service == service && !c.q.flag("replace-existing-checks") {
		d.checks = keepChecks(before, d.checks)
	}
	if err := c.put(&d, door.Condition{}); err != nil {
		return err
	}
	c.api.homes.put(c.namespace, id, service)
	if before != nil && before.Service != service && before.Metadata[metaNode] != "" {
		if err := c.remove(before); err != nil && !fault.Is(err, fault.InstanceNotFound) {
			return err
		}
	}
	return c.done()
}

// put stores a draft.
func (c *call) put(d *draft, when door.Condition) error {
	spec, err := d.spec(c.namespace)
	if err != nil {
		return err
	}
	c.like("PUT", c.recordPath(d.service, d.id)+"?create_service=true")
	_, err = c.Submit(&command.Command{Op: &command.Command_Put{Put: &command.Put{Kind: command.Kind_INSTANCE,
		Namespace: c.namespace, Service: d.service, Name: d.id, Spec: spec, CreateService: true}}}, nil, when)
	return err
}

func (c *call) recordPath(service, id string) string {
	return "/v1/namespaces/" + c.namespace + "/services/" + service + "/instances/" + id
}

// remove deregisters an instance.
func (c *call) remove(in *registry.Instance) error {
	c.like("DELETE", c.recordPath(in.Service, in.ID))
	_, err := c.Submit(&command.Command{Op: &command.Command_Delete{Delete: &command.Delete{Kind: command.Kind_INSTANCE,
		Namespace: c.namespace, Service: in.Service, Name: in.ID}}}, nil, door.Condition{})
	return c.hidden(in, err)
}

// hidden turns the refusal of a change into an unknown id for who may not even
// look the service up: an id is not to be guessed that way.
func (c *call) hidden(in *registry.Instance, err error) error {
	if !fault.Is(err, fault.PolicyDenied) {
		return err
	}
	if _, unseen := c.seen(in.Service, in.ID); fault.Is(unseen, fault.InstanceNotFound) {
		return unknownService(idOf(in))
	}
	return err
}

func deregisterService(c *call) error {
	id := c.R.PathValue("id")
	if err := c.confirm(); err != nil {
		return err
	}
	in, err := c.instance(id)
	if err != nil {
		return err
	}
	if err := c.remove(in); err != nil {
		return err
	}
	return c.done()
}

// maintainService takes an instance out of service, or back.
func maintainService(c *call) error {
	enable := c.q.values.Get("enable")
	if enable != "true" && enable != "false" {
		return fault.New(fault.BadRequest, "Missing value for enable: it must be true or false")
	}
	in, err := c.settled(c.R.PathValue("id"))
	if err != nil {
		return err
	}
	status := registry.Maintenance
	if reason := c.q.values.Get("reason"); enable == "true" && reason != in.Metadata[metaReason] {
		if err := c.excuse(c.R.PathValue("id"), reason); err != nil {
			return err
		}
	}
	if enable == "false" {
		if in.Status != registry.Maintenance {
			return c.done()
		}
		status = registry.Passing
	}
	c.like("PUT", c.recordPath(in.Service, in.ID)+"/status")
	_, err = c.Submit(&command.Command{Op: &command.Command_Status{Status: &command.InstanceStatus{
		Namespace: c.namespace, Service: in.Service, Name: in.ID, Status: status,
	}}}, []byte(`{"status":"`+status+`"}`), door.Condition{})
	if err := c.hidden(in, err); err != nil {
		return err
	}
	return c.done()
}

// excuse keeps why an instance is about to be taken out of service.
func (c *call) excuse(id, reason string) error {
	if len(reason) > maxReason {
		return fault.New(fault.BadRequest, "a reason has at most %d bytes", maxReason)
	}
	return c.amend(func() (*registry.Instance, error) { return c.instance(id) }, func(in *registry.Instance, s *registry.InstanceSpec) {
		s.Metadata = maps.Clone(in.Metadata)
		if delete(s.Metadata, metaReason); reason != "" {
			if s.Metadata == nil {
				s.Metadata = map[string]string{}
			}
			s.Metadata[metaReason] = reason
		}
	})
}

// maxReason bounds the reason for a maintenance.
const maxReason = 512

func printable(pointer, text string) error {
	if len(text) > maxID || !door.Printable(text) {
		return fault.Invalid(pointer, "must be at most %d bytes of text without control characters", maxID)
	}
	return nil
}

// maxID bounds the ids of services and nodes as Consul's clients give them.
const maxID = 253
