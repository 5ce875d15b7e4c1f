// Package spiffe owns which authorities are believed for which trust domain: the
// cluster's own, and those of other domains, whose bundles it reads and
// refreshes. It proves X.509-SVIDs and JWT-SVIDs, each by the authorities of the
// domain that its SPIFFE id names and no others. Which roles an id has is not
// its business. It refuses to fetch a bundle without TLS, and to follow a
// redirect on the way.
package spiffe

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

// maxProven bounds how many proofs are remembered.
const maxProven = 20_000

// Options say what a Trust is made of.
type Options struct {
	Own       string   // the cluster's trust domain; its authorities come by [Trust.SetOwn]
	Domains   []Domain // the others
	Audiences []string // one of which a JWT-SVID must be for
	Logger    *slog.Logger
	Now       func() time.Time // nil: time.Now
}

// Trust says whether credentials of several trust domains are good. Safe for
// concurrent use.
type Trust struct {
	opt     Options
	sources []*source
	metrics *metrics

	mu      sync.Mutex // guards changing what follows
	current atomic.Pointer[view]
}

// view is what is believed at one time. Only its memory of proofs changes.
type view struct {
	own       []*x509.Certificate
	workload  []*x509.Certificate // of the cluster's domain, for workloads only
	ownPool   *x509.CertPool
	workPool  *x509.CertPool
	bundles   map[spiffeid.TrustDomain]*believed
	pool      *x509.CertPool    // all of them: for the handshake, which cannot tell domains apart
	chains    proofs[time.Time] // until when the chain is good
	tokens    proofs[*identity.Principal]
	ownDomain string
}

// believed is a bundle and when it was last confirmed.
type believed struct {
	*spiffebundle.Bundle
	at atomic.Int64 // Unix seconds
}

// proofs remembers what was proven, up to a bound.
type proofs[T any] struct {
	mu sync.Mutex // guards m
	m  map[[sha256.Size]byte]T
}

func (p *proofs[T]) get(k [sha256.Size]byte) (v T, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok = p.m[k]
	return v, ok
}

func (p *proofs[T]) put(k [sha256.Size]byte, v T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil || len(p.m) >= maxProven {
		p.m = make(map[[sha256.Size]byte]T)
	}
	p.m[k] = v
}

// New makes a Trust and reads the bundles that are in files. Those at URLs are
// fetched by [Trust.Run]; until then nobody of those domains is believed.
func New(o Options) (*Trust, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := Validate(o.Own, o.Domains, o.Audiences); err != nil {
		return nil, err
	}
	t := &Trust{opt: o, metrics: newMetrics()}
	t.current.Store(&view{bundles: map[spiffeid.TrustDomain]*believed{}, pool: x509.NewCertPool(), ownPool: x509.NewCertPool(), workPool: x509.NewCertPool(), ownDomain: o.Own})
	for _, d := range o.Domains {
		s, err := t.newSource(d)
		if err != nil {
			return nil, err
		}
		t.sources = append(t.sources, s)
	}
	return t, nil
}

// SetOwn sets the authorities of the cluster's own trust domain: those for
// everything, and those that count for workloads alone, whose ids begin with
// /ns/.
func (t *Trust) SetOwn(authorities, workload []*x509.Certificate) {
	t.change(func(v *view) { v.own, v.workload = authorities, workload })
}

func (t *Trust) set(td spiffeid.TrustDomain, b *spiffebundle.Bundle) {
	t.change(func(v *view) {
		next := &believed{Bundle: b}
		next.at.Store(t.opt.Now().Unix())
		v.bundles[td] = next
	})
}

