package parity

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/plugins"
	"github.com/open-policy-agent/opa/v1/server"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/muster-registry/muster/node"
	"github.com/muster-registry/muster/pki"
)

const token = "muster-test-operator-token-0123456789abcdef"

// peer is one of the two servers.
type peer struct {
	url    string
	client *http.Client
}

// startOPA starts OPA's own server, as opa run --server sets it up, but for
// its configuration: there is none.
func startOPA(t *testing.T) *peer {
	t.Helper()
	store := inmem.New()
	m, err := plugins.New([]byte{}, "parity", store)
	must(t, err)
	must(t, m.Start(t.Context()))
	s, err := server.New().WithAddresses([]string{"127.0.0.1:0"}).WithStore(store).WithManager(m).
		WithDecisionIDFactory(func() string { return "an id" }).Init(t.Context())
	must(t, err)
	h := httptest.NewServer(s.Handler)
	t.Cleanup(h.Close)
	h.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &peer{h.URL, h.Client()}
}

// startMuster runs a cluster of one real node.
func startMuster(t *testing.T) *peer {
	t.Helper()
	dir := t.TempDir()
	ca, err := pki.NewCA("muster", pki.ECDSA, time.Hour, time.Now())
	must(t, err)
	must(t, ca.Write(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")))
	cert, err := ca.Issue("muster", pki.Request{Node: "n1", Hosts: []string{"127.0.0.1"}}, time.Now())
	must(t, err)
	must(t, cert.Write(filepath.Join(dir, "n1.crt"), filepath.Join(dir, "n1.key")))
	must(t, os.WriteFile(filepath.Join(dir, "operator.token"), []byte(token), 0o600))
	port := freePorts(t, 5)
	config := filepath.Join(dir, "muster.yaml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `
node_id: n1
data_dir: data
cluster: {bootstrap_expect: 1}
listen: {control: %q, metrics: %q, peer: %q, gossip: %q, policy: %q}
tls: {ca: ca.crt, cert: n1.crt, key: n1.key}
gossip_key: %s
operator_token_file: operator.token
limits: {evaluation: 20s} # a busy machine must not decide
`, port[0], port[1], port[2], port[3], port[4], base64.StdEncoding.EncodeToString(make([]byte, 32))), 0o600))
	cfg, err := node.Load(config, func(string) string { return "" })
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var logs bytes.Buffer
	go func() { done <- node.Run(ctx, cfg, "test", slog.New(slog.NewTextHandler(&logs, nil))) }()
	pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		stop()
		if err := <-done; err != nil {
			t.Errorf("the node: %v\n%s", err, &logs)
		}
	})
	p := &peer{"https://" + port[4], &http.Client{Transport: transport}}
	p.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	deadline := time.Now().Add(time.Minute)
	for {
		res, err := p.client.Get(p.url + "/health")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return p
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the node is not ready: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freePorts(t *testing.T, n int) (out []string) {
	t.Helper()
	for at := 10_000 + rand.IntN(9_000); len(out) < n && at < 20_000; at++ {
		address := fmt.Sprintf("127.0.0.1:%d", at)
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			out = append(out, address)
		}
	}
	if len(out) < n {
		t.Fatal("too few ports are free")
	}
	return out
}

// step is one request and how far the answers are compared.
type step struct {
	method, path, body string
	headers            []string
	differ             string // why muster means to answer otherwise, with the status that follows
	status             int
}

type answer struct {
	status int
	media  string
	body   string
}

func (p *peer) send(t *testing.T, s step) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), s.method, p.url+s.path, strings.NewReader(s.body))
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i < len(s.headers); i += 2 {
		r.Header.Set(s.headers[i], s.headers[i+1])
	}
	res, err := p.client.Do(r)
	must(t, err)
	defer res.Body.Close()
	var from io.Reader = res.Body
	if res.Header.Get("Content-Encoding") == "gzip" {
		if from, err = gzip.NewReader(res.Body); err != nil {
			t.Fatal(err)
		}
	}
	b, err := io.ReadAll(from)
	must(t, err)
	return answer{res.StatusCode, res.Header.Get("Content-Type"), string(b)}
}

// comparable gives what both must agree on: all of the JSON but for ids, times
// and what names the build.
func (a answer) comparable(t *testing.T) any {
	t.Helper()
	if a.body == "" {
		return nil
	}
	var x any
	if err := json.Unmarshal([]byte(a.body), &x); err != nil {
		return a.body
	}
	m, ok := x.(map[string]any)
	if !ok {
		return x
	}
	delete(m, "decision_id")
	if figures, ok := m["metrics"].(map[string]any); ok {
		// Which timers there are depends on what was compiled before.
		m["metrics"] = figures["timer_server_handler_ns"] != nil || len(figures) > 0
	}
	if p, ok := m["provenance"].(map[string]any); ok {
		delete(p, "bundles")
	}
	if list, ok := m["errors"].([]any); ok { // their order is not fixed
		slices.SortFunc(list, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
	if list, ok := m["result"].([]any); ok && len(list) > 0 && named(list[0]) { // nor that of policies
		slices.SortFunc(list, func(a, b any) int { return strings.Compare(id(a), id(b)) })
	}
	if list, ok := m["explanation"].([]any); ok {
		m["explanation"] = explained(list)
	}
	return m
}

func id(x any) string {
	m, _ := x.(map[string]any)
	s, _ := m["id"].(string)
	return s
}

func named(x any) bool { return id(x) != "" }

// explained keeps what a reader of an explanation sees: which steps were taken
// on which nodes. Numbers of queries depend on what ran before.
func explained(list []any) (out []string) {
	for _, step := range list {
		switch step := step.(type) {
		case string:
			out = append(out, step)
		case map[string]any:
			out = append(out, fmt.Sprint(step["op"], " ", step["type"]))
		}
	}
	return out
}

func TestTheSameAnswersAsOPA(t *testing.T) {
	opa, muster := startOPA(t), startMuster(t)
	for _, group := range groups {
		t.Run(group.name, func(t *testing.T) {
			defer func() {
				for _, s := range reset {
					opa.send(t, s)
					muster.send(t, s)
				}
			}()
			for _, s := range group.steps {
				want, got := opa.send(t, s), muster.send(t, s)
				name := strings.TrimSpace(fmt.Sprintf("%s %s %.120s", s.method, s.path, s.body))
				if s.differ != "" {
					if got.status != s.status || want.status == got.status && cmp.Equal(want.comparable(t), got.comparable(t)) {
						t.Errorf("%s\n  is to answer %d because %s\n  muster: %d %s\n  OPA:    %d %s", name, s.status, s.differ, got.status, got.body, want.status, want.body)
					}
					continue
				}
				if d := cmp.Diff(want.comparable(t), got.comparable(t)); d != "" || got.status != want.status {
					t.Errorf("%s\n  muster: %d %s\n  OPA:    %d %s\n%s", name, got.status, got.body, want.status, want.body, d)
				}
				if got.body != "" && got.media != want.media {
					t.Errorf("%s: Content-Type %q, OPA's is %q", name, got.media, want.media)
				}
			}
		})
	}
}

// reset takes away what the groups have made.
var reset = []step{
	{method: "DELETE", path: "/v1/policies/p"},
	{method: "DELETE", path: "/v1/policies/q"},
	{method: "DELETE", path: "/v1/policies/own"},
	{method: "DELETE", path: "/v1/policies/net"},
	{method: "PUT", path: "/v1/data", body: "{}"},
}

func zipped(text string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(text))
	_ = z.Close()
	return b.String()
}
