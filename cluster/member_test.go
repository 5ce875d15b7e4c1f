package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/fault"
)

func roles(n *node) string {
	out := ""
	for _, m := range n.Members() {
		role := m.Role
		if role == "leader" {
			role = "voter"
		}
		out += m.ID + " " + role + " at " + m.Address + "; "
	}
	return out
}

// A fourth node comes in without a vote, catches up, and then votes. It can
// be removed again, and does not come back by itself.
func TestJoinAndRemove(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	for i := range 50 {
		_, err := nodes[0].Call(within(t, 30*time.Second), "put", fmt.Append(nil, "key ", i))
		must(t, err)
	}
	n4 := l.start(l.config("n4", 3))
	leader := l.leader(nodes...)
	sawWaiting := false
	l.eventually("n4 votes", func() error {
		for _, m := range leader.Members() {
			if m.ID == "n4" {
				sawWaiting = sawWaiting || m.Role == "non-voter"
				if m.Role == "voter" {
					return nil
				}
			}
		}
		return fmt.Errorf("members %s", roles(leader))
	})
	if !sawWaiting {
		t.Error("n4 was never a non-voter")
	}
	l.ready(n4)
	if n4.kv.get("key 49") == "" || n4.kv.ClusterID() != leader.kv.ClusterID() {
		t.Error("n4 is ready without the cluster's state")
	}
	began := time.Now()
	wantFault(t, n4.Remove(t.Context(), "n9"), fault.NotFound, fault.Definite, began, 2*time.Second)
	must(t, nodes[0].Remove(within(t, 30*time.Second), "n4"))
	// Its certificate is still good, but it speaks for nobody any more.
	leads := l.leader(nodes...)
	_, err := n4.peers.call(within(t, 30*time.Second), leads.ID(), leads.Address(), "put", []byte("after"), 1)
	wantFault(t, err, fault.Conflict, fault.Definite, time.Now(), 5*time.Second)
	// Nor does any other node do what it says, as soon as that has heard of it.
	for _, n := range nodes {
		l.eventually(n.ID()+" has heard that n4 was removed", func() error {
			if n.member("n4") != "" {
				return errors.New("it has not")
			}
			return nil
		})
		_, err := n4.peers.call(within(t, 30*time.Second), n.ID(), n.Address(), "relay", []byte("after"), 0)
		wantFault(t, err, fault.Conflict, fault.Definite, time.Now(), 5*time.Second)
	}
	began = time.Now()
	wantFault(t, n4.ReadIndex(t.Context()), fault.Conflict, fault.Definite, began, 2*time.Second)
	l.crash(n4)
	n4 = l.start(n4.cfg)
	l.eventually("n4 says why it is in no cluster", func() error {
		if tr := n4.trouble.Load(); tr == nil || !fault.Is(tr, fault.Conflict) {
			return fmt.Errorf("ready says: %v", n4.Ready())
		}
		return nil
	})
	if n4.Ready() == nil || nodes[0].member("n4") != "" {
		t.Errorf("a removed node came back: ready %v, members %s", n4.Ready(), roles(nodes[0]))
	}
}

// The leader itself can be removed: it hands over first.
func TestRemoveLeader(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	leader := l.leader(nodes...)
	must(t, leader.Remove(within(t, 10*time.Second), leader.ID()))
	for _, n := range nodes {
		if n != leader {
			_, err := n.Call(within(t, 30*time.Second), "put", []byte("after"))
			must(t, err)
			if n.member(leader.ID()) != "" {
				t.Errorf("%s is still a member on %s", leader.ID(), n.ID())
			}
		}
	}
}

func TestTransferLeader(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	for _, to := range nodes {
		must(t, nodes[0].TransferLeader(within(t, 10*time.Second), to.ID()))
		if got := l.leader(nodes...); got != to {
			t.Errorf("%s leads, it was handed to %s", got.ID(), to.ID())
		}
		_, err := nodes[1].Call(within(t, 30*time.Second), "put", []byte("x"))
		must(t, err)
	}
	began := time.Now()
	wantFault(t, nodes[0].TransferLeader(t.Context(), "n9"), fault.NotFound, fault.Definite, began, 2*time.Second)
}

