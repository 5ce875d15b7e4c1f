package dev

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/pki"
)

// trustDomain of a development cluster's certificates.
const trustDomain = "muster"

// layout is a development cluster's folder and the size and place it was made
// with, which stay.
type layout struct {
	dir      string
	Nodes    int `json:"nodes"`
	PortBase int `json:"port_base"`
}

// ports of one node.
type ports struct{ control, policy, metrics, peer, gossip, dns int }

// ports of node i, from 1: the default ports, moved with the base, and 10
// apart from node to node.
func (l layout) ports(i int) ports {
	d := l.PortBase - DefaultPortBase + 10*(i-1)
	return ports{control: 8443 + d, policy: 8181 + d, metrics: 9090 + d, peer: 8300 + d, gossip: 7946 + d, dns: 8600 + d}
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func nodeID(i int) string { return "n" + strconv.Itoa(i) }

func (l layout) path(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

// open reads the layout of a folder, or makes one as the options want it.
func open(o Options) (layout, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return layout{}, err
	}
	l := layout{dir: dir}
	b, err := os.ReadFile(l.path("dev.json"))
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &l); err != nil || l.Nodes < 1 {
			return l, fmt.Errorf("%s cannot be read: %v", l.path("dev.json"), err)
		}
		if o.Nodes != 0 && o.Nodes != l.Nodes || o.PortBase > 0 && o.PortBase != l.PortBase {
			return l, fmt.Errorf("%s holds a cluster of %d nodes from port %d on, which stays so; leave --nodes and --port-base out, or choose another --dir", dir, l.Nodes, l.PortBase)
		}
		return l, nil
	case !errors.Is(err, fs.ErrNotExist):
		return l, err
	}
	if l.Nodes = o.Nodes; l.Nodes == 0 {
		l.Nodes = DefaultNodes
	}
	if l.Nodes < 1 || l.Nodes > 9 {
		return l, fmt.Errorf("--nodes %d: a development cluster has 1 to 9 nodes", l.Nodes)
	}
	switch l.PortBase = o.PortBase; l.PortBase {
	case Recorded:
		l.PortBase = DefaultPortBase
	case AnyPort:
		if l.PortBase, err = freeBase(l); err != nil {
			return l, err
		}
	}
	if l.ports(1).gossip < 1 || l.ports(l.Nodes).metrics > 65535 {
		return l, fmt.Errorf("--port-base %d: the ports of %d nodes reach from %d to %d, which is out of range", l.PortBase, l.Nodes, l.ports(1).gossip, l.ports(l.Nodes).metrics)
	}
	return l, nil
}

// freeBase finds a base whose ports nobody uses, below those that the system
// gives to outgoing connections.
func freeBase(l layout) (int, error) {
	for range 100 {
		l.PortBase = 10_000 + mathrand.IntN(20_000)
		if l.checkPorts(1, l.Nodes) == nil {
			return l.PortBase, nil
		}
	}
	return 0, errors.New("no free ports were found; name some with --port-base")
}

// checkPorts tells which port of nodes from to to is taken.
func (l layout) checkPorts(from, to int) error {
	for i := from; i <= to; i++ {
		p := l.ports(i)
		for _, x := range []struct {
			what string
			port int
		}{{"control", p.control}, {"metrics", p.metrics}, {"peer", p.peer}, {"gossip", p.gossip}, {"DNS", p.dns}} {
			ln, err := net.Listen("tcp", loopback(x.port))
			if err != nil {
				return fmt.Errorf("port %d (%s of %s) cannot be used: %w; is this cluster running already? Else move all ports with --port-base", x.port, x.what, nodeID(i), err)
			}
			ln.Close()
		}
		for what, port := range map[string]int{"gossip": p.gossip, "DNS": p.dns} {
			pc, err := net.ListenPacket("udp", loopback(port))
			if err != nil {
				return fmt.Errorf("UDP port %d (%s of %s) cannot be used: %w; move all ports with --port-base", port, what, nodeID(i), err)
			}
			pc.Close()
		}
	}
	return nil
}

