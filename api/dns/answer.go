package dns

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/miekg/dns"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/registry"
)

// resolve fills in the answer. What is not there, and what is there and has
// none of what was asked for, is told apart.
func (c *query) resolve() error {
	var err error
	switch c.subject.kind {
	case nothing:
		c.reply.Rcode = dns.RcodeNameError
	case inner:
		c.any()
	case apex:
		c.apex()
	case node:
		c.node()
	case nodes:
		c.nodes()
	case service:
		err = c.service()
	case instance:
		err = c.instance()
	}
	if err == nil && len(c.reply.Answer) == 0 {
		c.negative()
	}
	return err
}

func (c *query) header(rrtype uint16, ttl time.Duration) dns.RR_Header {
	return dns.RR_Header{Name: c.q.Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: uint32(ttl / time.Second)}
}

func (c *query) add(rr dns.RR) { c.reply.Answer = append(c.reply.Answer, rr) }

// full says that the answer has more records than fit into it already.
func (c *query) full() bool { return len(c.reply.Answer) > c.room }

// any answers ANY as RFC 8482 has it, with next to nothing.
func (c *query) any() {
	if c.q.Qtype == dns.TypeANY {
		c.add(&dns.HINFO{Hdr: c.header(dns.TypeHINFO, c.server.opt.TTL), Cpu: "RFC8482"})
	}
}

// soa is the record of the zone's authority. Its serial is the revision.
func (c *query) soa(ttl time.Duration) *dns.SOA {
	z := c.subject.zone
	h := dns.RR_Header{Name: z.origin, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: uint32(ttl / time.Second)}
	return &dns.SOA{Hdr: h, Ns: "ns." + z.origin, Mbox: "hostmaster." + z.origin, Serial: uint32(c.State.Revision),
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: uint32(c.server.opt.Negative / time.Second)}
}

// negative says how long a resolver may remember that there is nothing.
func (c *query) negative() {
	c.reply.Ns = append(c.reply.Ns, c.soa(c.server.opt.Negative))
}

func (c *query) apex() {
	switch c.q.Qtype {
	case dns.TypeSOA:
		rr := c.soa(c.server.opt.TTL)
		rr.Hdr.Name = c.q.Name
		c.add(rr)
	case dns.TypeNS:
		for _, n := range c.server.opt.Nodes() {
			target := c.subject.zone.nodeName(n.ID)
			ip, err := netip.ParseAddr(n.Host)
			if err != nil {
				target = dns.Fqdn(n.Host) // an alias must not be a name server
			}
			c.add(&dns.NS{Hdr: c.header(dns.TypeNS, c.server.opt.TTL), Ns: target})
			c.glue(target, ip)
		}
	default:
		c.any()
	}
}

func (c *query) node() {
	all := c.server.opt.Nodes()
	i := slices.IndexFunc(all, func(n Node) bool { return n.ID == c.subject.id })
	if i < 0 {
		c.reply.Rcode = dns.RcodeNameError
		return
	}
	c.addresses([]string{all[i].Host})
}

// nodes answers for all members that answer DNS.
func (c *query) nodes() {
	var all []string
	for _, n := range c.server.opt.Nodes() {
		all = append(all, n.Host)
	}
	c.addresses(all)
}

// service answers about the instances of a service.
func (c *query) service() error {
	s := &c.subject
	which := registry.Query{Zone: c.server.opt.Zone}
	q := url.Values{}
	if s.tag != "" {
		which.Tags, which.FoldTags = []string{s.tag}, true
		q.Set("tag", s.tag)
	}
	if which.Zone != "" {
		q.Set("zone", which.Zone)
	}
	f, err := c.discover(which, q)
	if err != nil {
		return err
	}
	if f.unused(s.tag) {
		c.reply.Rcode = dns.RcodeNameError
		return nil
	}
	shuffle(f.near)
	shuffle(f.far)
	switch c.q.Qtype {
	case dns.TypeSRV:
		c.srv(f.near, 1)
		c.srv(f.far, 2)
	case dns.TypeTXT:
		c.txt(append(f.near, f.far...))
	default:
		// The order of addresses is nobody's: others are left out, unless none of
		// the zone's is of the kind.
		if c.addresses(hosts(f.near)); len(c.reply.Answer) == 0 {
			c.addresses(hosts(append(f.near, f.far...)))
		}
	}
	return nil
}

