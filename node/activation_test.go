package node_test

import (
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

// relay passes connections on to an address, and holds up what is on the way
// while it is frozen.
type relay struct {
	net.Listener
	to string

	mu    sync.Mutex // guards what follows
	open  chan struct{}
	conns []net.Conn
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r := &relay{Listener: l, to: to, open: make(chan struct{})}
	close(r.open)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { r.pass(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.thaw()
		r.mu.Lock()
		for _, c := range r.conns {
			_ = c.Close()
		}
		r.mu.Unlock()
		all.Wait()
	})
	return r
}

func (r *relay) pass(c net.Conn) {
	defer c.Close()
	on, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer on.Close()
	r.mu.Lock()
	r.conns = append(r.conns, c, on)
	r.mu.Unlock()
	go func() {
		_, _ = io.Copy(c, on)
		_ = c.Close()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		r.mu.Lock()
		open := r.open
		r.mu.Unlock()
		<-open
		if n > 0 {
			if _, err := on.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *relay) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = make(chan struct{})
}

func (r *relay) thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.open:
	default:
		close(r.open)
	}
}

// TestActivationWaitsForALivingVoter: gossip takes a node for alive, and nothing
// reaches its peer port. What it has not compiled is not activated, and the
// refusal names it; a rollback does not wait for it.
func TestActivationWaitsForALivingVoter(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	const silent = 2
	n := tr.nodes[silent]
	way := newRelay(t, n.peer)
	config, err := os.ReadFile(n.config)
	must(t, err)
	must(t, os.WriteFile(n.config, append(config, "advertise: {peer: \""+way.Addr().String()+"\"}\n"...), 0o600))
	tr.nodes[0].unlike.Patience = 4 * time.Second
	tr.startAll()
	ctx := t.Context()
	c, err := client.New(client.Config{Addresses: []string{tr.nodes[0].control}, CACert: tr.file("ca.crt"), Token: tr.token, Timeout: 2 * time.Minute})
	must(t, err)
	t.Cleanup(c.Close)
	first, err := c.Push(ctx, lookups("allow := true"), true)
	must(t, err)
	_, err = c.Push(ctx, lookups("allow := 1 == 1"), true)
	must(t, err)
	third, err := c.Push(ctx, lookups("allow := 2 == 2"), false)
	must(t, err)
	tr.eventually("another node leads", func() error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		var status struct {
			Leader string `json:"leader"`
		}
		must(t, json.Unmarshal(s, &status))
		if status.Leader == n.id {
			return c.TransferLeader(ctx, tr.nodes[0].id)
		}
		return nil
	})

	way.freeze()
	_, err = c.Activate(ctx, number(t, third))
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), n.id) {
		t.Errorf("activated without a living voter: %v", err)
	}
	if active := tr.active(0); active != 2 {
		t.Errorf("after the refusal policy revision %d is active", active)
	}
	// The policy port says the same at once: no other change came first.
	if a := portOf(t, tr).ask(0, "PUT", "/v1/policies/more.rego", "package more\n\nx := 1\n"); a.status < 400 || !strings.Contains(a.body, n.id) {
		t.Errorf("changed without a living voter: %d %s", a.status, a.body)
	}
	fifth, err := c.Push(ctx, lookups("allow := 3 == 3"), false)
	must(t, err)
	if staged := number(t, fifth) - number(t, third); staged != 2 {
		t.Errorf("a change that was refused staged %d revisions, want 1", staged-1)
	}
	// It is made, and what cannot be told is whether the silent node has it.
	_, err = c.Rollback(ctx)
	if !fault.Is(err, fault.NotReady) || fault.From(err).Outcome != fault.Unknown || !strings.Contains(err.Error(), n.id) {
		t.Errorf("a rollback that a living node has not heard of: %v", err)
	}
	if active := tr.active(0); active != number(t, first) {
		t.Errorf("after the rollback policy revision %d is active", active)
	}
	way.thaw()
	tr.eventually("it is activated when the node answers", func() error {
		_, err := c.Activate(ctx, number(t, third))
		return err
	})
	for i := range tr.nodes {
		if active := tr.active(i); active != number(t, third) {
			t.Errorf("policy revision %d is active on node %d", active, i+1)
		}
	}
}
