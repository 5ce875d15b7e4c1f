package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/fault"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// knock dials a node's peer port with a certificate, as anyone could.
func knock(t *testing.T, n *node, cert *tls.Certificate, proto string, version uint16) (*tls.Conn, error) {
	t.Helper()
	conf := &tls.Config{InsecureSkipVerify: true, MaxVersion: version, NextProtos: []string{proto}}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	conn, err := (&tls.Dialer{Config: conf, NetDialer: &net.Dialer{Timeout: 2 * time.Second}}).DialContext(t.Context(), "tcp", n.Address())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*tls.Conn), nil
}

// closed waits for the other side to close and returns how it did.
func closed(conn net.Conn, limit time.Duration) error {
	_ = conn.SetReadDeadline(time.Now().Add(limit))
	_, err := io.Copy(io.Discard, conn)
	if err == nil {
		return io.EOF
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		return nil
	}
	return err
}

// Bad input 18: only node certificates of the trust domain get past the
// handshake, over TLS 1.3 only.
func TestStrangersAtThePeerPort(t *testing.T) {
	l := newLab(t)
	var shown atomic.Value
	cfg := l.config("n1", 1)
	cfg.OnRefused = func(_ net.Addr, cert *x509.Certificate, _ error) {
		if cert != nil {
			shown.Store(cert.URIs[0].String())
		}
	}
	n := l.start(cfg)
	l.ready(n)
	foreign := newCA(t)
	for name, c := range map[string]struct {
		cert    *tls.Certificate
		proto   string
		version uint16
	}{
		"an operator's certificate":     {l.ca.issue(t, "/muster/role/operator/root"), protoPeer, 0},
		"an operator's, for Raft":       {l.ca.issue(t, "/muster/role/operator/root"), protoRaft, 0},
		"a node below a node":           {l.ca.issue(t, "/muster/node/n2/x"), protoPeer, 0},
		"a node without an id":          {l.ca.issue(t, "/muster/node/"), protoPeer, 0},
		"a node of another CA":          {foreign.issue(t, "/muster/node/n2"), protoPeer, 0},
		"no certificate":                {nil, protoPeer, 0},
		"TLS 1.2":                       {l.ca.issue(t, "/muster/node/n2"), protoPeer, tls.VersionTLS12},
		"a protocol nobody speaks here": {l.ca.issue(t, "/muster/node/n2"), "http/1.1", 0},
	} {
		before := testutil.ToFloat64(n.metrics.rejected)
		conn, err := knock(t, n, c.cert, c.proto, c.version)
		if err == nil {
			err = closed(conn, 3*time.Second) // in TLS 1.3 the client hears of it at its first read
		}
		if err == nil {
			t.Errorf("%s: the connection is open", name)
		}
		l.eventually(name+" is counted", func() error {
			if testutil.ToFloat64(n.metrics.rejected) <= before {
				return fmt.Errorf("still %v", before)
			}
			return nil
		})
	}
	if s, _ := shown.Load().(string); !strings.HasPrefix(s, "spiffe://muster.test/muster/") {
		t.Errorf("a refusal told of %q", s)
	}
}

// Bad input 20: what a node with a good certificate may send wrongly closes
// its connection, costs little memory, and harms no one else.
func TestHostileFrames(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	n := nodes[0]
	cert := l.ca.issue(t, "/muster/node/n7")
	hello := string([]byte{0, 0})
	// An AppendEntries whose only field is a string said to be 4 GiB long.
	huge := "\x00\x81\xa4Addr\xc6\xff\xff\xff\xff"
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	frames := map[string]struct{ proto, send string }{
		"Raft: silence instead of a hello":        {protoRaft, ""},
		"Raft: half a hello":                      {protoRaft, "\x00"},
		"Raft: a hello of 64 KiB":                 {protoRaft, "\xff\xff"},
		"Raft: another cluster's hello":           {protoRaft, "\x00\x05other"},
		"Raft: a hello and silence":               {protoRaft, hello},
		"Raft: garbage":                           {protoRaft, hello + "\xfe\xed\xfa\xce"},
		"Raft: garbage in a message":              {protoRaft, hello + "\x01" + strings.Repeat("\xc1", 100)},
		"Raft: half a message":                    {protoRaft, hello + "\x00\x8a\xa4Addr\xc4"},
		"Raft: a length of 4 GiB":                 {protoRaft, hello + huge},
		"Raft: a length of 4 GiB, 1 MiB of it":    {protoRaft, hello + huge + strings.Repeat("x", 1<<20)},
		"Raft: a list of 4 billion entries":       {protoRaft, hello + "\x00\x81\xa7Entries\xdd\xff\xff\xff\xff"},
		"Raft: a snapshot of 2^62 bytes, stalled": {protoRaft, hello + "\x02\x82\xafProtocolVersion\x03\xa4Size\xd3\x3f\xff\xff\xff\xff\xff\xff\xff"},
		"peer: silence":                           {protoPeer, ""},
		"peer: garbage":                           {protoPeer, strings.Repeat("garbage!", 100)},
		"peer: half a preface":                    {protoPeer, "PRI * HTTP/2.0\r\n"},
		"peer: a preface and a frame of 16 MiB":   {protoPeer, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01"},
	}
	var all sync.WaitGroup
	for name, c := range frames {
		conn, err := knock(t, n, cert, c.proto, 0)
		must(t, err)
		all.Go(func() {
			_, _ = io.WriteString(conn, c.send)
			if closed(conn, 2*frameTimeout+2*time.Second) == nil {
				t.Errorf("%s: the connection is still open", name)
			}
		})
	}
	all.Wait()
	runtime.ReadMemStats(&after)
	if total := int64(after.TotalAlloc - before.TotalAlloc); total > 256<<20 {
		t.Errorf("%d MiB were allocated for it", total>>20)
	}
	for _, n := range nodes {
		_, err := n.Call(within(t, 30*time.Second), "put", []byte("unharmed"))
		must(t, err)
	}
}

// A message that arrives drop by drop is cut off when its time is up, however
// steadily it drips; a snapshot may take its time while it moves.
func TestDrip(t *testing.T) {
	for name, c := range map[string]struct {
		kind byte
		cut  bool
	}{"a message": {0, true}, "a snapshot": {kindSnapshot, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far := net.Pipe()
			defer near.Close()
			go func() {
				for {
					if _, err := near.Write([]byte{c.kind}); err != nil {
						return
					}
					time.Sleep(frameTimeout / 20)
				}
			}()
			began := time.Now()
			g := &guard{Conn: far}
			for time.Since(began) < 3*frameTimeout/2 {
				if _, err := g.Read(make([]byte, 16)); err != nil {
					if !c.cut {
						t.Errorf("cut off after %s: %v", time.Since(began), err)
					}
					return
				}
			}
			if c.cut {
				t.Error("still open")
			}
		})
	}
}

