package dns

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Cookies (RFC 7873) tell a client over UDP whose address is its own from one
// who forges it: the server's half, which has the form of RFC 9018, reaches the
// owner of the address alone.
const (
	clientCookie = 8
	serverCookie = 16
	cookieLife   = time.Hour       // of a server's half
	cookieSkew   = 5 * time.Minute // into the future
)

// newSecret is what a server makes its cookies with, until it ends.
func newSecret() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return b
}

// cookie reads the cookie of a question, and gives the one for the answer: nil
// where there is none. proven says that the question comes from the address it
// says; rcode that the option has not its form.
func (s *Server) cookie(o *dns.OPT, from netip.Addr, now time.Time) (answer *dns.EDNS0_COOKIE, proven bool, rcode int) {
	if o == nil {
		return nil, false, dns.RcodeSuccess
	}
	for _, option := range o.Option {
		given, ok := option.(*dns.EDNS0_COOKIE)
		if !ok {
			continue
		}
		b, err := hex.DecodeString(given.Cookie)
		if n := len(b); err != nil || n != clientCookie && (n < 2*clientCookie || n > 40) {
			return nil, false, dns.RcodeFormatError
		}
		client := b[:clientCookie]
		if len(b) == clientCookie+serverCookie {
			at := time.Unix(int64(binary.BigEndian.Uint32(b[clientCookie+4:])), 0)
			age := now.Sub(at)
			proven = age < cookieLife && age > -cookieSkew && hmac.Equal(b, s.bake(client, from, at))
		}
		return &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: hex.EncodeToString(s.bake(client, from, now))}, proven, dns.RcodeSuccess
	}
	return nil, false, dns.RcodeSuccess
}

// proven says whether a question has a cookie that proves where it comes from.
func (s *Server) proven(req *dns.Msg, from netip.Addr, now time.Time) bool {
	edns, wrong := options(req)
	_, proven, _ := s.cookie(edns, from, now)
	return proven && wrong == dns.RcodeSuccess
}

// bake makes a whole cookie.
func (s *Server) bake(client []byte, from netip.Addr, at time.Time) []byte {
	b := append(make([]byte, 0, clientCookie+serverCookie), client...)
	b = append(b, 1, 0, 0, 0) // the version, and what is reserved
	b = binary.BigEndian.AppendUint32(b, uint32(at.Unix()))
	m := hmac.New(sha256.New, s.secret)
	m.Write(b)
	m.Write(from.AsSlice())
	return append(b, m.Sum(nil)[:8]...)
}
