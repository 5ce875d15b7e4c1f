package cluster

import (
	"fmt"
	"log"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/muster-registry/muster/cluster/wire"
	"google.golang.org/protobuf/proto"
)

const (
	leaveTimeout = 300 * time.Millisecond
	tellEvery    = 250 * time.Millisecond // whether this node is connected
	seekEvery    = time.Second            // while not all are known
	reseekEvery  = 10 * time.Second       // heals gossip that a partition has split
)

// gossip finds other nodes and notices that they are gone. What it says is a
// suggestion: who is at an address is for the certificate to say, and who
// votes for Raft's configuration.
type gossip struct {
	c    *Cluster
	list atomic.Pointer[memberlist.Memberlist]

	mu    sync.Mutex           // guards what follows
	card  []byte               // of this node
	alive map[string]neighbour // by memberlist's name, this node included
}

// neighbour is a living node as the last event told it. memberlist's own list
// is written while others read it, so it is not read.
type neighbour struct {
	card    *wire.Card // nil when it cannot be read
	address string     // of its gossip
}

func (g *gossip) start() error {
	if err := g.write(true); err != nil {
		return err
	}
	conf := memberlist.DefaultLANConfig()
	// The instance keeps two processes with one id apart, so that gossip never
	// has to decide which of them is the right one.
	conf.Name = g.c.cfg.NodeID + "/" + g.c.instance
	conf.SecretKey = g.c.cfg.GossipKey
	conf.Delegate, conf.Events = g, g
	conf.Logger = log.New(gossipLog{g.c.log, newScarce()}, "", 0)
	conf.LogOutput = nil
	conf.ProbeTimeout = 300 * time.Millisecond
	conf.TCPTimeout = 2 * time.Second
	bind, err := net.ResolveTCPAddr("tcp", g.c.cfg.GossipAddr)
	if err != nil {
		return err
	}
	conf.BindPort, conf.AdvertisePort = bind.Port, bind.Port
	if conf.BindAddr = "0.0.0.0"; bind.IP != nil {
		conf.BindAddr = bind.IP.String()
	}
	if g.c.cfg.GossipAdvertise != "" {
		adv, err := net.ResolveTCPAddr("tcp", g.c.cfg.GossipAdvertise)
		if err != nil {
			return err
		}
		conf.AdvertiseAddr, conf.AdvertisePort = adv.IP.String(), adv.Port
	}
	list, err := memberlist.Create(conf)
	if err != nil {
		return err
	}
	g.list.Store(list)
	return nil
}

