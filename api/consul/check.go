package consul

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// checkBody is a check as clients define it.
type checkBody struct {
	ID, CheckID, Name, Notes, Status string
	Interval, Timeout, TTL           duration
	HTTP, Method, Body               string
	Header                           map[string][]string
	TCP, GRPC                        string
	TCPUseTLS, GRPCUseTLS            bool
	TLSServerName                    string
	TLSSkipVerify                    bool
	SuccessBeforePassing             int
	FailuresBeforeWarning            int
	FailuresBeforeCritical           int
	DeregisterCriticalServiceAfter   duration
	OutputMaxSize                    int  // outputs are bounded here anyway
	DisableRedirects                 bool // nobody follows any
	ServiceID, Namespace             string

	Script, ScriptArgs, Args, DockerContainerID, Shell, UDP, H2Ping, H2PingUseTLS, AliasNode, AliasService, OSService, Partition, Token, ExposedPort, SkipNode foreign
}

func (b *checkBody) offered() error {
	return offered(map[string]foreign{"Script": b.Script, "ScriptArgs": b.ScriptArgs, "Args": b.Args, "DockerContainerID": b.DockerContainerID, "Shell": b.Shell,
		"UDP": b.UDP, "H2Ping": b.H2Ping, "AliasNode": b.AliasNode, "AliasService": b.AliasService, "OSService": b.OSService, "Partition": b.Partition})
}

// What clients leave out is as in Consul.
const (
	minInterval    = duration(time.Second)
	defaultTimeout = duration(10 * time.Second)
	maxTimeout     = duration(time.Minute)
	minRemoval     = duration(time.Second)
)

// check gives the check as muster has it.
func (b *checkBody) check() (c registry.Check, err error) {
	if err := b.offered(); err != nil {
		return c, err
	}
	c = registry.Check{ID: b.CheckID, Name: b.Name, Notes: b.Notes, InitialStatus: cmp.Or(b.Status, registry.Critical)}
	if err := validState(c.InitialStatus); err != nil {
		return c, err
	}
	kinds := 0
	for _, k := range []struct {
		given bool
		kind  string
	}{{b.TTL != 0, registry.CheckTTL}, {b.HTTP != "", registry.CheckHTTP}, {b.TCP != "", registry.CheckTCP}, {b.GRPC != "", registry.CheckGRPC}} {
		if k.given {
			c.Type = k.kind
			kinds++
		}
	}
	switch {
	case kinds == 0:
		return c, fault.New(fault.BadRequest, "Invalid check: TTL must be > 0 or an Interval with HTTP, TCP or GRPC given")
	case kinds > 1:
		return c, fault.New(fault.BadRequest, "Invalid check: give one of TTL, HTTP, TCP and GRPC")
	case c.Type == registry.CheckTTL:
		c.TTL = registry.Duration(b.TTL)
		return c, nil
	case b.Interval <= 0:
		return c, fault.New(fault.BadRequest, "Invalid check: Interval must be > 0 for HTTP, TCP, or GRPC checks")
	case b.FailuresBeforeWarning > 0 && b.FailuresBeforeWarning < b.FailuresBeforeCritical:
		return c, fault.New(fault.BadRequest, "muster does not offer FailuresBeforeWarning; leave it out")
	}
	b.active(&c)
	return c, nil
}

func (b *checkBody) active(c *registry.Check) {
	interval := max(b.Interval, minInterval)
	timeout := b.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	c.Interval, c.Timeout = registry.Duration(interval), registry.Duration(min(timeout, interval, maxTimeout))
	c.SuccessesBeforePassing, c.FailuresBeforeCritical = max(1, b.SuccessBeforePassing), max(1, b.FailuresBeforeCritical)
	tls := b.TLSServerName != "" || b.TLSSkipVerify
	switch c.Type {
	case registry.CheckHTTP:
		c.Target, c.Method, c.Headers, c.Body = b.HTTP, b.Method, b.Header, b.Body
		tls = tls && strings.HasPrefix(b.HTTP, "https:")
	case registry.CheckTCP:
		c.Target, tls = b.TCP, b.TCPUseTLS
	case registry.CheckGRPC:
		c.Target, c.Service, _ = strings.Cut(b.GRPC, "/")
		tls = b.GRPCUseTLS
	}
	if tls {
		c.TLS = &registry.CheckTLS{ServerName: b.TLSServerName, SkipVerify: b.TLSSkipVerify}
	}
}

func validState(status string) error {
	switch status {
	case registry.Passing, registry.Warning, registry.Critical:
		return nil
	}
	return fault.New(fault.BadRequest, "Invalid check status: %q; it must be passing, warning or critical", door.Clip(status))
}

