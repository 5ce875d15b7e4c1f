package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/muster-registry/muster/audit"
)

// withDNS has every node of the trial listen for DNS, with more settings of it.
func (tr *trial) withDNS(settings string) (addresses []string) {
	tr.t.Helper()
	addresses = freePorts(tr.t, len(tr.nodes))
	for i, n := range tr.nodes {
		b, err := os.ReadFile(n.config)
		must(tr.t, err)
		config := strings.Replace(string(b), "listen: {", fmt.Sprintf("listen: {dns: %q, ", addresses[i]), 1)
		must(tr.t, os.WriteFile(n.config, []byte(config+"dns: {"+settings+"}\n"), 0o600))
	}
	return addresses
}

// shop registers services for DNS to find.
func (e *edge) shop(t *testing.T) {
	t.Helper()
	const at = "/v1/namespaces/shop/services/"
	for path, body := range map[string]string{
		"cart/instances/a":  `{"address":"10.0.0.1","port":8080,"weight":10,"zone":"z1","version":"1.2.0","tags":["Blue"],"metadata":{"team":"till"},"ttl":"1h"}`,
		"cart/instances/b":  `{"address":"10.0.0.2","port":8081,"tags":["green","v1.2"],"ttl":"1h"}`,
		"cart/instances/c":  `{"address":"2001:db8::3","port":8080,"tags":["blue"],"ttl":"1h"}`,
		"cart/instances/d":  `{"address":"10.0.0.4","port":8080,"tags":["sick"],"ttl":"1h"}`,
		"named/instances/a": `{"address":"host.example.org","port":9000,"ttl":"1h"}`,
		"mixed/instances/a": `{"address":"host.example.org","port":9000,"ttl":"1h"}`,
		"mixed/instances/b": `{"address":"10.1.0.1","port":9001,"ttl":"1h"}`,
	} {
		e.mustDo(t, "PUT", at+path+"?create_service=true", body)
	}
	e.mustDo(t, "PUT", at+"empty", `{}`)
	e.mustDo(t, "PUT", at+"cart/instances/d/status", `{"status":"critical"}`)
	e.mustDo(t, "PUT", "/v1/namespaces/default/services/web/instances/w1?create_service=true", `{"address":"10.2.0.1","port":80,"tags":["eu"],"ttl":"1h"}`)
	for i := range 150 {
		e.mustDo(t, "PUT", fmt.Sprintf("%slarge/instances/i%03d?create_service=true", at, i), fmt.Sprintf(`{"address":"10.9.0.%d","port":%d,"ttl":"1h"}`, i, 1000+i))
	}
}

var (
	digStatus = regexp.MustCompile(`status: ([A-Z]+)`)
	digFlags  = regexp.MustCompile(`flags:([a-z ]*);`)
)

// dug is what dig has printed.
type dug struct {
	status, flags string
	answers       []string // data, sorted
	text          string
}

// dig asks with the real one.
func dig(t *testing.T, at string, args ...string) dug {
	t.Helper()
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("LEFT OUT: dig is not installed")
	}
	host, port, _ := net.SplitHostPort(at)
	args = append([]string{"@" + host, "-p", port, "+time=20", "+tries=3"}, args...)
	out, err := exec.CommandContext(t.Context(), "dig", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("dig %s: %v\n%s", args, err, out)
	}
	d := dug{text: string(out)}
	if m := digStatus.FindStringSubmatch(d.text); m != nil {
		d.status = m[1]
	}
	if m := digFlags.FindStringSubmatch(d.text); m != nil {
		d.flags = strings.TrimSpace(m[1])
	}
	_, section, _ := strings.Cut(d.text, "ANSWER SECTION:\n")
	section, _, _ = strings.Cut(section, "\n\n")
	for line := range strings.Lines(section) {
		if f := strings.Fields(line); len(f) > 4 {
			d.answers = append(d.answers, strings.Join(f[3:], " "))
		}
	}
	slices.Sort(d.answers)
	return d
}

