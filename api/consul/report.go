package consul

import (
	"cmp"
	"slices"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

func passCheck(c *call) error { return c.noted(registry.Passing) }
func warnCheck(c *call) error { return c.noted(registry.Warning) }
func failCheck(c *call) error { return c.noted(registry.Critical) }

func (c *call) noted(status string) error {
	return c.reported(status, c.q.values.Get("note"))
}

func updateCheck(c *call) error {
	var b struct{ Status, Output string }
	if err := decode(c.body, &b); err != nil {
		return err
	}
	if err := validState(b.Status); err != nil {
		return err
	}
	return c.reported(b.Status, b.Output)
}

// reported takes what a client says of a check that it must report about.
func (c *call) reported(status, output string) error {
	id := c.R.PathValue("id")
	in, err := c.checked(id)
	if err != nil {
		return err
	}
	check, _ := in.Check(id)
	switch {
	case check == nil && status == registry.Passing:
		c.like("POST", c.recordPath(in.Service, in.ID)+"/heartbeat")
		err = c.Heartbeat(c.namespace, in.Service, in.ID)
	case check == nil:
		c.like("PUT", c.recordPath(in.Service, in.ID)+"/status")
		_, err = c.Submit(&command.Command{Op: &command.Command_Status{Status: &command.InstanceStatus{
			Namespace: c.namespace, Service: in.Service, Name: in.ID, Status: status,
		}}}, []byte(`{"status":"`+status+`"}`), door.Condition{})
		err = c.hidden(in, err)
	case check.Type != registry.CheckTTL:
		err = fault.New(fault.NotFound, "CheckID %q does not have associated TTL", door.Clip(id))
	default:
		err = c.report(in, id, status, output)
	}
	if err != nil {
		return err
	}
	return c.done()
}

func (c *call) report(in *registry.Instance, check, status, output string) error {
	c.like("POST", c.recordPath(in.Service, in.ID)+"/heartbeat")
	return c.Report(c.namespace, in.Service, in.ID, check, status, output)
}

// registerCheck adds a check to a service that is there.
func registerCheck(c *call) error {
	var b checkBody
	if err := decode(c.body, &b); err != nil {
		return err
	}
	if b.Name = cmp.Or(b.Name, b.CheckID, b.ID); b.Name == "" {
		return fault.New(fault.BadRequest, "Missing check name")
	}
	if b.ServiceID == "" {
		return fault.New(fault.BadRequest, "muster keeps no checks of nodes; give the ServiceID of the service that the check is about")
	}
	b.CheckID = cmp.Or(b.ID, b.CheckID, b.Name)
	check, err := b.check()
	if err != nil {
		return err
	}
	err = c.amend(func() (*registry.Instance, error) { return c.instance(b.ServiceID) }, func(in *registry.Instance, s *registry.InstanceSpec) {
		s.Checks = append(slices.DeleteFunc(slices.Clone(in.Checks), func(o registry.Check) bool { return o.ID == check.ID }), check)
		if after := registry.Duration(b.DeregisterCriticalServiceAfter); after > 0 && (s.DeregisterAfter == 0 || after < s.DeregisterAfter) {
			s.DeregisterAfter = max(after, registry.Duration(minRemoval), s.TTL)
		}
	})
	if err != nil {
		return err
	}
	return c.done()
}

func deregisterCheck(c *call) error {
	id := c.R.PathValue("id")
	err := c.amend(func() (*registry.Instance, error) { return c.checkedHere(id) }, func(in *registry.Instance, s *registry.InstanceSpec) {
		s.Checks = slices.DeleteFunc(slices.Clone(in.Checks), func(o registry.Check) bool { return o.ID == id })
	})
	if err != nil {
		return err
	}
	return c.done()
}

// attempts is how often a change of a part of a record is made anew, when the
// record has changed meanwhile.
const attempts = 4

// amend changes a part of an instance's record and keeps the rest.
func (c *call) amend(find func() (*registry.Instance, error), change func(*registry.Instance, *registry.InstanceSpec)) error {
	for n := 1; ; n++ {
		if err := c.confirm(); err != nil {
			return err
		}
		in, err := find()
		if err != nil {
			return err
		}
		spec := in.InstanceSpec
		change(in, &spec)
		body, err := marshal(&spec)
		if err != nil {
			return err
		}
		canonical, err := registry.CanonicalInstance(c.namespace, in.Service, in.ID, body)
		if err != nil {
			return err
		}
		c.like("PUT", c.recordPath(in.Service, in.ID))
		_, err = c.Submit(&command.Command{Op: &command.Command_Put{Put: &command.Put{Kind: command.Kind_INSTANCE,
			Namespace: c.namespace, Service: in.Service, Name: in.ID, Spec: canonical}}}, nil, door.Condition{Match: in.Revision, HasMatch: true})
		if !fault.Is(err, fault.RevisionMismatch) || n == attempts {
			return c.hidden(in, err)
		}
	}
}
