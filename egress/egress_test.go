package egress

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// connect runs the check where a dial runs it, and stops before the connection.
func connect(t *testing.T, d *Dialer, network, address string) error {
	t.Helper()
	passed := errors.New("would connect now")
	dialer := net.Dialer{Control: func(network, address string, c syscall.RawConn) error {
		if err := d.Control(network, address, c); err != nil {
			return err
		}
		return passed
	}}
	c, err := dialer.DialContext(t.Context(), network, address)
	if err == nil {
		_ = c.Close()
		t.Fatalf("%s: connected past a control that always refuses", address)
	}
	if errors.Is(err, passed) {
		return nil
	}
	return err
}

func TestOnlyPublicAddressesAreDialled(t *testing.T) {
	for address, what := range map[string]string{
		"8.8.8.8": "", "1.1.1.1": "", "11.0.0.1": "", "172.32.0.1": "", "100.128.0.1": "", "169.253.1.1": "", "223.255.255.254": "",
		"2606:4700:4700::1111": "", "2a00:1450::1": "", "::ffff:8.8.8.8": "",

		"127.0.0.1": "loopback", "127.255.255.254": "loopback", "::1": "loopback", "::ffff:127.0.0.1": "loopback",
		"0.0.0.0": "unspecified", "0.1.2.3": "unspecified", "::": "unspecified",
		"10.0.0.1": "private", "172.16.0.1": "private", "172.31.255.255": "private", "192.168.1.1": "private", "::ffff:192.168.1.1": "private",
		"fc00::1": "private", "fd12::1": "private",
		"169.254.1.1": "link-local", "fe80::1": "link-local",
		"169.254.169.254": "metadata", "::ffff:169.254.169.254": "metadata", "fd00:ec2::254": "metadata", "100.100.100.200": "metadata",
		"100.64.0.1": "NAT", "100.127.255.255": "NAT",
		"224.0.0.1": "multicast", "239.255.255.255": "multicast", "ff02::1": "multicast",
		"255.255.255.255": "reserved", "240.0.0.1": "reserved", "192.0.0.8": "reserved", "4000::1": "reserved", "100::1": "reserved", "fec0::1": "reserved",
		"::7f00:1": "IPv4", "::ffff:0:7f00:1": "IPv4", "64:ff9b::7f00:1": "NAT64", "64:ff9b::808:808": "NAT64", "64:ff9b:1::1": "NAT64",
		"2002:7f00:1::": "6to4", "2001:0:1::": "Teredo", "2001:db8::1": "documentation", "203.0.113.9": "documentation", "198.18.0.1": "benchmarks",
	} {
		err := connect(t, new(Dialer), "tcp", net.JoinHostPort(address, "443"))
		var r *Refused
		switch {
		case what == "" && err != nil:
			t.Errorf("%s: %v", address, err)
		case what != "" && (!errors.As(err, &r) || !strings.Contains(r.Why, what)):
			t.Errorf("%s: got %v, want it refused as %s", address, err, what)
		}
	}
}

func TestZonesDoNotHideAnAddress(t *testing.T) {
	a := netip.MustParseAddr("fe80::1%eth0")
	if err := new(Dialer).Check(a); err == nil {
		t.Errorf("%s was allowed", a)
	}
	if err := (&Dialer{Allow: []netip.Prefix{netip.MustParsePrefix("fe80::/10")}}).Check(a); err != nil {
		t.Error(err)
	}
}

func TestListedAddressesAreDialled(t *testing.T) {
	allow, err := Prefixes([]string{"127.0.0.1", "10.1.0.0/16", "fd12::/16"})
	if err != nil {
		t.Fatal(err)
	}
	d := &Dialer{Allow: allow}
	for address, ok := range map[string]bool{
		"127.0.0.1": true, "::ffff:127.0.0.1": true, "127.0.0.2": false, "::1": false,
		"10.1.2.3": true, "10.2.0.1": false, "fd12::9": true, "fd00:ec2::254": false, "169.254.169.254": false,
	} {
		if err := connect(t, d, "tcp", net.JoinHostPort(address, "443")); (err == nil) != ok {
			t.Errorf("%s: %v, want it allowed: %v", address, err, ok)
		}
	}
}

// TestEveryFormOfAnIPv4AddressIsJudgedAsThatAddress is about the ways to write
// one address inside another.
func TestEveryFormOfAnIPv4AddressIsJudgedAsThatAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v4 := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
		d := new(Dialer)
		if plain, mapped := d.Check(v4), d.Check(netip.AddrFrom16(v4.As16())); (plain == nil) != (mapped == nil) {
			t.Fatalf("%s: %v, but mapped: %v", v4, plain, mapped)
		}
		for _, prefix := range []string{"::", "64:ff9b::", "::ffff:0:0:0"} {
			b := netip.MustParseAddr(prefix).As16()
			copy(b[12:], v4.AsSlice())
			if err := d.Check(netip.AddrFrom16(b)); err == nil {
				t.Fatalf("%s was allowed", netip.AddrFrom16(b))
			}
		}
	})
}

func TestNamesAreJudgedByWhatTheyResolveTo(t *testing.T) {
	served := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a refused address was connected to") }))
	defer served.Close()
	_, port, err := net.SplitHostPort(served.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: new(Dialer).DialContext}}
	res, err := client.Get("http://localhost:" + port)
	if err == nil {
		_ = res.Body.Close()
	}
	var r *Refused
	if !errors.As(err, &r) {
		t.Errorf("localhost: %v, want it refused", err)
	}
}

func TestOnlyTCPIsDialled(t *testing.T) {
	for _, network := range []string{"udp", "unix"} {
		c, err := new(Dialer).DialContext(t.Context(), network, "127.0.0.1:53")
		if err == nil {
			_ = c.Close()
			t.Errorf("%s was dialled", network)
		}
	}
	if err := new(Dialer).Control("tcp", "no address", nil); err == nil {
		t.Error("an address that cannot be read was allowed")
	}
}

func TestHostsOfURLs(t *testing.T) {
	loopback := &Dialer{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	for _, c := range []struct {
		host         string
		open, listed bool
	}{
		{"policy-engine.internal", true, true},
		{"example.com.", true, true},
		{"8.8.8.8", true, true},
		{"127.0.0.1", false, true},
		{"localhost", false, true},
		{"LOCALHOST.", false, true},
		{"x.localhost", false, true},
		{"::1", false, false},
		{"169.254.169.254", false, false},
		{"2130706433", false, false},
		{"0x7f000001", false, false},
		{"127.1", false, false},
		{"0177.0.0.01", false, false},
		{"", false, false},
		{".", false, false},
	} {
		if err := new(Dialer).CheckHost(c.host); (err == nil) != c.open {
			t.Errorf("%q: %v, want it allowed: %v", c.host, err, c.open)
		}
		if err := loopback.CheckHost(c.host); (err == nil) != c.listed {
			t.Errorf("%q with loopback listed: %v, want it allowed: %v", c.host, err, c.listed)
		}
	}
}

func TestListsOfAddresses(t *testing.T) {
	for _, bad := range []string{"", "localhost", "10.0.0.0/33", "10.0.0.1/8", "::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "fe80::1%eth0"} {
		if got, err := Prefixes([]string{bad}); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}
