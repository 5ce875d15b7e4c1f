package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// muster runs three nodes as `muster dev` starts them, with TLS 1.3, bearer
// token authentication and an active policy that decides every call.
type muster struct {
	binary string
	dir    string
	port   int

	nodesWanted int // 0: 3

	dev     *process
	cluster cluster
	tls     *tls.Config
	nodes   []*url.URL
	policy  *url.URL // the policy port of the first
}

// cluster is what bench needs of cluster.json.
type cluster struct {
	CA    string `json:"ca"`
	Token string `json:"operator_token"`
	Nodes []struct {
		ID      string `json:"id"`
		PID     int    `json:"pid"`
		Control string `json:"control"`
		Policy  string `json:"policy"`
		Metrics string `json:"metrics"`
	} `json:"nodes"`
}

const writePolicy = `package api.registry.authz

import rego.v1

default allow := false

allow if {
	input.protocol == "https"
	input.resource.namespace == "bench"
	some role in input.principal.roles
	role in {"publisher", "operator"}
}
`

const lookupPolicy = `package api.security.authz

import rego.v1

default allow := false

allow if {
	input.protocol == "https"
	input.resource.namespace == "bench"
	some role in input.principal.roles
	role in {"viewer", "publisher", "operator"}
}
`

func (m *muster) name() string { return "muster" }

func (m *muster) start(ctx context.Context) error {
	if err := os.RemoveAll(m.dir); err != nil {
		return err
	}
	if err := m.spawn(ctx); err != nil {
		return err
	}
	return m.pushPolicy(ctx)
}

// spawn starts the cluster that is in the folder, or a new one.
func (m *muster) spawn(ctx context.Context) error {
	dev, err := spawn(m.dir+".log", m.binary, "dev", "--dir", m.dir, "--port-base", strconv.Itoa(m.port), "--nodes", strconv.Itoa(m.wanted()))
	if err != nil {
		return err
	}
	m.dev = dev
	return dev.await(ctx, 60*time.Second, m.ready)
}

// ready reads cluster.json, which muster dev writes when all nodes are ready.
func (m *muster) ready(context.Context) error {
	b, err := os.ReadFile(filepath.Join(m.dir, "cluster.json"))
	if err != nil {
		return err
	}
	m.cluster = cluster{}
	if err := json.Unmarshal(b, &m.cluster); err != nil {
		return err
	}
	if len(m.cluster.Nodes) != m.wanted() {
		return fmt.Errorf("cluster.json names %d nodes", len(m.cluster.Nodes))
	}
	ca, err := os.ReadFile(m.cluster.CA)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return fmt.Errorf("%s holds no certificate", m.cluster.CA)
	}
	m.tls = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	m.nodes = nil
	for _, n := range m.cluster.Nodes {
		u, err := url.Parse(n.Control)
		if err != nil {
			return err
		}
		m.nodes = append(m.nodes, u)
	}
	m.policy, err = url.Parse(m.cluster.Nodes[0].Policy)
	return err
}

func (m *muster) wanted() int {
	if m.nodesWanted > 0 {
		return m.nodesWanted
	}
	return 3
}

// pushPolicy activates the policy, and shows that it decides: what it does not
// allow must be refused on every node.
func (m *muster) pushPolicy(ctx context.Context) error {
	body, err := json.Marshal(map[string]any{"note": "bench", "modules": map[string]string{"registry.rego": writePolicy, "security.rego": lookupPolicy}})
	if err != nil {
		return err
	}
	c := m.client(0)
	defer c.close()
	if err := c.do(ctx, "POST", "/v1/policy/revisions?activate=true", body, http.StatusCreated, nil); err != nil {
		return fmt.Errorf("activate the policy: %w", err)
	}
	for i := range m.nodes {
		c := m.client(i)
		err := c.do(ctx, "PUT", "/v1/namespaces/elsewhere/services/refused", serviceBody(0), http.StatusForbidden, nil)
		c.close()
		if err != nil {
			return fmt.Errorf("the policy does not decide on node %d: %w", i+1, err)
		}
	}
	return nil
}

func (m *muster) stop() {
	if m.dev != nil {
		m.dev.stop()
		m.dev = nil
	}
}

func (m *muster) clear() { _ = os.RemoveAll(m.dir) }

func (m *muster) pids() []int {
	var pids []int
	for _, n := range m.cluster.Nodes {
		pids = append(pids, n.PID)
	}
	return pids
}

// client is one worker's: one HTTP/1.1 connection to one node, kept alive. It
// uses the transport directly, since nothing here redirects or sets cookies.
type client struct {
	http   *http.Transport
	node   *url.URL
	header http.Header
	buf    [32 << 10]byte
}

