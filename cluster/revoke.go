package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/muster-registry/muster/fault"
)

// lapse is how long a node answers without new proof that it knows all that was
// acknowledged, while it hears a leader who could give it.
const lapse = time.Second

var errRevoked = errors.New("the node's certificate has been revoked")

// living are the connections of the peer port, both ways, by who is at the
// other end.
type living struct {
	mu    sync.Mutex // guards conns
	conns map[*watched]*x509.Certificate
}

// watched is a connection below its TLS that is forgotten when it is closed.
type watched struct {
	net.Conn
	from *living
}

// Close implements net.Conn.
func (w *watched) Close() error {
	w.from.mu.Lock()
	delete(w.from.conns, w)
	w.from.mu.Unlock()
	return w.Conn.Close()
}

func (l *living) watch(conn net.Conn) *watched { return &watched{Conn: conn, from: l} }

// meet notes who is there. It refuses a certificate that was revoked while
// the handshake was going on.
func (c *Cluster) meet(conn *tls.Conn) error {
	w, ok := conn.NetConn().(*watched)
	if !ok {
		return errors.New("not a connection of the peer port")
	}
	cert := conn.ConnectionState().PeerCertificates[0]
	c.living.mu.Lock()
	if c.living.conns == nil {
		c.living.conns = map[*watched]*x509.Certificate{}
	}
	c.living.conns[w] = cert
	c.living.mu.Unlock()
	return c.cfg.unrevoked(cert)
}

func (cfg *Config) unrevoked(cert *x509.Certificate) error {
	if cfg.Revoked != nil && cfg.Revoked(cert) {
		return errRevoked
	}
	return nil
}

// Recheck closes the connections to nodes whose certificates are revoked by
// now. It does not wait.
func (c *Cluster) Recheck() {
	c.living.mu.Lock()
	defer c.living.mu.Unlock()
	for w, cert := range c.living.conns {
		if err := c.cfg.unrevoked(cert); err != nil {
			delete(c.living.conns, w)
			c.metrics.rejected.Inc()
			go func() {
				_ = w.Conn.Close()
				c.cfg.OnRefused(w.RemoteAddr(), cert, err)
			}()
		}
	}
}

// A node notes that it lives this often, and one that has not done so for
// longer than stoodStill has stood still: its process, or its machine.
const (
	pulseEvery = 100 * time.Millisecond
	stoodStill = 800 * time.Millisecond
)

// pulse tells a node that has stood still from one that is cut off. Both may
// know no leader; but the first believes so of a time when it could not hear.
type pulse struct {
	last atomic.Pointer[time.Time] // when the node last noted that it lives
	woke atomic.Pointer[time.Time] // when it last noticed that it had not for long
}

// beat notes that the node lives. It is called by one goroutine, and by whoever
// wants to know before that has had its turn.
func (p *pulse) beat(now time.Time) {
	last := p.last.Swap(&now)
	if last != nil && apart(now, *last) > stoodStill {
		p.woke.Store(&now)
	}
}

// apart is the time between two moments by the clock that says more: the
// monotonic one stands still while a machine is suspended.
func apart(now, then time.Time) time.Duration {
	return max(now.Sub(then), now.Round(0).Sub(then.Round(0)))
}

func (c *Cluster) keepPulse() {
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	for {
		c.pulse.beat(time.Now())
		select {
		case <-tick.C:
		case <-c.done:
			return
		}
	}
}

// unproven reports whether this node has stood still since it last proved what
// it knows.
func (c *Cluster) unproven() bool {
	if last := c.pulse.last.Load(); last != nil && apart(time.Now(), *last) > stoodStill {
		c.pulse.beat(time.Now())
	}
	woke, fresh := c.pulse.woke.Load(), c.fresh.Load()
	return woke != nil && (fresh == nil || fresh.Before(*woke))
}

// Current refuses while this node hears a leader and has not proven for longer
// than a second that it knows all that was acknowledged, and, whoever leads,
// since it stood still: it may not have heard of a revocation yet. It asks for
// the proof itself, so it refuses only where there is none. A node that has
// lived all the time and hears no leader is cut off: how old it may grow is for
// the caller to judge by Staleness. Errors: not_ready.
func (c *Cluster) Current(ctx context.Context) error {
	asleep := c.unproven()
	if !asleep && c.Staleness() <= lapse {
		return nil
	}
	if _, known := c.Leader(); !known && !asleep {
		return nil
	}
	err := c.ReadIndex(ctx)
	if err == nil {
		return nil
	}
	if _, known := c.Leader(); !known && !asleep {
		return nil
	}
	return fault.Wrap(fault.NotReady, err, "the node was cut off or stood still, and its leader has not confirmed yet that it has caught up")
}