// kindSnapshot is a number inside of raft; this asks raft for it.
func TestSnapshotKind(t *testing.T) {
	near, far := net.Pipe()
	trans := raft.NewNetworkTransport(pipeLayer{newQueue(&net.TCPAddr{}), near}, 1, time.Second, io.Discard)
	defer trans.Close()
	go func() {
		_ = trans.InstallSnapshot("n1", "there", &raft.InstallSnapshotRequest{}, &raft.InstallSnapshotResponse{}, strings.NewReader(""))
	}()
	kind := make([]byte, 1)
	_, err := io.ReadFull(far, kind)
	must(t, err)
	if kind[0] != kindSnapshot {
		t.Errorf("raft sends snapshots as kind %d, the guard watches for %d", kind[0], kindSnapshot)
	}
}

type pipeLayer struct {
	*queue
	conn net.Conn
}

func (p pipeLayer) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) { return p.conn, nil }

// Bad input 23: one hop, never two.
func TestForwardingLoop(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	leader := l.leader(nodes...)
	var followers []*node
	for _, n := range nodes {
		if n != leader {
			followers = append(followers, n)
		}
	}
	a, b := followers[0], followers[1]
	direct := func(method string, hop uint32) error {
		_, err := a.peers.call(within(t, 20*time.Second), b.ID(), b.Address(), method, []byte("x"), hop)
		return err
	}
	began := time.Now()
	wantFault(t, direct("relay", 1), fault.LoopDetected, fault.Definite, began, time.Second)
	if fault.LoopDetected.Status() != 508 {
		t.Error("the answer is not 508")
	}
	wantFault(t, direct("relay", 2), fault.LoopDetected, fault.Definite, began, time.Second)
	wantFault(t, direct("put", 1), fault.NoLeader, fault.Definite, began, time.Second)
	must(t, direct("relay", 0)) // asked as itself, b may forward once
}

// A node dialled by address must be the one that was meant.
func TestDialChecksIdentity(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	config, err := nodes[0].cfg.clientTLS("n3", protoPeer)
	must(t, err)
	if conn, err := nodes[0].dialOne(ctx, nodes[1].Address(), config); err == nil {
		conn.Close()
		t.Error("n2 was taken for n3")
	}
}

// New certificates count from the next connection on.
func TestCredentialsReload(t *testing.T) {
	l := newLab(t)
	var current atomic.Pointer[ca]
	current.Store(l.ca)
	var cert atomic.Pointer[tls.Certificate]
	cert.Store(l.ca.issue(t, "/muster/node/n1"))
	cfg := l.config("n1", 1)
	cfg.Credentials = func() (*tls.Certificate, *x509.CertPool) { return cert.Load(), current.Load().pool }
	n := l.start(cfg)
	stale := l.ca.issue(t, "/muster/node/n2")
	if _, err := knock(t, n, stale, protoPeer, 0); err != nil {
		t.Fatal(err)
	}
	next := newCA(t)
	cert.Store(next.issue(t, "/muster/node/n1"))
	current.Store(next)
	conn, err := knock(t, n, stale, protoPeer, 0)
	if err == nil {
		err = closed(conn, 30*time.Second)
	}
	if err == nil {
		t.Error("a certificate of the CA that was replaced is still good")
	}
	conn, err = knock(t, n, next.issue(t, "/muster/node/n2"), protoPeer, 0)
	must(t, err)
	if err := closed(conn, 200*time.Millisecond); err != nil {
		t.Errorf("a certificate of the new CA is refused: %v", err)
	}
}

func TestMetricNames(t *testing.T) {
	l := newLab(t)
	reg := prometheus.NewRegistry()
	cfg := l.config("n1", 1)
	cfg.Registerer = reg
	n := l.start(cfg)
	l.ready(n)
	_, err := n.Call(within(t, 30*time.Second), "put", []byte("x"))
	must(t, err)
	problems, err := testutil.GatherAndLint(reg)
	must(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