// TestDig asks one node everything that DNS answers, and what it does not.
func TestDig(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	at := tr.withDNS("")[0]
	tr.startAll()
	newEdge(t, tr).shop(t)
	for _, c := range []struct {
		ask    string
		status string
		want   string // of the answers, sorted
	}{
		{"cart.shop.svc.muster A", "NOERROR", "A 10.0.0.1|A 10.0.0.2"},
		{"CaRt.sHop.svc.MUSTER A", "NOERROR", "A 10.0.0.1|A 10.0.0.2"},
		{"cart.shop.svc.muster AAAA", "NOERROR", "AAAA 2001:db8::3"},
		{"cart.shop.svc.muster SRV", "NOERROR", "SRV 1 1 8080 c.cart.shop.inst.muster.|SRV 1 1 8081 b.cart.shop.inst.muster.|SRV 1 10 8080 a.cart.shop.inst.muster."},
		{"_cart._tcp.shop.svc.muster SRV", "NOERROR", "SRV 1 1 8080 c.cart.shop.inst.muster.|SRV 1 1 8081 b.cart.shop.inst.muster.|SRV 1 10 8080 a.cart.shop.inst.muster."},
		{"_cart._green.shop.svc.muster SRV", "NOERROR", "SRV 1 1 8081 b.cart.shop.inst.muster."},
		{"_cart._tcp.shop.svc.muster A", "NOERROR", "A 10.0.0.1|A 10.0.0.2"},
		{"blue.cart.shop.svc.muster ANY", "NOERROR", `HINFO "RFC8482" ""`},
		{"blue.cart.shop.svc.muster TXT", "NOERROR", `TXT "id=a" "version=1.2.0" "zone=z1" "tag=Blue" "team=till"|TXT "id=c" "tag=blue"`},
		{"blue.cart.shop.svc.muster A", "NOERROR", "A 10.0.0.1"},
		{`v1\.2.cart.shop.svc.muster A`, "NOERROR", "A 10.0.0.2"},
		{"a.cart.shop.inst.muster A", "NOERROR", "A 10.0.0.1"},
		{"d.cart.shop.inst.muster A", "NOERROR", "A 10.0.0.4"}, // in whatever state it is
		{"named.shop.svc.muster A", "NOERROR", "CNAME host.example.org."},
		{"named.shop.svc.muster SRV", "NOERROR", "SRV 1 1 9000 host.example.org."},
		{"mixed.shop.svc.muster A", "NOERROR", "A 10.1.0.1"},
		{"muster SOA", "NOERROR", "SOA ns.muster. hostmaster.muster. SERIAL 3600 600 86400 1"},
		{"muster NS", "NOERROR", "NS n1.node.muster."},
		{"n1.node.muster A", "NOERROR", "A 127.0.0.1"},
		{"ns.muster A", "NOERROR", "A 127.0.0.1"},
		{"web.service.consul A", "NOERROR", "A 10.2.0.1"},
		{"web.service.dc1.consul A", "NOERROR", "A 10.2.0.1"},
		{"eu.web.service.consul SRV", "NOERROR", "SRV 1 1 80 w1.web.inst.consul."},
		{"_web._tcp.service.consul SRV", "NOERROR", "SRV 1 1 80 w1.web.inst.consul."},
		{"w1.web.inst.consul A", "NOERROR", "A 10.2.0.1"},
		{"blue.cart.service.shop.ns.dc1.dc.consul A", "NOERROR", "A 10.0.0.1"},
		{"b.cart.inst.shop.ns.consul A", "NOERROR", "A 10.0.0.2"},
		{"n1.node.consul A", "NOERROR", "A 127.0.0.1"},

		// There, and nothing of the kind.
		{"sick.cart.shop.svc.muster A", "NOERROR", ""},
		{"green.cart.shop.svc.muster AAAA", "NOERROR", ""},
		{"_named._tcp.shop.svc.muster A", "NOERROR", ""}, // an alias has no SRV
		{"empty.shop.svc.muster A", "NOERROR", ""},
		{"cart.shop.svc.muster MX", "NOERROR", ""},
		{"shop.svc.muster A", "NOERROR", ""},
		{"_tcp.shop.svc.muster A", "NOERROR", ""},
		{"svc.muster A", "NOERROR", ""},
		{"muster A", "NOERROR", ""},
		{"cart.shop.inst.muster A", "NOERROR", ""},

		// Not there.
		{"nobody.shop.svc.muster A", "NXDOMAIN", ""},
		{"cart.nowhere.svc.muster A", "NXDOMAIN", ""},
		{"red.cart.shop.svc.muster A", "NXDOMAIN", ""},
		{"z.cart.shop.inst.muster A", "NXDOMAIN", ""},
		{"a.b.cart.shop.svc.muster A", "NXDOMAIN", ""},
		{"n9.node.muster A", "NXDOMAIN", ""},
		{"cart.shop.muster A", "NXDOMAIN", ""},
		{"ca_rt.shop.svc.muster A", "NXDOMAIN", ""},
		{"web.service.dc2.consul A", "NXDOMAIN", ""},
		{"web.query.consul A", "NXDOMAIN", ""},

		// Not ours.
		{"example.org A", "REFUSED", ""},
		{"notmuster A", "REFUSED", ""},
		{". NS", "REFUSED", ""},
		{"1.0.0.10.in-addr.arpa PTR", "REFUSED", ""},
		{"muster TXT CH", "REFUSED", ""},
	} {
		for _, transport := range []string{"+notcp", "+tcp"} {
			args := append([]string{transport}, strings.Fields(c.ask)...)
			d := dig(t, at, args...)
			got := regexp.MustCompile(`(muster\.) \d+ 3600`).ReplaceAllString(strings.Join(d.answers, "|"), "$1 SERIAL 3600")
			if d.status != c.status || got != c.want {
				t.Errorf("dig %s: %s %q, want %s %q\n%s", args, d.status, got, c.status, c.want, d.text)
			}
			if strings.Contains(d.flags, "ra") || (d.status != "REFUSED") != strings.Contains(d.flags, "aa") {
				t.Errorf("dig %s: flags %s", args, d.flags)
			}
			if negative := d.status == "NXDOMAIN" || d.status == "NOERROR" && c.want == ""; negative != regexp.MustCompile(`\t1\tIN\tSOA\t.* 1\n`).MatchString(d.text) && !strings.HasSuffix(c.ask, "SOA") {
				t.Errorf("dig %s: whether a resolver may remember it:\n%s", args, d.text)
			}
		}
	}
	if d := dig(t, at, "CaRt.shop.svc.muster", "SRV", "+norecurse"); !strings.Contains(d.text, "CaRt.shop.svc.muster.\t5\tIN\tSRV") || strings.Contains(d.flags, "rd") ||
		!strings.Contains(d.text, "a.cart.shop.inst.muster. 5\tIN\tA\t10.0.0.1") || !strings.Contains(d.text, "c.cart.shop.inst.muster. 5\tIN\tAAAA\t2001:db8::3") {
		t.Errorf("the addresses beside SRV, and the spelling of the question:\n%s", d.text)
	}
	if d := dig(t, at, "cart.shop.svc.muster", "A"); !strings.Contains(d.text, "(good)") {
		t.Errorf("dig finds no good cookie in:\n%s", d.text)
	}
	// What does not fit is cut off where records end, and says so; dig then asks over TCP.
	for _, c := range []struct {
		flags    []string
		min, max int
		cut      bool
	}{
		{[]string{"+noedns"}, 20, 29, true}, {[]string{"+bufsize=512"}, 20, 28, true}, {[]string{"+bufsize=1232"}, 60, 74, true},
		{[]string{"+bufsize=4096"}, 60, 74, true}, {[]string{"+bufsize=100"}, 20, 28, true}, {[]string{"+tcp"}, 150, 150, false},
	} {
		d := dig(t, at, append(c.flags, "+ignore", "large.shop.svc.muster", "A")...)
		if n := len(d.answers); n < c.min || n > c.max || strings.Contains(d.flags, "tc") != c.cut || strings.Contains(d.text, "Warning") {
			t.Errorf("%s: %d answers, flags %q\n%s", c.flags, n, d.flags, d.text)
		}
	}
	if d := dig(t, at, "large.shop.svc.muster", "SRV"); len(d.answers) != 150 || !strings.Contains(d.text, "Truncated, retrying in TCP mode") {
		t.Errorf("%d answers:\n%s", len(d.answers), d.text)
	}
	if d := dig(t, at, "+edns=1", "+noednsneg", "cart.shop.svc.muster", "A"); d.status != "BADVERS" {
		t.Errorf("EDNS of another version: %s", d.text)
	}
}

