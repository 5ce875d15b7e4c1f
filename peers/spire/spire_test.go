// Package spire tests muster, as the program that is built, beside a real SPIRE
// server: X.509-SVIDs and JWT-SVIDs that it mints, and its bundle endpoint.
//
// The server is built from its module, which takes some ten minutes of processor
// time the first time and a C compiler. So the test runs where MUSTER_TEST_SPIRE=1
// asks for it, or MUSTER_SPIRE_SERVER names a program that is there already.
package spire

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	version = "v1.13.0"
	domain  = "a.example"
	member  = "spiffe://a.example/ns/shop/sa/web"
)

// program gives the SPIRE server's.
func program(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("MUSTER_SPIRE_SERVER"); p != "" {
		return p
	}
	if os.Getenv("MUSTER_TEST_SPIRE") != "1" {
		t.Skip("LEFT OUT: SPIRE takes ten minutes of processor time to build; ask for it with MUSTER_TEST_SPIRE=1")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	built := filepath.Join(cache, "muster-peers", "spire-server-"+version)
	if _, err := os.Stat(built); err == nil {
		return built
	}
	var module struct{ Dir string }
	if err := json.Unmarshal([]byte(run(t, "", "go", "mod", "download", "-json", "github.com/spiffe/spire@"+version)), &module); err != nil {
		t.Fatal(err)
	}
	must(t, os.MkdirAll(filepath.Dir(built), 0o755))
	// In its own folder, so that its own go.sum vouches for what it needs.
	run(t, module.Dir, "go", "build", "-o", built, "./cmd/spire-server")
	return built
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v: %s %s", name, strings.Join(args, " "), err, errs.String(), out.String())
	}
	return out.String()
}

// start runs a program until the test ends.
func start(t *testing.T, name string, args ...string) (stop func()) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil && t.Failed() {
			t.Logf("%s: %v: %s", name, err, out.String())
		}
	}
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// spire is a running server.
type spire struct {
	t                   *testing.T
	server, dir, socket string
	endpoint            string
}

func startSPIRE(t *testing.T) *spire {
	s := &spire{t: t, server: program(t)}
	var err error
	s.dir, err = os.MkdirTemp("", "spire") // a short path, as sockets need
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(s.dir) })
	s.socket = filepath.Join(s.dir, "api.sock")
	endpoint := freePort(t)
	s.endpoint = fmt.Sprintf("https://127.0.0.1:%d", endpoint)
	config := fmt.Sprintf(`server {
  bind_address = "127.0.0.1"
  bind_port = %d
  socket_path = %q
  trust_domain = %q
  data_dir = %q
  log_level = "WARN"
  federation { bundle_endpoint { address = "127.0.0.1" port = %d profile "https_spiffe" {} } }
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = %q } }
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
}
`, freePort(t), s.socket, domain, s.dir, endpoint, filepath.Join(s.dir, "data.sqlite3"))
	must(t, os.WriteFile(filepath.Join(s.dir, "server.conf"), []byte(config), 0o600))
	start(t, s.server, "run", "-config", filepath.Join(s.dir, "server.conf"))
	eventually(t, "the SPIRE server is healthy", func() error {
		return exec.Command(s.server, "healthcheck", "-socketPath", s.socket).Run()
	})
	return s
}

func (s *spire) ask(args ...string) string {
	s.t.Helper()
	return run(s.t, s.dir, s.server, append(args, "-socketPath", s.socket)...)
}

func (s *spire) x509(id string) tls.Certificate {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.dir, "svid")
	must(s.t, err)
	s.ask("x509", "mint", "-spiffeID", id, "-write", dir)
	c, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"))
	must(s.t, err)
	return c
}

func (s *spire) jwt(id, audience string) string {
	s.t.Helper()
	return strings.TrimSpace(s.ask("jwt", "mint", "-spiffeID", id, "-audience", audience))
}

// muster is one node, as muster dev runs it.
type muster struct {
	t             *testing.T
	CA            string `json:"ca"`
	OperatorToken string `json:"operator_token"`
	Nodes         []struct {
		Control, Policy, Metrics string
	} `json:"nodes"`
}