// instance answers with the address of one, in whatever state it is: the name
// stands in SRV records and in logs.
func (c *query) instance() error {
	f, err := c.discover(registry.Query{AnyStatus: true}, url.Values{"status": {"any"}})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(f.near, func(i *registry.Instance) bool { return i.ID == c.subject.id })
	if i < 0 {
		c.reply.Rcode = dns.RcodeNameError
		return nil
	}
	c.addresses(hosts(f.near[i : i+1]))
	return nil
}

// found are the instances of an answer.
type found struct {
	near  []*registry.Instance // to be used: those of the zone while it has enough, else all
	far   []*registry.Instance // the others
	entry *registry.Entry      // nil where the policy has put something of its own in the answer's place
}

// unused says that no instance has ever had the tag, as far as may be said.
func (f *found) unused(tag string) bool {
	return tag != "" && f.entry != nil && len(f.near) == 0 && !slices.ContainsFunc(f.entry.Instances(), func(i *registry.Instance) bool {
		return slices.ContainsFunc(i.Tags, func(t string) bool { return strings.EqualFold(t, tag) })
	})
}

// discover finds instances through the door.
func (c *query) discover(which registry.Query, q url.Values) (*found, error) {
	c.like(q, "v1", "discovery", c.subject.namespace, c.subject.service)
	f, err := c.Discover(c.subject.namespace, c.subject.service, which)
	if err != nil {
		return nil, err
	}
	var all []*registry.Instance
	var l registry.Locality
	out := new(found)
	if f.Decision.Filtered == nil {
		out.entry, all = f.Entry, slices.Clone(f.Entry.Select(f.Query))
		if which.Zone != "" {
			l = f.Entry.Locality(f.Query)
		}
	} else {
		var body struct {
			Locality registry.Locality `json:"locality"`
		}
		shown, err := door.Replaced[registry.Instance](f.Body)
		if err == nil {
			err = json.Unmarshal(f.Body, &body)
		}
		if err != nil {
			return nil, err
		}
		for i := range shown {
			all = append(all, &shown[i])
		}
		l = body.Locality
	}
	out.near = all
	if l.Zone != "" && !l.SpillOver {
		// The policy may have left some out: the zone's are counted here.
		n := len(all)
		if i := slices.IndexFunc(all, func(i *registry.Instance) bool { return i.Zone != l.Zone }); i >= 0 {
			n = i
		}
		if n > 0 {
			out.near, out.far = all[:n:n], all[n:]
		}
	}
	return out, nil
}

// shuffle puts instances in an order drawn anew for each answer: first is who
// has more weight, so much more often. Those of no weight come last.
func shuffle(all []*registry.Instance) {
	drawn := make([]struct {
		at float64
		of *registry.Instance
	}, len(all))
	for n, i := range all {
		drawn[n].at, drawn[n].of = rand.ExpFloat64()/max(float64(i.Weight), 1e-9), i
	}
	slices.SortFunc(drawn, func(a, b struct {
		at float64
		of *registry.Instance
	}) int {
		return cmp.Compare(a.at, b.at)
	})
	for n := range drawn {
		all[n] = drawn[n].of
	}
}

func hosts(all []*registry.Instance) []string {
	hosts := make([]string, len(all))
	for n, i := range all {
		hosts[n] = i.Address
	}
	return hosts
}

