package sim

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/muster-registry/muster/cluster"
	"github.com/muster-registry/muster/cluster/wire"
)

const (
	messageTimeout = 3 * time.Second         // one Raft message and its answer, as on the peer port
	silentAfter    = 1200 * time.Millisecond // a peer that owes an answer for so long is gone, as on the peer port
)

var errLost = errors.New("nothing came back")

// Weather is what a way from one node to another does to messages.
type Weather struct {
	Cut       bool          // nothing arrives
	Drop      float64       // the chance that a message does not
	Duplicate float64       // the chance that one of Raft's arrives a second time, later
	Delay     time.Duration // at most, on top of the network's own
}

// Net is the network of one simulated cluster.
type Net struct {
	mu    sync.Mutex // guards what follows
	rnd   *rand.Rand
	links map[string]*link // by id, of the nodes that are up
	ways  map[[2]string]Weather

	messages, lost, doubled atomic.Int64
}

func newNet(seed uint64) *Net {
	return &Net{rnd: rand.New(rand.NewPCG(seed, 1)), links: map[string]*link{}, ways: map[[2]string]Weather{}}
}

// Set gives the way between two nodes its weather.
func (n *Net) Set(from, to string, w Weather) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ways[[2]string{from, to}] = w
}

// Clear gives all ways fair weather again.
func (n *Net) Clear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.ways)
}

// travel takes the time that a message needs from one node to another, and
// tells whether it arrives and arrives twice.
func (n *Net) travel(from, to string) (arrives, twice bool) {
	n.messages.Add(1)
	n.mu.Lock()
	w := n.ways[[2]string{from, to}]
	delay := 100*time.Microsecond + time.Duration(n.rnd.Int64N(int64(2*time.Millisecond)))
	if w.Delay > 0 {
		delay += time.Duration(n.rnd.Int64N(int64(w.Delay)))
	}
	arrives = !w.Cut && n.rnd.Float64() >= w.Drop
	twice = arrives && n.rnd.Float64() < w.Duplicate
	n.mu.Unlock()
	time.Sleep(delay)
	n.mu.Lock()
	if n.ways[[2]string{from, to}].Cut {
		arrives = false // it was on its way when the way was cut
	}
	n.mu.Unlock()
	if !arrives {
		n.lost.Add(1)
	}
	if twice {
		n.doubled.Add(1)
	}
	return arrives, twice
}

// at finds the node that is up under an id, or at an address where that is not empty.
func (n *Net) at(id, address string) *link {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[id]
	if l == nil || address != "" && l.station.Card.Address != address {
		return nil
	}
	return l
}

// Attach implements cluster.Network.
func (n *Net) Attach(s cluster.Station) cluster.Link {
	l := &link{net: n, id: s.Card.Id, station: s, gone: make(chan struct{})}
	l.wires.init(l)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[l.id] = l
	return l
}

// Detach takes a node off the network at once: its process has ended.
func (n *Net) Detach(id string) {
	if l := n.at(id, ""); l != nil {
		_ = l.Close()
	}
}

// Dial is cluster.Config.Dial of a node: it tells who listens from who does not.
func (n *Net) Dial(from string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		id, _, _ := net.SplitHostPort(address)
		if arrives, _ := n.travel(from, id); !arrives {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if n.at(id, address) == nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}
		near, far := net.Pipe()
		_ = far.Close()
		return near, nil
	}
}

// link is one node's place on the network.
type link struct {
	wires
	net     *Net
	id      string
	station cluster.Station
	once    sync.Once
	gone    chan struct{} // closed with the link
}

// Close implements cluster.Link.
func (l *link) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		if l.net.links[l.id] == l {
			delete(l.net.links, l.id)
		}
		l.net.mu.Unlock()
		close(l.gone)
	})
	return nil
}

func (l *link) closed() bool {
	select {
	case <-l.gone:
		return true
	default:
		return false
	}
}

// Over implements cluster.Link.
func (l *link) Over(id string) <-chan struct{} {
	if other := l.net.at(id, ""); other != nil {
		return other.gone
	}
	over := make(chan struct{})
	close(over)
	return over
}

// Cards implements cluster.Link. Gossip does not pass where messages do not.
func (l *link) Cards() []*wire.Card {
	n := l.net
	n.mu.Lock()
	defer n.mu.Unlock()
	var cards []*wire.Card
	for other := range maps.Values(n.links) {
		if other.id != l.id && !n.ways[[2]string{l.id, other.id}].Cut && !n.ways[[2]string{other.id, l.id}].Cut {
			cards = append(cards, other.station.Card)
		}
	}
	slices.SortFunc(cards, func(a, b *wire.Card) int { return cmp.Compare(a.Id, b.Id) })
	return cards
}

// Call implements cluster.Link.
func (l *link) Call(ctx context.Context, id, address string, call *wire.Call) (reply *wire.Reply, sent bool, err error) {
	if l.closed() {
		return nil, false, net.ErrClosed
	}
	to := l.net.at(id, address)
	if to == nil {
		return nil, false, syscall.ECONNREFUSED
	}
	answer := make(chan *wire.Reply, 1)
	life, end := context.WithCancel(context.Background())
	defer end()
	go func() {
		if arrives, _ := l.net.travel(l.id, id); !arrives || to.closed() {
			return
		}
		r := to.station.Answer(life, l.id, l.station.ClusterID(), call)
		if to.closed() {
			return
		}
		if arrives, _ := l.net.travel(id, l.id); arrives && !l.closed() {
			answer <- r
		}
	}()
	silence := time.NewTimer(silentAfter)
	defer silence.Stop()
	select {
	case r := <-answer:
		return r, true, nil
	case <-silence.C:
		return nil, true, errLost
	case <-ctx.Done():
		return nil, true, ctx.Err()
	case <-to.gone:
	case <-l.gone:
	}
	return nil, true, net.ErrClosed
}
