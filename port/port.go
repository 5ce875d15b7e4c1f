// Package port owns the one listener that the control port has for two
// servers: it does the TLS handshake, and hands each connection to the server
// that is quicker for it. It refuses to look at a call's content beyond the
// headers of the first.
//
// A client that offers h2 and nothing else may be a gRPC client, which is
// served by gRPC's own transport at half the cost, or any other that insists on
// HTTP/2. Which it is stands in its first request. gRPC clients wait for the
// server's settings before they send one, so these are sent at once; the
// acknowledgement of them is kept from a server that has not sent them.
package port

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// How long a client may take for the handshake, and for its first request.
const (
	handshakeTime = 10 * time.Second
	headTime      = 10 * time.Second
	maxHead       = 128 << 10
)

// GRPC is the server of connections that speak gRPC only.
type GRPC interface {
	Serve(net.Listener) error
	Shutdown(context.Context)
}

// Port is one listener with two servers behind it.
type Port struct {
	tls  *tls.Config
	web  *http.Server // HTTP/1.1, and HTTP/2 of clients that offer both
	only *http.Server // HTTP/2 of clients that offer nothing else
	grpc GRPC

	webConns, onlyConns, grpcConns *queue

	mu     sync.Mutex // guards conns
	conns  map[net.Conn]struct{}
	closed bool
}

// New makes a port. web gives handler and limits; it serves nothing else.
func New(cfg *tls.Config, web *http.Server, grpc GRPC) *Port {
	p := &Port{web: web, grpc: grpc, webConns: newQueue(), onlyConns: newQueue(), grpcConns: newQueue(), conns: map[net.Conn]struct{}{}}
	web.Protocols = new(http.Protocols)
	web.Protocols.SetHTTP1(true)
	web.Protocols.SetHTTP2(true)
	// To this server the connections look as if they had no TLS: it must not
	// look for a protocol that was agreed on. Its requests say how it was.
	p.only = &http.Server{ReadHeaderTimeout: web.ReadHeaderTimeout, IdleTimeout: web.IdleTimeout, MaxHeaderBytes: web.MaxHeaderBytes,
		ErrorLog: web.ErrorLog, Protocols: new(http.Protocols), HTTP2: web.HTTP2, ConnState: web.ConnState,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, stateKey{}, c.(*bare).state)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.TLS, _ = r.Context().Value(stateKey{}).(*tls.ConnectionState)
			web.Handler.ServeHTTP(w, r)
		}),
	}
	p.only.Protocols.SetUnencryptedHTTP2(true)
	p.tls = cfg.Clone()
	p.tls.NextProtos = []string{"h2", "http/1.1"}
	next := cfg.GetConfigForClient
	p.tls.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if c, ok := hello.Conn.(*conn); ok {
			c.only = slices.Contains(hello.SupportedProtos, "h2") && !slices.Contains(hello.SupportedProtos, "http/1.1")
		}
		if next == nil {
			return nil, nil
		}
		other, err := next(hello)
		if other != nil && len(other.NextProtos) == 0 {
			other = other.Clone()
			other.NextProtos = p.tls.NextProtos
		}
		return other, err
	}
	return p
}

type stateKey struct{}

// bare is a connection that does not show its TLS.
type bare struct {
	net.Conn
	state *tls.ConnectionState
	from  io.Reader
}

// NetConn gives the connection below.
func (b *bare) NetConn() net.Conn { return b.Conn }

// Read implements net.Conn.
func (b *bare) Read(to []byte) (int, error) { return b.from.Read(to) }

// conn is a connection before its handshake.
type conn struct {
	net.Conn
	only bool // the client offers h2 and nothing else
}

// NetConn gives the connection below.
func (c *conn) NetConn() net.Conn { return c.Conn }

// Serve serves the listener until Shutdown.
func (p *Port) Serve(l net.Listener) error {
	p.webConns.addr, p.onlyConns.addr, p.grpcConns.addr = l.Addr(), l.Addr(), l.Addr()
	failed := make(chan error, 4)
	go func() { failed <- p.web.Serve(p.webConns) }()
	go func() { failed <- p.only.Serve(p.onlyConns) }()
	go func() { failed <- p.grpc.Serve(p.grpcConns) }()
	go func() { failed <- p.accept(l) }()
	err := <-failed
	_ = l.Close()
	p.refuse()
	if p.stopped() {
		return http.ErrServerClosed
	}
	return err
}

func (p *Port) accept(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				continue
			}
			if isTemporary(err) { // such as no more file descriptors
				time.Sleep(5 * time.Millisecond)
				continue
			}
			return err
		}
		if !p.hold(c) {
			return http.ErrServerClosed
		}
		go func() {
			defer p.letGo(c)
			if !p.greet(&conn{Conn: c}) {
				_ = c.Close()
			}
		}()
	}
}

func isTemporary(err error) bool {
	t, ok := err.(interface{ Temporary() bool }) //nolint:errorlint // as net/http does
	return ok && t.Temporary()
}

