// Package issuer owns the certificates that workloads ask a running node for:
// which names a caller may have in one, for how long, and who signs it. The
// authority's key is in a file, behind an agent (such as OpenSSH's, whose key is
// in a hardware module), or outside the cluster (Vault).
//
// It refuses what would make a certificate more than its caller is: ids of
// nodes, roles and other trust domains, CAs, keys that are weak, names that do
// not follow from the id, and ids to which rules give more than the caller has.
// What an authority answers is looked at before it is handed out. It keeps no
// list of certificates: the audit trail has them.
package issuer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
)

// Where the authority's key is.
const (
	Off   = "off"
	File  = "file"
	Agent = "agent"
	Vault = "vault"
)

// Config says who signs, and what.
type Config struct {
	Signer string // Off, File, Agent, Vault
	Cert   string // with File and Agent: the authority's certificate, and what is between it and its root
	Key    string // with File
	Socket string // with Agent
	Vault  VaultConfig

	TrustDomain string
	TTL         time.Duration // the longest, and what is given to who asks for none
	Hosts       []string      // DNS names that an id …/ns/NAMESPACE/svc/SERVICE may have, made of {service} and {namespace}
	Addresses   []string      // ranges of the IP addresses that a certificate may name
}

// The bounds of Config.TTL, and the shortest time that can be asked for.
const (
	MaxTTL = 90 * 24 * time.Hour
	MinTTL = time.Minute
)

// Options are what an issuer has of its node.
type Options struct {
	// Trusted are the authorities of the trust domain: a certificate that they
	// do not lead to is not handed out.
	Trusted func() *x509.CertPool
	// Reserved says that a DNS name or an address is one of a node's own.
	Reserved func(host string) bool
	Logger   *slog.Logger
	Now      func() time.Time
}

// authority signs orders.
type authority interface {
	// sign gives the certificate and what is between it and its root.
	sign(ctx context.Context, o *Order, now time.Time) ([]*x509.Certificate, error)
	// chain is the authority's own, its certificate first; nil where it is not known.
	chain() ([]*x509.Certificate, error)
}

// Issuer makes certificates. It is safe for concurrent use.
type Issuer struct {
	cfg       Config
	opt       Options
	from      authority
	addresses []*net.IPNet
	turns     chan struct{} // what is signed at one time
	count     *prometheus.CounterVec
	seconds   prometheus.Histogram
}

const (
	atOnce   = 16
	patience = 15 * time.Second // of one certificate, with the wait for its turn
)

// New makes an issuer of a configuration that was validated. The error says
// that the authority's files cannot be used.
func New(cfg Config, opt Options) (*Issuer, error) {
	if err := Validate(cfg); err != nil {
		return nil, err
	}
	i := &Issuer{cfg: cfg, opt: opt, turns: make(chan struct{}, atOnce),
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_certificates_total", Help: "Certificates of workloads that this node was to make after roles and policy had allowed them, by outcome: issued, failed.",
		}, []string{"outcome"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_certificate_sign_duration_seconds", Help: "Time that the authority took for a certificate, with the wait for its turn.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
	}
	for _, outcome := range []string{issued, failed} {
		i.count.WithLabelValues(outcome)
	}
	i.addresses, _ = ranges(cfg.Addresses)
	switch cfg.Signer {
	case File:
		i.from = &inFile{pair: paired{cert: cfg.Cert, key: cfg.Key}, domain: cfg.TrustDomain}
	case Agent:
		i.from = &atAgent{pair: paired{cert: cfg.Cert}, socket: cfg.Socket, domain: cfg.TrustDomain}
	case Vault:
		var err error
		if i.from, err = newVault(cfg.Vault, opt.Logger); err != nil {
			return nil, err
		}
	}
	if _, err := i.from.chain(); err != nil {
		return nil, err
	}
	return i, nil
}

const (
	issued = "issued"
	failed = "failed"
)

// Collectors give the figures.
func (i *Issuer) Collectors() []prometheus.Collector {
	return []prometheus.Collector{i.count, i.seconds}
}

// Authority is what the issuer signs with: its certificate, and what is between
// it and its root. Nil where it is outside.
func (i *Issuer) Authority() ([]*x509.Certificate, error) { return i.from.chain() }