// Bad input 19: an id used twice, a node of another cluster: 409, and nothing
// has changed.
func TestJoinRefused(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	leader := l.leader(nodes...)
	before := roles(leader)

	twin := l.config("n2", 3) // n2 lives elsewhere already
	other := newLab(t)
	other.ca = l.ca
	far := other.form(1)[0] // another cluster under the same CA and key
	other.crash(far)
	l.disks = map[string]*kv{far.cfg.DataDir: far.kv}
	stranger := far.cfg
	stranger.Join = l.seeds
	stranger.NodeID = "n9"
	cert := l.ca.issue(t, "/muster/node/n9")
	stranger.Credentials = func() (*tls.Certificate, *x509.CertPool) { return cert, l.ca.pool }
	state := far.kv.ClusterID()
	// The data of n1 is nobody else's: n9 could vote with it a second time.
	if _, err := Open(stranger, far.kv); !fault.Is(err, fault.Conflict) {
		t.Errorf("n9 on the data of n1: %v", err)
	}
	must(t, os.Remove(filepath.Join(stranger.DataDir, "raft", idFile)))

	t.Run("an id used twice", func(t *testing.T) {
		n := l.start(twin)
		l.eventually("n2's twin is told", func() error {
			if tr := n.trouble.Load(); tr == nil || !fault.Is(tr, fault.Conflict) {
				return fmt.Errorf("%v", tr)
			}
			return nil
		})
		if n.Ready() == nil || n.hasState() {
			t.Errorf("the twin is ready (%v) or has state (%v)", n.Ready(), n.hasState())
		}
		l.crash(n)
		l.nodes["n2"] = nodes[1]
	})
	t.Run("a node of another cluster", func(t *testing.T) {
		n := l.start(stranger)
		l.eventually("the stranger sees that it has strayed", func() error {
			if tr := n.trouble.Load(); tr == nil || !fault.Is(tr, fault.Conflict) {
				return fmt.Errorf("%v", tr)
			}
			return nil
		})
		// Asked outright, the leader says the same.
		ask, err := proto.Marshal(&wire.Join{Id: "n9", Instance: "i", ClusterId: state, HasState: true, Address: n.Address()})
		must(t, err)
		began := time.Now()
		_, err = n.peers.call(within(t, 2*time.Second), leader.ID(), leader.Address(), methodJoin, ask, 0)
		wantFault(t, err, fault.Conflict, fault.Definite, began, 2*time.Second)
		// And no other call of a foreign node is answered.
		began = time.Now()
		_, err = n.peers.call(within(t, 2*time.Second), leader.ID(), leader.Address(), "put", []byte("x"), 1)
		wantFault(t, err, fault.Conflict, fault.Definite, began, 2*time.Second)
	})
	if after := roles(leader); after != before {
		t.Errorf("the members changed from %s to %s", before, after)
	}
	_, err := nodes[0].Call(within(t, 30*time.Second), "put", []byte("after"))
	must(t, err)
}

// A node may not join under a name that is not in its certificate.
func TestJoinAsAnother(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	leader := l.leader(nodes...)
	for _, n := range nodes {
		if n == leader {
			continue
		}
		ask, err := proto.Marshal(&wire.Join{Id: "n9", Instance: "i", Address: "127.0.0.1:1"})
		must(t, err)
		began := time.Now()
		_, err = n.Call(within(t, 2*time.Second), methodJoin, ask)
		wantFault(t, err, fault.Forbidden, fault.Definite, began, 2*time.Second)
	}
}