// askDNS asks once, over UDP unless net says tcp.
func askDNS(t *testing.T, network, at, name string, qtype uint16) (*dns.Msg, error) {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	m.SetEdns0(1232, false)
	c := &dns.Client{Net: network, Timeout: 10 * time.Second}
	res, _, err := c.ExchangeContext(t.Context(), m, at)
	return res, err
}

func (tr *trial) awaitDNS(at, name string, rcode int) *dns.Msg {
	tr.t.Helper()
	var res *dns.Msg
	until(tr.t, "the answer about "+name, func() (err error) {
		if res, err = askDNS(tr.t, "udp", at, name, dns.TypeA); err == nil && res.Rcode != rcode {
			err = fmt.Errorf("%s", res)
		}
		return err
	})
	return res
}

// TestDNSAsksForTheRole: whoever asks over DNS is anonymous with the role of the
// listener, for the policy and the audit trail, and a refusal says nothing.
func TestDNSAsksForTheRole(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	at := tr.withDNS("namespaces: [shop]")[0]
	tr.configure(t, "audit: {lookups: all}\n")
	tr.startAll()
	e := newEdge(t, tr)
	e.shop(t)
	for _, name := range []string{"web.service.consul.", "nobody.service.consul."} {
		if res, err := askDNS(t, "udp", at, name, dns.TypeA); err != nil || res.Rcode != dns.RcodeRefused || len(res.Answer)+len(res.Ns) > 0 {
			t.Errorf("of another namespace: %v %v", res, err)
		}
	}
	tr.awaitLine(0, "a refused question", func(l *audit.Entry) bool {
		return l.Call == "GET /v1/discovery/default/web" && l.Record == "service default/web" && l.Operation == "dns:A" && l.Code == "forbidden" && l.Principal == "anonymous"
	})
	tr.awaitDNS(at, "cart.shop.svc.muster.", dns.RcodeSuccess)
	tr.awaitLine(0, "an answered question", func(l *audit.Entry) bool {
		return l.Operation == "dns:A" && l.Type == audit.Lookup && l.Record == "service shop/cart" && l.Source == "127.0.0.1"
	})

	const policy = `package api.security.authz
default allow := false
known if {
	input.principal.kind == "anonymous"
	input.principal.id == "anonymous"
	input.principal.roles == ["viewer"]
	input.protocol == "dns"
	input.attributes.source.address == "127.0.0.1"
}
allow if { known; input.resource.name == "cart"; input.path == ["v1", "discovery", "shop", "cart"] }
allow if { known; input.resource.name in ["mixed", "large"] }
allow if input.principal.kind == "token"
filtered := object.union(input.resource.payload, {"instances": [i | some i in input.resource.payload.instances; i.address == "10.1.0.1"]}) if input.resource.name == "mixed"
filtered := {"nonsense": true} if input.resource.name == "large"
`
	b, err := json.Marshal(map[string]any{"modules": map[string]string{"dns.rego": policy}})
	must(t, err)
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(b))
	for name, want := range map[string]string{
		"cart.shop.svc.muster.": "NOERROR 2", "named.shop.svc.muster.": "REFUSED 0", "nobody.shop.svc.muster.": "REFUSED 0", "empty.shop.svc.muster.": "REFUSED 0",
		"a.named.shop.inst.muster.": "REFUSED 0", "mixed.shop.svc.muster.": "NOERROR 1", "large.shop.svc.muster.": "SERVFAIL 0", "shop.svc.muster.": "NOERROR 0",
	} {
		res, err := askDNS(t, "tcp", at, name, dns.TypeA)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := fmt.Sprintf("%s %d", dns.RcodeToString[res.Rcode], len(res.Answer)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		if res.Rcode == dns.RcodeRefused && len(res.Ns) > 0 {
			t.Errorf("a refusal says: %s", res)
		}
	}
	res, err := askDNS(t, "udp", at, "named.shop.svc.muster.", dns.TypeA)
	must(t, err)
	if o := res.IsEdns0(); o == nil || len(o.Option) != 1 || !strings.Contains(o.Option[0].String(), "policy_denied") {
		t.Errorf("the refusal does not say why: %s", res)
	}
}

