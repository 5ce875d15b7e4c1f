package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/dev"
	"github.com/muster-registry/muster/fault"
)

// devCluster is muster dev as its own process, as a user starts it.
type devCluster struct {
	dev.Cluster
	dir string
	cmd *exec.Cmd
	out *bytes.Buffer
}

func startDev(t *testing.T, dir string, args ...string) *devCluster {
	t.Helper()
	d := &devCluster{dir: dir, out: &bytes.Buffer{}}
	d.cmd = exec.Command(os.Args[0], append([]string{"dev", "--dir", dir}, args...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	d.cmd.WaitDelay = time.Second
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.stop(t) })
	d.read(t)
	return d
}

// read waits for cluster.json, which says that all nodes are ready.
func (d *devCluster) read(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		b, err := os.ReadFile(filepath.Join(d.dir, "cluster.json"))
		if err != nil {
			if d.cmd.Process.Signal(syscall.Signal(0)) != nil {
				t.Fatalf("muster dev has ended: %s", d.out)
			}
			return err
		}
		return json.Unmarshal(b, &d.Cluster)
	})
}

func (d *devCluster) stop(t *testing.T) {
	t.Helper()
	if d.cmd.ProcessState != nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	// One that hangs shows where.
	hangs := time.AfterFunc(2*time.Minute, func() { _ = d.cmd.Process.Signal(syscall.SIGQUIT) })
	defer hangs.Stop()
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("muster dev ended with %v: %s", err, d.out)
	}
}

// shell is what sourcing DIR/env gives.
func (d *devCluster) shell() shell {
	var addrs []string
	for _, n := range d.Nodes {
		addrs = append(addrs, n.Control)
	}
	return shell{env: map[string]string{"MUSTER_ADDR": strings.Join(addrs, ","), "MUSTER_CACERT": d.CA, "MUSTER_TOKEN": d.OperatorToken}}
}

func (d *devCluster) node(id string) dev.Node {
	for _, n := range d.Nodes {
		if n.ID == id {
			return n
		}
	}
	return dev.Node{}
}

func eventually(t *testing.T, patience time.Duration, f func() error) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

const manifestText = `
kind: Service
namespace: shop
name: cart
spec: {owner: team-cart}
---
kind: Version
namespace: shop
name: 1.0.0
spec:
  service: cart
  format: openapi
  document:
    openapi: 3.0.3
    info: {title: Cart, version: 1.0.0}
    paths: {/items: {get: {responses: {200: {description: fine}}}}}
---
kind: Instance
namespace: shop
name: i1
spec: {service: cart, address: 10.0.0.1, port: 80, ttl: 10m}
`

func write(t *testing.T, name, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func contains(t *testing.T, text string, wanted ...string) {
	t.Helper()
	for _, w := range wanted {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in:\n%s", w, text)
		}
	}
}

