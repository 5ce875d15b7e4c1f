package rest

import (
	"math"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// instancesChanged is the revision of the last change to the service's
// instances. What is not there has changed: nobody waits for it.
func (c *call) instancesChanged(s *door.State) uint64 {
	e, ok := s.Registry.Discover(c.namespace, c.service)
	if !ok {
		return math.MaxUint64
	}
	return e.Revision()
}

func (c *call) instanceChanged(s *door.State) uint64 {
	rec, ok := s.Registry.Instance(c.namespace, c.service, c.name)
	if !ok {
		return math.MaxUint64
	}
	return rec.Revision
}

func getInstance(c *call) error {
	if err := c.view(c.instanceChanged); err != nil {
		return err
	}
	rec, ok := c.State.Registry.Instance(c.namespace, c.service, c.name)
	d, err := c.Decide(c.instanceResource(c.name, rec))
	if err != nil {
		return err
	}
	if !ok {
		return missing(c, fault.InstanceNotFound, "instance")
	}
	return c.record(rec.Revision, rec.JSON, d)
}

func listInstances(c *call) error {
	after, limit, err := c.page()
	if err != nil {
		return err
	}
	if err := c.view(c.instancesChanged); err != nil {
		return err
	}
	if err := c.seeService(); err != nil {
		return err
	}
	page, next, err := items(after, limit, func(after string, n int) ([]*registry.Instance, string) {
		return c.State.Registry.Instances(c.namespace, c.service, after, n)
	}, func(rec *registry.Instance) ([]byte, error) {
		return c.Visible(c.instanceResource(rec.ID, rec), rec.JSON)
	})
	if err != nil {
		return err
	}
	c.list(page, next)
	return nil
}

func putInstance(c *call) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	create, err := flag(q, "create_service")
	if err != nil {
		return err
	}
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	spec, err := registry.CanonicalInstance(c.namespace, c.service, c.name, body)
	if err != nil {
		return err
	}
	return c.put(&command.Put{Kind: command.Kind_INSTANCE, Namespace: c.namespace, Service: c.service, Name: c.name,
		Spec: spec, CreateService: create}, body, nil)
}

func deleteInstance(c *call) error {
	return c.delete(&command.Delete{Kind: command.Kind_INSTANCE, Namespace: c.namespace, Service: c.service, Name: c.name})
}

// heartbeat is the call there are most of: it carries no body, is decided by
// the role alone and answered with nothing.
func heartbeat(c *call) error {
	if err := c.hops(); err != nil {
		return err
	}
	if err := c.Heartbeat(c.namespace, c.service, c.name); err != nil {
		return err
	}
	c.empty()
	return nil
}

// CheckBody is a report about a check of type ttl.
type CheckBody struct {
	Status string `json:"status"` // passing, warning, critical
	Output string `json:"output"` // what to show to people; 4 KiB of it are kept
}

// putCheck renews a check of type ttl, as a heartbeat renews a lease.
func putCheck(c *call) error {
	if err := c.hops(); err != nil {
		return err
	}
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	var b CheckBody
	if err := registry.DecodeStrict(body, &b); err != nil {
		return err
	}
	check := c.R.PathValue("check")
	if len(check) > 128 || !door.Printable(check) {
		return fault.Invalid("/check", "the id of a check is printable text of at most 128 bytes")
	}
	if err := c.Report(c.namespace, c.service, c.name, check, b.Status, b.Output); err != nil {
		return err
	}
	c.empty()
	return nil
}

// StatusBody sets an instance's status.
type StatusBody struct {
	Status string `json:"status"` // passing, warning, critical, maintenance
}

func putStatus(c *call) error {
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	var b StatusBody
	if err := registry.DecodeStrict(body, &b); err != nil {
		return err
	}
	switch b.Status {
	case registry.Passing, registry.Warning, registry.Critical, registry.Maintenance:
	default:
		return fault.Invalid("/status", "must be passing, warning, critical or maintenance")
	}
	payload, err := json.Marshal(b)
	if err != nil {
		return err
	}
	receipt, err := c.submit(&command.Command{Op: &command.Command_Status{Status: &command.InstanceStatus{
		Namespace: c.namespace, Service: c.service, Name: c.name, Status: b.Status,
	}}}, body, payload)
	if err != nil {
		return err
	}
	c.stored(receipt)
	return nil
}
