// Package oidc_test runs the built program beside real identity providers, on
// loopback: zitadel's OpenID provider, and Debian's glewlwyd with an LDAP
// directory behind it.
package oidc_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cluster is three nodes of the built program.
type cluster struct {
	t      *testing.T
	dir    string
	base   int
	client *http.Client
	cmd    *exec.Cmd
	log    *os.File

	revision uint64 // of the last answer

	File struct {
		OperatorToken string `json:"operator_token"`
		CA            string `json:"ca"`
		Nodes         []struct {
			ID, Control, Metrics string
		}
	}
}

// newCluster starts a cluster that believes the providers in the text.
func newCluster(t *testing.T, identity string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "dev"), base: freeBase(t)}
	var err error
	if c.log, err = os.Create(filepath.Join(filepath.Dir(c.dir), "dev.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.stop()
		if t.Failed() {
			b, _ := os.ReadFile(c.log.Name())
			t.Logf("the nodes' log ends:\n%s", b[max(0, len(b)-8000):])
		}
		_ = c.log.Close()
	})
	c.start()
	c.stop()
	for _, n := range c.File.Nodes {
		f, err := os.OpenFile(filepath.Join(c.dir, n.ID, "muster.yaml"), os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("\n" + identity)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	c.start()
	pem, err := os.ReadFile(c.File.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	c.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	t.Cleanup(c.client.CloseIdleConnections)
	return c
}

// freeBase finds a port base whose ports, and those 10 and 20 above, are free.
func freeBase(t *testing.T) int {
	t.Helper()
	for range 100 {
		base := 20_000 + rand.IntN(10_000)
		free := true
		for _, port := range []int{8443, 8181, 9090, 8300, 7946, 8600} {
			for n := range 3 {
				l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+10*n+base-8443))
				if err != nil {
					free = false
					break
				}
				_ = l.Close()
			}
		}
		if free {
			return base
		}
	}
	t.Fatal("no ports are free")
	return 0
}

func (c *cluster) start() {
	c.t.Helper()
	file := filepath.Join(c.dir, "cluster.json")
	_ = os.Remove(file)
	c.cmd = exec.Command("../../bin/muster", "dev", "--nodes", "3", "--dir", c.dir, "--port-base", fmt.Sprint(c.base))
	c.cmd.Stdout, c.cmd.Stderr = c.log, c.log
	if err := c.cmd.Start(); err != nil {
		c.t.Fatalf("%v; make build makes it", err)
	}
	eventually(c.t, "the cluster is ready", func() bool {
		b, err := os.ReadFile(file)
		return err == nil && json.Unmarshal(b, &c.File) == nil && len(c.File.Nodes) == 3
	})
}

func (c *cluster) stop() {
	if c.cmd == nil {
		return
	}
	_ = c.cmd.Process.Signal(os.Interrupt)
	_ = c.cmd.Wait()
	c.cmd = nil
}

// call makes one call to a node and gives the status and the stable code.
func (c *cluster) call(node int, method, path, token, body string) (status int, code string) {
	c.t.Helper()
	req, err := http.NewRequest(method, c.File.Nodes[node].Control+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := c.client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	c.revision, _ = strconv.ParseUint(resp.Header.Get("Muster-Revision"), 10, 64)
	var problem struct{ Code, Detail string }
	_ = json.Unmarshal(b, &problem)
	if problem.Code == "identity_provider_unavailable" && resp.Header.Get("Retry-After") == "" {
		c.t.Error("a 503 without Retry-After")
	}
	if bytes.Contains(b, []byte(token)) {
		c.t.Error("the answer repeats the token")
	}
	return resp.StatusCode, problem.Code
}

// lookUp is a call that needs the role viewer.
func (c *cluster) lookUp(node int, token string) (int, string) {
	return c.call(node, http.MethodGet, "/v1/services", token, "")
}

// rule gives a role to who has a claim.
func (c *cluster) rule(name, role, provider, claim, value string) {
	c.t.Helper()
	body := fmt.Sprintf(`{"role":%q,"match":{"provider":%q,"claims":{%q:%q}}}`, role, provider, claim, value)
	if status, code := c.call(0, http.MethodPut, "/v1/roles/"+name, c.File.OperatorToken, body); status >= 300 {
		c.t.Fatalf("the rule %s: %d %s", body, status, code)
	}
	after := c.revision
	for i := range c.File.Nodes { // a node may learn of it a moment after the answer
		path := fmt.Sprintf("/v1/services?wait=30s&min_revision=%d", after)
		if status, code := c.call(i, http.MethodGet, path, c.File.OperatorToken, ""); status != http.StatusOK {
			c.t.Fatalf("node %d, after the rule: %d %s", i+1, status, code)
		}
	}
}

// want makes the call on every node.
func (c *cluster) want(what, token string, status int, code string) {
	c.t.Helper()
	for i := range c.File.Nodes {
		if s, got := c.lookUp(i, token); s != status || got != code {
			c.t.Errorf("%s, node %d: %d %s, want %d %s", what, i+1, s, got, status, code)
		}
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after two minutes still not: %s", what)
		}
	}
}

func secretFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
