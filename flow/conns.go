package flow

import (
	"container/list"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// conns bounds the connections of one port, and those of one address to it. Who would be one too many gets the place of a connection that does
// nothing: first of the oldest that has not sent a whole request yet, then of
// the one that has been idle for longest. So connections that are opened and
// kept silent, however many, shut nobody out. A connection with a request under
// way never gives way.
type conns struct {
	most, each int
	metrics    *metrics

	mu     sync.Mutex // guards what follows
	total  lot
	places map[netip.Addr]*lot
}

// lot are the connections of one address, or all of them.
type lot struct {
	n     int
	still [2]list.List // those without a request under way, oldest first: silent, idle
}

// connection is one that is counted.
type connection struct {
	net.Conn
	conns *conns
	from  netip.Addr
	state int              // index of lot.still, or busy
	at    [2]*list.Element // in the lot of its address, and in that of all
	gone  bool
}

const (
	silent = iota // has not sent a whole request yet
	idle          // waits for its next one
	busy
)

func newConns(most, each int, m *metrics) *conns {
	return &conns{most: most, each: min(each, most), metrics: m, places: map[netip.Addr]*lot{}}
}

// Listen counts the connections that l accepts, apart from those of other
// listeners, and takes at most so many of them, where that is less than
// Limits.Connections. The server needs to be told of ConnState as well.
func (f *Flow) Listen(l net.Listener, most int) net.Listener {
	s := newConns(min(most, f.limits.Connections), f.limits.ConnectionsPerAddress, f.metrics)
	f.mu.Lock()
	f.conns = append(f.conns, s)
	f.mu.Unlock()
	return &listener{l, s}
}

// connections counts those that are open on all ports.
func (f *Flow) connections() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.conns {
		s.mu.Lock()
		n += s.total.n
		s.mu.Unlock()
	}
	return n
}

type listener struct {
	net.Listener
	conns *conns
}

// Accept gives the next connection there is room for.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := netip.Addr{}
		if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			from = network(a.AddrPort().Addr())
		}
		if counted := l.conns.admit(c, from); counted != nil {
			return counted, nil
		}
		_ = c.Close()
		l.conns.metrics.connections.WithLabelValues("refused").Inc()
	}
}

// admit counts a connection; nil when there is no room for it.
func (s *conns) admit(c net.Conn, from netip.Addr) *connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.places[from]
	if own != nil && own.n >= s.each && !s.displace(own, 0) {
		return nil
	}
	if s.total.n >= s.most && !s.displace(&s.total, 1) {
		return nil
	}
	if own = s.places[from]; own == nil { // it may have been the last of its address that gave way
		own = &lot{}
		s.places[from] = own
	}
	n := &connection{Conn: c, conns: s, from: from, state: busy}
	own.n++
	s.total.n++
	s.move(n, silent)
	return n
}

// displace closes one connection of a lot that does nothing. Which names the
// lot's kind: 0 of an address, 1 of all.
func (s *conns) displace(of *lot, which int) bool {
	for state := range of.still {
		e := of.still[state].Front()
		if e == nil {
			continue
		}
		victim := e.Value.(*connection)
		s.drop(victim)
		s.metrics.connections.WithLabelValues([]string{"silent", "idle"}[state]).Inc()
		_ = victim.Conn.Close()
		return true
	}
	return false
}

// move puts a connection under a state, as the youngest there.
func (s *conns) move(n *connection, state int) {
	lots := [2]*lot{s.places[n.from], &s.total}
	for i, l := range lots {
		if n.state != busy {
			l.still[n.state].Remove(n.at[i])
		}
		if state != busy {
			n.at[i] = l.still[state].PushBack(n)
		}
	}
	n.state = state
}

// drop no longer counts a connection.
func (s *conns) drop(n *connection) {
	if n.gone {
		return
	}
	s.move(n, busy)
	n.gone = true
	s.total.n--
	own := s.places[n.from]
	if own.n--; own.n == 0 {
		delete(s.places, n.from)
	}
}

// Close implements net.Conn.
func (n *connection) Close() error {
	n.conns.mu.Lock()
	n.conns.drop(n)
	n.conns.mu.Unlock()
	return n.Conn.Close()
}

// CloseWrite is what a server does before it closes a connection in haste.
func (n *connection) CloseWrite() error {
	if c, ok := n.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// ConnState is for http.Server: it tells which connections do nothing.
func ConnState(c net.Conn, state http.ConnState) {
	n, ok := c.(*connection)
	for ; !ok; n, ok = c.(*connection) { // below TLS, and whatever looked at it first
		below, is := c.(interface{ NetConn() net.Conn })
		if !is {
			return
		}
		c = below.NetConn()
	}
	n.conns.mu.Lock()
	defer n.conns.mu.Unlock()
	switch {
	case n.gone:
	case state == http.StateActive, state == http.StateHijacked:
		n.conns.move(n, busy)
	case state == http.StateIdle:
		n.conns.move(n, idle)
	}
}