// Identity is apart from address: one node, then all of them at once, come
// back at other addresses and are the same cluster.
func TestAddressesChange(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	_, err := nodes[0].Call(within(t, 30*time.Second), "put", []byte("before"))
	must(t, err)
	move := func(n *node) Config {
		cfg := n.cfg
		moved := l.config(cfg.NodeID, 3)
		cfg.PeerAddr, cfg.GossipAddr, cfg.Join = moved.PeerAddr, moved.GossipAddr, l.seeds
		return cfg
	}
	l.crash(nodes[2])
	nodes[2] = l.start(move(nodes[2]))
	l.ready(nodes[2])
	listed := func() error {
		leader := l.leader(nodes...)
		for _, n := range nodes {
			if at := leader.member(n.ID()); at != n.Address() {
				return fmt.Errorf("%s is listed at %s and is at %s", n.ID(), at, n.Address())
			}
		}
		return nil
	}
	l.eventually("the new address is listed", listed)

	var cfgs []Config
	l.seeds = nil
	for _, n := range nodes {
		l.crash(n)
		cfgs = append(cfgs, move(n))
		l.seeds = append(l.seeds, cfgs[len(cfgs)-1].GossipAddr)
	}
	for i, cfg := range cfgs {
		cfg.Join = l.seeds
		nodes[i] = l.start(cfg)
	}
	for _, n := range nodes {
		l.ready(n)
		if n.kv.get("before") == "" {
			t.Errorf("%s lost a write", n.ID())
		}
	}
	l.eventually("all new addresses are listed", listed)
}

// A follower far behind is brought up by a snapshot.
func TestSnapshotCatchUp(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	leader := l.leader(nodes...)
	var behind *node
	for i, n := range nodes {
		if n != leader {
			behind = nodes[i]
		}
	}
	l.crash(behind)
	for i := range 200 {
		_, err := leader.Call(within(t, 30*time.Second), "put", fmt.Append(nil, "key ", i))
		must(t, err)
	}
	for _, n := range others(nodes, behind) { // on a busy machine either may lead by now
		rc := n.raft.ReloadableConfig()
		rc.TrailingLogs = 1
		must(t, n.raft.ReloadConfig(rc))
		must(t, n.raft.Snapshot().Error())
	}
	back := l.start(behind.cfg)
	l.ready(back)
	if back.raft.Stats()["last_snapshot_index"] == "0" {
		t.Error("it was not brought up by a snapshot: the test tests nothing")
	}
	if back.kv.get("key 199") == "" || back.kv.get("key 0") == "" {
		t.Error("the follower is ready and incomplete")
	}
}

