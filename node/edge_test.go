package node_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
)

// edge speaks to the control ports of a trial's nodes without a client's help,
// in both versions of HTTP.
type edge struct {
	tr   *trial
	pool *x509.CertPool
	http map[string]*http.Client
}

func newEdge(t *testing.T, tr *trial) *edge {
	t.Helper()
	pem, err := os.ReadFile(tr.file("ca.crt"))
	must(t, err)
	e := &edge{tr: tr, pool: x509.NewCertPool(), http: map[string]*http.Client{}}
	if !e.pool.AppendCertsFromPEM(pem) {
		t.Fatal("the CA's file holds no certificate")
	}
	for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: e.pool}, Protocols: new(http.Protocols), DisableCompression: true}
		transport.Protocols.SetHTTP1(version == "HTTP/1.1")
		transport.Protocols.SetHTTP2(version == "HTTP/2.0")
		e.http[version] = &http.Client{Transport: transport, Timeout: 30 * time.Second}
		t.Cleanup(transport.CloseIdleConnections)
	}
	return e
}

// answer is what a node said.
type answer struct {
	status int
	header http.Header
	body   []byte
	problem
}

type problem struct {
	Code           fault.Code `json:"code"`
	Detail         string     `json:"detail"`
	RequestID      string     `json:"request_id"`
	Outcome        string     `json:"outcome"`
	Reasons        []string   `json:"reasons"`
	DecisionID     string     `json:"decision_id"`
	PolicyRevision uint64     `json:"policy_revision"`
	Current        *uint64    `json:"current"`
	Errors         []struct{ Pointer, File, Message string }
}

func read(t *testing.T, res *http.Response) *answer {
	t.Helper()
	defer res.Body.Close()
	a := &answer{status: res.StatusCode, header: res.Header}
	var err error
	if a.body, err = io.ReadAll(io.LimitReader(res.Body, 1<<20)); err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/problem+json") {
		must(t, json.Unmarshal(a.body, &a.problem))
	}
	return a
}

// call is one request. Headers are name, value, name, value…
type call struct {
	method, path string
	body         io.Reader
	header       []string
}

// send asks again for a while where the node has no leader or has not caught up, as
// clients do: on a busy machine that happens without a fault.
func (e *edge) send(t *testing.T, node int, version string, c call) *answer {
	t.Helper()
	req := e.request(t, node, c)
	for tried := 0; ; tried++ {
		a := e.sent(t, version, req)
		again := a.Code == fault.NotReady || a.Code == fault.NoLeader
		if !again || a.Outcome == "unknown" || tried == 100 || req.Body != nil && req.GetBody == nil {
			return a
		}
		<-time.After(100 * time.Millisecond)
		if req.Body != nil {
			body, err := req.GetBody()
			must(t, err)
			req.Body = body
		}
	}
}

// once is send for what is to be answered as not ready, or without a leader: it
// does not ask again, as clients do.
func (e *edge) once(t *testing.T, node int, version string, c call) *answer {
	t.Helper()
	return e.sent(t, version, e.request(t, node, c))
}

func (e *edge) request(t *testing.T, node int, c call) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), c.method, e.tr.nodes[node].control+c.path, c.body)
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+e.tr.token)
	for i := 0; i < len(c.header); i += 2 {
		req.Header.Set(c.header[i], c.header[i+1])
	}
	return req
}

func (e *edge) sent(t *testing.T, version string, req *http.Request) *answer {
	t.Helper()
	res, err := e.http[version].Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	if res.Proto != version {
		t.Fatalf("spoke %s instead of %s", res.Proto, version)
	}
	return read(t, res)
}

// dial opens a plain TLS connection, for what no client would send.
func (e *edge) dial(t *testing.T, node int) *tls.Conn {
	t.Helper()
	d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{RootCAs: e.pool, NextProtos: []string{"http/1.1"}}}
	conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(e.tr.nodes[node].control, "https://"))
	must(t, err)
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn.(*tls.Conn)
}

// raw sends a request line and headers as they are.
func (e *edge) raw(t *testing.T, node int, method, target string) *answer {
	t.Helper()
	conn := e.dial(t, node)
	defer conn.Close()
	_, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", method, target, e.tr.token)
	must(t, err)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	must(t, err)
	return read(t, res)
}

// each runs fn against every node, and checks afterwards that all nodes are in
// the state they were in before.
func (e *edge) each(t *testing.T, fn func(t *testing.T, node int)) {
	t.Helper()
	before := e.states(t)
	for i, n := range e.tr.nodes {
		t.Run(n.id, func(t *testing.T) { fn(t, i) })
	}
	if after := e.states(t); after != before {
		t.Errorf("bad input changed the state:\nbefore %s\nafter  %s", before, after)
	}
}

