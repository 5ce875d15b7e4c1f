package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	handshakeTimeout = 5 * time.Second
	// maxHandshakes bounds what strangers can make this node hold at once.
	maxHandshakes = 512
	dialTimeout   = time.Second
)

// port is the peer port: it accepts, checks who is there, and hands the
// connection to the protocol that was agreed on.
type port struct {
	c    *Cluster
	ln   net.Listener
	raft *queue
	peer *queue
	busy chan struct{} // one token for each handshake going on
}

func (c *Cluster) listen(ctx context.Context) (*port, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.cfg.PeerAddr)
	if err != nil {
		return nil, err
	}
	p := &port{c: c, ln: ln, busy: make(chan struct{}, maxHandshakes)}
	p.raft, p.peer = newQueue(ln.Addr()), newQueue(ln.Addr())
	return p, nil
}

// serve accepts until the listener is closed.
func (p *port) serve() {
	config := p.c.cfg.serverTLS()
	for {
		conn, err := p.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.c.log.Warn("the peer port cannot accept", "error", err)
			time.Sleep(50 * time.Millisecond) // out of file descriptors: trying harder does not help
			continue
		}
		select {
		case p.busy <- struct{}{}:
			go func() {
				defer func() { <-p.busy }()
				p.greet(tls.Server(p.c.living.watch(conn), config))
			}()
		default:
			p.c.refuse(conn, nil, errors.New("too many handshakes at once"))
		}
	}
}

func (p *port) greet(conn *tls.Conn) {
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	if err := conn.Handshake(); err != nil {
		var shown *x509.Certificate
		if certs := conn.ConnectionState().PeerCertificates; len(certs) > 0 {
			shown = certs[0]
		}
		p.c.refuse(conn, shown, err)
		return
	}
	cs := conn.ConnectionState()
	if err := p.c.meet(conn); err != nil {
		p.c.refuse(conn, cs.PeerCertificates[0], err)
		return
	}
	switch cs.NegotiatedProtocol {
	case protoRaft:
		if err := p.c.readHello(conn); err != nil {
			p.c.refuse(conn, cs.PeerCertificates[0], err)
			return
		}
		_ = conn.SetDeadline(time.Time{})
		p.raft.put(&guard{Conn: conn})
	case protoPeer:
		_ = conn.SetDeadline(time.Time{})
		p.peer.put(conn)
	default:
		p.c.refuse(conn, cs.PeerCertificates[0], errors.New("no protocol of the peer port was agreed on"))
	}
}

// refuse closes a connection that may not stay, and says so.
func (c *Cluster) refuse(conn net.Conn, shown *x509.Certificate, why error) {
	c.metrics.rejected.Inc()
	c.refusals.warn(c.log, "refused a connection on the peer port", "remote", conn.RemoteAddr().String(), "error", why)
	c.cfg.OnRefused(conn.RemoteAddr(), shown, why)
	_ = conn.Close()
}

// dial opens a connection to the node with this id. The address that the
// cluster's configuration has comes first; where that fails, what gossip
// suggests is tried. Either way the certificate decides who is there.
func (c *Cluster) dial(ctx context.Context, id, address, proto string) (*tls.Conn, error) {
	var errs []error
	for _, a := range c.gossip.addresses(id, address) {
		config, err := c.cfg.clientTLS(id, proto)
		if err != nil {
			return nil, err
		}
		conn, err := c.dialOne(ctx, a, config)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", a, err))
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("no address of node %q is known", id)
	}
	return nil, errors.Join(errs...)
}

func (c *Cluster) dialOne(ctx context.Context, address string, config *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := c.cfg.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(c.living.watch(raw), config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	if err := c.meet(conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// A Raft connection starts with the cluster the dialler belongs to, since
// Raft's own messages do not say which cluster they are for.

// writeHello says which cluster this node belongs to and, where it is known,
// which disk the connection is for.
func (c *Cluster) writeHello(w io.Writer, disk string) error {
	id := c.machine.ClusterID()
	if disk != "" {
		id += "\x00" + disk
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(id))), id...))
	return err
}

func (c *Cluster) readHello(r io.Reader) error {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return fmt.Errorf("no hello: %w", err)
	}
	length := binary.BigEndian.Uint16(n[:])
	if length > 256 {
		return errors.New("a hello that is none")
	}
	theirs := make([]byte, length)
	if _, err := io.ReadFull(r, theirs); err != nil {
		return fmt.Errorf("half a hello: %w", err)
	}
	cluster, disk, _ := strings.Cut(string(theirs), "\x00")
	if foreign(cluster, c.machine.ClusterID()) {
		return fmt.Errorf("it belongs to cluster %q", cluster)
	}
	return c.isDisk(disk)
}

// foreign reports whether two nodes belong to different clusters. A node that
// belongs to none yet is foreign to no one.
func foreign(a, b string) bool { return a != "" && b != "" && a != b }

// queue is a net.Listener fed by the port.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue(addr net.Addr) *queue {
	return &queue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (q *queue) put(conn net.Conn) {
	select {
	case q.conns <- conn:
	case <-q.done:
		_ = conn.Close()
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return q.addr }
