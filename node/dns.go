package node

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/api/dns"
	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// DiscoverySettings say how look-ups prefer a zone.
type DiscoverySettings struct {
	Zone      string  `yaml:"zone"`       // this node's, which those who ask it over DNS are taken to be in
	ZoneShare float64 `yaml:"zone_share"` // of a zone's instances that must pass for look-ups to stay in it
}

func (d *DiscoverySettings) validate() (errs []error) {
	if d.Zone != "" && !zoneName.MatchString(d.Zone) {
		errs = append(errs, fmt.Errorf("discovery.zone: %q is not a zone; use at most 63 printable characters, as instances name it", d.Zone))
	}
	if !(d.ZoneShare >= 0 && d.ZoneShare <= 1) {
		errs = append(errs, fmt.Errorf("discovery.zone_share: %g is out of range; from 0 to 1", d.ZoneShare))
	}
	return errs
}

var zoneName = regexp.MustCompile(`^[[:print:]]{1,63}$`)

// DNSSettings shape what the DNS listener answers.
type DNSSettings struct {
	Domain       string        `yaml:"domain"`        // names end in svc.<domain>
	ConsulDomain string        `yaml:"consul_domain"` // of Consul's names; "off": none are answered
	Role         string        `yaml:"role"`          // of the principal anonymous, which all callers are
	Namespaces   []string      `yaml:"namespaces"`    // that it is limited to; none: all
	TTL          time.Duration `yaml:"ttl"`
	NegativeTTL  time.Duration `yaml:"negative_ttl"` // of the answer that something is not there
	UDPSize      int           `yaml:"udp_size"`     // bytes of an answer over UDP, at most
	Rate         float64       `yaml:"rate"`         // questions in a second from one address; 0: no limit
	Burst        int64         `yaml:"burst"`        // at one time
}

func dnsDefaults() DNSSettings {
	return DNSSettings{Domain: "muster", ConsulDomain: "consul", Role: policy.Viewer,
		TTL: 5 * time.Second, NegativeTTL: time.Second, UDPSize: 1232, Rate: 1000, Burst: 2000}
}

func (d *DNSSettings) validate() (errs []error) {
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := dns.ValidDomain(d.Domain); err != nil {
		wrong("dns.domain: %w", err)
	}
	if err := dns.ValidDomain(d.ConsulDomain); d.ConsulDomain != Off && err != nil {
		wrong("dns.consul_domain: %w", err)
	}
	if mdns.IsSubDomain(d.Domain, d.ConsulDomain) || mdns.IsSubDomain(d.ConsulDomain, d.Domain) {
		wrong("dns.consul_domain: %s and dns.domain, %s, lie within each other; choose two domains", d.ConsulDomain, d.Domain)
	}
	if d.Role == policy.Operator || d.Role == policy.BreakGlass || !slices.Contains(policy.Roles(), d.Role) {
		wrong("dns.role: %q is no role for callers who prove nothing; viewer is", d.Role)
	}
	for i, n := range d.Namespaces {
		if err := registry.ValidName(n); err != nil {
			wrong("dns.namespaces[%d]: %q is not a namespace", i, n)
		}
	}
	for _, t := range []struct {
		name  string
		value time.Duration
	}{{"ttl", d.TTL}, {"negative_ttl", d.NegativeTTL}} {
		if t.value < 0 || t.value > 24*time.Hour || t.value%time.Second != 0 {
			wrong("dns.%s: %s is out of range; whole seconds, from 0s to 24h", t.name, t.value)
		}
	}
	if d.UDPSize < mdns.MinMsgSize || d.UDPSize > 4096 {
		wrong("dns.udp_size: %d is out of range; from 512 to 4096 bytes", d.UDPSize)
	}
	if !(d.Rate >= 0 && d.Rate <= 1e6) || d.Burst < 0 || d.Burst > 1e6 {
		wrong("dns.rate and dns.burst: %g and %d are out of range; from 0 to 1000000", d.Rate, d.Burst)
	}
	return errs
}

// dnsServer is the listener that answers DNS.
func (n *Node) dnsServer(in *door.Door) (*server, error) {
	d := n.cfg.DNS
	opt := dns.Options{
		Logger: n.logger, Domain: d.Domain, Consul: d.ConsulDomain, Datacenter: n.cfg.Consul.Datacenter, Zone: n.cfg.Discovery.Zone,
		Who: identity.Anonymous(d.Role, d.Namespaces),
		TTL: d.TTL, Negative: d.NegativeTTL, UDPSize: d.UDPSize, Rate: flow.Rate{PerSecond: d.Rate, Burst: d.Burst},
		Nodes: n.dnsNodes, Observe: n.metrics.dnsWatched(),
	}
	if opt.Consul == Off {
		opt.Consul = ""
	}
	s, err := dns.New(in, opt)
	if err != nil {
		return nil, err
	}
	return &server{files: dnsFiles, Server: n.httpServer(n.cfg.Listen.DNS, nil), dns: s}, nil
}

// card is what the others get to know of this node by gossip.
func (n *Node) card() map[string]string {
	m := map[string]string{"control": n.cfg.Advertise.Control, "version": n.version}
	if n.cfg.Listen.DNS != Off {
		m["dns"] = "on"
	}
	return m
}

// dnsNodes lists the members that answer DNS. They are known by the host that
// clients reach them at.
func (n *Node) dnsNodes() (all []dns.Node) {
	for _, m := range n.cluster.Members() {
		host, _, err := net.SplitHostPort(m.Meta["control"])
		if err == nil && m.Meta["dns"] != "" {
			all = append(all, dns.Node{ID: m.ID, Host: host})
		}
	}
	return all
}

// dnsWatched registers what is measured of DNS, and gives what measures.
func (m *metrics) dnsWatched() func(qtype string, rcode int, elapsed time.Duration) {
	answers := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "muster_dns_answers_total", Help: "Answers to DNS questions, by the type asked for and the code of the answer.",
	}, []string{"type", "rcode"})
	dropped := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "muster_dns_dropped_total", Help: "DNS questions that were not answered, since their address asks more than dns.rate or could not be reached.",
	})
	seconds := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "muster_dns_answer_duration_seconds", Help: "Time from a DNS question to its answer.",
		Buckets: []float64{.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .1, 1},
	})
	m.reg.MustRegister(answers, dropped, seconds)
	answers.WithLabelValues("A", mdns.RcodeToString[mdns.RcodeSuccess]) // it is there before the first question
	return func(qtype string, rcode int, elapsed time.Duration) {
		if rcode < 0 {
			dropped.Inc()
			return
		}
		answers.WithLabelValues(qtype, mdns.RcodeToString[rcode]).Inc()
		seconds.Observe(elapsed.Seconds())
	}
}
