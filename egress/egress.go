// Package egress owns where the cluster may connect to on behalf of what its
// users have stored: webhooks, Git repositories, health checks. It refuses
// every address that is not a public one, unless the configuration lists it,
// and it refuses it on the resolved address at the moment of the connection: a
// name that resolves to something else the second time gains nothing.
package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// Dialer connects to public addresses and to those in Allow, and to nothing
// else. The zero value is ready for use; it is safe for concurrent use.
type Dialer struct {
	Allow   []netip.Prefix // addresses that are not public and may be dialled all the same
	Timeout time.Duration  // of one connection; 0: the context's
}

// Refused is the error for an address that may not be connected to.
type Refused struct {
	Address string // as dialled or as written
	Why     string // what the address is: "a loopback address"
}

// Error says what to do as well.
func (r *Refused) Error() string {
	return fmt.Sprintf("%s is %s, which is not connected to unless the configuration allows it", r.Address, r.Why)
}

// DialContext connects as [net.Dialer] does. The error wraps [*Refused] when
// the name has only addresses that may not be connected to; nothing has been
// sent to them then.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: d.Timeout, Control: d.Control}
	return dialer.DialContext(ctx, network, address)
}

// Control is the check by itself, for [net.Dialer.Control]: it runs for each
// address that is tried, after it was resolved and before it is connected to.
func (d *Dialer) Control(network, address string, _ syscall.RawConn) error {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return &Refused{Address: address, Why: "not reached over TCP"}
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return &Refused{Address: address, Why: "not an address and a port"}
	}
	return d.Check(to.Addr())
}

// Check says whether an address may be connected to; the error is [*Refused].
func (d *Dialer) Check(a netip.Addr) error {
	a = a.WithZone("").Unmap()
	why := special(a)
	if why == "" {
		return nil
	}
	for _, p := range d.Allow {
		if p.Contains(a) {
			return nil
		}
	}
	return &Refused{Address: a.String(), Why: why}
}

// CheckHost says whether the host of a URL can be one to connect to, as far as
// that can be told without resolving it: literal addresses, names for this
// machine, and the spellings of addresses that some resolvers understand and
// others do not. The error is [*Refused].
func (d *Dialer) CheckHost(host string) error {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if a, err := netip.ParseAddr(host); err == nil {
		return d.Check(a)
	}
	last := host[strings.LastIndexByte(host, '.')+1:]
	switch {
	case host == "":
		return &Refused{Address: `""`, Why: "no host"}
	case last == "localhost":
		if d.Check(netip.AddrFrom4([4]byte{127, 0, 0, 1})) != nil && d.Check(netip.IPv6Loopback()) != nil {
			return &Refused{Address: host, Why: "this machine"}
		}
	case strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x"):
		return &Refused{Address: host, Why: "neither a name nor an address in its usual form"}
	}
	return nil
}

// Prefixes reads addresses ("127.0.0.1") and ranges of them ("10.0.0.0/8").
func Prefixes(list []string) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(list))
	var errs []error
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if a, addrErr := netip.ParseAddr(s); err != nil && addrErr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%q is neither an address nor a range such as 10.0.0.0/8", s))
		case p.Addr().Is4In6():
			errs = append(errs, fmt.Errorf("%q: write IPv4 addresses as such, without the ::ffff: in front", s))
		case p != p.Masked():
			errs = append(errs, fmt.Errorf("%q has bits beyond its length; write %s", s, p.Masked()))
		default:
			out = append(out, p)
		}
	}
	return out, errors.Join(errs...)
}