func TestOpenRefuses(t *testing.T) {
	l := newLab(t)
	for name, spoil := range map[string]func(*Config){
		"no gossip key":       func(c *Config) { c.GossipKey = nil },
		"a short gossip key":  func(c *Config) { c.GossipKey = []byte("short") },
		"no id":               func(c *Config) { c.NodeID = "" },
		"no trust domain":     func(c *Config) { c.TrustDomain = "" },
		"no certificate":      func(c *Config) { c.Credentials = nil },
		"an address, no port": func(c *Config) { c.PeerAddr = "localhost" },
		"impossible timings":  func(c *Config) { c.Timing.Lease = time.Minute },
	} {
		cfg := l.config("n1", 1)
		spoil(&cfg)
		if _, err := Open(cfg, newKV()); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Law 1: a voter that comes back with an empty disk has forgotten what it
// acknowledged. It must not help a node that never had it to the leadership: not where
// the members know each other by their disks, and not where versions that have no
// identity of a disk founded the cluster.
func TestLostDiskElectsNobody(t *testing.T) {
	for _, nameless := range []bool{false, true} {
		t.Run(fmt.Sprintf("nameless disks %v", nameless), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.nameless = nameless
			lostDiskElectsNobody(t, l)
		})
	}
}

func lostDiskElectsNobody(t *testing.T, l *lab) {
	nodes := l.form(3)
	leader := l.leader(nodes...)
	i := slices.IndexFunc(nodes, func(n *node) bool { return n != leader })
	behind := nodes[i]
	nodes = slices.Delete(nodes, i, i+1)
	l.crash(behind)
	l.eventually("a write that both of the others have", func() error {
		leader = l.leader(nodes...) // it may be the other one by now
		_, err := leader.Call(within(t, 30*time.Second), "put", []byte("precious"))
		return err
	})
	wiped := nodes[0]
	if wiped == leader {
		wiped = nodes[1]
	}
	l.crash(leader)
	l.crash(wiped)
	must(t, os.RemoveAll(wiped.cfg.DataDir))
	delete(l.disks, wiped.cfg.DataDir)

	behind, wiped = l.start(behind.cfg), l.start(wiped.cfg)
	deadline := time.After(5 * time.Second)
	for waiting := true; waiting; {
		select {
		case <-deadline:
			waiting = false
		case <-time.After(20 * time.Millisecond):
			for _, n := range []*node{behind, wiped} {
				if n.IsLeader() {
					t.Fatalf("%s leads without the acknowledged write", n.ID())
				}
			}
		}
	}
	leader = l.start(leader.cfg)
	for _, n := range []*node{leader, behind, wiped} {
		l.ready(n)
		if n.kv.get("precious") == "" {
			t.Errorf("%s lost an acknowledged write", n.ID())
		}
	}
	l.eventually("the node that lost its disk votes again", func() error {
		if wiped.probation.on.Load() {
			return errProbation
		}
		return nil
	})
}

// A node that comes back with an empty disk, at another address, takes the
// place of the one with its name: that one is removed by the others first, and
// its disk can neither vote nor confirm reads nor join again.
func TestReplaceKeepsTheName(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	leader := l.leader(nodes...)
	var old *node
	for _, n := range nodes {
		if n != leader {
			old = n
		}
	}
	l.seated(leader)
	l.crash(old)
	cfg := l.config(old.ID(), 0)
	cfg.Credentials = old.cfg.Credentials
	fresh := l.start(cfg)
	l.ready(fresh)
	l.voters(leader, 3)
	if at := leader.member(old.ID()); at != fresh.Address() {
		t.Errorf("%s is listed at %s", old.ID(), at)
	}
	// The disk that was replaced comes back, at the same address as the new one.
	l.crash(fresh)
	was := old.cfg
	was.PeerAddr = cfg.PeerAddr
	l.mu.Lock()
	l.at[was.PeerAddr] = was.NodeID
	l.mu.Unlock()
	term := leader.Term()
	twin := l.start(was)
	l.eventually("the old disk is told", func() error {
		if tr := twin.trouble.Load(); tr == nil || !fault.Is(tr, fault.Conflict) || !strings.Contains(tr.Detail, "replaced") {
			return fmt.Errorf("%v", tr)
		}
		return nil
	})
	if twin.Ready() == nil {
		t.Error("the old disk is ready")
	}
	if now := leader.Term(); now != term && os.Getenv("MUSTER_STRICT") == "1" { // a busy machine has elections of its own
		t.Errorf("the old disk took the term from %d to %d", term, now)
	}
	leader = l.leader(others(nodes, old)...)
	s, _ := leader.server(old.ID())
	if leader.termAtMost(within(t, 2*time.Second), s, term+100) {
		t.Error("the old disk confirms reads")
	}
	_, err := leader.Call(within(t, 30*time.Second), "put", []byte("meanwhile"))
	must(t, err)
	l.crash(twin)
	fresh = l.start(cfg)
	l.ready(fresh)
	if fresh.kv.get("meanwhile") == "" {
		t.Error("the new disk is ready without what was written meanwhile")
	}
}

// A node with a new name at a dead node's address takes its place.
func TestReplaceKeepsTheAddress(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	leader := l.leader(nodes...)
	var old, other *node
	for _, n := range nodes {
		if n != leader {
			old, other = n, old
		}
	}
	cfg := l.config("n9", 0)
	cfg.PeerAddr = old.cfg.PeerAddr
	l.mu.Lock()
	l.at[cfg.PeerAddr] = "n9"
	l.mu.Unlock()
	l.crash(old)
	n9 := l.start(cfg)
	l.ready(n9)
	l.voters(leader, 3)
	if leader.member(old.ID()) != "" || leader.member("n9") != n9.Address() {
		t.Errorf("members: %s", roles(leader))
	}
	_, err := other.Call(within(t, 30*time.Second), "put", []byte("after"))
	must(t, err)
}
