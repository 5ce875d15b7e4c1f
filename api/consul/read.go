package consul

import (
	"slices"
	"strings"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

func catalogDatacenters(c *call) error {
	return c.json(1, []string{c.api.opt.Datacenter})
}

// catalogServices lists the services that have instances, with their tags.
func catalogServices(c *call) error {
	all, index, err := c.everywhere()
	if err != nil {
		return err
	}
	p := c.peers()
	rows := make([]CatalogService, 0, len(all))
	for i := range all {
		if c.q.hasNodeMeta(all[i].nodeMeta()) {
			rows = append(rows, c.shapeCatalog(&all[i], p))
		}
	}
	if rows, err = filtered(c, rows); err != nil {
		return err
	}
	out := Tags{}
	for i := range rows {
		tags, ok := out[rows[i].ServiceName]
		if !ok {
			tags = []string{}
		}
		for _, t := range rows[i].ServiceTags {
			if at, found := slices.BinarySearch(tags, t); !found {
				tags = slices.Insert(tags, at, t)
			}
		}
		out[rows[i].ServiceName] = tags
	}
	return c.json(index, out)
}

func catalogService(c *call) error {
	all, index, err := c.provide(c.R.PathValue("service"))
	if err != nil {
		return err
	}
	p := c.peers()
	rows := []CatalogService{}
	for _, f := range c.chosen(all) {
		rows = append(rows, c.shapeCatalog(&f, p))
	}
	if rows, err = filtered(c, rows); err != nil {
		return err
	}
	return c.json(index, rows)
}

// catalogNodes lists the members of the cluster and the nodes that
// registrations name.
func catalogNodes(c *call) error {
	all, index, err := c.everywhere()
	if err != nil {
		return err
	}
	p := c.peers()
	byName := map[string]Node{}
	for id, host := range p {
		byName[id] = c.memberNode(id, host)
	}
	for i := range all {
		n := c.shapeNode(&all[i], p)
		if was, ok := byName[n.Node]; ok {
			n.CreateIndex, n.ModifyIndex = min(was.CreateIndex, n.CreateIndex), max(was.ModifyIndex, n.ModifyIndex)
		}
		byName[n.Node] = n
	}
	rows := []Node{}
	for _, n := range byName {
		if c.q.hasNodeMeta(n.Meta) {
			rows = append(rows, n)
		}
	}
	slices.SortFunc(rows, func(a, b Node) int { return strings.Compare(a.Node, b.Node) })
	if near := c.q.near; near != "" {
		slices.SortStableFunc(rows, func(a, b Node) int {
			switch {
			case a.Node == near && b.Node != near:
				return -1
			case b.Node == near && a.Node != near:
				return 1
			}
			return 0
		})
	}
	if rows, err = filtered(c, rows); err != nil {
		return err
	}
	return c.json(index, rows)
}

func (c *call) memberNode(id, host string) Node {
	return Node{Node: id, Address: host, Datacenter: c.api.opt.Datacenter, Meta: map[string]string{},
		TaggedAddresses: map[string]string{"lan": host, "wan": host}, CreateIndex: 1, ModifyIndex: 1}
}

// catalogNode tells what a node provides; null where there is no such node, as
// Consul does.
func catalogNode(c *call) error {
	all, index, err := c.everywhere()
	if err != nil {
		return err
	}
	name, p := c.R.PathValue("node"), c.peers()
	var out *CatalogNode
	if host, ok := p[name]; ok {
		out = &CatalogNode{Node: c.memberNode(name, host), Services: map[string]AgentService{}}
	}
	var rows []AgentService
	for i := range all {
		if f := &all[i]; f.node() == name {
			if out == nil || len(rows) == 0 {
				out = &CatalogNode{Node: c.shapeNode(f, p), Services: map[string]AgentService{}}
			}
			rows = append(rows, c.shapeService(f))
		}
	}
	if rows, err = filtered(c, rows); err != nil {
		return err
	}
	for i := range rows {
		out.Services[rows[i].ID] = rows[i]
	}
	return c.json(index, out)
}

// healthService lists instances with their checks.
func healthService(c *call) error {
	all, index, err := c.provide(c.R.PathValue("service"))
	if err != nil {
		return err
	}
	p := c.peers()
	rows := []ServiceEntry{}
	for _, f := range c.chosen(all) {
		if c.q.passing && f.status != registry.Passing {
			continue
		}
		rows = append(rows, ServiceEntry{Node: c.shapeNode(&f, p), Service: c.shapeService(&f), Checks: checksOf(&f)})
	}
	if rows, err = filtered(c, rows); err != nil {
		return err
	}
	return c.json(index, rows)
}

func healthChecks(c *call) error {
	all, index, err := c.provide(c.R.PathValue("service"))
	if err != nil {
		return err
	}
	return c.checks(index, c.chosen(all), nil, func(*HealthCheck) bool { return true })
}

// healthNode lists the checks of what a node provides; of a member of the
// cluster, also whether it is alive.
func healthNode(c *call) error {
	all, index, err := c.everywhere()
	if err != nil {
		return err
	}
	node := c.R.PathValue("node")
	return c.checks(index, all, c.serf(), func(h *HealthCheck) bool { return h.Node == node })
}

func healthState(c *call) error {
	state := c.R.PathValue("state")
	switch state {
	case "any", registry.Passing, registry.Warning, registry.Critical:
	default:
		return fault.New(fault.BadRequest, "the state must be any, passing, warning or critical")
	}
	all, index, err := c.everywhere()
	if err != nil {
		return err
	}
	return c.checks(index, c.chosen(all), c.serf(), func(h *HealthCheck) bool { return state == "any" || h.Status == state })
}

// checks answers with the checks of instances, behind those given.
func (c *call) checks(index uint64, all []found, rows []HealthCheck, take func(*HealthCheck) bool) (err error) {
	for i := range all {
		rows = append(rows, checksOf(&all[i])...)
	}
	kept := []HealthCheck{}
	for i := range rows {
		if take(&rows[i]) {
			kept = append(kept, rows[i])
		}
	}
	if kept, err = filtered(c, kept); err != nil {
		return err
	}
	return c.json(index, kept)
}

// serf tells which members of the cluster are alive, as Consul's gossip does.
// It is no check of their services, and changes wake nobody.
func (c *call) serf() []HealthCheck {
	if len(c.q.nodeMeta) > 0 {
		return nil
	}
	all, _ := c.api.backend.Peers()
	rows := make([]HealthCheck, 0, len(all))
	for _, m := range all {
		h := HealthCheck{Node: m.ID, CheckID: "serfHealth", Name: "Serf Health Status", Status: registry.Passing, Output: "Agent alive and reachable",
			ServiceTags: []string{}, CreateIndex: 1, ModifyIndex: 1}
		if !m.Alive {
			h.Status, h.Output = registry.Critical, "Agent not live or unreachable"
		}
		rows = append(rows, h)
	}
	return rows
}
