package consul

import (
	"net/http"
	"slices"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// ServiceStatus is how an instance is, in one word, with what says so.
type ServiceStatus struct {
	AggregatedStatus string
	Service          AgentService
	Checks           []HealthCheck
}

// statuses orders them from the best, with the HTTP status that stands for each.
var statuses = []struct {
	name string
	http int
}{{registry.Passing, http.StatusOK}, {registry.Warning, http.StatusTooManyRequests}, {registry.Critical, http.StatusServiceUnavailable}, {registry.Maintenance, http.StatusServiceUnavailable}}

func severity(status string) int {
	for i := range statuses {
		if statuses[i].name == status {
			return i
		}
	}
	return 2 // what a policy made of it
}

func (c *call) serviceStatus(f *found) ServiceStatus {
	return ServiceStatus{AggregatedStatus: statuses[severity(f.status)].name, Service: c.shapeService(f), Checks: checksOf(f)}
}

// agentHealthID tells how one instance is, with the status that a load
// balancer's probe understands: 200, 429 for a warning, 503.
func agentHealthID(c *call) error {
	f, err := c.own(c.R.PathValue("id"))
	if err != nil {
		return err
	}
	one := c.serviceStatus(f)
	return c.health(f.record.Revision, one.AggregatedStatus, one)
}

// agentHealthName tells how the instances of a service are; the worst counts.
func agentHealthName(c *call) error {
	all, index, err := c.provide(c.R.PathValue("service"))
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(f found) bool { return !f.agents() })
	if len(all) == 0 {
		return fault.New(fault.ServiceNotFound, "ServiceName %s Not Found", door.Clip(c.R.PathValue("service")))
	}
	rows, worst := make([]ServiceStatus, 0, len(all)), 0
	for i := range all {
		rows = append(rows, c.serviceStatus(&all[i]))
		worst = max(worst, severity(all[i].status))
	}
	return c.health(index, statuses[worst].name, rows)
}

// health answers with the HTTP status that stands for a status; with the word
// alone where the caller wants text.
func (c *call) health(index uint64, status string, v any) error {
	code := statuses[severity(status)].http
	if c.q.values.Get("format") == "text" {
		c.read(index)
		c.send(code, mediaText, []byte(status))
		return nil
	}
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return err
	}
	c.read(index)
	c.send(code, "application/json", b)
	return nil
}
