package consul

import (
	"math"
	"net"
	"strconv"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
)

// Member is a member of the cluster, as Consul's gossip tells of its own.
type Member struct {
	Name        string
	Addr        string
	Port        int
	Tags        map[string]string
	Status      int // 1 alive, 4 failed
	ProtocolMin int
	ProtocolMax int
	ProtocolCur int
	DelegateMin int
	DelegateMax int
	DelegateCur int
}

func (c *call) member(p Peer) Member {
	m := Member{Name: p.ID, Status: 1, Tags: map[string]string{"role": "consul", "dc": c.api.opt.Datacenter, "id": p.ID, "muster_role": p.Role},
		ProtocolMin: 1, ProtocolMax: 5, ProtocolCur: 2, DelegateMin: 2, DelegateMax: 5, DelegateCur: 4}
	host, port, err := net.SplitHostPort(p.Address)
	if m.Addr = host; err != nil {
		m.Addr = p.Address
	}
	if n, err := strconv.Atoi(port); err == nil {
		m.Port = n
	}
	if !p.Alive {
		m.Status = 4
	}
	return m
}

// Self is what an agent tells of itself.
type Self struct {
	Config struct {
		Datacenter        string
		PrimaryDatacenter string
		NodeName          string
		NodeID            string
		Server            bool
		Revision          string
		Version           string
	}
	Stats  map[string]map[string]string
	Member Member
	Meta   map[string]string
}

func agentSelf(c *call) error {
	if err := c.Young(); err != nil {
		return err
	}
	var s Self
	s.Config.Datacenter, s.Config.PrimaryDatacenter = c.api.opt.Datacenter, c.api.opt.Datacenter
	s.Config.NodeName, s.Config.Server, s.Config.Version = c.api.backend.NodeID(), true, c.api.opt.Version
	s.Stats, s.Meta = map[string]map[string]string{"consul": {"server": "true", "leader": strconv.FormatBool(c.api.backend.IsLeader())}}, map[string]string{}
	all, _ := c.api.backend.Peers()
	for _, p := range all {
		if p.ID == s.Config.NodeName {
			s.Member = c.member(p)
		}
	}
	return c.json(1, s)
}

func agentMembers(c *call) error {
	all, _ := c.api.backend.Peers()
	rows := make([]Member, 0, len(all))
	for _, p := range all {
		rows = append(rows, c.member(p))
	}
	rows, err := filtered(c, rows)
	if err != nil {
		return err
	}
	return c.json(1, rows)
}

// statusLeader names the leader's peer address, "" where none is known.
func statusLeader(c *call) error {
	all, leader := c.api.backend.Peers()
	for _, p := range all {
		if p.ID == leader {
			return c.json(1, p.Address)
		}
	}
	return c.json(1, "")
}

func statusPeers(c *call) error {
	all, _ := c.api.backend.Peers()
	rows := []string{}
	for _, p := range all {
		if p.Role != "non-voter" {
			rows = append(rows, p.Address)
		}
	}
	return c.json(1, rows)
}

// agentServices lists what the agent knows, which is what the cluster does. An
// agent answers from itself: so does this node, after what was acknowledged.
func agentServices(c *call) error {
	all, index, err := c.everywhere()
	if err != nil {
		return err
	}
	rows := make([]AgentService, 0, len(all))
	for i := range all {
		if all[i].agents() {
			rows = append(rows, c.shapeService(&all[i]))
		}
	}
	if rows, err = filtered(c, rows); err != nil {
		return err
	}
	out := make(map[string]AgentService, len(rows))
	for i := range rows {
		out[rows[i].ID] = rows[i]
	}
	return c.json(index, out)
}

func agentChecks(c *call) error {
	all, index, err := c.everywhere()
	if err != nil {
		return err
	}
	var rows []HealthCheck
	for i := range all {
		if all[i].agents() {
			rows = append(rows, checksOf(&all[i])...)
		}
	}
	if rows, err = filtered(c, rows); err != nil {
		return err
	}
	out := make(map[string]HealthCheck, len(rows))
	for i := range rows {
		out[rows[i].CheckID] = rows[i]
	}
	return c.json(index, out)
}

// agents says whether the instance came by an agent: not by the catalog, on a
// node of its own.
func (f *found) agents() bool { return f.metadata[metaNodeAddr] == "" }

// agentService tells of one service; with the hash of the answer that the
// caller has, it waits for another one.
func agentService(c *call) error {
	f, err := c.own(c.R.PathValue("id"))
	if err != nil {
		return err
	}
	one, err := c.agentAnswer(f)
	if err != nil {
		return err
	}
	if c.q.hash != "" && one.ContentHash == c.q.hash {
		rd := c.q.rd
		rd.Linearizable, rd.Index = false, f.record.Revision
		if err := c.View(rd, &door.Changes{Scope: feed.Scope{Namespace: c.namespace, Service: f.service}, Revision: c.changed(f)}); err != nil {
			return err
		}
		if f, err = c.seen(f.service, f.id); err != nil {
			return err
		}
		if one, err = c.agentAnswer(f); err != nil {
			return err
		}
	}
	return c.json(f.record.Revision, one)
}

// changed gives the revision of the instance; one that is gone has changed.
func (c *call) changed(f *found) func(*door.State) uint64 {
	return func(s *door.State) uint64 {
		if in, ok := s.Registry.Instance(c.namespace, f.service, f.id); ok {
			return in.Revision
		}
		return math.MaxUint64
	}
}

// HashedService is an AgentService with the hash that says whether it is another one.
type HashedService struct {
	AgentService
	ContentHash string
}

func (c *call) agentAnswer(f *found) (HashedService, error) {
	h := HashedService{AgentService: c.shapeService(f)}
	if f.record == nil {
		return h, unknownService(f.id)
	}
	h.CreateIndex, h.ModifyIndex = 0, 0 // a renewal is no change
	b, err := marshal(h.AgentService)
	h.ContentHash = contentHash(b)
	return h, err
}

func unknownService(id string) error {
	return fault.New(fault.InstanceNotFound, "Unknown service ID %q. Ensure that the service ID is passed, not the service name.", door.Clip(id))
}