// TestDNSThroughOthers: Go's resolver and dnsmasq find services as any program
// would, and with a node gone they go on.
func TestDNSThroughOthers(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	at := tr.withDNS("ttl: 0s, negative_ttl: 0s")
	tr.startAll()
	e := newEdge(t, tr)
	e.shop(t)
	for _, a := range at {
		tr.awaitDNS(a, "large.shop.svc.muster.", dns.RcodeSuccess)
		if res, err := askDNS(t, "udp", a, "muster.", dns.TypeNS); err != nil || len(res.Answer) != 3 {
			t.Errorf("name servers: %v %v", res, err)
		}
	}
	forwarder := tr.dnsmasq(at)
	for name, server := range map[string]string{"muster": at[0], "dnsmasq": forwarder} {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server)
		}}
		addrs, err := r.LookupHost(t.Context(), "cart.shop.svc.muster.")
		if slices.Sort(addrs); err != nil || strings.Join(addrs, " ") != "10.0.0.1 10.0.0.2 2001:db8::3" {
			t.Errorf("%s: %v %v", name, addrs, err)
		}
		_, srv, err := r.LookupSRV(t.Context(), "cart", "tcp", "shop.svc.muster.")
		if err != nil || len(srv) != 3 {
			t.Errorf("%s: %v %v", name, srv, err)
		}
		for _, s := range srv {
			if a, err := r.LookupHost(t.Context(), s.Target); err != nil || len(a) != 1 {
				t.Errorf("%s: the target %s: %v %v", name, s.Target, a, err)
			}
		}
		if all, err := r.LookupHost(t.Context(), "large.shop.svc.muster."); err != nil || len(all) != 150 {
			t.Errorf("%s: an answer that needs TCP: %d %v", name, len(all), err)
		}
		if txt, err := r.LookupTXT(t.Context(), "cart.shop.svc.muster."); err != nil || len(txt) != 3 {
			t.Errorf("%s: %q %v", name, txt, err)
		}
		_, err = r.LookupHost(t.Context(), "nobody.shop.svc.muster.")
		if e, ok := errors.AsType[*net.DNSError](err); !ok || !e.IsNotFound {
			t.Errorf("%s: a service that is not there: %v", name, err)
		}
	}
	leader := e.leader(t)
	tr.stop(leader)
	tr.awaitDNS(forwarder, "cart.shop.svc.muster.", dns.RcodeSuccess)
	for i, a := range at {
		if i != leader {
			tr.awaitDNS(a, "cart.shop.svc.muster.", dns.RcodeSuccess)
		}
	}
}

