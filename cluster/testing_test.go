package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"google.golang.org/protobuf/proto"
)

// node is one node under test. It can be stopped like a crash and started
// again on the same disk.
type node struct {
	*Cluster
	kv  *kv
	cfg Config
}

// lab holds the nodes of one test and the wires between them.
type lab struct {
	t        testing.TB
	ca       *ca
	nodes    map[string]*node
	seeds    []string
	log      *slog.Logger
	tune     func(*Config)
	wired    bool           // wires can be cut although tune is set
	nameless bool           // its disks have no identity, as those of older versions
	disks    map[string]*kv // machines that keep their state over a restart, by data directory

	mu   sync.Mutex // guards what follows
	cuts map[string]bool
	heal chan struct{}
	at   map[string]string // address -> id
}

var testKey = []byte("0123456789abcdef0123456789abcdef")

func newLab(t testing.TB) *lab {
	level := slog.LevelError + 4
	if os.Getenv("MUSTER_TEST_LOG") != "" {
		level = slog.LevelInfo
	}
	return &lab{t: t, ca: newCA(t), nodes: map[string]*node{}, cuts: map[string]bool{}, heal: make(chan struct{}), at: map[string]string{},
		log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))}
}

// config describes a new node; start makes it run.
func (l *lab) config(id string, expect int) Config {
	cert := l.ca.issue(l.t, "/muster/node/"+id)
	cfg := Config{
		NodeID: id, DataDir: l.t.TempDir(), PeerAddr: freePort(l.t), GossipAddr: freePort(l.t),
		GossipKey: testKey, Join: l.seeds, BootstrapExpect: expect, TrustDomain: "muster.test", Logger: l.log,
		Credentials: func() (*tls.Certificate, *x509.CertPool) { return cert, l.ca.pool },
		Meta:        map[string]string{"control": "https://" + id},
		StatusExtra: func() []byte { return []byte(`{"of":"` + id + `"}`) },
		Dial:        func(ctx context.Context, network, address string) (net.Conn, error) { return l.dial(ctx, id, address) },
		Membership:  Membership{Stabilization: time.Second},
	}
	l.mu.Lock()
	l.at[cfg.PeerAddr] = id
	l.mu.Unlock()
	if l.tune != nil {
		l.tune(&cfg)
	}
	return cfg
}

func (l *lab) start(cfg Config) *node {
	l.t.Helper()
	n := &node{kv: l.disks[cfg.DataDir], cfg: cfg}
	if n.kv == nil {
		n.kv = newKV()
	}
	var err error
	n.Cluster, err = Open(cfg, n.kv)
	must(l.t, err)
	if l.nameless {
		n.disk = ""
	}
	n.Handle("put", true, func(ctx context.Context, _ string, payload []byte) ([]byte, error) {
		r, err := n.Propose(ctx, put(string(payload), "of "+string(payload)))
		if err != nil {
			return nil, err
		}
		return proto.Marshal(r)
	})
	n.Handle("relay", false, func(ctx context.Context, _ string, payload []byte) ([]byte, error) {
		return n.Call(ctx, "put", payload)
	})
	must(l.t, n.Start(l.t.Context()))
	l.nodes[cfg.NodeID] = n
	l.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if !n.stopping.Load() {
			if err := n.Halt(ctx); err != nil {
				l.t.Errorf("%s did not stop: %v", cfg.NodeID, err)
			}
		}
	})
	return n
}

// form starts n nodes that expect each other and waits until all are ready.
func (l *lab) form(n int) []*node {
	l.t.Helper()
	var cfgs []Config
	for i := range n {
		cfgs = append(cfgs, l.config(fmt.Sprintf("n%d", i+1), n))
		l.seeds = append(l.seeds, cfgs[i].GossipAddr)
	}
	var nodes []*node
	for _, cfg := range cfgs {
		cfg.Join = l.seeds
		nodes = append(nodes, l.start(cfg))
	}
	for _, n := range nodes {
		l.ready(n)
	}
	return nodes
}

func (l *lab) ready(n *node) {
	l.t.Helper()
	l.eventually(n.ID()+" is ready", func() error { return n.Ready() })
}

// crash stops a node without a word to the others.
func (l *lab) crash(n *node) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	must(l.t, n.Halt(ctx))
}

