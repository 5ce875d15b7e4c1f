package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Verdict is what [Verify] found, in words.
type Verdict struct {
	Chain    []string // one line per certificate presented, the server's own first
	Problems []string // what is missing, expired or wrong, with what to do; empty: all is well
	Notices  []string // what is well, and will not be for long
	Protocol string   // such as TLS 1.3
}

// Verify connects to address (host:port), looks at the chain the listener
// presents, and judges it at the given time against roots, for the host name
// server. A certificate to present is optional. The error is about the
// connection; what is wrong with certificates is in the verdict.
func Verify(ctx context.Context, address, server string, roots *x509.CertPool, client *tls.Certificate, now time.Time) (*Verdict, error) {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: server,
		// The chain is judged below, where each mistake can be told in words.
		InsecureSkipVerify: true,
	}
	if client != nil {
		cfg.Certificates = []tls.Certificate{*client}
	}
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: cfg}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("no TLS connection to %s: %w", address, err)
	}
	defer conn.Close()
	tc, ok := conn.(*tls.Conn)
	if !ok {
		return nil, errors.New("the connection is not TLS")
	}
	state := tc.ConnectionState()
	v := judge(state.PeerCertificates, server, roots, now)
	v.Protocol = tls.VersionName(state.Version)
	return v, nil
}

// VerifyChain judges the certificates of a file, the leaf first, as [Verify] does
// those of a listener. An empty server name is not looked at.
func VerifyChain(chain []*x509.Certificate, server string, roots *x509.CertPool, now time.Time) *Verdict {
	return judge(chain, server, roots, now)
}

// soon is how long before its end a certificate is told of.
const soon = 30 * 24 * time.Hour

func judge(chain []*x509.Certificate, server string, roots *x509.CertPool, now time.Time) *Verdict {
	v := &Verdict{}
	if len(chain) == 0 {
		v.Problems = append(v.Problems, "the listener presents no certificate")
		return v
	}
	wrong := func(format string, args ...any) { v.Problems = append(v.Problems, fmt.Sprintf(format, args...)) }
	inter := x509.NewCertPool()
	dated := true
	for i, c := range chain {
		v.Chain = append(v.Chain, Describe(c))
		if i > 0 {
			inter.AddCert(c)
		}
		switch {
		case now.After(c.NotAfter):
			dated = false
			wrong("%s expired on %s; issue a new one", name(c), c.NotAfter.UTC().Format(time.RFC3339))
		case now.Before(c.NotBefore):
			dated = false
			wrong("%s is valid only from %s on; check the clocks of this machine and of the one that issued it", name(c), c.NotBefore.UTC().Format(time.RFC3339))
		case c.NotAfter.Sub(now) < soon && c.NotAfter.Sub(c.NotBefore) > 2*soon:
			v.Notices = append(v.Notices, fmt.Sprintf("%s expires in %d days, on %s", name(c), int(c.NotAfter.Sub(now).Hours()/24), c.NotAfter.UTC().Format(time.RFC3339)))
		}
	}
	if err := chain[0].VerifyHostname(server); server != "" && err != nil {
		wrong("%s is not for %q; it names %s; issue one with that name or address", name(chain[0]), server, hosts(chain[0]))
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: now}
	if server == "" { // of a client, perhaps
		opts.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	if !dated {
		// The dates are told already: judge the signatures at a time they allow.
		opts.CurrentTime = chain[0].NotBefore.Add(time.Second)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
			last := chain[len(chain)-1]
			wrong("no path to the CA: %s is issued by %q, which is neither presented nor trusted; have the listener present the missing intermediate, or trust that CA", name(last), last.Issuer)
		} else {
			wrong("%s is not accepted: %s", name(chain[0]), err)
		}
	}
	return v
}

// Describe says in one line what a certificate is.
func Describe(c *x509.Certificate) string {
	var ids []string
	for _, u := range c.URIs {
		ids = append(ids, u.String())
	}
	s := fmt.Sprintf("%s, issued by %q, %s key, valid %s to %s, serial %x", name(c), c.Issuer, c.PublicKeyAlgorithm,
		c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), c.SerialNumber)
	if len(ids) > 0 {
		s += ", id " + strings.Join(ids, ", ")
	}
	if !c.IsCA {
		s += ", for " + hosts(c)
	}
	return s
}

func name(c *x509.Certificate) string {
	if c.IsCA {
		return fmt.Sprintf("the CA certificate %q", c.Subject)
	}
	return fmt.Sprintf("the certificate %q", c.Subject)
}

func hosts(c *x509.Certificate) string {
	all := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return "no host"
	}
	return strings.Join(all, ", ")
}
