// Package compose tries the containers of docker-compose.yml for real.
package compose

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/dev"
)

// TestContainers starts three containers with make up, registers, stops one,
// cuts another off the network, and heals both.
func TestContainers(t *testing.T) {
	if os.Getenv("MUSTER_TEST_DOCKER") == "" {
		t.Skip("LEFT OUT: needs a Docker engine; ask for it with MUSTER_TEST_DOCKER=1")
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	sh := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = root
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	t.Cleanup(func() { sh("make", "down", "VOLUMES=1") })
	sh("make", "up")

	var c dev.Cluster
	b, err := os.ReadFile(filepath.Join(root, ".muster", "compose", "cluster.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &c); err != nil || len(c.Nodes) != 3 {
		t.Fatalf("cluster.json: %v\n%s", err, b)
	}
	at := func(nodes ...dev.Node) *client.Client {
		t.Helper()
		cfg := client.Config{CACert: c.CA, Token: c.OperatorToken, Timeout: 20 * time.Second}
		for _, n := range nodes {
			cfg.Addresses = append(cfg.Addresses, n.Control)
		}
		k, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(k.Close)
		return k
	}
	all := at(c.Nodes...)
	register := func(id string) {
		t.Helper()
		r := client.Ref{Kind: client.Instance, Namespace: "default", Service: "cart", Name: id}
		if _, err := all.Put(t.Context(), r, []byte(`{"address":"10.0.0.1","port":80,"ttl":"10m"}`), client.Write{CreateService: true}); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	finds := func(n dev.Node, count int) error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		d, err := at(n).Discover(ctx, "default", "cart", client.Filter{Read: client.Read{Linearizable: true}})
		if err == nil && len(d.Instances) != count {
			err = fmt.Errorf("%s finds %d instances, not %d", n.ID, len(d.Instances), count)
		}
		return err
	}
	eventually := func(f func() error) {
		t.Helper()
		end := time.Now().Add(time.Minute)
		for err := f(); err != nil; err = f() {
			if time.Now().After(end) {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	container := func(n dev.Node) string {
		t.Helper()
		id := sh("docker", "ps", "-aq", "--filter", "label=com.docker.compose.project=muster", "--filter", "label=com.docker.compose.service="+n.ID)
		if id == "" {
			t.Fatalf("%s has no container", n.ID)
		}
		return id
	}
	for _, n := range c.Nodes {
		eventually(func() error {
			if s := sh("docker", "inspect", "-f", "{{.State.Health.Status}}", container(n)); s != "healthy" {
				return errors.New(n.ID + " is " + s)
			}
			return nil
		})
	}

	register("i1")
	eventually(func() error { return finds(c.Nodes[2], 1) })

	stopped, cut := c.Nodes[0], c.Nodes[1]
	begin := time.Now()
	sh("docker", "stop", container(stopped))
	if d := time.Since(begin); d > 55*time.Second {
		t.Errorf("stopping took %s: it was killed in the end", d)
	}
	if code := sh("docker", "inspect", "-f", "{{.State.ExitCode}}", container(stopped)); code != "0" {
		t.Errorf("%s ended with exit code %s", stopped.ID, code)
	}
	register("i2")
	sh("docker", "start", container(stopped))
	eventually(func() error { return finds(stopped, 2) })

	sh("docker", "network", "disconnect", "muster_muster", container(cut))
	register("i3")
	sh("docker", "network", "connect", "--alias", cut.ID, "muster_muster", container(cut))
	for _, n := range c.Nodes {
		eventually(func() error { return finds(n, 3) })
	}
}
