package consul

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"strings"
	"sync"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// Consul's agent names services by their ids alone, and checks too. Ids are any
// text there; here an id that is no DNS label gets one made of its digest.

// recordID is the id of the record of what an agent calls id.
func recordID(id string) string {
	if registry.ValidName(id) == nil {
		return id
	}
	return digestID(id)
}

// externalID is the id of what a node registers in the catalog: the same id may
// be there on another node.
func externalID(node, id string) string { return digestID(node + "\x00" + id) }

func digestID(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "c-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// homes remembers in which service an id was found last. It is a hint: who
// follows it looks whether it still holds.
type homes struct {
	mu sync.Mutex // guards of
	of map[home]string
}

type home struct{ namespace, id string }

// maxHomes bounds what is remembered.
const maxHomes = 100_000

func (h *homes) get(namespace, id string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.of[home{namespace, id}]
}

func (h *homes) put(namespace, id, service string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of == nil || len(h.of) >= maxHomes {
		h.of = map[home]string{}
	}
	h.of[home{namespace, id}] = service
}

func idOf(in *registry.Instance) string { return cmp.Or(in.Metadata[metaID], in.ID) }

// agents says whether an agent knows the instance by the id.
func knownAs(in *registry.Instance, id string) bool {
	return in.Metadata[metaNodeAddr] == "" && idOf(in) == id
}

// instance finds what an agent calls id. Of several, which only other
// protocols can register, it is the one that came by Consul's, or none.
func (c *call) instance(id string) (*registry.Instance, error) {
	reg, record := c.State.Registry, recordID(id)
	if service := c.api.homes.get(c.namespace, id); service != "" {
		if in, ok := reg.Instance(c.namespace, service, record); ok && knownAs(in, id) && in.Metadata[metaNode] != "" {
			return in, nil
		}
	}
	var one *registry.Instance
	several := false
	entries, _ := reg.Entries(c.namespace, "", 0)
	for _, e := range entries {
		in, ok := reg.Instance(c.namespace, e.Service(), record)
		if !ok || !knownAs(in, id) {
			continue
		}
		if in.Metadata[metaNode] != "" {
			c.api.homes.put(c.namespace, id, e.Service())
			return in, nil
		}
		one, several = in, one != nil
	}
	switch {
	case several:
		return nil, fault.New(fault.Conflict, "several services have an instance %q that was not registered by this protocol; use the registry's own", door.Clip(id))
	case one == nil:
		return nil, unknownService(id)
	}
	return one, nil
}

// settled is instance after a confirmed read where it is not there: what was
// acknowledged by any node is found at every one.
func (c *call) settled(id string) (*registry.Instance, error) {
	in, err := c.instance(id)
	if !fault.Is(err, fault.InstanceNotFound) {
		return in, err
	}
	if err := c.confirm(); err != nil {
		return nil, err
	}
	return c.instance(id)
}

// confirm makes the state that is looked at no older than the call.
func (c *call) confirm() error {
	rd := c.q.rd
	rd.Linearizable, rd.Index = true, 0
	return c.View(rd, nil)
}

// own finds what an agent calls id, as the caller may see it, in the state that
// the query asks for.
func (c *call) own(id string) (*found, error) {
	rd := c.q.rd
	rd.Index = 0
	if err := c.View(rd, nil); err != nil {
		return nil, err
	}
	in, err := c.instance(id)
	if err != nil {
		return nil, err
	}
	return c.seen(in.Service, in.ID)
}

// seen gives one instance as the caller may see it; what it may not see is
// unknown to it.
func (c *call) seen(service, id string) (*found, error) {
	if err := c.Permit(policy.Lookup, registry.KindService, c.namespace); err != nil {
		return nil, err
	}
	c.like("GET", "/v1/discovery/"+c.namespace+"/"+service+"?status=any")
	f, err := c.Discover(c.namespace, service, registry.Query{AnyStatus: true})
	if fault.Is(err, fault.PolicyDenied) && !f.Decision.Missed || fault.Is(err, fault.ServiceNotFound) {
		return nil, unknownService(id) // without an answer in time it may well be there
	}
	if err != nil {
		return nil, err
	}
	all := records(f.Entry)
	if f.Decision.Filtered != nil {
		if all, err = replaced(f.Entry, f.Body); err != nil {
			return nil, err
		}
	}
	for i := range all {
		if all[i].id == id && all[i].record != nil {
			return &all[i], nil
		}
	}
	return nil, unknownService(id)
}

// checked finds the instance that has a check, by the check's id.
func (c *call) checked(id string) (*registry.Instance, error) {
	in, err := c.checkedHere(id)
	if !fault.Is(err, fault.NotFound) {
		return in, err
	}
	if err := c.confirm(); err != nil {
		return nil, err
	}
	return c.checkedHere(id)
}

func (c *call) checkedHere(id string) (*registry.Instance, error) {
	// Nearly all are called service:ID, or service:ID:N of several.
	if service, ok := strings.CutPrefix(id, "service:"); ok {
		if in, err := c.instance(service); err == nil && hasCheck(in, id) {
			return in, nil
		}
		if i := strings.LastIndexByte(service, ':'); i > 0 {
			if in, err := c.instance(service[:i]); err == nil && hasCheck(in, id) {
				return in, nil
			}
		}
	}
	if service := c.api.homes.get(c.namespace, "\x00"+id); service != "" {
		if in := c.withCheck(service, id); in != nil {
			return in, nil
		}
	}
	entries, _ := c.State.Registry.Entries(c.namespace, "", 0)
	for _, e := range entries {
		if in := c.withCheck(e.Service(), id); in != nil {
			c.api.homes.put(c.namespace, "\x00"+id, e.Service())
			return in, nil
		}
	}
	return nil, fault.New(fault.NotFound, "Unknown check ID %q. Ensure that the check ID is passed, not the check name.", door.Clip(id))
}

func (c *call) withCheck(service, id string) *registry.Instance {
	e, ok := c.State.Registry.Discover(c.namespace, service)
	if !ok {
		return nil
	}
	for _, in := range e.Instances() {
		if in.Metadata[metaNodeAddr] == "" && hasCheck(in, id) {
			return in
		}
	}
	return nil
}