func startMuster(t *testing.T, settings string) *muster {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join("..", "..", "bin", "muster"))
	must(t, err)
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("the program is missing; run make build: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "dev")
	m := &muster{t: t}
	up := func() (stop func()) {
		stop = start(t, bin, "dev", "--dir", dir, "--nodes", "1", "--port-base", "0")
		eventually(t, "muster is ready", func() error {
			b, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
			if err != nil {
				return err
			}
			if err := json.Unmarshal(b, m); err != nil {
				return err
			}
			_, err = http.Get(m.Nodes[0].Metrics + "/readyz")
			return err
		})
		return stop
	}
	up()()
	must(t, os.Remove(filepath.Join(dir, "cluster.json")))
	config := filepath.Join(dir, "n1", "muster.yaml")
	b, err := os.ReadFile(config)
	must(t, err)
	must(t, os.WriteFile(config, append(b, settings...), 0o600))
	up()
	return m
}

// call asks for the status of the cluster, and gives the answer.
func (m *muster) call(method, path, token, body string, cert *tls.Certificate) (status int, answer string, err error) {
	m.t.Helper()
	pem, err := os.ReadFile(m.CA)
	must(m.t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	cfg := &tls.Config{RootCAs: roots}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	req, err := http.NewRequestWithContext(m.t.Context(), method, m.Nodes[0].Control+path, strings.NewReader(body))
	must(m.t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

const status = "/v1/cluster/status"

func TestSPIRE(t *testing.T) {
	s := startSPIRE(t)
	bundle := filepath.Join(s.dir, "bundle.json")
	must(t, os.WriteFile(bundle, []byte(s.ask("bundle", "show", "-format", "spiffe")), 0o600))
	for name, place := range map[string]string{
		"bundle in a file":   fmt.Sprintf("bundle_file: %q", bundle),
		"bundle by endpoint": fmt.Sprintf("bundle_file: %q, bundle_url: %q, profile: https_spiffe, endpoint_id: spiffe://a.example/spire/server", bundle, s.endpoint),
	} {
		t.Run(name, func(t *testing.T) {
			m := startMuster(t, "identity: {spiffe: {audiences: [muster], trust_domains: [{name: a.example, "+place+"}]}}\n")
			eventually(t, "the bundle is confirmed", func() error {
				res, err := http.Get(m.Nodes[0].Metrics + "/metrics")
				if err != nil {
					return err
				}
				defer res.Body.Close()
				b, err := io.ReadAll(res.Body)
				if err != nil || !strings.Contains(string(b), `muster_spiffe_bundle_refreshes_total{result="ok",trust_domain="a.example"}`) {
					return fmt.Errorf("no refresh is counted: %v", err)
				}
				return nil
			})
			cert := s.x509(member)
			token := s.jwt(member, "muster")
			for how, c := range map[string]struct {
				token string
				cert  *tls.Certificate
			}{"X.509-SVID": {"", &cert}, "JWT-SVID": {token, nil}} {
				// Who it is, is proven; without a rule it has no role.
				got, body, err := m.call("GET", status, c.token, "", c.cert)
				if err != nil || got != 403 || !strings.Contains(body, `"forbidden"`) {
					t.Errorf("%s: %d %s, %v", how, got, body, err)
				}
			}
			if got, body, err := m.call("GET", status, s.jwt(member, "others"), "", nil); err != nil || got != 401 {
				t.Errorf("JWT-SVID for another audience: %d %s, %v", got, body, err)
			}
			parts := strings.Split(token, ".")
			if got, body, err := m.call("GET", status, parts[0]+"."+parts[1]+"."+strings.Repeat("A", len(parts[2])), "", nil); err != nil || got != 401 {
				t.Errorf("JWT-SVID with another signature: %d %s, %v", got, body, err)
			}

			got, body, err := m.call("PUT", "/v1/roles/web", m.OperatorToken, `{"role":"viewer","match":{"spiffe_id":"`+member+`"}}`, nil)
			must(t, err)
			if got != 200 && got != 201 {
				t.Fatalf("the rule is refused: %d %s", got, body)
			}
			for how, c := range map[string]struct {
				token string
				cert  *tls.Certificate
			}{"X.509-SVID": {"", &cert}, "JWT-SVID": {token, nil}} {
				eventually(t, how+" has the role", func() error {
					got, body, err := m.call("GET", status, c.token, "", c.cert)
					if err != nil || got != 200 {
						return fmt.Errorf("%d %s, %v", got, body, err)
					}
					return nil
				})
			}
			other := s.x509("spiffe://a.example/ns/shop/sa/other")
			if got, body, err := m.call("GET", status, "", "", &other); err != nil || got != 403 {
				t.Errorf("another member: %d %s, %v", got, body, err)
			}
		})
	}
}