// Validate reports every mistake of a configuration, by the names it has below
// certificates in the node's.
func Validate(cfg Config) error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	needed := map[string]string{File: "cert key", Agent: "cert socket", Vault: ""}
	needs, known := needed[cfg.Signer]
	if cfg.Signer == Off || cfg.Signer == "" {
		return nil
	}
	if !known {
		wrong("signer: %q is none of off, file, agent, vault", cfg.Signer)
	}
	for _, f := range []struct{ name, value string }{{"cert", cfg.Cert}, {"key", cfg.Key}, {"socket", cfg.Socket}} {
		if need := slices.Contains(strings.Fields(needs), f.name); need && f.value == "" {
			wrong("%s: the signer %s needs it", f.name, cfg.Signer)
		} else if known && !need && f.value != "" {
			wrong("%s: the signer %s does not use it; leave it out", f.name, cfg.Signer)
		}
	}
	if cfg.Signer == Vault {
		errs = append(errs, cfg.Vault.validate()...)
	}
	if cfg.TTL < MinTTL || cfg.TTL > MaxTTL {
		wrong("ttl: %s is out of range; from %s to %s", cfg.TTL, MinTTL, MaxTTL)
	}
	for n, h := range cfg.Hosts {
		plain := strings.NewReplacer("{service}", "a", "{namespace}", "a").Replace(h)
		if !strings.Contains(h, "{service}") || !strings.Contains(h, "{namespace}") || !hostForm.MatchString(plain) {
			wrong("hosts[%d]: %q must be a DNS name with {service} and {namespace} in it, such as {service}.{namespace}.example.org: else one service could have the name of another", n, h)
		}
	}
	if _, err := ranges(cfg.Addresses); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func ranges(texts []string) (all []*net.IPNet, err error) {
	for n, t := range texts {
		_, r, err := net.ParseCIDR(t)
		if err != nil {
			return nil, fmt.Errorf("addresses[%d]: %q is not a range such as 10.0.0.0/8", n, t)
		}
		all = append(all, r)
	}
	return all, nil
}

// Certificate is one that was issued.
type Certificate struct {
	Leaf  *x509.Certificate
	Chain []*x509.Certificate // between it and its root, its issuer first
	Root  *x509.Certificate   // the authority that is trusted
}

// PEM is the certificate and its chain.
func (c *Certificate) PEM() []byte {
	return pki.EncodeCertificates(append([]*x509.Certificate{c.Leaf}, c.Chain...)...)
}

// Serial is the serial number as revocations name it.
func (c *Certificate) Serial() string { return c.Leaf.SerialNumber.Text(16) }

// Issue has an order signed that was permitted. Errors are faults; whatever
// they are, nobody has got a certificate.
func (i *Issuer) Issue(ctx context.Context, o *Order) (*Certificate, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case i.turns <- struct{}{}:
		defer func() { <-i.turns }()
	case <-ctx.Done():
		i.count.WithLabelValues(failed).Inc()
		return nil, fault.New(fault.NotReady, "the authority is busy; try again, or another node")
	}
	c, err := i.issue(ctx, o)
	i.seconds.Observe(time.Since(began).Seconds())
	if err != nil {
		i.count.WithLabelValues(failed).Inc()
		i.opt.Logger.Error("a certificate was not issued", "id", o.ID.String(), "error", err, "cause", errors.Unwrap(err))
		return nil, err
	}
	i.count.WithLabelValues(issued).Inc()
	return c, nil
}

func (i *Issuer) issue(ctx context.Context, o *Order) (*Certificate, error) {
	now := i.opt.Now()
	chain, err := i.from.sign(ctx, o, now)
	if err != nil {
		if f := fault.From(err); f.Code != fault.Internal {
			return nil, f
		}
		return nil, fault.Wrap(fault.NotReady, err, "the authority did not sign; this node's log says why. Try again later, or another node")
	}
	c := &Certificate{Leaf: chain[0], Chain: chain[1:]}
	if c.Root, err = i.asOrdered(c, o, now); err != nil {
		return nil, fault.Wrap(fault.NotReady, err, "the authority signed what cannot be handed out; this node's log says why")
	}
	return c, nil
}
