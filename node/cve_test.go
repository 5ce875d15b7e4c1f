package node_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/hashicorp/memberlist"

	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
	"github.com/muster-registry/muster/registry"
)

// The published mistakes of others, on three real nodes. Those of which muster
// has no part yet are tried on what comes closest, which the comments name.
func TestMistakesOfOthers(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	spy := newSpy(t, tr.nodes[1].peer)
	tr.advertise(t, 1, spy.Addr().String())
	tr.configure(t, "health: {allow: [127.0.0.0/8]}\n")
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", cartPath, `{"owner":"plaintext-marker"}`)
	before, members := e.states(t), e.members(t)
	unchanged := func(t *testing.T) {
		t.Helper()
		if after := e.states(t); after != before {
			t.Errorf("the state changed:\nbefore %s\nafter  %s", before, after)
		}
		if now := e.members(t); now != members {
			t.Errorf("the members changed:\nbefore %s\nafter  %s", members, now)
		}
	}

	// Consul let any certificate of its CA speak to servers' RPC, Raft included.
	t.Run("CVE-2021-37219", func(t *testing.T) {
		operator := e.certified(t, pki.Request{Role: "operator"})
		workload := e.certified(t, pki.Request{ID: "spiffe://muster/ns/shop/sa/web"})
		for name, s := range map[string]*shower{"operator": operator, "workload": workload} {
			for _, proto := range []string{"muster-raft", "h2"} {
				if err := e.speak(t, 0, s.pair, proto); err == nil {
					t.Errorf("the certificate of a %s speaks %s on the peer port", name, proto)
				}
			}
		}
		if err := e.speak(t, 0, tls.Certificate{}, "muster-raft"); err == nil {
			t.Error("nobody speaks on the peer port")
		}
		tr.awaitSome(t, 0, "the refusal", func(l *audit.Entry) bool {
			return l.Type == audit.Connection && strings.HasSuffix(l.Principal, "/role/operator")
		})
		// The other way round: a member's certificate is no operator's.
		member := e.certified(t, pki.Request{Node: "n9"})
		for _, n := range tr.nodes {
			member.do(t, n.control, "GET", "/v1/tokens", "").want(t, 403, fault.Forbidden)
			member.do(t, n.control, "PUT", cartPath, `{}`).want(t, 403, fault.Forbidden)
		}
		unchanged(t)
	})

	// Consul did not use TLS for outgoing connections although it was told to.
	t.Run("CVE-2018-19653", func(t *testing.T) {
		began, sent := spy.heard()
		if len(began) == 0 {
			t.Fatal("nothing went over the relay")
		}
		for _, first := range began {
			if first != 0x16 { // a TLS handshake
				t.Errorf("a connection to a peer begins with %#x", first)
			}
		}
		if bytes.Contains(sent, []byte("plaintext-marker")) {
			t.Error("a record went between nodes in the clear")
		}
	})

	// Consul matched the permissions of a JWT in the wrong order. Role rules have
	// none, and a token that is not good is not made up for by a certificate.
	t.Run("CVE-2023-3518", func(t *testing.T) {
		viewer := e.certified(t, pki.Request{Role: "viewer", Name: "order"})
		for _, n := range tr.nodes {
			for _, header := range []string{"Bearer nonsense", "Bearer ", "Basic b3A6b3A=", "bearer eyJhbGciOiJub25lIn0.e30."} {
				viewer.with(t, n.control, "GET", "/v1/services", header).want(t, 401, fault.Unauthenticated)
			}
		}
		unchanged(t)
	})

	// Vault made its Raft files readable for others.
	t.Run("CVE-2021-38553", func(t *testing.T) {
		files := 0
		for _, n := range tr.nodes {
			must(t, filepath.WalkDir(tr.file(n.id), func(path string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) {
					return nil // replaced meanwhile
				}
				if err != nil {
					return err
				}
				info, err := d.Info()
				if err != nil {
					return nil
				}
				files++
				if info.Mode().Perm()&0o077 != 0 {
					t.Errorf("%s is open to others: %v", strings.TrimPrefix(path, tr.dir), info.Mode())
				}
				return nil
			}))
		}
		if files < 9 {
			t.Errorf("only %d files were looked at", files)
		}
	})

	// OPA's Envoy plugin took a leading double slash for a host, so that the policy
	// saw another path than the service.
	t.Run("CVE-2026-26205", func(t *testing.T) {
		for i := range tr.nodes {
			for _, target := range []string{"//v1" + strings.TrimPrefix(cartPath, "/v1"), "//host" + cartPath, "/" + cartPath, cartPath + "//", "/v1//namespaces/shop/services/cart"} {
				for _, method := range []string{"GET", "PUT", "DELETE"} {
					if a := e.raw(t, i, method, target); a.status != 400 || a.Code != fault.BadPath {
						t.Errorf("%s %s: %d %s", method, target, a.status, a.body)
					}
				}
			}
		}
		unchanged(t)
	})

	// Whoever has the gossip key alone is heard of, and changes nothing.
	t.Run("the gossip key alone", func(t *testing.T) {
		cfg := memberlist.DefaultLocalConfig()
		cfg.Name, cfg.BindAddr, cfg.BindPort, cfg.SecretKey, cfg.LogOutput = "n4", "127.0.0.1", 0, make([]byte, 32), io.Discard
		cfg.AdvertiseAddr = "127.0.0.1"
		list, err := memberlist.Create(cfg)
		must(t, err)
		defer func() { _ = list.Shutdown() }()
		if n, err := list.Join(tr.gossip(t, 3)); err != nil || n == 0 {
			t.Fatalf("the key does not even let it gossip: %d %v", n, err)
		}
		unchanged(t)
		for i := range tr.nodes {
			if a := e.send(t, i, "HTTP/2.0", call{method: "GET", path: "/readyz"}); a.status != 200 {
				t.Errorf("node %d is not ready: %s", i+1, a.body)
			}
		}
		must(t, list.Leave(time.Second))
	})

	// Consul followed redirects of health checks to wherever they led. Here both
	// ends may be connected to, so that nothing but the redirect is in the way.
	t.Run("CVE-2022-29153", func(t *testing.T) {
		var reached atomic.Int32
		inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			reached.Add(1)
			_, _ = io.WriteString(w, "inside-marker")
		}))
		defer inside.Close()
		door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/inside" {
				reached.Add(1)
				return
			}
			to := inside.URL
			if r.URL.Path == "/307" { // a way within the same server is none either
				to = "/inside"
			}
			status, _ := strconv.Atoi(r.URL.Path[1:])
			w.Header().Set("Location", to)
			w.WriteHeader(status)
		}))
		defer door.Close()
		var paths []string
		for _, status := range []string{"301", "302", "303", "307", "308"} {
			check := fmt.Sprintf(`{"type":"http","target":"%s/%s","interval":"1s","failures_before_critical":1}`, door.URL, status)
			if status == "308" {
				check = fmt.Sprintf(`{"type":"http","method":"POST","body":"x","headers":{"Authorization":["Bearer x"]},"target":"%s/%s","interval":"1s","failures_before_critical":1}`, door.URL, status)
			}
			path := "/v1/namespaces/shop/services/redirected/instances/i" + status
			e.mustDo(t, "PUT", path+"?create_service=true", `{"address":"10.0.0.9","port":80,"ttl":"0s","checks":[`+check+`]}`)
			paths = append(paths, path)
		}
		// As a client of Consul's registers it, which asks for no DisableRedirects.
		e.mustDo(t, "PUT", "/v1/agent/service/register", `{"ID":"i302","Name":"redirected-too","Address":"10.0.0.9","Port":80,"Check":{"HTTP":"`+door.URL+`/302","Interval":"1s","Status":"passing"}}`)
		paths = append(paths, "/v1/namespaces/default/services/redirected-too/instances/i302")
		for _, path := range paths {
			status := path[len(path)-3:]
			tr.eventually("a redirect is the answer of "+path, func() error {
				a := e.send(t, 0, "HTTP/2.0", call{method: "GET", path: path})
				var in registry.Instance
				if err := json.Unmarshal(a.body, &in); err != nil || len(in.States) != 1 {
					return fmt.Errorf("%v %s", err, a.body)
				}
				if bytes.Contains(a.body, []byte("inside-marker")) {
					t.Fatalf("what is inside is shown: %s", a.body)
				}
				if in.Status != registry.Critical || !strings.Contains(in.States[0].Output, status) {
					return fmt.Errorf("%s", a.body)
				}
				return nil
			})
			e.mustDo(t, "DELETE", path, "")
		}
		if n := reached.Load(); n != 0 {
			t.Errorf("%d redirects were followed", n)
		}
	})
}