// change makes the next view. It begins without proofs: what was proven by an
// authority that is gone is not good any more.
func (t *Trust) change(edit func(*view)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.current.Load()
	v := &view{own: old.own, workload: old.workload, bundles: make(map[spiffeid.TrustDomain]*believed, len(old.bundles)), ownDomain: old.ownDomain}
	for td, b := range old.bundles {
		v.bundles[td] = b
	}
	edit(v)
	v.ownPool, v.workPool, v.pool = x509.NewCertPool(), x509.NewCertPool(), x509.NewCertPool()
	for _, c := range v.own {
		v.ownPool.AddCert(c)
		v.pool.AddCert(c)
	}
	for _, c := range v.workload {
		v.workPool.AddCert(c)
		v.pool.AddCert(c)
	}
	for _, b := range v.bundles {
		for _, c := range b.X509Authorities() {
			v.pool.AddCert(c)
		}
	}
	t.current.Store(v)
}

// Pool holds the authorities of all domains together. A chain to one of them
// proves nothing before [Trust.VerifyChain] has looked at it. It is the same
// pool until something changes.
func (t *Trust) Pool() *x509.CertPool { return t.current.Load().pool }

// VerifyChain says whether a client's certificates, its own first, are good by
// the authorities that count for whom it names: those of the trust domain in its
// SPIFFE id where that is another's, those of the cluster for everybody else.
// The error is unauthenticated. What was proven is remembered for an hour at
// most, and not past the end of a certificate or a change of the authorities.
func (t *Trust) VerifyChain(chain []*x509.Certificate) error {
	v := t.current.Load()
	h := sha256.New()
	for _, c := range chain {
		h.Write(c.Raw)
	}
	key := [sha256.Size]byte(h.Sum(nil))
	now := t.opt.Now()
	if until, ok := v.chains.get(key); ok && now.Before(until) {
		return nil
	}
	if err := v.verify(chain, now); err != nil {
		return fault.Wrap(fault.Unauthenticated, err, "the client certificate is not signed by an authority that is trusted for whom it names")
	}
	until := now.Add(time.Hour)
	for _, c := range chain {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	v.chains.put(key, until)
	return nil
}

func (v *view) verify(chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return fmt.Errorf("there is no certificate")
	}
	leaf := chain[0]
	id := domainOf(leaf)
	if td, err := spiffeid.TrustDomainFromString(id.Host); err == nil && id.Host != "" {
		if b, ok := v.bundles[td]; ok {
			_, _, err := x509svid.Verify(chain, b.X509Bundle(), x509svid.WithTime(now))
			return err
		}
	}
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	opts := x509.VerifyOptions{Roots: v.ownPool, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	_, err := leaf.Verify(opts)
	if err != nil && id.Host == v.ownDomain && strings.HasPrefix(id.Path, "/ns/") {
		opts.Roots = v.workPool
		_, err = leaf.Verify(opts)
	}
	return err
}

// domainOf gives the SPIFFE id that a certificate names, empty where it names
// none or several: it then counts as the cluster's own, and is refused later.
func domainOf(c *x509.Certificate) url.URL {
	var id url.URL
	for _, u := range c.URIs {
		if strings.EqualFold(u.Scheme, "spiffe") {
			if id.Host != "" {
				return url.URL{}
			}
			id = *u
		}
	}
	return id
}

// Run keeps the bundles fresh until the context ends.
func (t *Trust) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, s := range t.sources {
		all.Go(func() { s.run(ctx) })
	}
	all.Wait()
}

// Health has a line for each domain that is not the cluster's own.
func (t *Trust) Health() (lines []string) {
	v := t.current.Load()
	for _, s := range t.sources {
		b, ok := v.bundles[s.td]
		if !ok {
			lines = append(lines, fmt.Sprintf("[!] trust domain %s has no bundle yet: nobody of it is believed", s.td))
			continue
		}
		age := t.opt.Now().Sub(time.Unix(b.at.Load(), 0)).Round(time.Second)
		mark := "[+]"
		if age > MaxAge {
			mark = "[!]"
		}
		lines = append(lines, fmt.Sprintf("%s trust domain %s has %d X.509 and %d JWT authorities, confirmed %s ago", mark, s.td, len(b.X509Authorities()), len(b.JWTAuthorities()), age))
	}
	return lines
}
