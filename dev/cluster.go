package dev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Cluster is what cluster.json says: where the nodes are, and what a client
// needs to call them. Paths are absolute.
type Cluster struct {
	CA            string `json:"ca"`
	OperatorToken string `json:"operator_token"`
	ClientCert    string `json:"client_cert"`
	ClientKey     string `json:"client_key"`
	Nodes         []Node `json:"nodes"`
}

// Node is one node in cluster.json. PID is 0 while it is not known.
type Node struct {
	ID      string `json:"id"`
	PID     int    `json:"pid"`
	Dir     string `json:"dir"`
	Control string `json:"control"`
	Policy  string `json:"policy"`
	Metrics string `json:"metrics"`
	Peer    string `json:"peer"`
	Gossip  string `json:"gossip"`
	DNS     string `json:"dns"`
}

// cluster describes the layout, with pids by node id.
func (l layout) cluster(pids map[string]int) (*Cluster, error) {
	token, err := os.ReadFile(l.path("operator_token"))
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		CA: l.path("ca.crt"), OperatorToken: strings.TrimSpace(string(token)),
		ClientCert: l.path("operator.crt"), ClientKey: l.path("operator.key"),
	}
	for i := 1; i <= l.Nodes; i++ {
		p, id := l.ports(i), nodeID(i)
		c.Nodes = append(c.Nodes, Node{
			ID: id, PID: pids[id], Dir: l.path(id),
			Control: "https://" + loopback(p.control), Policy: "https://" + loopback(p.policy), Metrics: "http://" + loopback(p.metrics),
			Peer: loopback(p.peer), Gossip: loopback(p.gossip), DNS: loopback(p.dns),
		})
	}
	return c, nil
}

// Exports are the lines a shell needs to work with the cluster.
func (c *Cluster) Exports() string {
	var addrs []string
	for _, n := range c.Nodes {
		addrs = append(addrs, n.Control)
	}
	var b strings.Builder
	for _, v := range [][2]string{
		{"MUSTER_ADDR", strings.Join(addrs, ",")}, {"MUSTER_CACERT", c.CA}, {"MUSTER_TOKEN", c.OperatorToken},
		{"MUSTER_CLIENT_CERT", c.ClientCert}, {"MUSTER_CLIENT_KEY", c.ClientKey},
	} {
		fmt.Fprintf(&b, "export %s='%s'\n", v[0], strings.ReplaceAll(v[1], "'", `'\''`))
	}
	return b.String()
}

// save writes cluster.json and env, each in one step.
func (l layout) save(c *Cluster) error {
	b, err := json.Marshal(c, jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	return errors.Join(replace(l.path("env"), c.Exports()), replace(l.path("cluster.json"), string(b)+"\n"))
}

// load reads cluster.json; nil where there is none.
func (l layout) load() (*Cluster, error) {
	b, err := os.ReadFile(l.path("cluster.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &Cluster{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", l.path("cluster.json"), err)
	}
	return c, nil
}

// setPID notes a node's pid in cluster.json, while others may do the same.
func (l layout) setPID(id string, pid int) error {
	lock, err := os.OpenFile(l.path(".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	c, err := l.load()
	if err != nil {
		return err
	}
	if c == nil {
		if c, err = l.cluster(nil); err != nil {
			return err
		}
	}
	for i := range c.Nodes {
		if c.Nodes[i].ID == id {
			c.Nodes[i].PID = pid
		}
	}
	return l.save(c)
}
