package node_test

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestHostileQuestions sends what is no question, or too many of them: the
// answer is FORMERR, a refusal or silence, never larger than what was sent, and
// others are answered as always.
func TestHostileQuestions(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	at := tr.withDNS("rate: 50, burst: 50")[0]
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/cart/instances/a?create_service=true", `{"address":"10.0.0.1","port":8080,"ttl":"1h"}`)
	before := e.states(t)

	good, err := new(dns.Msg).SetQuestion("cart.shop.svc.muster.", dns.TypeA).Pack()
	must(t, err)
	with := func(change func(b []byte) []byte) []byte { return change(append([]byte(nil), good...)) }
	hostile := map[string][]byte{
		"nothing":              {},
		"half a header":        good[:7],
		"a header alone":       good[:12],
		"half a name":          good[:20],
		"a label too long":     with(func(b []byte) []byte { b[12] = 63; return b }),
		"a pointer to itself":  with(func(b []byte) []byte { return append(b[:12], 0xc0, 12, 0, 1, 0, 1) }),
		"pointers in a circle": with(func(b []byte) []byte { return append(b[:12], 0xc0, 14, 0xc0, 12, 0, 1, 0, 1) }),
		"an unknown class":     with(func(b []byte) []byte { b[len(b)-1] = 77; return b }),
		"two questions":        with(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }),
		"65535 questions":      with(func(b []byte) []byte { b[4], b[5] = 255, 255; return b }),
		"an answer":            with(func(b []byte) []byte { b[2] |= 0x80; return b }),
		"an update":            with(func(b []byte) []byte { b[2] |= 5 << 3; return b }),
		"a notification":       with(func(b []byte) []byte { b[2] |= 4 << 3; return b }),
		"records that are not": with(func(b []byte) []byte { b[11] = 2; return append(b, 0, 0, 41) }),
		"two OPT records": with(func(b []byte) []byte {
			b[11] = 2
			opt := []byte{0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0}
			return append(append(b, opt...), opt...)
		}),
	}
	bad := func(what string, sent, got []byte) {
		t.Helper()
		m := new(dns.Msg)
		if err := m.Unpack(got); err != nil {
			t.Errorf("%s: an answer that cannot be read: %v", what, err)
		} else if m.Rcode != dns.RcodeFormatError && m.Rcode != dns.RcodeNotImplemented || len(m.Answer)+len(m.Ns) > 0 {
			t.Errorf("%s: %s", what, m)
		} else if len(got) > max(12, len(sent)) {
			t.Errorf("%s: %d bytes for %d", what, len(got), len(sent))
		}
	}
	for what, b := range hostile {
		conn, err := net.Dial("udp", at)
		must(t, err)
		_, err = conn.Write(b)
		must(t, err)
		// What is answered comes before the answer to a good question, or not at all.
		_, err = conn.Write(with(func(b []byte) []byte { b[0], b[1] = 0xab, 0xcd; return b }))
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
		for buf := make([]byte, 4096); ; {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("%s: the question after it is not answered: %v", what, err)
			}
			if n > 2 && buf[0] == 0xab && buf[1] == 0xcd {
				break
			}
			bad(what, b, buf[:n])
		}
		conn.Close()

		tcp, err := net.Dial("tcp", at)
		must(t, err)
		must(t, tcp.SetDeadline(time.Now().Add(30*time.Second)))
		_, err = tcp.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
		must(t, err)
		must(t, tcp.(*net.TCPConn).CloseWrite())
		if got, err := io.ReadAll(io.LimitReader(tcp, 4096)); err == nil && len(got) > 2 {
			bad(what+" over TCP", b, got[2:])
		}
		tcp.Close()
	}
	tcp, err := net.Dial("tcp", at) // says that it will send a lot
	must(t, err)
	defer tcp.Close()
	_, err = tcp.Write([]byte("\xff\xffx"))
	must(t, err)

	// More than its rate: no address gets more than it sends, beyond the burst.
	udp, err := net.ResolveUDPAddr("udp", at)
	must(t, err)
	flood, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 9)}, udp)
	must(t, err)
	defer flood.Close()
	sent, came, whole := 0, 0, 0
	began := time.Now()
	for range 20 {
		for range 100 {
			n, err := flood.Write(good)
			must(t, err)
			sent += n
		}
		must(t, flood.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		for buf := make([]byte, 4096); ; {
			n, err := flood.Read(buf)
			if err != nil {
				break
			}
			came += n
			if m := new(dns.Msg); m.Unpack(buf[:n]) == nil && !m.Truncated {
				whole++
			}
		}
	}
	if most := 50 + int(50*time.Since(began).Seconds()) + 1; whole > most || came > sent {
		t.Errorf("of 2000 questions at once %d were answered, at most %d may be; %d bytes for %d", whole, most, came, sent)
	}
	if res, err := askDNS(t, "udp", at, "cart.shop.svc.muster.", dns.TypeA); err != nil || res.Rcode != dns.RcodeSuccess || res.Truncated {
		t.Errorf("another address: %v %v", res, err)
	}
	until(t, "dropped questions in the metrics", func() error {
		line, err := tr.metric(0, "muster_dns_dropped_total")
		if err == nil && strings.HasSuffix(line, " 0") {
			t.Errorf("none was dropped: %s", line)
		}
		return err
	})
	if after := e.states(t); after != before {
		t.Errorf("the state has changed:\nbefore %s\nafter  %s", before, after)
	}
}