// addresses answers A and AAAA. Among addresses host names are left out; where
// there are only host names, the first of them is the alias that a resolver goes
// on with. A name made for SRV is never an alias, since an alias has no other
// records.
func (c *query) addresses(hosts []string) {
	if c.q.Qtype != dns.TypeA && c.q.Qtype != dns.TypeAAAA && c.q.Qtype != dns.TypeCNAME {
		c.any()
		return
	}
	alias, seen := "", map[netip.Addr]bool{}
	for _, h := range hosts {
		ip, err := netip.ParseAddr(h)
		if err != nil {
			alias = cmp.Or(alias, h)
			continue
		}
		rr := address4or6(c.header(c.q.Qtype, c.server.opt.TTL), ip)
		if rr.Header().Rrtype == c.q.Qtype && !seen[ip] && !c.full() {
			c.add(rr)
		}
		seen[ip] = true // instances may share one
	}
	if _, ok := dns.IsDomainName(alias); ok && alias != "" && len(seen) == 0 && !c.subject.located {
		c.add(&dns.CNAME{Hdr: c.header(dns.TypeCNAME, c.server.opt.TTL), Target: dns.Fqdn(alias)})
	}
}

// address4or6 is the A or AAAA record of an address.
func address4or6(h dns.RR_Header, ip netip.Addr) dns.RR {
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		h.Rrtype = dns.TypeA
		return &dns.A{Hdr: h, A: ip.AsSlice()}
	}
	h.Rrtype = dns.TypeAAAA
	return &dns.AAAA{Hdr: h, AAAA: ip.AsSlice()}
}

// glue adds the address of a name that the answer mentions.
func (c *query) glue(name string, ip netip.Addr) {
	if ip.IsValid() {
		h := dns.RR_Header{Name: name, Class: dns.ClassINET, Ttl: uint32(c.server.opt.TTL / time.Second)}
		c.reply.Extra = append(c.reply.Extra, address4or6(h, ip))
	}
}

// srv answers SRV; less is preferred, as RFC 2782 has it.
func (c *query) srv(all []*registry.Instance, priority uint16) {
	seen := map[string]bool{}
	for _, i := range all {
		target := c.subject.zone.instanceName(c.subject.namespace, c.subject.service, i.ID)
		ip, err := netip.ParseAddr(i.Address)
		if err != nil {
			target = dns.Fqdn(i.Address)
		}
		at := target + " " + strconv.Itoa(i.Port)
		if _, ok := dns.IsDomainName(target); !ok || seen[at] || c.full() { // not a name: a policy's own rendering
			continue
		}
		seen[at] = true
		c.add(&dns.SRV{Hdr: c.header(dns.TypeSRV, c.server.opt.TTL), Priority: priority, Weight: uint16(i.Weight), Port: uint16(i.Port), Target: target})
		c.glue(target, ip)
	}
}

// txt says of each instance what discovery shows, as RFC 1464 has it: one
// record for each, one string for each member.
func (c *query) txt(all []*registry.Instance) {
	for _, i := range all {
		if c.full() {
			return
		}
		var strs []string
		say := func(key, value string) {
			// A string holds 255 bytes; what is longer is for other protocols.
			if value != "" && len(key)+1+len(value) <= 255 {
				strs = append(strs, escape(key+"="+value))
			}
		}
		say("id", i.ID)
		say("version", i.Version)
		say("zone", i.Zone)
		for _, t := range i.Tags {
			say("tag", t)
		}
		keys := make([]string, 0, len(i.Metadata))
		for k := range i.Metadata {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if !strings.Contains(k, "=") {
				say(k, i.Metadata[k])
			}
		}
		c.add(&dns.TXT{Hdr: c.header(dns.TypeTXT, c.server.opt.TTL), Txt: strs})
	}
}

// escape writes a string as the library wants it, which reads backslashes as
// those of a zone file.
func escape(s string) string { return strings.ReplaceAll(s, `\`, `\\`) }