// TestWorkingWithACluster goes through the commands as a user would, against
// three processes.
func TestWorkingWithACluster(t *testing.T) {
	d := startDev(t, filepath.Join(t.TempDir(), "dev"), "--port-base", "0")
	s := d.shell()
	file := write(t, "cart.yaml", manifestText)

	t.Run("records", func(t *testing.T) { records(t, s, file) })
	t.Run("quotas", func(t *testing.T) { rateLimits(t, s) })
	t.Run("schemas", func(t *testing.T) { schemas(t, s) })
	t.Run("webhooks", func(t *testing.T) { webhooks(t, s) })
	t.Run("emergencies", func(t *testing.T) { emergencies(t, s) })
	t.Run("tokens and denial", func(t *testing.T) { tokens(t, s) })
	t.Run("policy", func(t *testing.T) { policies(t, s, file) })
	t.Run("shadow", func(t *testing.T) { shadows(t, s) })
	t.Run("signed policies", func(t *testing.T) { signedPolicies(t, s) })
	t.Run("snapshot", func(t *testing.T) { snapshots(t, s) })
	t.Run("tls", func(t *testing.T) {
		out := s.ok(t, "tls", "verify", strings.TrimPrefix(d.Nodes[0].Control, "https://"))
		contains(t, out, "TLS 1.3", "spiffe://muster/muster/node/n1", "All is well")
		wrong, _, code := s.do(t, "tls", "verify", strings.TrimPrefix(d.Nodes[0].Control, "https://"), "--server-name", "muster.example")
		if code != exitError {
			t.Errorf("exit code %d", code)
		}
		contains(t, wrong, `not for "muster.example"`)
	})
	t.Run("client certificate", func(t *testing.T) {
		env := map[string]string{"MUSTER_ADDR": s.env["MUSTER_ADDR"], "MUSTER_CACERT": d.CA, "MUSTER_CLIENT_CERT": d.ClientCert, "MUSTER_CLIENT_KEY": d.ClientKey}
		contains(t, shell{env: env}.ok(t, "get", "services", "-A"), "cart")
	})
	t.Run("a node dies and comes back", func(t *testing.T) { death(t, d, s) })
	t.Run("all stops", func(t *testing.T) {
		d.stop(t)
		for _, n := range d.Nodes {
			for _, a := range []string{strings.TrimPrefix(n.Control, "https://"), n.Peer} {
				if c, err := net.DialTimeout("tcp", a, time.Second); err == nil {
					c.Close()
					t.Errorf("something listens at %s of %s still", a, n.ID)
				}
			}
		}
		if _, _, code := s.do(t, "get", "services", "--timeout", "200ms"); code != exitUnavailable {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("the data is there again", func(t *testing.T) {
		again := startDev(t, d.dir)
		if again.Nodes[0].Control != d.Nodes[0].Control || again.OperatorToken != d.OperatorToken {
			t.Errorf("another cluster: %+v", again.Cluster)
		}
		contains(t, again.shell().ok(t, "discover", "cart", "-n", "shop", "--consistency", "linearizable"), "10.0.0.1")
		again.stop(t)
	})
}

func records(t *testing.T, s shell, file string) {
	if _, _, code := s.do(t, "diff", "-f", file); code != 1 {
		t.Errorf("diff of what is not there: exit code %d", code)
	}
	contains(t, s.ok(t, "apply", "-f", file), "service/cart created", "version/cart/1.0.0 created", "instance/cart/i1 created")
	if out := s.ok(t, "diff", "-f", file); out != "" {
		t.Errorf("diff of what was just applied: %s", out)
	}
	contains(t, s.ok(t, "apply", "-f", file), "service/cart unchanged", "version/cart/1.0.0 unchanged", "instance/cart/i1 configured")

	in := s
	in.in = `{"kind":"Service","namespace":"shop","name":"cart","spec":{"owner":"other"}}`
	out, _, code := in.do(t, "diff", "-f", "-")
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	contains(t, out, "shop/service/cart", `- owner: "team-cart"`, `+ owner: "other"`)
	contains(t, in.ok(t, "apply", "-f", "-", "-o", "json"), `"owner": "other"`)

	contains(t, s.ok(t, "get", "services", "-n", "shop"), "NAME", "cart", "other")
	contains(t, s.ok(t, "get", "version", "cart/1.0.0", "-n", "shop", "-o", "yaml"), "format: openapi", "path: /items")
	if out := s.ok(t, "get", "instances", "cart", "-n", "shop", "-o", "name"); out != "instance/cart/i1\n" {
		t.Errorf("names: %q", out)
	}
	contains(t, s.ok(t, "describe", "service", "cart", "-n", "shop"), "owner: other", "1 version", "1 instance")
	contains(t, s.ok(t, "describe", "instance", "cart/i1", "-n", "shop"), "address: ", "0 checks")
	in.in = `{"kind":"Instance","namespace":"shop","name":"cart/i2","spec":{"address":"10.0.0.2","port":80,"checks":[{"type":"ttl","id":"jobs","initial_status":"warning"}]}}`
	in.ok(t, "apply", "-f", "-")
	contains(t, s.ok(t, "describe", "instance", "cart/i2", "-n", "shop"), "1 check", "CHECK", "jobs", "ttl", "warning")
	contains(t, s.ok(t, "delete", "instance", "cart/i2", "-n", "shop"), "deleted")
	contains(t, s.ok(t, "discover", "cart", "-n", "shop", "-o", "json"), `"address": "10.0.0.1"`)

	for args, want := range map[string]int{
		"discover nobody": exitNotFound, "get service nobody": exitNotFound, "delete service cart -n shop --if-revision 1": exitConflict,
		"get instance cart/i1 -n shop --min-revision 99999999 --timeout 1s": exitUnavailable,
	} {
		if out, err, code := s.do(t, strings.Fields(args)...); code != want || out != "" || err == "" {
			t.Errorf("muster %s: exit code %d, want %d; out %q, error %q", args, code, want, out, err)
		}
	}
	in.in = `{"kind":"Instance","name":"i1","spec":{"service":"gone","address":"10.0.0.9","port":1}}`
	if _, err, code := in.do(t, "apply", "-f", "-"); code != exitNotFound || !strings.Contains(err, "service_not_found") {
		t.Errorf("exit code %d: %s", code, err)
	}
	contains(t, in.ok(t, "apply", "-f", "-", "--create-service"), "instance/gone/i1 created")
	contains(t, in.ok(t, "delete", "-f", "-"), "instance/gone/i1 deleted")
	contains(t, s.ok(t, "delete", "service", "gone"), "service/gone deleted")
}

func tokens(t *testing.T, s shell) {
	var k client.Token
	if err := json.Unmarshal([]byte(s.ok(t, "token", "create", "--role", "viewer", "--namespace", "shop", "--ttl", "1h", "-o", "json")), &k); err != nil {
		t.Fatal(err)
	}
	if k.Role != "viewer" || len(k.Namespaces) != 1 || k.Text == "" || time.Until(k.ExpiresAt) > time.Hour {
		t.Errorf("token %+v", k)
	}
	list := s.ok(t, "token", "list")
	contains(t, list, k.ID, "viewer", "shop")
	if strings.Contains(list, k.Text) {
		t.Error("the list shows a token's text")
	}
	viewer := shell{env: map[string]string{"MUSTER_ADDR": s.env["MUSTER_ADDR"], "MUSTER_CACERT": s.env["MUSTER_CACERT"], "MUSTER_TOKEN": k.Text}}
	viewer.ok(t, "discover", "cart", "-n", "shop")
	viewer.in = `{"kind":"Service","namespace":"shop","name":"cart","spec":{}}`
	if _, err, code := viewer.do(t, "apply", "-f", "-"); code != exitDenied || !strings.Contains(err, "forbidden") {
		t.Errorf("a viewer's change: exit code %d: %s", code, err)
	}
	var other client.Token
	if err := json.Unmarshal([]byte(s.ok(t, "token", "create", "--role", "viewer", "-o", "json")), &other); err != nil {
		t.Fatal(err)
	}
	if said, more, code := s.do(t, "token", "revoke", other.Text); code != 0 || !strings.Contains(more, other.ID) || strings.Contains(said+more, other.Text) {
		t.Errorf("revoked by its text: exit code %d, %s", code, more)
	}
	s.ok(t, "token", "revoke", k.ID)
	eventually(t, time.Minute, func() error {
		if _, err, code := viewer.do(t, "discover", "cart", "-n", "shop"); code != exitDenied {
			return errors.New("a revoked token still works: " + err)
		}
		return nil
	})
}

func policies(t *testing.T, s shell, manifest string) {
	files, err := filepath.Glob(filepath.Join("..", "..", "examples", "policies", "*.rego"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the example policies: %v, %v", files, err)
	}
	contains(t, shell{}.ok(t, append([]string{"policy", "check"}, files...)...), "0 failed")
	bad := write(t, "bad.rego", "package api.registry.authz\n\nallow if http.send({})\n")
	_, text, code := shell{}.do(t, "policy", "check", bad)
	if code != exitError {
		t.Errorf("exit code %d", code)
	}
	contains(t, text, "invalid_policy", "bad.rego:3:")
	if strings.Contains(text, "occurred") {
		t.Errorf("the findings are said again: %s", text)
	}
	if _, _, code := s.do(t, "policy", "push", bad); code != exitError {
		t.Errorf("exit code %d", code)
	}
	contains(t, s.ok(t, append([]string{"policy", "push", "--note", "first"}, files...)...), "staged", "first")
	contains(t, s.ok(t, "policy", "activate", "1"), "active")
	contains(t, s.ok(t, "policy", "list"), "1", "active", "first")
	contains(t, s.ok(t, "policy", "get", "1"), "package api.registry.authz")

	in := s
	in.in = `{"kind":"Service","namespace":"shop","name":"nobody","spec":{}}`
	if _, err, code := in.do(t, "apply", "-f", "-"); code != exitDenied || !strings.Contains(err, "reason: owner is missing") || !strings.Contains(err, "by policy revision 1") {
		t.Errorf("exit code %d: %s", code, err)
	}
	_, refusal, _ := in.do(t, "apply", "-f", "-")
	id := regexp.MustCompile(`decision ([-0-9a-f]{36}),`).FindStringSubmatch(refusal)
	if id == nil {
		t.Fatalf("no decision is named: %s", refusal)
	}
	contains(t, s.ok(t, "policy", "explain", id[1]), "✗ refused  decision "+id[1], "reason     owner is missing", "api.registry.authz", "✓ deny: ", "stopped at registry.rego:18")
	contains(t, s.ok(t, "policy", "explain", id[1], "-o", "json"), `"same": true`, `"masked"`)
	if _, _, code := s.do(t, "policy", "explain", "01a206f8-fefb-70ff-b5b3-526bbdbeae57"); code != exitNotFound {
		t.Errorf("an unknown decision: exit code %d", code)
	}
	// What is refused does not hold up the rest.
	in.in = manifestText + "---\n{kind: Service, name: nobody}\n---\n{kind: Service, name: noone}\n"
	out, told, code := in.do(t, "apply", "-f", "-")
	if code != exitDenied {
		t.Errorf("exit code %d", code)
	}
	contains(t, out, "instance/cart/i1 configured")
	// Each refusal is followed by its own reason.
	_, told, _ = strings.Cut(told, "service/nobody refused (-, document ")
	first, second, _ := strings.Cut(told, "service/noone refused (-, document ")
	contains(t, first, "reason: owner is missing")
	contains(t, second, "reason: owner is missing")

	in.in = "action: lookup\nprincipal: {kind: anonymous}\n"
	contains(t, in.ok(t, "policy", "eval", "-i", "-"), `"allow": false`)
	in.in = "kind: Policy\nspec: {modules: {open.rego: \"package api.registry.authz\\n\\nallow := true\\n\"}, note: open}\n"
	contains(t, in.ok(t, "apply", "-f", "-"), "policy/2 active")
	if out := in.ok(t, "diff", "-f", "-"); out != "" {
		t.Errorf("diff of the active policy: %s", out)
	}
	contains(t, s.ok(t, "policy", "rollback"), "1", "active")
	s.ok(t, "apply", "-f", manifest)
}

func snapshots(t *testing.T, s shell) {
	file := filepath.Join(t.TempDir(), "backup")
	contains(t, s.ok(t, "snapshot", "save", file), file, "services", "policy revision")
	contains(t, s.ok(t, "snapshot", "inspect", file, "-o", "json"), `"cluster_id"`)
	contains(t, s.ok(t, "snapshot", "verify", file), "is whole", "state ")
	if out := s.ok(t, "snapshot", "diff", file); out != "" {
		t.Errorf("a cluster that nobody has changed differs from its snapshot: %s", out)
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	identity, sealed := write(t, "key", key.String()), filepath.Join(t.TempDir(), "sealed")
	s.ok(t, "snapshot", "save", sealed, "--recipient", key.Recipient().String())
	if out := s.ok(t, "snapshot", "diff", file, sealed, "--identity", identity); out != "" {
		t.Errorf("an encrypted snapshot differs: %s", out)
	}
	contains(t, s.ok(t, "snapshot", "verify", sealed, "--identity", identity), "is whole")
	for _, verb := range []string{"verify", "inspect", "restore"} {
		if _, err, code := s.do(t, "snapshot", verb, sealed); code != exitError || !strings.Contains(err, "--identity") {
			t.Errorf("%s without its key: exit code %d: %s", verb, code, err)
		}
	}
	if _, _, code := s.do(t, "snapshot", "save", sealed, "--recipient", "age1"); code != exitUsage {
		t.Errorf("no key: exit code %d", code)
	}
	s.ok(t, "delete", "service", "cart", "-n", "shop")
	out, told, code := s.do(t, "snapshot", "diff", file)
	if code != 1 {
		t.Errorf("diff with the cluster after a change: exit code %d", code)
	}
	contains(t, out, "- service", "shop/cart", "- version", "shop/cart/1.0.0", "- instance", "shop/cart/i1")
	contains(t, told, "service: 0 added, 1 removed, 0 changed")
	contains(t, s.ok(t, "snapshot", "restore", file, "--dry-run", "--force"), "dry_run", `"service":{"added":1,"removed":0,"changed":0}`)
	if _, _, code := s.do(t, "get", "service", "cart", "-n", "shop", "--consistency", "linearizable"); code != exitNotFound {
		t.Errorf("after a dry run: exit code %d", code)
	}
	if _, err, code := s.do(t, "snapshot", "restore", file); code != exitConflict || !strings.Contains(err, "force") {
		t.Errorf("over data, without --force: exit code %d: %s", code, err)
	}
	var done struct {
		Saved string `json:"saved"`
	}
	if err := json.Unmarshal([]byte(s.ok(t, "snapshot", "restore", sealed, "--identity", identity, "--force", "-o", "json")), &done); err != nil || done.Saved == "" {
		t.Fatalf("where the state before the restore is: %+v, %v", done, err)
	}
	if out, _, code := s.do(t, "snapshot", "diff", done.Saved, file); code != 1 || !strings.Contains(out, "+ service") {
		t.Errorf("the state before the restore against the snapshot: exit code %d: %s", code, out)
	}
	if out := s.ok(t, "snapshot", "diff", file); out != "" {
		t.Errorf("restored and not the same: %s", out)
	}
	contains(t, s.ok(t, "discover", "cart", "-n", "shop", "--consistency", "linearizable"), "10.0.0.1")

	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	damaged := write(t, "damaged", string(b))
	for _, verb := range []string{"verify", "inspect", "restore"} {
		if _, err, code := s.do(t, "snapshot", verb, damaged); code != exitError || !strings.Contains(err, "invalid_snapshot") {
			t.Errorf("%s: exit code %d: %s", verb, code, err)
		}
	}
}

func death(t *testing.T, d *devCluster, s shell) {
	leader := func() (id string) {
		eventually(t, time.Minute, func() error {
			out, errText, code := s.do(t, "cluster", "status", "-o", "json")
			var v struct {
				Leader string `json:"leader"`
			}
			if err := json.Unmarshal([]byte(out), &v); code != exitDone || err != nil || v.Leader == "" {
				return errors.New("nobody leads: " + errText)
			}
			id = v.Leader
			return nil
		})
		return id
	}
	dead := d.node(leader())
	if err := syscall.Kill(dead.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	in := s
	in.in = `{"kind":"Instance","namespace":"shop","name":"i2","spec":{"service":"cart","address":"10.0.0.2","port":80,"ttl":"10m"}}`
	contains(t, in.ok(t, "apply", "-f", "-"), "instance/cart/i2 created")
	at := shell{env: map[string]string{"MUSTER_ADDR": dead.Control, "MUSTER_CACERT": d.CA, "MUSTER_TOKEN": d.OperatorToken}}
	if _, _, code := at.do(t, "health", "--timeout", "500ms"); code != exitUnavailable {
		t.Errorf("health of a dead node: exit code %d", code)
	}

	only := exec.Command(os.Args[0], "dev", "--dir", d.dir, "--only", dead.ID)
	only.Stdout, only.Stderr = io.Discard, io.Discard
	if err := only.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- only.Wait() }()
	t.Cleanup(func() {
		_ = only.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	eventually(t, time.Minute, func() error {
		if _, err, code := at.do(t, "health", "--timeout", "5s"); code != exitDone {
			return errors.New(err)
		}
		return nil
	})
	d.read(t)
	if pid := d.node(dead.ID).PID; pid != only.Process.Pid {
		t.Errorf("cluster.json says %d, the process is %d", pid, only.Process.Pid)
	}
	contains(t, at.ok(t, "discover", "cart", "-n", "shop"), "10.0.0.1", "10.0.0.2")
}

func TestDevRefusesWhatCannotBe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	dir := filepath.Join(t.TempDir(), "dev")
	_, text, code := shell{}.do(t, "dev", "--dir", dir, "--port-base", strconv.Itoa(port))
	if code != exitError {
		t.Errorf("exit code %d", code)
	}
	contains(t, text, "port "+strconv.Itoa(port)+" (control of n1) cannot be used")
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was made: %v", err)
	}
	for args, want := range map[string]string{
		"--nodes 20": "1 to 9 nodes", "--port-base 65530": "out of range", "--only n1": "holds no cluster",
	} {
		_, text, code := shell{}.do(t, append([]string{"dev", "--dir", dir}, strings.Fields(args)...)...)
		if code != exitError || !strings.Contains(text, want) {
			t.Errorf("muster dev %s: exit code %d: %s", args, code, text)
		}
	}
}

// TestOneNodeIsAClusterToo also shows that the folder's size stays.
func TestOneNodeIsAClusterToo(t *testing.T) {
	d := startDev(t, filepath.Join(t.TempDir(), "dev"), "--nodes", "1", "--port-base", "0")
	if len(d.Nodes) != 1 {
		t.Fatalf("%d nodes", len(d.Nodes))
	}
	c, err := client.New(client.Config{Addresses: []string{d.Nodes[0].Control}, CACert: d.CA, Token: d.OperatorToken, Session: true})
	if err != nil {
		t.Fatal(err)
	}
	r := client.Ref{Kind: client.Service, Namespace: "default", Name: "cart"}
	rec, err := c.Put(context.Background(), r, []byte(`{"owner":"a"}`), client.Write{CreateOnly: true})
	if err != nil || !rec.Created {
		t.Fatalf("%+v, %v", rec, err)
	}
	if _, err := c.Put(context.Background(), r, []byte(`{}`), client.Write{IfRevision: rec.Revision + 1}); !fault.Is(err, fault.RevisionMismatch) {
		t.Errorf("got %v", err)
	}
	d.stop(t)
	_, text, code := shell{}.do(t, "dev", "--dir", d.dir, "--nodes", "3")
	if code != exitError || !strings.Contains(text, "holds a cluster of 1 nodes") {
		t.Errorf("exit code %d: %s", code, text)
	}
}