// write makes the card that says of this node whether it is apart.
func (g *gossip) write(apart bool) error {
	card, err := proto.Marshal(&wire.Card{Id: g.c.cfg.NodeID, Instance: g.c.instance, Address: g.c.Address(), Meta: g.c.cfg.Meta, Apart: apart})
	if err != nil {
		return err
	}
	if len(card) > memberlist.MetaMaxSize {
		return fmt.Errorf("id, address and meta take %d bytes, gossip carries %d", len(card), memberlist.MetaMaxSize)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.card = card
	return nil
}

// tell has the others know when this node loses contact with the quorum, and
// when it has it again.
func (g *gossip) tell() {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for said := true; ; {
		select {
		case <-g.c.done:
			return
		case <-tick.C:
		}
		apart := !g.c.Connected()
		if apart == said {
			continue
		}
		if err := g.write(apart); err != nil {
			g.c.log.Warn("the others are not told whether this node is connected", "error", err)
			continue
		}
		said = apart
		// What it waits for is that somebody was told: gossip repeats it anyway.
		if err := g.list.Load().UpdateNode(tellEvery); err != nil {
			g.c.log.Debug("gossip has told no one yet", "apart", apart, "error", err)
		}
	}
}

// keep looks for others at the addresses configured until as many as expected
// are known, and now and then afterwards.
func (g *gossip) keep() {
	for {
		list := g.list.Load()
		if seek := g.seek(); len(seek) > 0 {
			if _, err := list.Join(seek); err != nil {
				g.c.log.Debug("gossip found no one", "at", seek, "error", err)
			}
		}
		pause := reseekEvery
		if len(g.others()) < max(g.c.cfg.BootstrapExpect-1, len(g.c.configuration())-1, 1) {
			pause = seekEvery
		}
		select {
		case <-g.c.done:
			return
		case <-time.After(pause):
		}
	}
}

// seek lists the configured addresses that no living node has.
func (g *gossip) seek() []string {
	known := map[string]bool{}
	g.mu.Lock()
	for _, n := range g.alive {
		known[n.address] = true
	}
	g.mu.Unlock()
	var seek []string
	for _, a := range g.c.cfg.Join {
		if resolved, err := net.ResolveTCPAddr("tcp", a); err != nil || !known[resolved.String()] {
			seek = append(seek, a)
		}
	}
	return seek
}

func (g *gossip) leave() {
	if list := g.list.Load(); list != nil {
		_ = list.Leave(leaveTimeout)
	}
}

// others are the cards of all living nodes but this one, ordered by id.
func (g *gossip) others() []*wire.Card {
	if g.c.link != nil {
		return g.c.link.Cards()
	}
	var cards []*wire.Card
	g.mu.Lock()
	for _, n := range g.alive {
		if n.card != nil && n.card.Id != "" && n.card.Instance != g.c.instance {
			cards = append(cards, n.card)
		}
	}
	g.mu.Unlock()
	slices.SortStableFunc(cards, func(a, b *wire.Card) int {
		if a.Id < b.Id {
			return -1
		} else if a.Id > b.Id {
			return 1
		}
		return 0
	})
	return cards
}

// addresses lists where a node may be found, the configured one first.
func (g *gossip) addresses(id, configured string) []string {
	var at []string
	if configured != "" {
		at = append(at, configured)
	}
	for _, card := range g.others() {
		if card.Id == id && card.Address != "" && !slices.Contains(at, card.Address) {
			at = append(at, card.Address)
		}
	}
	return at
}

// about is what a node says about itself in gossip, nil when it is not there.
func (g *gossip) about(id string) (meta map[string]string, apart bool) {
	if id == g.c.cfg.NodeID {
		return maps.Clone(g.c.cfg.Meta), !g.c.Connected()
	}
	for _, card := range g.others() {
		if card.Id == id {
			if card.Meta == nil {
				return map[string]string{}, card.Apart
			}
			return card.Meta, card.Apart
		}
	}
	return nil, false
}

// memberlist.EventDelegate: memberlist calls these under its own lock, one at a
// time, so the node may be read here and only here.

// NotifyJoin notes a node that lives.
func (g *gossip) NotifyJoin(m *memberlist.Node) {
	n := neighbour{address: m.Address()}
	if card := new(wire.Card); proto.Unmarshal(m.Meta, card) == nil {
		n.card = card
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.alive == nil {
		g.alive = map[string]neighbour{}
	}
	g.alive[m.Name] = n
}

// NotifyUpdate notes what a node says anew.
func (g *gossip) NotifyUpdate(m *memberlist.Node) { g.NotifyJoin(m) }

// NotifyLeave forgets a node.
func (g *gossip) NotifyLeave(m *memberlist.Node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.alive, m.Name)
}

// memberlist.Delegate: only the card is of use here.

// NodeMeta gives this node's card.
func (g *gossip) NodeMeta(int) []byte { g.mu.Lock(); defer g.mu.Unlock(); return g.card }

func (g *gossip) NotifyMsg([]byte)                  {}
func (g *gossip) GetBroadcasts(_, _ int) [][]byte   { return nil }
func (g *gossip) LocalState(bool) []byte            { return nil }
func (g *gossip) MergeRemoteState(_ []byte, _ bool) {}
