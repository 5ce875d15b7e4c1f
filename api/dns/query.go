package dns

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// patience bounds one question. A resolver waits no longer before it asks
// again.
const patience = 2 * time.Second

// query is one question on its way through this edge.
type query struct {
	door.Call
	server *Server
	ctx    context.Context
	from   netip.Addr
	method string // what the question would be in REST, for policies
	path   string
	route  []string

	q       dns.Question
	subject subject
	reply   *dns.Msg
	room    int // no more records than these fit into the answer
}

// Context implements door.Request.
func (c *query) Context() context.Context { return c.ctx }

// Credentials implements door.Request: there are none.
func (c *query) Credentials() ([]string, *tls.ConnectionState) { return nil, nil }

// Form implements door.Request.
func (c *query) Form() door.Form {
	return door.Form{Method: c.method, Path: c.path, Route: c.route, Scheme: "dns",
		Host: strings.TrimSuffix(strings.ToLower(c.q.Name), "."), Source: c.from.String()}
}

// like says what the question would be in REST.
func (c *query) like(q url.Values, segments ...string) {
	c.method, c.route, c.path = "GET", segments, "/"+strings.Join(segments, "/")
	if len(q) > 0 {
		c.path += "?" + q.Encode()
	}
}

// ServeDNS answers one question. It implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	began := time.Now()
	rcode, qtype := -1, dns.TypeNone
	defer func() {
		if v := recover(); v != nil {
			s.opt.Logger.Error("panic in a handler", "protocol", "dns", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			rcode = dns.RcodeServerFailure
			_ = w.WriteMsg(new(dns.Msg).SetRcode(req, rcode))
		}
		s.opt.Observe(typeName(qtype), rcode, time.Since(began))
	}()
	if len(req.Question) != 1 { // accept has counted them
		return
	}
	qtype = req.Question[0].Qtype
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	from := address(w.RemoteAddr())
	if !s.meter.Allow(from) {
		rcode = s.tooMany(w, req, udp && !s.proven(req, from, began))
		return
	}
	size := dns.MaxMsgSize
	if udp {
		size = min(s.opt.UDPSize, max(dns.MinMsgSize, bufferOf(req)))
	}
	res := s.answer(req, from, w.RemoteAddr().String(), size)
	fit(res, size)
	if rcode = res.Rcode; w.WriteMsg(res) != nil {
		rcode = -1
	}
}

// tooMany answers an address that asks more than its rate. Over UDP, without a
// cookie that proves it, it may be somebody else's, so only every other question is answered, with no more than
// it said itself: whoever really asks comes back over TCP, where nobody can
// speak for another.
func (s *Server) tooMany(w dns.ResponseWriter, req *dns.Msg, forged bool) int {
	res := new(dns.Msg).SetReply(req)
	if !forged {
		res.Rcode = dns.RcodeRefused
	} else if res.Truncated = true; s.over.Add(1)%2 == 0 {
		return -1
	}
	if w.WriteMsg(res) != nil {
		return -1
	}
	return res.Rcode
}

// smallest is the size of the smallest record there is, an A.
const smallest = 16

