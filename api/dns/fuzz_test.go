package dns

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// FuzzQuestion: whatever a message holds, the answer is one that can be sent: it
// belongs to the question, fits the size that the caller takes, and says
// nothing of names that are not ours.
func FuzzQuestion(f *testing.F) {
	for _, name := range []string{"cart.shop.svc.muster.", "_cart._tcp.shop.svc.muster.", "blue.cart.shop.svc.muster.", "a.cart.shop.inst.muster.", "muster.", ".",
		"n2.node.consul.", "cart.service.shop.ns.dc1.dc.consul.", `\000\255.x.\..svc.muster.`, "example.org."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeNS, dns.TypeANY, dns.TypeAXFR} {
			m := new(dns.Msg).SetQuestion(name, qtype)
			m.SetEdns0(512, true)
			if b, err := m.Pack(); err == nil {
				f.Add(b)
			}
		}
	}
	f.Add([]byte("\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01")) // a pointer to itself
	s := newServer(f, newStill(f), Options{})
	from := netip.MustParseAddr("192.0.2.7")
	f.Fuzz(func(t *testing.T, b []byte) {
		req := new(dns.Msg)
		if req.Unpack(b) != nil || len(req.Question) != 1 || req.Response || req.Opcode != dns.OpcodeQuery {
			return // what the library refuses, or accept
		}
		for _, size := range []int{512, 1232, dns.MaxMsgSize} {
			res := s.answer(req, from, "192.0.2.7:53", size)
			fit(res, size)
			out, err := res.Pack()
			if err != nil {
				t.Fatalf("%v cannot be sent: %v", res, err)
			}
			if len(out) > size && len(out) > len(b) { // a question alone may be larger
				t.Fatalf("%d bytes where %d fit: %s", len(out), size, res)
			}
			back := new(dns.Msg)
			if err := back.Unpack(out); err != nil {
				t.Fatalf("the answer cannot be read: %v: %s", err, res)
			}
			if back.Id != req.Id || !back.Response || back.RecursionAvailable || len(back.Question) != 1 {
				t.Fatalf("not the answer to %s: %s", req, back)
			}
			ours := s.find(req.Question[0].Name) != nil && req.Question[0].Qclass == dns.ClassINET
			if !ours && (len(back.Answer)+len(back.Ns) > 0 || back.Rcode == dns.RcodeSuccess || back.Rcode == dns.RcodeNameError) {
				t.Fatalf("an answer about a name that is not ours: %s", back)
			}
			if back.Rcode == dns.RcodeSuccess && len(back.Answer) == 0 && len(back.Ns) == 0 {
				t.Fatalf("an empty answer that does not say how long it holds: %s", back)
			}
			if bytes.Contains(out[12:], []byte("hostmaster")) && back.Rcode != dns.RcodeSuccess && back.Rcode != dns.RcodeNameError {
				t.Fatalf("a failure that resolvers would remember: %s", back)
			}
		}
	})
}
