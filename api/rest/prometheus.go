package rest

import (
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// Target is what Prometheus' HTTP service discovery reads of one instance.
type Target struct {
	Targets []string          `json:"targets"` // one, host:port
	Labels  map[string]string `json:"labels"`
}

// Targets is the whole answer.
type Targets []Target

// targetLabel begins the names of all labels.
const targetLabel = "__meta_muster_"

func prometheusRoutes() []Route {
	return []Route{{Method: http.MethodGet, Path: "/v1/prometheus/targets", ID: "prometheusTargets", Summary: "List instances as Prometheus' HTTP service discovery reads them",
		Action: policy.Lookup, Kind: registry.KindService, Status: 200, Reads: true, Answer: Targets{}, handle: prometheusTargets,
		Query: []Param{{Name: "namespace", Type: "string"}, {Name: "service", Type: "string"},
			{Name: "status", Type: "string", Description: "only instances of this status; by default all, since what fails is to be watched too"},
			{Name: "version", Type: "string", Description: "only instances of this version"},
			{Name: "zone", Type: "string", Description: "only instances of this zone"},
			{Name: "tag", Type: "string", Repeats: true, Description: "only instances that carry all of the tags"}}}}
}

func prometheusTargets(c *call) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	switch q.Get("status") {
	case "", "any", registry.Passing, registry.Warning, registry.Critical, registry.Maintenance:
	default:
		return fault.New(fault.BadRequest, "status must be any, passing, warning, critical or maintenance, not %q", door.Clip(q.Get("status")))
	}
	if err := c.scope(q.Get("namespace"), q.Get("service")); err != nil {
		return err
	}
	if err := c.Permit(c.route.Action, c.route.Kind, c.namespace); err != nil {
		return err
	}
	if err := c.view(nil); err != nil {
		return err
	}
	all, err := c.offered()
	if err != nil {
		return err
	}
	targets := Targets{}
	for i := range all {
		in := &all[i]
		if wanted(q.Get("status"), in.Status) && wanted(q.Get("version"), in.Version) && wanted(q.Get("zone"), in.Zone) && carries(in.Tags, q["tag"]) {
			targets = append(targets, in.target())
		}
	}
	return c.json(http.StatusOK, targets)
}

func wanted(asked, is string) bool { return asked == "" || asked == "any" || asked == is }

func carries(tags, all []string) bool {
	return !slices.ContainsFunc(all, func(t string) bool { return t != "" && !slices.Contains(tags, t) })
}

// offered lists the instances that are asked for, as the caller may see them.
func (c *call) offered() (all []offer, err error) {
	if c.service != "" {
		f, err := c.Discover(c.namespace, c.service, registry.Query{AnyStatus: true})
		if fault.Is(err, fault.ServiceNotFound) {
			return nil, nil // Prometheus would keep the targets of an answer that fails
		}
		if err != nil {
			return nil, err
		}
		return offers(f.Entry, f.Body)
	}
	entries, _ := c.State.Registry.Entries(c.namespace, "", 0)
	for _, e := range entries {
		if len(e.Instances()) == 0 || !c.Role.Sees(e.Namespace()) {
			continue
		}
		var body []byte
		if c.Policed() {
			body = e.Answer(registry.Query{AnyStatus: true})
			res := policy.Resource{Kind: registry.KindService, Namespace: e.Namespace(), Name: e.Service(), Payload: body}
			if s, ok := c.State.Registry.Service(e.Namespace(), e.Service()); ok {
				res.Holder = s.JSON
			}
			if body, err = c.Visible(res, body); err != nil {
				return nil, err
			}
			if body == nil {
				continue
			}
		}
		some, err := offers(e, body)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// offers gives the instances of a service: those of the answer, where a policy
// has seen it, or all.
func offers(e *registry.Entry, answer []byte) (all []offer, err error) {
	if answer == nil {
		for _, in := range e.Instances() {
			all = append(all, offer{Address: in.Address, Port: in.Port, Version: in.Version, Zone: in.Zone, Weight: in.Weight,
				ID: in.ID, Status: in.Status, Tags: in.Tags, Metadata: in.Metadata})
		}
	} else if all, err = door.Replaced[offer](answer); err != nil {
		return nil, err
	}
	for i := range all {
		all[i].namespace, all[i].service = e.Namespace(), e.Service()
	}
	return all, nil
}

// offer is one instance, as discovery answers it.
type offer struct {
	ID       string            `json:"id"`
	Address  string            `json:"address"`
	Port     int               `json:"port"`
	Version  string            `json:"version"`
	Zone     string            `json:"zone"`
	Weight   int               `json:"weight"`
	Status   string            `json:"status"`
	Tags     []string          `json:"tags"`
	Metadata map[string]string `json:"metadata"`

	namespace, service string
}

func (o *offer) target() Target {
	labels := map[string]string{
		"namespace": o.namespace, "service": o.service, "instance": o.ID, "address": o.Address, "port": strconv.Itoa(o.Port),
		"version": o.Version, "zone": o.Zone, "weight": strconv.Itoa(o.Weight), "status": o.Status,
		"tags": "," + strings.Join(o.Tags, ",") + ",", // so that a rule finds a tag between commas
	}
	t := Target{Targets: []string{net.JoinHostPort(o.Address, strconv.Itoa(o.Port))}, Labels: make(map[string]string, len(labels)+len(o.Metadata))}
	for name, value := range labels {
		t.Labels[targetLabel+name] = value
	}
	for name, value := range o.Metadata {
		t.Labels[targetLabel+"metadata_"+labelName(name)] = value
	}
	return t
}

// labelName makes of a key what can stand in a label's name.
func labelName(key string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, key)
}