// hold keeps a connection that has no server yet, so that it can be closed.
func (p *Port) hold(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Port) letGo(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *Port) stopped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// isHTTP reports whether a client that should have begun a handshake began a
// request.
func isHTTP(begin [5]byte) bool {
	switch string(begin[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "PATCH":
		return true
	}
	return false
}

// greet does the handshake and finds the connection its server; false when it
// is to be closed.
func (p *Port) greet(c *conn) bool {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	t := tls.Server(c, p.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		// Whoever forgot the s in https learns of it, as from net/http.
		if not, ok := errors.AsType[tls.RecordHeaderError](err); ok && not.Conn != nil && isHTTP(not.RecordHeader) {
			_ = c.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(c, "HTTP/1.0 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
		}
		return false
	}
	if !c.only || t.ConnectionState().NegotiatedProtocol != "h2" {
		return p.webConns.put(t)
	}
	head, kind := look(t)
	switch kind {
	case grpcKind, idleKind:
		p.tell(t, kind == grpcKind)
		return p.grpcConns.put(&Conn{Conn: t, from: io.MultiReader(bytes.NewReader(head), t)})
	case webKind:
		state := t.ConnectionState()
		return p.onlyConns.put(&bare{t, &state, &filter{from: io.MultiReader(bytes.NewReader(head), t), left: len(http2.ClientPreface)}})
	}
	return false
}

// tell has whoever counts connections know that gRPC's server, which says
// nothing of the kind, has taken one: it is at work, or has not been used yet.
func (p *Port) tell(t *tls.Conn, asked bool) {
	if p.web.ConnState == nil {
		return
	}
	state := http.StateIdle
	if asked {
		state = http.StateActive
	}
	p.web.ConnState(t, state)
}

// Shutdown ends the service: calls under way may end until the context does.
func (p *Port) Shutdown(ctx context.Context) error {
	var all sync.WaitGroup
	var errs [2]error
	all.Go(func() { errs[0] = p.web.Shutdown(ctx) })
	all.Go(func() { errs[1] = p.only.Shutdown(ctx) })
	all.Go(func() { p.grpc.Shutdown(ctx) })
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.refuse()
	all.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	return p.Close()
}

// refuse takes no more connections.
func (p *Port) refuse() {
	p.webConns.close()
	p.onlyConns.close()
	p.grpcConns.close()
}

// Close ends all connections at once.
func (p *Port) Close() error {
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	return errors.Join(p.web.Close(), p.only.Close())
}

type kind int

const (
	noKind kind = iota
	webKind
	grpcKind
	idleKind // gRPC's as well, not used yet
)

// look reads up to the headers of the first request, and gives what was read.
// A client that asks nothing is taken for one of gRPC's, which connect before
// they are used.
func look(t *tls.Conn) (head []byte, _ kind) {
	_ = t.SetDeadline(time.Now().Add(headTime))
	defer func() { _ = t.SetDeadline(time.Time{}) }()
	var read bytes.Buffer
	from := io.TeeReader(io.LimitReader(t, maxHead), &read)
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(from, preface); err != nil || string(preface) != http2.ClientPreface {
		return nil, noKind
	}
	frames := http2.NewFramer(t, from)
	frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	frames.MaxHeaderListSize = maxHead
	if err := frames.WriteSettings(); err != nil {
		return nil, noKind
	}
	greeted := false
	for {
		f, err := frames.ReadFrame()
		if err != nil {
			if greeted && errors.Is(err, os.ErrDeadlineExceeded) {
				return read.Bytes(), idleKind
			}
			return nil, noKind
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			greeted = true
		case *http2.MetaHeadersFrame:
			return read.Bytes(), kindOf(f)
		}
	}
}

// kindOf tells gRPC clients from all others. What a proxy hands on may share
// its connection with calls of any kind, which only net/http can serve.
func kindOf(f *http2.MetaHeadersFrame) kind {
	found := webKind
	for _, h := range f.RegularFields() {
		switch h.Name {
		case "content-type":
			if strings.HasPrefix(h.Value, "application/grpc") {
				found = grpcKind
			}
		case "x-forwarded-proto", "x-forwarded-for", "forwarded", "via":
			return webKind
		}
	}
	return found
}

// Conn is a connection after its handshake, of which the beginning has been
// read and is read again.
type Conn struct {
	*tls.Conn
	from io.Reader
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) { return c.from.Read(b) }

// filter leaves out the first acknowledgement of settings in what an HTTP/2
// client sends. It is for one goroutine.
type filter struct {
	from io.Reader
	left int // bytes that pass unseen: the preface, then what belongs to a frame
	over bool

	header [9]byte
	have   int // bytes of header read
	given  int // bytes of header handed on
}

// Read implements io.Reader.
func (f *filter) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		if f.given < f.have && f.have == len(f.header) {
			n := copy(b, f.header[f.given:])
			if f.given += n; f.given == len(f.header) {
				f.have, f.given = 0, 0
			}
			return n, nil
		}
		if f.over {
			return f.from.Read(b)
		}
		if f.left > 0 {
			n, err := f.from.Read(b[:min(len(b), f.left)])
			f.left -= n
			return n, err
		}
		n, err := f.from.Read(f.header[f.have:])
		if f.have += n; f.have < len(f.header) {
			if err != nil {
				return 0, err
			}
			continue
		}
		f.left = int(f.header[0])<<16 | int(f.header[1])<<8 | int(f.header[2])
		if http2.FrameType(f.header[3]) == http2.FrameSettings && http2.Flags(f.header[4]).Has(http2.FlagSettingsAck) && f.left == 0 {
			f.have, f.over = 0, true
		}
	}
}

// queue is a listener of connections that were accepted elsewhere.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue() *queue { return &queue{conns: make(chan net.Conn), done: make(chan struct{})} }

func (q *queue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
		return false
	}
}

func (q *queue) close() { q.once.Do(func() { close(q.done) }) }

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *queue) Close() error { q.close(); return nil }

// Addr implements net.Listener.
func (q *queue) Addr() net.Addr { return q.addr }
