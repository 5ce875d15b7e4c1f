package jepsen

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"go.yaml.in/yaml/v3"

	"github.com/muster-registry/muster/pki"
)

// Settings say what a cluster of real processes is like.
type Settings struct {
	Binary string // muster
	Dir    string // for everything the cluster writes
	Nodes  int    // 0: 3
	Spares int    // hosts for nodes that are not of the cluster at first
	// Config is merged into every node's configuration file, by top-level key.
	Config map[string]any
}

// Cluster is a cluster of muster processes on a network of its own.
type Cluster struct {
	Net   *Network
	Nodes []*Node
	// Spares are laid out as the nodes are, and join them when they are started.
	Spares []*Node
	// Token has the role operator; CA is the file of the authority.
	Token, CA string

	settings Settings
}

// Node is one node, running or not.
type Node struct {
	*Client
	ID     string
	Number int // in Cluster.Nodes and Network.Hosts
	Dir    string
	Log    string

	host    *Host
	binary  string
	process *Process
	shifts  []shift // of its clock, by one goroutine
}

const (
	controlPort = "8443"
	domain      = "jepsen"
)

// NewCluster lays everything out; no node runs yet.
func NewCluster(s Settings) (c *Cluster, err error) {
	if s.Nodes == 0 {
		s.Nodes = 3
	}
	c = &Cluster{settings: s, Token: rand.Text() + rand.Text(), CA: filepath.Join(s.Dir, "ca.crt")}
	if c.Net, err = NewNetwork(s.Nodes + s.Spares); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Net.Close())
		}
	}()
	ca, err := pki.NewCA(domain, pki.ECDSA, 0, time.Now())
	if err != nil {
		return nil, err
	}
	if err := ca.Write(c.CA, filepath.Join(s.Dir, "ca.key")); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate)
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	gossip := base64.StdEncoding.EncodeToString(key)
	for i, host := range c.Net.Hosts {
		id := fmt.Sprintf("n%d", i+1)
		n := &Node{
			ID: id, Number: i, Dir: filepath.Join(s.Dir, id), host: host, binary: s.Binary,
			Log:    filepath.Join(s.Dir, id+".log"),
			Client: NewClient(id, host.Client+":"+controlPort, c.Token, roots),
		}
		pair, err := ca.Issue(domain, pki.Request{Node: id, Hosts: []string{host.Client, host.Peer}}, time.Now())
		if err != nil {
			return nil, err
		}
		if err := pair.Write(n.file("node.crt"), n.file("node.key")); err != nil {
			return nil, err
		}
		if err := c.configure(n, gossip); err != nil {
			return nil, err
		}
		if i < s.Nodes {
			c.Nodes = append(c.Nodes, n)
		} else {
			c.Spares = append(c.Spares, n)
		}
	}
	return c, nil
}

func (n *Node) file(name string) string { return filepath.Join(n.Dir, name) }

func (c *Cluster) configure(n *Node, gossip string) error {
	var join []string
	for _, h := range c.Net.Hosts[:c.settings.Nodes] {
		if h != n.host {
			join = append(join, h.Peer+":7946")
		}
	}
	expect := c.settings.Nodes
	if n.Number >= expect {
		expect = 0
	}
	config := map[string]any{
		"node_id":  n.ID,
		"data_dir": "data",
		"cluster":  map[string]any{"trust_domain": domain, "bootstrap_expect": expect, "join": join},
		"listen": map[string]any{
			"control": n.host.Client + ":" + controlPort, "metrics": n.host.Client + ":9090",
			"peer": n.host.Peer + ":8300", "gossip": n.host.Peer + ":7946",
		},
		"tls":                 map[string]any{"ca": c.CA, "cert": "node.crt", "key": "node.key"},
		"gossip_key":          gossip,
		"operator_token_file": "operator.token",
	}
	maps.Copy(config, c.settings.Config)
	text, err := yaml.Marshal(config)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(n.file("muster.yaml"), text, 0o600),
		os.WriteFile(n.file("operator.token"), []byte(c.Token), 0o600),
	)
}

// Start starts a node, also again on the data it left.
func (n *Node) Start() (err error) {
	if n.Running() {
		return fmt.Errorf("%s runs already", n.ID)
	}
	if len(n.shifts) > 0 { // it begins with the right time
		n.shifts = append(n.shifts, shift{at: time.Now()})
	}
	n.process, err = Launch(n.host.Command(n.binary, "server", "--config", n.file("muster.yaml")), n.Log)
	return err
}

// Running tells whether the node's process does.
func (n *Node) Running() bool { return n.process != nil && n.process.Alive() }

// Kill ends a node with SIGKILL.
func (n *Node) Kill() {
	if n.process != nil {
		n.process.Kill()
	}
}

// Pause stops a node's process without ending it; [Node.Resume] lets it go on.
func (n *Node) Pause() error { return n.process.Pause() }

// Resume ends a pause.
func (n *Node) Resume() error { return n.process.Resume() }

// Start starts all nodes and waits until they are ready.
func (c *Cluster) Start(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	return c.AwaitReady(ctx)
}