// answer makes the whole answer to a question, or more of it than fits into size.
func (s *Server) answer(req *dns.Msg, from netip.Addr, remote string, size int) *dns.Msg {
	res := new(dns.Msg).SetReply(req)
	edns, wrong := options(req)
	if edns != nil {
		res.SetEdns0(uint16(s.opt.UDPSize), edns.Do())
		cookie, _, malformed := s.cookie(edns, from, time.Now())
		if wrong = cmp.Or(wrong, malformed); cookie != nil {
			res.IsEdns0().Option = []dns.EDNS0{cookie}
		}
	}
	q := req.Question[0]
	zone := s.find(q.Name)
	switch {
	case wrong != dns.RcodeSuccess:
		res.Rcode = wrong
		return res
	case q.Qclass != dns.ClassINET && classless(q.Qclass):
		return res.SetRcode(req, dns.RcodeFormatError)
	case q.Qclass != dns.ClassINET, zone == nil, q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR:
		res.Rcode = dns.RcodeRefused
		extend(res, dns.ExtendedErrorCodeNotAuthoritative, "")
		return res
	}
	res.Authoritative = true
	c := &query{server: s, from: from, q: q, subject: zone.subject(q.Name), reply: res, room: size / smallest}
	var cancel context.CancelFunc
	c.ctx, cancel = context.WithTimeout(s.running, patience)
	defer cancel()
	if c.like(nil, "v1", "discovery"); c.subject.kind == service || c.subject.kind == instance {
		c.like(nil, "v1", "discovery", c.subject.namespace, c.subject.service)
	}
	c.BeginAs(s.door, c, s.door.RequestID(nil), s.opt.Who)
	defer c.Leave()
	if err := c.run(remote); err != nil {
		c.fail(err)
	}
	c.Answered("dns:"+typeName(q.Qtype), policy.Lookup, status(res.Rcode))
	return res
}

// run does what stands before every answer: readiness, the caller, its role and
// the age of the state.
func (c *query) run(remote string) error {
	if err := c.Arrive(remote); err != nil {
		return err
	}
	action, kind, namespace := policy.Lookup, "service", c.subject.namespace
	switch c.subject.kind {
	case nothing, inner, apex, node, nodes: // says nothing of any record
		action, kind, namespace = policy.Read, "cluster", ""
	}
	if err := c.Admit(action, kind, namespace); err != nil {
		return err
	}
	if err := c.Young(); err != nil {
		return err
	}
	return c.resolve()
}

// fail makes the refusal of what was answered so far.
func (c *query) fail(err error) {
	f := fault.From(err)
	rcode, extended := code(f)
	c.reply.Answer, c.reply.Ns = nil, nil
	if c.reply.Rcode = rcode; rcode == dns.RcodeNameError {
		c.negative()
		return
	}
	c.reply.Authoritative = false
	extend(c.reply, extended, string(f.Code))
	switch f.Code {
	case fault.PolicyDenied, fault.Forbidden, fault.RateLimited:
		c.Refuse("dns:"+typeName(c.q.Qtype), f)
	case fault.Internal:
		c.server.opt.Logger.Error("question failed", "request_id", c.ID, "name", c.q.Name, "error", err)
	}
}

// options gives the OPT record of a question, and the rcode that it makes of the answer.
func options(req *dns.Msg) (opt *dns.OPT, rcode int) {
	for _, rr := range req.Extra {
		o, ok := rr.(*dns.OPT)
		switch {
		case !ok:
		case opt != nil: // RFC 6891: there is one
			return nil, dns.RcodeFormatError
		default:
			opt = o
		}
	}
	if opt != nil && opt.Version() != 0 {
		return opt, dns.RcodeBadVers
	}
	return opt, dns.RcodeSuccess
}

func bufferOf(req *dns.Msg) int {
	if o := req.IsEdns0(); o != nil {
		return int(o.UDPSize())
	}
	return 0
}

// extend tells those who speak EDNS more than an rcode can.
func extend(res *dns.Msg, code uint16, text string) {
	if o := res.IsEdns0(); o != nil {
		o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: text})
	}
}

// classless are the classes that nobody has defined for questions.
func classless(class uint16) bool {
	switch class {
	case dns.ClassINET, dns.ClassCHAOS, dns.ClassHESIOD, dns.ClassNONE, dns.ClassANY:
		return false
	}
	return true
}

// typeName keeps what callers make up out of metrics and the audit trail.
func typeName(t uint16) string {
	switch t {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeSOA, dns.TypeNS, dns.TypeANY, dns.TypeCNAME, dns.TypeHTTPS, dns.TypePTR:
		return dns.TypeToString[t]
	}
	return "other"
}

// status is an rcode as HTTP would have it, for the audit trail.
func status(rcode int) int {
	switch rcode {
	case dns.RcodeSuccess:
		return 200
	case dns.RcodeNameError:
		return 404
	case dns.RcodeRefused:
		return 403
	}
	return 503
}
