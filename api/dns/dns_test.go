package dns

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// still is a node whose state does not change.
type still struct {
	door.Backend
	state *door.State
	ready error
	age   time.Duration
}

func (s *still) NodeID() string                                                    { return "n1" }
func (s *still) State() *door.State                                                { return s.state }
func (s *still) Feed() *feed.Feed                                                  { return nil }
func (s *still) Staleness() time.Duration                                          { return s.age }
func (s *still) Ready() error                                                      { return s.ready }
func (s *still) IsLeader() bool                                                    { return false }
func (s *still) Decider() policy.Decider                                           { return nil }
func (s *still) Submit(context.Context, *command.Intent) (*command.Receipt, error) { panic("a change") }

func newStill(t testing.TB) *still {
	t.Helper()
	txn := registry.New().Txn(nil)
	at := func(n uint64) registry.Stamp { return registry.Stamp{Revision: n, Time: time.Unix(1, 0), By: "a test"} }
	for n, id := range []string{"a", "b", "c"} {
		spec, err := registry.CanonicalInstance("shop", "cart", id, []byte(`{"address":"`+[]string{"10.0.0.1", "2001:db8::1", "host.example.org"}[n]+`","port":80,"tags":["blue"]}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := txn.PutInstance(at(uint64(2*n+1)), "shop", "cart", id, spec, 0, true); err != nil {
			t.Fatal(err)
		}
	}
	return &still{state: &door.State{Registry: txn.Commit(), Policy: policy.NewTable(), Tokens: identity.NewTable(), Revision: 6}}
}

func newServer(t testing.TB, b *still, opt Options) *Server {
	t.Helper()
	who, err := identity.New(identity.Config{TrustDomain: "muster"})
	if err != nil {
		t.Fatal(err)
	}
	opt.Who, opt.Consul = identity.Anonymous(policy.Viewer, nil), "consul"
	opt.Nodes = func() []Node { return []Node{{"n1", "192.0.2.1"}, {"n2", "host.example.org"}} }
	s, err := New(door.New(b, who, door.Options{}), opt)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Server) ask(name string, qtype uint16) *dns.Msg {
	req := new(dns.Msg).SetQuestion(name, qtype)
	req.SetEdns0(4096, false)
	return s.answer(req, netip.MustParseAddr("192.0.2.7"), "192.0.2.7:53", 4096)
}

// TestFailsClosed: what this node cannot know, it does not say, whatever is asked.
func TestFailsClosed(t *testing.T) {
	for what, breaks := range map[string]func(*still){
		"not_ready": func(b *still) { b.ready = fault.New(fault.NotReady, "starting") },
		"too_stale": func(b *still) { b.age = time.Hour },
	} {
		b := newStill(t)
		breaks(b)
		s := newServer(t, b, Options{})
		for _, name := range []string{"cart.shop.svc.muster.", "nobody.shop.svc.muster.", "a.cart.shop.inst.muster.", "muster.", "svc.muster.", "nonsense.muster.", "n1.node.muster.", "cart.service.consul."} {
			for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypeSOA, dns.TypeNS, dns.TypeANY} {
				res := s.ask(name, qtype)
				if res.Rcode != dns.RcodeServerFailure || len(res.Answer)+len(res.Ns) > 0 || !strings.Contains(res.String(), what) {
					t.Errorf("%s: %s %s: %s", what, name, dns.TypeToString[qtype], res)
				}
			}
		}
	}
}

// TestInstanceNamesLeadBack: the name that an SRV record gives is about the same
// instance in the zone that it was given in, however long its parts are.
func TestInstanceNamesLeadBack(t *testing.T) {
	s := newServer(t, newStill(t), Options{Domain: "registry.corp.example.org"})
	label := rapid.StringMatching(`[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?`)
	rapid.Check(t, func(t *rapid.T) {
		ns, svc, id := label.Draw(t, "namespace"), label.Draw(t, "service"), label.Draw(t, "id")
		for i := range s.zones {
			z := &s.zones[i]
			name := z.instanceName(ns, svc, id)
			if _, ok := dns.IsDomainName(name); !ok || len(name) > 254 {
				t.Fatalf("%s is no domain name", name)
			}
			got := s.find(strings.ToUpper(name)).subject(strings.ToUpper(name))
			if got.kind != instance || got.namespace != ns || got.service != svc || got.id != id {
				t.Fatalf("%s is read as %+v", name, got)
			}
		}
	})
}

// TestHeavierComesFirst: the first address is that of an instance as often as
// its weight says.
func TestHeavierComesFirst(t *testing.T) {
	all := []*registry.Instance{{ID: "none"}, {ID: "one"}, {ID: "nine"}}
	all[1].Weight, all[2].Weight = 1, 9
	first := map[string]int{}
	for range 10_000 {
		shuffle(all)
		first[all[0].ID]++
		if all[2].ID != "none" {
			t.Fatalf("an instance without weight came before one that has some")
		}
	}
	if n := first["nine"]; n < 8_700 || n > 9_300 { // 10 standard deviations
		t.Errorf("of 10000 answers %d begin with the instance of weight 9 of 10", n)
	}
}

// caller is somebody at an address.
type caller struct {
	dns.ResponseWriter
	addr  string
	udp   bool
	wrote []*dns.Msg
}

// WriteMsg implements dns.ResponseWriter.
func (c *caller) WriteMsg(m *dns.Msg) error { c.wrote = append(c.wrote, m); return nil }

// RemoteAddr implements dns.ResponseWriter.
func (c *caller) RemoteAddr() net.Addr {
	if at := netip.MustParseAddrPort(c.addr); !c.udp {
		return net.TCPAddrFromAddrPort(at)
	}
	return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(c.addr))
}

// TestFloodsAreNotReflected: beyond the rate an address gets no more bytes than
// it sent itself, and half of the time nothing; others are answered as always.
func TestFloodsAreNotReflected(t *testing.T) {
	s := newServer(t, newStill(t), Options{Rate: flow.Rate{PerSecond: 1e-3, Burst: 5}})
	flood := func(from string, udp bool, n int) (whole, cut, refused, silent int) {
		for range n {
			req := new(dns.Msg).SetQuestion("cart.shop.svc.muster.", dns.TypeA)
			w := &caller{addr: from, udp: udp}
			s.ServeDNS(w, req)
			switch {
			case len(w.wrote) == 0:
				silent++
			case w.wrote[0].Rcode == dns.RcodeRefused:
				refused++
			case w.wrote[0].Truncated:
				if cut++; w.wrote[0].Len() > req.Len() {
					t.Errorf("%d bytes for %d", w.wrote[0].Len(), req.Len())
				}
			default:
				whole++
			}
		}
		return whole, cut, refused, silent
	}
	if whole, cut, refused, silent := flood("192.0.2.1:53", true, 105); whole != 5 || cut != 50 || refused != 0 || silent != 50 {
		t.Errorf("over UDP: %d whole, %d cut, %d refused, %d silent", whole, cut, refused, silent)
	}
	if whole, _, refused, _ := flood("192.0.2.1:53", false, 10); whole != 0 || refused != 10 {
		t.Errorf("over TCP: %d whole, %d refused", whole, refused)
	}
	if whole, _, _, _ := flood("192.0.2.2:53", true, 5); whole != 5 {
		t.Errorf("another address: %d whole", whole)
	}
	if whole, cut, _, silent := flood("[2001:db8::1]:53", true, 5); whole != 5 {
		t.Errorf("an address of IPv6: %d whole, %d cut, %d silent", whole, cut, silent)
	}
	if whole, _, _, _ := flood("[2001:db8::2]:53", true, 5); whole != 0 {
		t.Error("two addresses of one network of 64 bits count apart")
	}
}

// TestNoAnswerInTimeIsNoRefusal: where the policy did not answer in time, a
// resolver is to ask another node.
func TestNoAnswerInTimeIsNoRefusal(t *testing.T) {
	f := fault.New(fault.PolicyDenied, "no")
	if rcode, _ := code(f); rcode != dns.RcodeRefused {
		t.Errorf("what the policy refuses is %s", dns.RcodeToString[rcode])
	}
	f.RetryAfter = time.Second
	if rcode, _ := code(f); rcode != dns.RcodeServerFailure {
		t.Errorf("what it has not answered is %s", dns.RcodeToString[rcode])
	}
}
