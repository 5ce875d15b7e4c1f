package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
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

// Current refuses while this node hears a leader and has not proven for longer
// than a second that it knows all that was acknowledged: it was cut off, or
// stood still, and may not have heard of a revocation yet. It asks for the proof
// itself, so it refuses only where there is none. A node that hears no leader is
// cut off for longer: how old it may grow is for the caller to judge by
// Staleness. Errors: not_ready.
func (c *Cluster) Current(ctx context.Context) error {
	if c.Staleness() <= lapse {
		return nil
	}
	if _, known := c.Leader(); !known {
		return nil
	}
	err := c.ReadIndex(ctx)
	if err == nil {
		return nil
	}
	if _, known := c.Leader(); !known {
		return nil
	}
	return fault.Wrap(fault.NotReady, err, "the node was cut off or stood still, and its leader has not confirmed yet that it has caught up")
}