// states gives the revision and the state hash of each node, once it has
// everything that was acknowledged before, and checks that they agree.
func (e *edge) states(t *testing.T) string {
	t.Helper()
	var first string
	for i, n := range e.tr.nodes {
		if a := e.send(t, i, "HTTP/2.0", call{method: "GET", path: "/v1/services?consistency=linearizable"}); a.status != 200 {
			t.Fatalf("node %d: %d %s", i+1, a.status, a.body)
		}
		a := e.send(t, i, "HTTP/2.0", call{method: "GET", path: "/v1/cluster/status"})
		var status struct {
			ClusterID string `json:"cluster_id"`
			Nodes     []struct {
				ID, Role  string
				StateHash json.RawMessage `json:"state_hash"`
			}
		}
		must(t, json.Unmarshal(a.body, &status))
		for _, s := range status.Nodes {
			if s.ID != n.id {
				continue
			}
			state := fmt.Sprintf("%s %d nodes %s", status.ClusterID, len(status.Nodes), s.StateHash)
			if first == "" {
				first = state
			}
			if state != first {
				t.Fatalf("node %s is in state %s, another in %s", n.id, state, first)
			}
		}
	}
	if first == "" {
		t.Fatal("no node told of its state")
	}
	return first
}

// leader gives the position of the node that leads.
func (e *edge) leader(t *testing.T) int {
	t.Helper()
	a := e.send(t, 0, "HTTP/2.0", call{method: "GET", path: "/v1/cluster/status"})
	var status struct{ Leader string }
	must(t, json.Unmarshal(a.body, &status))
	for i, n := range e.tr.nodes {
		if n.id == status.Leader {
			return i
		}
	}
	t.Fatalf("no node is the leader %q", status.Leader)
	return 0
}

// want checks status and code, and that the answer is a whole problem.
func (a *answer) want(t *testing.T, status int, code fault.Code) *answer {
	t.Helper()
	if a.status != status || a.Code != code {
		t.Fatalf("answered %d %s, want %d %s: %s", a.status, a.Code, status, code, a.body)
	}
	if a.Detail == "" || a.RequestID == "" || a.RequestID != a.header.Get("X-Request-Id") {
		t.Errorf("a problem without a detail or its request id: %s", a.body)
	}
	return a
}

// mustDo is for what prepares a test, through the first node.
func (e *edge) mustDo(t *testing.T, method, path, body string) *answer {
	t.Helper()
	a := e.send(t, 0, "HTTP/2.0", call{method: method, path: path, body: strings.NewReader(body)})
	if a.status >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
	}
	return a
}

// counter gives an endless body and counts what was taken of it.
type counter struct {
	from  io.Reader
	taken int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.taken += int64(n)
	return n, err
}

// blanks never ends.
type blanks struct{}

func (blanks) Read(p []byte) (int, error) {
	copy(p, bytes.Repeat([]byte{' '}, len(p)))
	return len(p), nil
}

// add configures one more node under the CA of the trial; it does not run yet.
func (tr *trial) add(file, id string, expect int, join ...string) int {
	tr.t.Helper()
	cert, err := tr.ca.Issue("muster", pki.Request{Node: id, Hosts: []string{"127.0.0.1"}}, time.Now())
	must(tr.t, err)
	must(tr.t, cert.Write(tr.file(file+".crt"), tr.file(file+".key")))
	ports := freePorts(tr.t, 4)
	config := fmt.Sprintf(`
node_id: %[2]s
data_dir: %[1]s
cluster: {bootstrap_expect: %[3]d, join: [%[4]s]}
listen: {control: %[5]q, policy: "off", metrics: %[6]q, peer: %[7]q, gossip: %[8]q}
tls: {ca: ca.crt, cert: %[1]s.crt, key: %[1]s.key}
gossip_key_file: gossip.key
operator_token_file: operator.token
`, file, id, expect, strings.Join(append(join, ports[3]), ", "), ports[0], ports[1], ports[2], ports[3])
	must(tr.t, os.WriteFile(tr.file(file+".yaml"), []byte(config), 0o600))
	tr.nodes = append(tr.nodes, &running{id: file, config: tr.file(file + ".yaml"), control: "https://" + ports[0]})
	return len(tr.nodes) - 1
}

// until waits for check to hold.
func until(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}
