// Package cluster runs three nodes of the built program for the tests beside
// real peers, and kills them. It needs nothing but the standard library, so
// that a peer's module has no dependencies but the peer's own.
package cluster

import (
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
	"strings"
	"syscall"
	"testing"
	"time"
)

// Node is one node, with its addresses.
type Node struct {
	ID, Control, Policy, Metrics, DNS string
	PID                               int
}

// Cluster is three nodes on loopback. A test calls its methods from one
// goroutine; only HTTP may be used by several.
type Cluster struct {
	OperatorToken string `json:"operator_token"`
	CA            string `json:"ca"` // file
	ClientCert    string `json:"client_cert"`
	ClientKey     string `json:"client_key"`
	Nodes         []Node
	HTTP          *http.Client `json:"-"` // trusts the cluster

	t    testing.TB
	dir  string
	base int
	log  *os.File
	cmd  *exec.Cmd
}

const program = "../../bin/muster"

// New starts a cluster that ends with the test. What settings says is appended
// to the configuration of each node; then the nodes are started twice.
func New(t testing.TB, settings string) *Cluster {
	t.Helper()
	c := &Cluster{t: t, dir: filepath.Join(t.TempDir(), "dev"), base: freeBase(t)}
	var err error
	c.log, err = os.Create(filepath.Join(filepath.Dir(c.dir), "dev.log"))
	Must(t, err)
	t.Cleanup(func() {
		c.end()
		if t.Failed() {
			b, _ := os.ReadFile(c.log.Name())
			t.Logf("the nodes' log ends:\n%s", b[max(0, len(b)-8000):])
		}
		_ = c.log.Close()
	})
	c.start()
	if settings != "" {
		c.end()
		for _, n := range c.Nodes {
			f, err := os.OpenFile(filepath.Join(c.dir, n.ID, "muster.yaml"), os.O_APPEND|os.O_WRONLY, 0)
			Must(t, err)
			_, err = f.WriteString("\n" + settings)
			Must(t, err)
			Must(t, f.Close())
		}
		c.start()
	}
	pem, err := os.ReadFile(c.CA)
	Must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	c.HTTP = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	t.Cleanup(c.HTTP.CloseIdleConnections)
	return c
}

func (c *Cluster) start() {
	c.t.Helper()
	_ = os.Remove(c.file())
	cmd := exec.Command(program, "dev", "--nodes", "3", "--dir", c.dir, "--port-base", fmt.Sprint(c.base))
	cmd.Stdout, cmd.Stderr = c.log, c.log
	if err := cmd.Start(); err != nil {
		c.t.Fatalf("%v; make build makes it", err)
	}
	c.cmd = cmd
	Eventually(c.t, "the cluster is ready", func() error {
		if err := c.read(); err != nil || len(c.Nodes) != 3 {
			return fmt.Errorf("%d nodes, %w", len(c.Nodes), err)
		}
		return nil
	})
}

func (c *Cluster) end() {
	if c.cmd != nil {
		_ = c.cmd.Process.Signal(os.Interrupt)
		_ = c.cmd.Wait()
		c.cmd = nil
	}
}

func (c *Cluster) file() string { return filepath.Join(c.dir, "cluster.json") }

func (c *Cluster) read() error {
	b, err := os.ReadFile(c.file())
	if err != nil {
		return err
	}
	return json.Unmarshal(b, c)
}

// Call makes one call to a node with a token and gives the answer, read to its end.
func (c *Cluster) Call(node int, method, path, token, body string) (*http.Response, []byte, error) {
	req, err := http.NewRequest(method, c.Nodes[node].Control+path, strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := c.HTTP.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

// Try makes a call as the operator; an answer of 300 and more is an error.
func (c *Cluster) Try(node int, method, path, body string) ([]byte, error) {
	res, b, err := c.Call(node, method, path, c.OperatorToken, body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, b)
	}
	return b, nil
}

// Do is Try where the call is sure to succeed.
func (c *Cluster) Do(node int, method, path, body string) []byte {
	c.t.Helper()
	b, err := c.Try(node, method, path, body)
	Must(c.t, err)
	return b
}

// Kill ends a node as a power cut would. The program that started the nodes ends
// with the last of those that it started itself, so one of them must never be killed.
func (c *Cluster) Kill(node int) {
	c.t.Helper()
	Must(c.t, c.read())
	Must(c.t, syscall.Kill(c.Nodes[node].PID, syscall.SIGKILL))
}

// Revive starts a killed node again, and waits until it takes a change.
func (c *Cluster) Revive(node int) {
	c.t.Helper()
	before := c.Nodes[node].PID
	cmd := exec.Command(program, "dev", "--dir", c.dir, "--only", c.Nodes[node].ID)
	cmd.Stdout, cmd.Stderr = c.log, c.log
	Must(c.t, cmd.Start())
	c.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	Eventually(c.t, "the node is back", func() error {
		if err := c.read(); err != nil {
			return err
		}
		if c.Nodes[node].PID == before {
			return fmt.Errorf("it has the pid %d of before", before)
		}
		_, err := c.Try(node, http.MethodGet, "/v1/services?consistency=linearizable", "")
		return err
	})
}

// Leader waits for the cluster to have a leader among the nodes that live, and
// gives its number.
func (c *Cluster) Leader() (node int) {
	c.t.Helper()
	Eventually(c.t, "there is a leader", func() error {
		var err error
		for i := range c.Nodes {
			var b []byte
			if b, err = c.Try(i, http.MethodGet, "/v1/cluster/status", ""); err != nil {
				continue
			}
			var st struct{ Leader string }
			if err = json.Unmarshal(b, &st); err != nil {
				continue
			}
			for node = range c.Nodes {
				if c.Nodes[node].ID == st.Leader {
					_, err = c.Try(node, http.MethodGet, "/v1/services?consistency=linearizable", "")
					return err
				}
			}
		}
		return fmt.Errorf("nobody knows one: %w", err)
	})
	return node
}

// freeBase finds a port base whose ports, and those 10 and 20 above, are free.
func freeBase(t testing.TB) int {
	t.Helper()
	for range 100 {
		base := 20_000 + rand.IntN(10_000)
		if free(base) {
			return base
		}
	}
	t.Fatal("no ports are free")
	return 0
}

func free(base int) bool {
	for _, port := range []int{8443, 8181, 9090, 8300, 7946, 8600} {
		for n := range 3 {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+10*n+base-8443))
			if err != nil {
				return false
			}
			_ = l.Close()
		}
	}
	return true
}

// Eventually waits for up to two minutes until f has no error.
func Eventually(t testing.TB, what string, f func() error) {
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

// Must fails the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