// leader waits until one of the nodes leads.
func (l *lab) leader(among ...*node) *node {
	l.t.Helper()
	var found *node
	l.eventually("a leader", func() error {
		i := slices.IndexFunc(among, func(n *node) bool { return !n.stopping.Load() && n.IsLeader() })
		if i < 0 {
			return fmt.Errorf("none of %d leads", len(among))
		}
		found = among[i]
		return nil
	})
	return found
}

func (l *lab) eventually(what string, check func() error) {
	l.t.Helper()
	var err error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	l.t.Fatalf("never: %s: %v", what, err)
}

// isolate cuts a node off from all others, both ways; join heals everything.
func (l *lab) isolate(n *node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.nodes {
		if id != n.ID() {
			l.cuts[id+">"+n.ID()], l.cuts[n.ID()+">"+id] = true, true
		}
	}
}

// deaf lets a node send, and lose all answers; join heals it.
func (l *lab) deaf(n *node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.nodes {
		l.cuts[n.ID()+"<"+id] = true
	}
}

func (l *lab) join() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cuts = map[string]bool{}
	close(l.heal)
	l.heal = make(chan struct{})
}

// pass waits while one of the wires is cut.
func (l *lab) pass(ctx context.Context, wires ...string) error {
	for {
		l.mu.Lock()
		cut, heal := slices.ContainsFunc(wires, func(wire string) bool { return l.cuts[wire] }), l.heal
		l.mu.Unlock()
		if !cut {
			return nil
		}
		select {
		case <-heal:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// dial connects through a wire that holds all bytes back while it is cut, as
// a network that drops packets does to TCP.
func (l *lab) dial(ctx context.Context, from, address string) (net.Conn, error) {
	l.mu.Lock()
	wire, answers := from+">"+l.at[address], from+"<"+l.at[address]
	l.mu.Unlock()
	if err := l.pass(ctx, wire); err != nil {
		return nil, err
	}
	real, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if l.tune != nil && !l.wired { // benchmarks: no wire
		return real, nil
	}
	near, far := net.Pipe()
	life, end := context.WithCancel(l.t.Context())
	pump := func(to, from net.Conn, wires ...string) {
		defer end()
		defer to.Close()
		defer from.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil || l.pass(life, wires...) != nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go pump(real, far, wire)
	go pump(far, real, wire, answers)
	return near, nil
}

func put(name, spec string) *command.Command {
	return &command.Command{Op: &command.Command_Put{Put: &command.Put{Kind: command.Kind_SERVICE, Name: name, Spec: []byte(spec)}}}
}

// lastPort is where freePort goes on from. Its ports lie below those that the
// system gives to outgoing connections, one of which could take a stopped
// node's place; those of package node lie elsewhere.
var lastPort atomic.Uint32

func init() { lastPort.Store(rand.Uint32N(10_000)) }

func freePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 10_000+lastPort.Add(1)%10_000)
		ln, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		ln.Close()
		return address
	}
	t.Fatal("no port is free")
	return ""
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantFault checks code and outcome, and that the refusal took less than the limit.
func wantFault(t testing.TB, err error, code fault.Code, outcome fault.Outcome, began time.Time, limit time.Duration) {
	t.Helper()
	if e := fault.From(err); err == nil || e.Code != code || e.Outcome != outcome {
		t.Fatalf("got %v, want %s, outcome %d", err, code, outcome)
	}
	limit *= 5 // the test is of what is answered; how soon, jepsen measures
	if took := time.Since(began); took > limit {
		t.Fatalf("the refusal took %s, at most %s are allowed: %v", took, limit, err)
	}
}

func others(nodes []*node, not *node) []*node {
	return slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return n == not })
}

// seated waits until all members' disks are noted.
func (l *lab) seated(n *node) {
	l.t.Helper()
	l.eventually("all disks are noted", func() error {
		for _, s := range n.configuration() {
			if _, disk := placed(s.Address); disk == "" {
				return fmt.Errorf("%s at %s", s.ID, s.Address)
			}
		}
		if n.machine.Level() != command.Format {
			return fmt.Errorf("level %d", n.machine.Level())
		}
		return nil
	})
}

func (l *lab) voters(n *node, want int) {
	l.t.Helper()
	l.eventually(fmt.Sprintf("%d voters", want), func() error {
		if got := n.voters(); got != want {
			return fmt.Errorf("%d: %s", got, roles(n))
		}
		return nil
	})
}
