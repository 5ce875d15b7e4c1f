package jepsen

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
)

// Network is a set of hosts, each a network namespace with two links to a
// router, which is the namespace of this process: one link for what nodes say
// to each other, one for callers. The faults are rules of the router, and all
// change in one step.
type Network struct {
	Hosts []*Host
	table string
}

// Host is one place for a node.
type Host struct {
	Peer   string // address of its link to the other hosts
	Client string // address of its link to callers; only this process dials it
	space  string // network namespace
	links  [2]string
	// The router's own address on the callers' link.
	caller string
}

// Links says which of a host's links a fault is about.
type Links int

// Which links.
const (
	PeerLinks Links = iota // between nodes; callers still reach every node
	AllLinks
)

const most = 15 // hosts of one network

var networks atomic.Int32

// NewNetwork makes n hosts that reach each other. Call it only in a world of
// its own: see [Enter].
func NewNetwork(n int) (*Network, error) {
	if !Inside() {
		return nil, errors.New("not in a network namespace of our own")
	}
	if n < 1 || n > most {
		return nil, fmt.Errorf("a network has 1 to %d hosts, not %d", most, n)
	}
	id := int(networks.Add(1)-1) % 16
	net := &Network{table: fmt.Sprintf("faults%d", id)}
	for i := range n {
		subnet := id*(most+1) + i
		h := &Host{
			Peer: fmt.Sprintf("10.10.%d.2", subnet), Client: fmt.Sprintf("10.20.%d.2", subnet),
			caller: fmt.Sprintf("10.20.%d.1", subnet),
			space:  fmt.Sprintf("m%dn%d", id, i+1),
			links:  [2]string{fmt.Sprintf("m%dn%dpeer", id, i+1), fmt.Sprintf("m%dn%dcall", id, i+1)},
		}
		net.Hosts = append(net.Hosts, h)
		if err := h.make(subnet); err != nil {
			return nil, errors.Join(err, net.Close())
		}
	}
	return net, net.rules()
}

func (h *Host) make(subnet int) error {
	outside := fmt.Sprintf(`netns add %[1]s
link add %[2]s type veth peer name peer0 netns %[1]s
link add %[3]s type veth peer name call0 netns %[1]s
addr add 10.10.%[4]d.1/30 dev %[2]s
addr add 10.20.%[4]d.1/30 dev %[3]s
link set %[2]s up
link set %[3]s up
`, h.space, h.links[0], h.links[1], subnet)
	if err := feed(outside, "ip", "-batch", "-"); err != nil {
		return err
	}
	inside := fmt.Sprintf(`link set lo up
addr add 10.10.%[1]d.2/30 dev peer0
addr add 10.20.%[1]d.2/30 dev call0
link set peer0 up
link set call0 up
route add 10.10.0.0/16 via 10.10.%[1]d.1
`, subnet)
	return feed(inside, "ip", "-n", h.space, "-batch", "-")
}

// rules makes the router's table: packets between the pairs in the set cut are
// counted and lost.
func (n *Network) rules() error {
	return feed(fmt.Sprintf(`table ip %s {
	counter lost { }
	set cut { type ipv4_addr . ipv4_addr; }
	chain between { type filter hook forward priority 0; ip saddr . ip daddr @cut counter name lost drop; }
	chain calls { type filter hook input priority 0; ip saddr . ip daddr @cut counter name lost drop; }
	chain answers { type filter hook output priority 0; ip saddr . ip daddr @cut counter name lost drop; }
}
`, n.table), "nft", "-f", "-")
}

// Pair is one direction between two hosts, by their numbers.
type Pair struct{ From, To int }

// Cut loses all packets between nodes in the given directions, in addition to
// what is lost already.
func (n *Network) Cut(pairs ...Pair) error {
	lost := make([]string, len(pairs))
	for i, p := range pairs {
		lost[i] = n.Hosts[p.From].Peer + " . " + n.Hosts[p.To].Peer
	}
	return n.lose(lost)
}

// Isolate cuts one host off the others, both ways, and with [AllLinks] off the
// callers as well.
func (n *Network) Isolate(host int, links Links) error {
	var lost []string
	h := n.Hosts[host]
	for i, other := range n.Hosts {
		if i != host {
			lost = append(lost, h.Peer+" . "+other.Peer, other.Peer+" . "+h.Peer)
		}
	}
	if links == AllLinks {
		lost = append(lost, h.Client+" . "+h.caller, h.caller+" . "+h.Client)
	}
	return n.lose(lost)
}

func (n *Network) lose(pairs []string) error {
	return run("nft", "add", "element", "ip", n.table, "cut", "{ "+strings.Join(pairs, ", ")+" }")
}

// Heal ends all cuts.
func (n *Network) Heal() error {
	return run("nft", "flush", "set", "ip", n.table, "cut")
}

var packets = regexp.MustCompile(`packets (\d+)`)

// Lost counts the packets that cuts have swallowed so far.
func (n *Network) Lost() (uint64, error) {
	out, err := exec.Command("nft", "list", "counter", "ip", n.table, "lost").Output()
	if err != nil {
		return 0, fmt.Errorf("nft list counter: %w", err)
	}
	m := packets.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("nft list counter: no number in %q", out)
	}
	return strconv.ParseUint(string(m[1]), 10, 64)
}

// Command makes a command that runs on the host.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", h.space, name}, args...)...)
}

// Close removes the hosts. What still runs on them loses its links.
func (n *Network) Close() error {
	errs := []error{run("nft", "delete", "table", "ip", n.table)}
	for _, h := range n.Hosts {
		errs = append(errs, run("ip", "link", "del", h.links[0]), run("ip", "link", "del", h.links[1]), run("ip", "netns", "del", h.space))
	}
	return errors.Join(errs...)
}

func run(name string, args ...string) error { return feed("", name, args...) }

func feed(input, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