// prepare makes what is missing of the folder: keys, certificates, secrets and
// configurations. What exists stays, certificates that end within a week apart.
func (l layout) prepare(now time.Time) error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	ca, err := l.pair("ca", now, func() (*pki.Pair, error) { return pki.NewCA(trustDomain, pki.ECDSA, 0, now) })
	if err != nil {
		return err
	}
	if _, err := l.pair("workloads", now, func() (*pki.Pair, error) { return pki.NewCA(trustDomain, pki.ECDSA, 0, now) }); err != nil {
		return err
	}
	if _, err := l.pair("operator", now, func() (*pki.Pair, error) {
		return ca.Issue(trustDomain, pki.Request{Role: "operator"}, now)
	}); err != nil {
		return err
	}
	key, token := make([]byte, 32), make([]byte, 8+32)
	_, _ = rand.Read(key) // never fails
	_, _ = rand.Read(token)
	text := "muster_" + hex.EncodeToString(token[:8]) + "_" + base64.RawURLEncoding.EncodeToString(token[8:])
	if err := errors.Join(
		l.keep("gossip.key", base64.StdEncoding.EncodeToString(key)+"\n"),
		l.keep("operator_token", text+"\n"),
	); err != nil {
		return err
	}
	for i := 1; i <= l.Nodes; i++ {
		if err := os.MkdirAll(l.path(nodeID(i)), 0o700); err != nil {
			return err
		}
		if _, err := l.pair(filepath.Join(nodeID(i), "node"), now, func() (*pki.Pair, error) {
			return ca.Issue(trustDomain, pki.Request{Node: nodeID(i)}, now)
		}); err != nil {
			return err
		}
		config := filepath.Join(nodeID(i), "muster.yaml")
		if err := errors.Join(l.keep(config, l.config(i)), l.givePort(config, "policy", l.ports(i).policy), l.givePort(config, "dns", l.ports(i).dns)); err != nil {
			return err
		}
	}
	b, err := json.Marshal(l, jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	return l.keep("dev.json", string(b)+"\n")
}

// pair reads a certificate and its key, or makes them.
func (l layout) pair(name string, now time.Time, make func() (*pki.Pair, error)) (*pki.Pair, error) {
	crt, key := l.path(name+".crt"), l.path(name+".key")
	if _, err := os.Stat(crt); err == nil {
		p, err := pki.Read(crt, key)
		if err != nil {
			return nil, err
		}
		if p.Certificate.NotAfter.Sub(now) > 7*24*time.Hour {
			return p, nil
		}
		if err := errors.Join(os.Remove(crt), os.Remove(key)); err != nil {
			return nil, err
		}
	}
	p, err := make()
	if err != nil {
		return nil, err
	}
	return p, p.Write(crt, key)
}

// keep writes a file that only the owner can read, unless it exists.
func (l layout) keep(name, text string) error {
	if _, err := os.Stat(l.path(name)); err == nil {
		return nil
	}
	return replace(l.path(name), text)
}

// replace writes a file whole, in one step.
func replace(file, text string) error {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*") // 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// givePort completes a configuration from before there was such a port: the
// default would be the same for all nodes, or none.
func (l layout) givePort(name, what string, port int) error {
	b, err := os.ReadFile(l.path(name))
	if err != nil || strings.Contains(string(b), "\n  "+what+":") {
		return err
	}
	return replace(l.path(name), strings.Replace(string(b), "\nlisten:\n", "\nlisten:\n  "+what+": "+loopback(port)+"\n", 1))
}

// config is a node's configuration; names in it are relative to its folder.
func (l layout) config(i int) string {
	p := l.ports(i)
	var join []string
	for k := 1; k <= l.Nodes; k++ {
		join = append(join, strconv.Quote(loopback(l.ports(k).gossip)))
	}
	return fmt.Sprintf(`# Made by muster dev, which keeps what you change here.
node_id: %s
data_dir: data
cluster:
  trust_domain: %s
  bootstrap_expect: %d
  join: [%s]
listen:
  control: %s
  policy: %s
  metrics: %s
  peer: %s
  gossip: %s
  dns: %s
tls:
  ca: ../ca.crt
  cert: node.crt
  key: node.key
  workload_ca: ../workloads.crt
gossip_key_file: ../gossip.key
operator_token_file: ../operator_token
certificates:
  signer: file
  cert: ../workloads.crt
  key: ../workloads.key
audit:
  path: audit.log
webhook:
  allow: [127.0.0.0/8, "::1"]
health:
  allow: [127.0.0.0/8, "::1"]
log:
  level: info
  format: text
`, nodeID(i), trustDomain, l.Nodes, strings.Join(join, ", "), loopback(p.control), loopback(p.policy), loopback(p.metrics), loopback(p.peer), loopback(p.gossip), loopback(p.dns))
}