func (m *muster) client(node int) *client {
	return &client{
		http: &http.Transport{
			TLSClientConfig: m.tls, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
			MaxConnsPerHost: 1, MaxIdleConnsPerHost: 1, DisableCompression: true,
		},
		node: m.nodes[node%len(m.nodes)],
		header: http.Header{"Authorization": {"Bearer " + m.cluster.Token}, "Content-Type": {"application/json"},
			"User-Agent": {"muster-bench"}},
	}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// do sends a request and reads the whole answer. sized, if set, is asked
// whether an answer of that many bytes can be the right one.
func (c *client) do(ctx context.Context, method, path string, body []byte, want int, sized func(int) bool) error {
	u := *c.node
	u.Path, u.RawQuery = path, ""
	if i := bytes.IndexByte([]byte(path), '?'); i >= 0 {
		u.Path, u.RawQuery = path[:i], path[i+1:]
	}
	req := (&http.Request{Method: method, URL: &u, Host: u.Host, Header: c.header, ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
	if body != nil {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, start := 0, 0
	for {
		k, err := resp.Body.Read(c.buf[start:])
		n += k
		if start = min(n, 1<<10); err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	ok := resp.StatusCode == want || want == http.StatusOK && resp.StatusCode == http.StatusCreated
	if !ok || sized != nil && !sized(n) {
		return fmt.Errorf("%s %s: %s, %d bytes: %s", method, path, resp.Status, n, c.buf[:min(n, 300)])
	}
	return nil
}

func instancePath(service string, i, instance int) string {
	return "/v1/namespaces/bench/services/" + service + strconv.Itoa(i) + "/instances/i-" + strconv.Itoa(instance)
}

// load writes the services first, then their instances in order, so that an
// instance's age tells its number.
func (m *muster) load(ctx context.Context) error { return m.loadWith(ctx, readable, "24h", "24h") }

func (m *muster) loadWith(ctx context.Context, readable int, ttl, deregister string) error {
	var first, second []func(context.Context, int) error
	for w := range 128 {
		c := m.client(w)
		defer c.close()
		first = append(first, func(ctx context.Context, i int) error {
			if i < services {
				return c.do(ctx, "PUT", "/v1/namespaces/bench/services/svc-"+strconv.Itoa(i), serviceBody(i), http.StatusOK, nil)
			}
			return c.do(ctx, "PUT", "/v1/namespaces/bench/services/one-"+strconv.Itoa(i-services), serviceBody(i), http.StatusOK, nil)
		})
		second = append(second, func(ctx context.Context, i int) error {
			path := instancePath("svc-", i/instances, i%instances)
			if i >= services*instances {
				path = instancePath("one-", i-services*instances, 0)
			}
			return c.do(ctx, "PUT", path, instanceBody(i, ttl, deregister), http.StatusOK, nil)
		})
	}
	if err := each(ctx, services+readable, first); err != nil {
		return err
	}
	return each(ctx, services*instances+readable, second)
}

func (m *muster) variants(int) []string { return []string{"a connection per worker"} }

func (m *muster) ops(kind string, workers int, _ string) ([]op, func(), error) {
	var ops []op
	var clients []*client
	for w := range workers {
		var own []*client
		for n := range len(m.nodes) {
			// Like etcd's client, a lone worker takes the nodes in turn.
			if n == 0 || workers < len(m.nodes) {
				own = append(own, m.client(w+n))
			}
		}
		clients = append(clients, own...)
		ops = append(ops, musterOp(own, kind, w))
	}
	return ops, func() {
		for _, c := range clients {
			c.close()
		}
	}, nil
}

func musterOp(own []*client, kind string, worker int) op {
	d := dice(worker + 1)
	if kind == kindWrite {
		return func(ctx context.Context, seq int) error {
			n := d.roll(services * instances)
			return own[seq%len(own)].do(ctx, "PUT", instancePath("svc-", n/instances, n%instances),
				instanceBody(worker<<20+seq, "24h", "24h"), http.StatusOK, nil)
		}
	}
	query := ""
	if kind == kindLinear {
		query = "?consistency=linearizable"
	}
	one := func(n int) bool { return n > 250 && n < 2*bodySize }
	return func(ctx context.Context, seq int) error {
		path := "/v1/discovery/bench/one-" + strconv.Itoa(d.roll(readable)) + query
		return own[seq%len(own)].do(ctx, "GET", path, nil, http.StatusOK, one)
	}
}