// checks gives the checks of a registration, which are called by the id of the
// service unless they have a name of their own.
func (b *serviceBody) checks(service string) (all []registry.Check, err error) {
	var given []*checkBody
	for _, one := range append([]*checkBody{b.Check}, b.Checks...) {
		if one != nil {
			given = append(given, one)
		}
	}
	for i, one := range given {
		c, err := one.check()
		if err != nil {
			return nil, err
		}
		if c.ID == "" {
			c.ID = "service:" + service
			if len(given) > 1 {
				c.ID += ":" + strconv.Itoa(i+1)
			}
		}
		c.Name = cmp.Or(c.Name, "Service '"+cmp.Or(b.Name, b.Service)+"' check")
		all = append(all, c)
	}
	return all, nil
}

// keepChecks adds the checks that the instance has already.
func keepChecks(before *registry.Instance, checks []registry.Check) []registry.Check {
	for _, c := range before.Checks {
		if !slices.ContainsFunc(checks, func(n registry.Check) bool { return n.ID == c.ID }) {
			checks = append(checks, c)
		}
	}
	return checks
}

// The checks that stand for what an instance's status is beside its checks.
const (
	leaseCheck  = "service:"              // its lease, where it has no checks
	statusCheck = "_service_status:"      // a status that somebody set
	maintenance = "_service_maintenance:" // as Consul calls it
)

func hasCheck(in *registry.Instance, id string) bool {
	c, _ := in.Check(id)
	return c != nil || leased(in) && id == leaseCheck+idOf(in)
}

// leased says whether the instance has a lease and no checks: its heartbeat is
// then the check that it passes.
func leased(in *registry.Instance) bool { return len(in.Checks) == 0 && in.TTL > 0 }

// checksOf lists the checks of an instance. What a policy put something in the
// place of does not show what its checks ask and say.
func checksOf(f *found) []HealthCheck {
	rows := []HealthCheck{}
	created, modified := f.revisions()
	base := HealthCheck{Node: f.node(), ServiceID: f.consulID(), ServiceName: f.service, ServiceTags: tagsOf(f), CreateIndex: created, ModifyIndex: modified}
	in := f.record
	if in == nil {
		return rows
	}
	for i := range in.Checks {
		rows = append(rows, shapeCheck(base, &in.Checks[i], in, f.changed))
	}
	if leased(in) && f.status != registry.Maintenance {
		h := base
		h.CheckID, h.Name, h.Type, h.Status = leaseCheck+h.ServiceID, "Service '"+f.service+"' lease", registry.CheckTTL, f.status
		if own, by := in.Own(); own == registry.Critical && by == registry.ByLease {
			h.Output = "TTL expired"
		}
		return append(rows, h)
	}
	switch own, _ := in.Own(); own {
	case registry.Maintenance:
		h := base
		h.CheckID, h.Name, h.Status, h.Type = maintenance+h.ServiceID, "Service Maintenance Mode", registry.Critical, "maintenance"
		h.Notes = "Maintenance mode is enabled for this service"
		if reason := f.metadata[metaReason]; reason != "" {
			h.Notes = reason
		}
		rows = append(rows, h)
	case registry.Warning, registry.Critical:
		h := base
		h.CheckID, h.Name, h.Status, h.Notes = statusCheck+h.ServiceID, "Service status", own, "The status was set by hand"
		rows = append(rows, h)
	}
	return rows
}

func shapeCheck(h HealthCheck, c *registry.Check, in *registry.Instance, quiet bool) HealthCheck {
	h.CheckID, h.Name, h.Type, h.Status = c.ID, c.Name, c.Type, registry.Critical
	_, state := in.Check(c.ID)
	if state != nil {
		h.Status, h.ModifyIndex = state.Status, state.Revision
	}
	if quiet {
		return h
	}
	if state != nil {
		h.Output = state.Output
	}
	h.Notes = c.Notes
	if c.Interval > 0 {
		h.Interval, h.Timeout = c.Interval.String(), c.Timeout.String()
	}
	d := &h.Definition
	d.Interval, d.Timeout = h.Interval, h.Timeout
	if in.DeregisterAfter > 0 {
		d.DeregisterCriticalServiceAfter = in.DeregisterAfter.String()
	}
	switch c.Type {
	case registry.CheckHTTP:
		d.HTTP, d.Method = c.Target, c.Method // headers may hold credentials
	case registry.CheckTCP:
		d.TCP = c.Target
	case registry.CheckGRPC:
		if d.GRPC = c.Target; c.Service != "" {
			d.GRPC += "/" + c.Service
		}
	}
	return h
}