// speak tries to say something on a node's peer port.
func (e *edge) speak(t *testing.T, node int, cert tls.Certificate, proto string) error {
	t.Helper()
	cfg := &tls.Config{RootCAs: e.pool, NextProtos: []string{proto}, InsecureSkipVerify: true}
	if len(cert.Certificate) > 0 {
		cfg.Certificates = []tls.Certificate{cert}
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", e.tr.nodes[node].peer, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
	// In TLS 1.3 the client learns of its refusal with the first read.
	if _, err := conn.Write(make([]byte, 64)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// awaitSome waits for at least one line in a node's trail.
func (tr *trial) awaitSome(t *testing.T, node int, what string, match func(*audit.Entry) bool) {
	t.Helper()
	until(t, what, func() error {
		if len(tr.lines(node, match)) == 0 {
			return fmt.Errorf("no line in the trail of node %d", node+1)
		}
		return nil
	})
}

// advertise has the others reach a node's peer port at another address.
func (tr *trial) advertise(t *testing.T, node int, peer string) {
	t.Helper()
	f, err := os.OpenFile(tr.nodes[node].config, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = fmt.Fprintf(f, "advertise: {peer: %q}\n", peer)
	must(t, errors.Join(err, f.Close()))
}

// spy passes connections on and keeps what the dialler says.
type spy struct {
	net.Listener
	mu    sync.Mutex // guards what follows
	began []byte     // first byte of each connection
	sent  []byte
}

func newSpy(t *testing.T, to string) *spy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &spy{Listener: l}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { s.pass(c, to) })
		}
	})
	// After the nodes have stopped, nothing is open any more.
	t.Cleanup(func() { _ = l.Close() })
	return s
}

func (s *spy) pass(c net.Conn, to string) {
	defer c.Close()
	on, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer on.Close()
	go func() {
		_, _ = io.Copy(c, on)
		_ = c.Close()
	}()
	buf := make([]byte, 32<<10)
	for first := true; ; first = false {
		n, err := c.Read(buf)
		if n > 0 {
			s.mu.Lock()
			if first {
				s.began = append(s.began, buf[0])
			}
			if len(s.sent) < 16<<20 {
				s.sent = append(s.sent, buf[:n]...)
			}
			s.mu.Unlock()
			if _, err := on.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *spy) heard() (began, sent []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.began), bytes.Clone(s.sent)
}
