package dns

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A cookie proves the address that it was made for, for as long as it lasts, and
// nothing else does; what has not the form of one is refused.
func TestCookies(t *testing.T) {
	s, other := newServer(t, newStill(t), Options{}), newServer(t, newStill(t), Options{})
	from, elsewhere := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")
	ask := func(cookie string) *dns.Msg {
		req := new(dns.Msg).SetQuestion("cart.shop.svc.muster.", dns.TypeA)
		req.SetEdns0(1232, false)
		req.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie}}
		return req
	}
	given := func(res *dns.Msg) string {
		for _, o := range res.IsEdns0().Option {
			if c, ok := o.(*dns.EDNS0_COOKIE); ok {
				return c.Cookie
			}
		}
		return ""
	}
	const client = "0123456789abcdef"
	cookie := given(s.answer(ask(client), from, "192.0.2.7:53", 1232))
	if len(cookie) != 48 || !strings.HasPrefix(cookie, client+"01000000") {
		t.Fatalf("the cookie is %q", cookie)
	}
	now := time.Now()
	for what, c := range map[string]struct {
		server *Server
		cookie string
		from   netip.Addr
		now    time.Time
		proven bool
	}{
		"its own":            {s, cookie, from, now, true},
		"an hour later":      {s, cookie, from, now.Add(time.Hour + time.Minute), false},
		"long before":        {s, cookie, from, now.Add(-time.Hour), false},
		"another address":    {s, cookie, elsewhere, now, false},
		"another node's":     {other, cookie, from, now, false},
		"another client's":   {s, "1" + cookie[1:], from, now, false},
		"the client's alone": {s, client, from, now, false},
		"a longer one":       {s, cookie + "00", from, now, false},
	} {
		if got := c.server.proven(ask(c.cookie), c.from, c.now); got != c.proven {
			t.Errorf("%s: proven %t", what, got)
		}
		if res := c.server.answer(ask(c.cookie), c.from, "192.0.2.7:53", 1232); res.Rcode != dns.RcodeSuccess || len(res.Answer) == 0 || len(given(res)) != 48 {
			t.Errorf("%s: %s", what, res)
		}
	}
	for _, bad := range []string{"", "01", client + "01", strings.Repeat("00", 41)} {
		if res := s.answer(ask(bad), from, "192.0.2.7:53", 1232); res.Rcode != dns.RcodeFormatError || len(res.Answer) > 0 {
			t.Errorf("the cookie %q: %s", bad, res)
		}
	}
	if s.answer(new(dns.Msg).SetQuestion("cart.shop.svc.muster.", dns.TypeA), from, "192.0.2.7:53", 512).IsEdns0() != nil {
		t.Error("a question without options got some")
	}
}
