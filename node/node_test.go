package node_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/node"
	"github.com/muster-registry/muster/pki"
)

// trial is a cluster of real nodes in this process, on loopback.
type trial struct {
	t     *testing.T
	dir   string
	ca    *pki.Pair
	nodes []*running
	token string
}

type running struct {
	id, config, control, policy string
	metrics, peer               string
	unlike                      node.Unlike
	stop                        context.CancelFunc
	done                        chan error
}

const operatorToken = "muster-test-operator-token-0123456789abcdef"

// newTrial prepares n nodes; none runs yet.
func newTrial(t *testing.T, n int) *trial {
	t.Helper()
	tr := &trial{t: t, dir: t.TempDir(), token: operatorToken}
	var err error
	if tr.ca, err = pki.NewCA("muster", pki.ECDSA, time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	must(t, tr.ca.Write(tr.file("ca.crt"), tr.file("ca.key")))
	must(t, os.WriteFile(tr.file("gossip.key"), []byte(base64.StdEncoding.EncodeToString(make([]byte, 32))), 0o600))
	must(t, os.WriteFile(tr.file("operator.token"), []byte(operatorToken), 0o600))
	ports := freePorts(t, 5*n)
	var join []string
	for i := range n {
		join = append(join, ports[5*i+3])
	}
	for i := range n {
		id := fmt.Sprintf("n%d", i+1)
		cert, err := tr.ca.Issue("muster", pki.Request{Node: id, Hosts: []string{"127.0.0.1"}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		must(t, cert.Write(tr.file(id+".crt"), tr.file(id+".key")))
		config := fmt.Sprintf(`
node_id: %[1]s
data_dir: %[1]s
cluster: {bootstrap_expect: %[2]d, join: [%[3]s]}
listen: {control: %[4]q, metrics: %[5]q, peer: %[6]q, gossip: %[7]q, policy: %[8]q}
tls: {ca: ca.crt, cert: %[1]s.crt, key: %[1]s.key}
gossip_key_file: gossip.key
operator_token_file: operator.token
`, id, n, strings.Join(join, ", "), ports[5*i], ports[5*i+1], ports[5*i+2], ports[5*i+3], ports[5*i+4])
		must(t, os.WriteFile(tr.file(id+".yaml"), []byte(config), 0o600))
		tr.nodes = append(tr.nodes, &running{id: id, config: tr.file(id + ".yaml"), control: "https://" + ports[5*i], metrics: "http://" + ports[5*i+1], peer: ports[5*i+2], policy: "https://" + ports[5*i+4]})
	}
	t.Cleanup(func() {
		for i := range tr.nodes {
			tr.stop(i)
		}
	})
	return tr
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (tr *trial) file(name string) string { return filepath.Join(tr.dir, name) }

// lastPort is where freePorts goes on from. Its ports lie below those that the
// system gives to outgoing connections, one of which could take a stopped
// node's place; those of package cluster lie elsewhere.
var lastPort atomic.Uint32

func init() { lastPort.Store(rand.Uint32N(10_000)) }

func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var out []string
	for tried := 0; len(out) < n; tried++ {
		if tried == 1000 {
			t.Fatal("too few ports are free")
		}
		address := fmt.Sprintf("127.0.0.1:%d", 20_000+lastPort.Add(1)%10_000)
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		l.Close()
		out = append(out, address)
	}
	return out
}

// patient gives what a test leaves at its default the time of a machine on which
// many nodes run at once, under the race detector. jepsen holds the defaults.
func patient(cfg *node.Config) {
	usual := node.Defaults()
	if cfg.Limits.Evaluation == usual.Limits.Evaluation {
		cfg.Limits.Evaluation = 2 * time.Second
	}
	if cfg.Raft.DiskStall == usual.Raft.DiskStall {
		cfg.Raft.DiskStall = 20 * time.Second
	}
	if cfg.Raft.HeartbeatTimeout == usual.Raft.HeartbeatTimeout {
		cfg.Raft.HeartbeatTimeout, cfg.Raft.ElectionTimeout, cfg.Raft.LeaderLease = 1500*time.Millisecond, 1500*time.Millisecond, 1500*time.Millisecond
	}
}

func (tr *trial) start(i int) {
	tr.t.Helper()
	n := tr.nodes[i]
	cfg, err := node.Load(n.config, func(string) string { return "" })
	must(tr.t, err)
	patient(cfg)
	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.done = stop, make(chan error, 1)
	logs, err := os.OpenFile(tr.file(n.id+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	must(tr.t, err)
	cfg.Stdout, cfg.Stderr = logs, logs
	var level slog.Level
	must(tr.t, level.UnmarshalText([]byte(cfg.Log.Level)))
	go func() {
		defer logs.Close()
		n.done <- node.RunUnlike(ctx, cfg, "test", slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: level})), n.unlike)
	}()
}

func (tr *trial) startAll() {
	for i := range tr.nodes {
		tr.start(i)
	}
	for i := range tr.nodes {
		tr.awaitReady(i)
	}
}

func (tr *trial) stop(i int) {
	n := tr.nodes[i]
	if n.stop == nil {
		return
	}
	n.stop()
	if err := n.end(); err != nil {
		tr.t.Errorf("node %s: %v", n.id, err)
	}
	n.stop = nil
}

// end waits for the end of a node, and gives what it ended with. One that does
// not end shows where it hangs.
func (n *running) end() error {
	select {
	case err := <-n.done:
		return err
	case <-time.After(2 * time.Minute):
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		return errors.New("it has not ended after two minutes")
	}
}

func (tr *trial) client(token string, nodes ...int) *client.Client {
	tr.t.Helper()
	var addresses []string
	for _, i := range nodes {
		addresses = append(addresses, tr.nodes[i].control)
	}
	c, err := client.New(client.Config{Addresses: addresses, CACert: tr.file("ca.crt"), Token: token})
	must(tr.t, err)
	tr.t.Cleanup(c.Close)
	return c
}

func (tr *trial) awaitReady(i int) {
	tr.t.Helper()
	c := tr.client("", i)
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := c.Ready(context.Background())
		if err == nil {
			return
		}
		select {
		case err := <-tr.nodes[i].done:
			tr.nodes[i].stop = nil
			tr.t.Fatalf("node %s ended: %v", tr.nodes[i].id, err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			tr.logs()
			tr.t.Fatalf("node %s is not ready: %v", tr.nodes[i].id, err)
		}
	}
}

func (tr *trial) logs() {
	for _, n := range tr.nodes {
		b, _ := os.ReadFile(tr.file(n.id + ".log"))
		tr.t.Logf("%s:\n%s", n.id, b)
	}
}

var cart = client.Ref{Kind: client.Service, Namespace: "default", Name: "cart"}

func instanceRef(id string) client.Ref {
	return client.Ref{Kind: client.Instance, Namespace: "default", Service: "cart", Name: id}
}

// The shortest way through the whole: register through one node, find through
// another, be refused with a reason, survive a restart of all.
func TestRegisterFindRefuseRestart(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	ctx := context.Background()
	one, three := tr.client(tr.token, 0), tr.client(tr.token, 2)

	rec, err := one.Put(ctx, cart, []byte(`{"protocol":"rest","owner":"shop"}`), client.Write{})
	must(t, err)
	if !rec.Created {
		t.Error("a new service was not reported as created")
	}
	rec, err = one.Put(ctx, instanceRef("i1"), []byte(`{"address":"10.0.0.1","port":80}`), client.Write{})
	must(t, err)
	if _, err := three.Get(ctx, cart, client.Read{MinRevision: rec.Revision}); err != nil {
		t.Errorf("read your writes through another node: %v", err)
	}
	found, err := three.Discover(ctx, "default", "cart", client.Filter{})
	must(t, err)
	if len(found.Instances) != 1 || found.Instances[0].Address != "10.0.0.1" {
		t.Errorf("discovered %+v", found)
	}
	must(t, three.Heartbeat(ctx, instanceRef("i1")))
	if err := three.Heartbeat(ctx, instanceRef("nobody")); client.Code(err) != fault.InstanceNotFound {
		t.Errorf("heartbeat of an unknown instance: %v", err)
	}

	const refusing = `{"modules":{"w.rego":"package api.registry.authz\n\nimport rego.v1\n\ndefault allow := true\n\ndeny contains \"owner is missing\" if input.resource.payload.owner == \"\"\n"}}`
	if _, err := three.Push(ctx, []byte(refusing), true); err != nil {
		t.Fatal(err)
	}
	for i := range tr.nodes {
		_, err := tr.client(tr.token, i).Put(ctx, client.Ref{Kind: client.Service, Namespace: "default", Name: "nameless"}, []byte(`{"protocol":"rest"}`), client.Write{})
		var f *fault.Error
		if !errors.As(err, &f) || f.Code != fault.PolicyDenied || len(f.Reasons) != 1 || f.Reasons[0] != "owner is missing" || f.DecisionID == "" || f.PolicyRevision != 1 {
			t.Errorf("through node %d: %v %+v", i+1, err, f)
		}
	}

	for i := range tr.nodes {
		tr.stop(i)
	}
	for i := range tr.nodes {
		tr.start(i)
	}
	for i := range tr.nodes {
		tr.awaitReady(i)
		found, err := tr.client(tr.token, i).Discover(ctx, "default", "cart", client.Filter{})
		if err != nil || len(found.Instances) != 1 {
			t.Errorf("node %d after a restart of all: %+v, %v", i+1, found, err)
		}
	}
}