// Stop ends all nodes with SIGTERM and removes the network. The error tells
// which of them had ended by themselves, or did not end well.
func (c *Cluster) Stop() error {
	var errs []error
	ends := make(chan error)
	all := slices.Concat(c.Nodes, c.Spares)
	for _, n := range all {
		go func() {
			if n.process == nil {
				ends <- nil
				return
			}
			err := n.process.Died()
			_ = n.process.Resume() // a test may have ended while it was paused
			if err == nil && n.process.Alive() {
				err = n.process.Stop(15 * time.Second)
			}
			if err != nil {
				err = fmt.Errorf("%s: %w; its log is %s", n.ID, err, n.Log)
			}
			ends <- err
		}()
	}
	for range all {
		errs = append(errs, <-ends)
	}
	return errors.Join(append(errs, c.Net.Close())...)
}

// Muster runs the command-line client against the cluster, from outside.
func (c *Cluster) Muster(ctx context.Context, args ...string) (stdout []byte, err error) {
	cmd := exec.CommandContext(ctx, c.settings.Binary, args...)
	addresses := ""
	for _, n := range c.Nodes {
		addresses += "," + n.base
	}
	cmd.Env = []string{"HOME=" + c.settings.Dir, "MUSTER_ADDR=" + addresses[1:], "MUSTER_TOKEN=" + c.Token, "MUSTER_CACERT=" + c.CA}
	stdout, err = cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("muster %v: %w: %s", args, err, exit.Stderr)
	}
	return stdout, err
}

// Status is what a node says of the cluster.
type Status struct {
	ClusterID string `json:"cluster_id"`
	Leader    string `json:"leader"`
	Term      uint64 `json:"term"`
	Nodes     []struct {
		ID        string `json:"id"`
		Role      string `json:"role"`
		Alive     bool   `json:"alive"`
		Ready     bool   `json:"ready"`
		Applied   uint64 `json:"applied"`
		StateHash Hash   `json:"state_hash"`
	} `json:"nodes"`
}

// Applied is the index up to which a node has applied the log, 0 where it is
// not told.
func (s *Status) Applied(id string) uint64 {
	for _, n := range s.Nodes {
		if n.ID == id {
			return n.Applied
		}
	}
	return 0
}

// Hash is a state hash with the revision it belongs to.
type Hash struct {
	Revision uint64 `json:"revision"`
	Hash     string `json:"hash"`
}

// Status asks one node.
func (n *Node) Status(ctx context.Context) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	a := n.Call(ctx, http.MethodGet, "/v1/cluster/status", nil)
	if a.Outcome != OK {
		return nil, fmt.Errorf("status of %s: %s", n.ID, a)
	}
	s := new(Status)
	if err := json.Unmarshal(a.Body, s); err != nil {
		return nil, fmt.Errorf("status of %s: %w", n.ID, err)
	}
	return s, nil
}

// hopeless is an error after which trying again cannot help.
type hopeless struct{ error }

// Until tries again, often, until it works, is hopeless, or the context ends;
// then it gives the last reason.
func Until(ctx context.Context, try func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		if _, ok := errors.AsType[hopeless](err); ok {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("not in time: %w", err)
		}
	}
}

// AwaitReady waits until every node says so of itself.
func (c *Cluster) AwaitReady(ctx context.Context) error {
	for _, n := range c.Nodes {
		err := Until(ctx, func() error {
			if err := n.process.Died(); err != nil {
				return hopeless{fmt.Errorf("%s: %w; its log is %s", n.ID, err, n.Log)}
			}
			call, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if a := n.Call(call, http.MethodGet, "/readyz", nil); a.Outcome != OK {
				return fmt.Errorf("%s is not ready: %s %.300s", n.ID, a, a.Body)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Leader returns the leader that a majority names, and its term.
func (c *Cluster) Leader(ctx context.Context) (leader *Node, term uint64, err error) {
	err = Until(ctx, func() error {
		votes := map[string]int{}
		for _, n := range c.Nodes {
			if !n.Running() {
				continue
			}
			s, err := n.Status(ctx)
			if err != nil {
				continue
			}
			if votes[s.Leader]++; votes[s.Leader] > len(c.Nodes)/2 {
				for _, n := range c.Nodes {
					if n.ID == s.Leader {
						leader, term = n, s.Term
						return nil
					}
				}
			}
		}
		return fmt.Errorf("no majority agrees on a leader: %v", votes)
	})
	return leader, term, err
}

// Converge waits until every node tells the same state hash at the same
// revision of every node, itself included, and returns it. The load must have
// ended.
func (c *Cluster) Converge(ctx context.Context) (agreed Hash, err error) {
	err = Until(ctx, func() error {
		agreed = Hash{}
		for _, n := range c.Nodes {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			if len(s.Nodes) != len(c.Nodes) {
				return fmt.Errorf("%s knows %d nodes of %d", n.ID, len(s.Nodes), len(c.Nodes))
			}
			for _, of := range s.Nodes {
				if of.StateHash.Hash == "" {
					return fmt.Errorf("%s tells no state hash of %s", n.ID, of.ID)
				}
				if agreed.Hash == "" {
					agreed = of.StateHash
				}
				if of.StateHash != agreed {
					return fmt.Errorf("%s says that %s has %v; others have %v", n.ID, of.ID, of.StateHash, agreed)
				}
			}
		}
		return nil
	})
	return agreed, err
}