// dnsmasq runs a real forwarder to all of the nodes, which remembers nothing.
func (tr *trial) dnsmasq(to []string) (at string) {
	tr.t.Helper()
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		tr.t.Skip("LEFT OUT: dnsmasq is not installed")
	}
	at = freePorts(tr.t, 1)[0]
	_, port, _ := net.SplitHostPort(at)
	args := []string{"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-poll", "--cache-size=0", "--bind-interfaces",
		"--listen-address=127.0.0.1", "--except-interface=none", "--port=" + port, "--user=", "--group=", "--pid-file=" + tr.file("dnsmasq.pid"), "--log-facility=-", "--all-servers"}
	for _, s := range to {
		host, port, _ := net.SplitHostPort(s)
		args = append(args, "--server=/muster/"+host+"#"+port, "--server=/consul/"+host+"#"+port)
	}
	cmd := exec.CommandContext(tr.t.Context(), "dnsmasq", args...)
	out, err := os.Create(tr.file("dnsmasq.log"))
	must(tr.t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	must(tr.t, cmd.Start())
	tr.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if b, _ := os.ReadFile(tr.file("dnsmasq.log")); tr.t.Failed() {
			tr.t.Logf("dnsmasq: %s", b)
		}
	})
	tr.awaitDNS(at, "cart.shop.svc.muster.", dns.RcodeSuccess)
	return at
}

// TestDNSIsNeverEmptyByAccident asks all nodes all the time while one after the
// other is started anew: there is an answer, an error, or silence, and never
// the claim that nothing is there.
func TestDNSIsNeverEmptyByAccident(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	at := tr.withDNS("rate: 0")
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/cart/instances/a?create_service=true", `{"address":"10.0.0.1","port":8080,"ttl":"1h"}`)
	for _, a := range at {
		tr.awaitDNS(a, "cart.shop.svc.muster.", dns.RcodeSuccess)
	}
	ctx, stop := context.WithCancel(t.Context())
	type count struct {
		good, failed, silent int
		lies                 []string
	}
	counts := make(chan count, len(at))
	for _, a := range at {
		go func() {
			var n count
			defer func() { counts <- n }()
			for ctx.Err() == nil {
				m := new(dns.Msg)
				m.SetQuestion("cart.shop.svc.muster.", dns.TypeA)
				res, _, err := (&dns.Client{Timeout: time.Second}).Exchange(m, a)
				switch {
				case err != nil:
					n.silent++
					select {
					case <-ctx.Done():
					case <-time.After(2 * time.Millisecond):
					}
				case res.Rcode == dns.RcodeServerFailure:
					n.failed++
				case res.Rcode == dns.RcodeSuccess && len(res.Answer) == 1:
					n.good++
				default:
					n.lies = append(n.lies, res.String())
				}
			}
		}()
	}
	for i := range tr.nodes {
		tr.stop(i)
		tr.start(i)
		tr.awaitReady(i)
		tr.awaitDNS(at[i], "cart.shop.svc.muster.", dns.RcodeSuccess)
	}
	stop()
	for range at {
		n := <-counts
		t.Logf("%d answers, %d failures, %d without an answer", n.good, n.failed, n.silent)
		if n.good == 0 || len(n.lies) > 0 {
			t.Errorf("%d answers; lies: %s", n.good, strings.Join(n.lies[:min(3, len(n.lies))], "\n"))
		}
	}
}
