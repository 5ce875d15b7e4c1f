// Package dns owns the DNS edge: questions about services, instances and nodes,
// answered over UDP and TCP from the same state, through the same door and by
// the same policies as every look-up. It owns names, records and the size of
// answers.
//
// DNS has no credentials, so all callers are the principal anonymous, with the
// role that the listener is given. It refuses to answer for names that are not
// its own, to ask anybody else, and to say that something is not there where it
// cannot know: then it fails, so that a resolver asks another node.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/identity"
)

// Options say what is answered, and how. The zero value of a field means its
// default.
type Options struct {
	Logger *slog.Logger

	Domain     string // "muster": names end in svc.muster.
	Consul     string // domain of Consul's names, such as "consul"; "": none are answered
	Datacenter string // that Consul's names may give; dc1

	// Zone that those who ask are taken to be in; "": none is preferred.
	Zone string

	Who *identity.Principal // who all callers are; needed

	TTL      time.Duration // of what is answered, in whole seconds
	Negative time.Duration // of the answer that something is not there
	UDPSize  int           // bytes of an answer over UDP, at most; 1232
	Rate     flow.Rate     // questions from one address; the zero Rate is no limit

	// Nodes lists the members of the cluster that answer DNS.
	Nodes func() []Node
	// Observe is told of every answer, by the type asked for; what is dropped
	// has the rcode -1.
	Observe func(qtype string, rcode int, elapsed time.Duration)
}

// Node is a member of the cluster. Host is an IP address or a host name.
type Node struct{ ID, Host string }

// defaults are filled in, and what cannot work is refused.
func (o *Options) complete() error {
	if o.Who == nil {
		return errors.New("dns: say who the callers are")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Domain == "" {
		o.Domain = "muster"
	}
	if o.Datacenter == "" {
		o.Datacenter = "dc1"
	}
	if o.UDPSize == 0 {
		o.UDPSize = 1232
	}
	if o.Nodes == nil {
		o.Nodes = func() []Node { return nil }
	}
	if o.Observe == nil {
		o.Observe = func(string, int, time.Duration) {}
	}
	for _, d := range []string{o.Domain, o.Consul} {
		if err := ValidDomain(d); d != "" && err != nil {
			return err
		}
	}
	return nil
}

// ValidDomain accepts a domain that names can lie below: labels of lower-case
// letters, digits and hyphens, short enough to leave room for the names.
func ValidDomain(d string) error {
	d = strings.TrimSuffix(d, ".")
	for label := range strings.SplitSeq(d, ".") {
		if !named(label) {
			return fmt.Errorf("%q is not a domain; use lower-case letters, digits and hyphens, joined by dots", d)
		}
	}
	if len(d) > 48 {
		return fmt.Errorf("%q is too long for a domain: at most 48 characters, so that there is room for names below it", d)
	}
	return nil
}

// Server answers questions on one node. Its methods may be called from many
// goroutines.
type Server struct {
	door   *door.Door
	opt    Options
	zones  []zone
	secret []byte // of cookies
	meter  *flow.Meter
	over   atomic.Uint64 // questions beyond the rate

	running context.Context
	stop    context.CancelFunc

	udp, tcp *dns.Server
	ending   atomic.Bool
}

// New builds the edge behind a door.
func New(d *door.Door, opt Options) (*Server, error) {
	if err := opt.complete(); err != nil {
		return nil, err
	}
	s := &Server{door: d, opt: opt, secret: newSecret(), meter: flow.NewMeter("dns", opt.Rate)}
	s.zones = append(s.zones, zone{origin: dns.Fqdn(opt.Domain)})
	if opt.Consul != "" {
		s.zones = append(s.zones, zone{origin: dns.Fqdn(opt.Consul), consul: true, datacenter: opt.Datacenter})
	}
	s.udp = &dns.Server{Handler: s, UDPSize: 4096, MsgAcceptFunc: accept}
	s.tcp = &dns.Server{Handler: s, MsgAcceptFunc: accept, MaxTCPQueries: tcpQueries,
		ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: func() time.Duration { return tcpIdle }}
	s.running, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// How long the other side of a TCP connection may be silent, and how much it
// may ask over one. What is asked beyond it needs a new connection.
const (
	tcpIdle    = 10 * time.Second
	tcpQueries = 1000
)

// Serve answers on both until Shutdown, after which it returns nil, or until one
// of them fails. It closes both.
func (s *Server) Serve(l net.Listener, p net.PacketConn) error {
	s.udp.PacketConn, s.tcp.Listener = p, l
	failed := make(chan error, 2)
	for _, one := range []*dns.Server{s.udp, s.tcp} {
		go func() { failed <- one.ActivateAndServe() }()
	}
	context.AfterFunc(s.running, func() {
		_ = l.Close()
		_ = p.Close()
	})
	first := <-failed
	if first != nil {
		s.stop()
	}
	second := <-failed
	if s.running.Err() != nil && s.ending.Load() {
		return nil
	}
	return errors.Join(first, second)
}

// Shutdown ends Serve, and waits for what is being answered, no longer than the
// context lasts.
func (s *Server) Shutdown(ctx context.Context) error {
	s.ending.Store(true)
	for _, one := range []*dns.Server{s.udp, s.tcp} {
		_ = one.ShutdownContext(ctx) // what is left is cut off
	}
	s.stop()
	return nil
}

// accept is what a message must be for anybody to look at more than its header.
func accept(h dns.Header) dns.MsgAcceptAction {
	switch action := dns.DefaultMsgAcceptFunc(h); {
	case action == dns.MsgAccept && h.Bits>>11&0xf != dns.OpcodeQuery:
		return dns.MsgRejectNotImplemented
	default:
		return action
	}
}

// address is where a question comes from.
func address(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// code is the rcode of a refused question, and what the extended error (RFC
// 8914) says beside it.
func code(f *fault.Error) (rcode int, extended uint16) {
	if f.RetryAfter > 0 && f.Code == fault.PolicyDenied { // no answer in time is no refusal
		return dns.RcodeServerFailure, dns.ExtendedErrorCodeNotReady
	}
	switch f.Code {
	case fault.ServiceNotFound, fault.InstanceNotFound, fault.NotFound:
		return dns.RcodeNameError, 0
	case fault.PolicyDenied, fault.Forbidden, fault.Unauthenticated:
		return dns.RcodeRefused, dns.ExtendedErrorCodeProhibited
	case fault.RateLimited: // the node is busy; another need not be
		return dns.RcodeServerFailure, dns.ExtendedErrorCodeOther
	}
	return dns.RcodeServerFailure, dns.ExtendedErrorCodeNotReady
}
