// Package provider owns the bearer tokens that others issue: OpenID Connect
// with discovery, plain JWTs under a set of keys, and opaque tokens that the
// issuer is asked about (RFC 7662). It proves whose a token is and keeps the
// proof for a while; what its owner may do is not its business.
//
// Whatever cannot be told is a refusal. A provider that is away lets nobody
// in whose session is not here already, and no node waits for one to start.
// Nothing a caller sends makes this room fetch keys once per call, hold more
// memory than it was given, or verify more tokens at once than there are
// processors for.
package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

// Options are what the providers of one node share.
type Options struct {
	SessionBytes int64 // of what is remembered of proven tokens; 0: 64 MiB
	Logger       *slog.Logger
	Registerer   prometheus.Registerer
}

// Set is every provider of one node. It implements identity.Verifier.
type Set struct {
	issuers map[string]*provider // of JWTs, by iss
	opaque  *provider            // nil: opaque tokens are nobody's
	all     []*provider

	sessions *sessions
	verify   chan struct{} // places for work that costs processor time
	metrics  *metrics
}

// provider is one of the configuration's entries at work.
type provider struct {
	Config
	counters counters
	keys     *keyring    // oidc, jwt
	asks     *introspect // introspection
}

// New makes the providers and reads the key sets that are files. It connects to
// nobody; [Set.Run] does. The error names every mistake.
func New(configs []Config, opt Options) (*Set, error) {
	s := &Set{
		issuers: map[string]*provider{},
		verify:  make(chan struct{}, 2*runtime.GOMAXPROCS(0)),
	}
	if err := Validate(configs); err != nil {
		return nil, err
	}
	s.sessions = newSessions(opt.SessionBytes)
	s.metrics = newMetrics(s)
	for _, c := range configs {
		c = c.complete()
		p := &provider{Config: c, counters: s.metrics.of(c.Name)}
		client, err := c.client()
		if err != nil {
			return nil, err
		}
		logger := opt.Logger.With("provider", c.Name)
		switch c.Kind {
		case OIDC, JWT:
			if p.keys, err = newKeyring(&p.Config, client, logger); err != nil {
				return nil, err
			}
			s.issuers[c.Issuer] = p
		case Introspection:
			p.asks = newIntrospect(&p.Config, client, logger)
			if s.opaque = p; c.Issuer != "" {
				s.issuers[c.Issuer] = p
			}
		}
		s.all = append(s.all, p)
	}
	if err := opt.Registerer.Register(s.metrics); err != nil {
		return nil, fmt.Errorf("metrics of the identity providers: %w", err)
	}
	return s, nil
}

// Run keeps the providers' keys fresh until the context ends.
func (s *Set) Run(ctx context.Context) {
	for _, p := range s.all {
		if p.keys != nil {
			go p.keys.run(ctx)
		}
	}
	<-ctx.Done()
	s.sessions.close()
}

var (
	errNobody    = fault.New(fault.Unauthenticated, "the token is not known; it may have been revoked, or its issuer is not one that this cluster believes")
	errMalformed = fault.New(fault.Unauthenticated, "the token is not well formed")
	errBusy      = &fault.Error{Code: fault.IdentityProviderUnavailable, RetryAfter: 2 * time.Second,
		Detail: "too many callers are waiting to be identified; try again"}
)

// away says that nobody new can be identified by the provider for now.
func away(name string, cause error) *fault.Error {
	e := fault.Wrap(fault.IdentityProviderUnavailable, cause, "the identity provider %q cannot be asked at the moment; who is known already stays, all others try again", name)
	e.RetryAfter = 2 * time.Second
	return e
}

// refused is a definite answer: the same token gets it again.
func refused(format string, args ...any) *fault.Error {
	return fault.New(fault.Unauthenticated, format, args...)
}

// Verify implements identity.Verifier. A session that is known costs one
// look-up, and neither the provider nor a signature.
func (s *Set) Verify(ctx context.Context, text string, sum [32]byte, now time.Time) (*identity.Principal, error) {
	if p, known := s.sessions.get(sum, now); known {
		p.counters.cached.Inc()
		return p.principal, p.err
	}
	p, found, err := s.prove(ctx, text, sum, now)
	if p == nil {
		s.metrics.nobody.Inc()
		return nil, err
	}
	switch {
	case err == nil:
		p.counters.accepted.Inc()
		return found, nil
	case fault.Is(err, fault.Unauthenticated):
		p.counters.refused.Inc()
	case ctx.Err() != nil: // the caller has gone
	default:
		p.counters.unavailable.Inc()
	}
	return nil, err
}

// keep remembers what came of a token, unless that may change at any time.
func (s *Set) keep(p *provider, sum [32]byte, found *identity.Principal, err error, now time.Time) {
	switch {
	case err == nil:
		s.sessions.keep(sum, session{counters: p.counters, principal: found, until: p.until(found, now)}, now)
	case fault.Is(err, fault.Unauthenticated) && !errors.Is(err, errTransient):
		s.sessions.keep(sum, session{counters: p.counters, err: err, until: now.Add(refusalTTL)}, now)
	}
}

// until is how long a session lasts: never past the credential's own end.
func (p *provider) until(found *identity.Principal, now time.Time) time.Time {
	until := now.Add(p.SessionTTL)
	if end := found.Credential.ExpiresAt; !end.IsZero() && end.Before(until) {
		until = end
	}
	return until
}

// prove finds the one provider that the token can be of, and asks it. A nil
// provider means that there is none.
func (s *Set) prove(ctx context.Context, text string, sum [32]byte, now time.Time) (*provider, *identity.Principal, error) {
	if !bearer(text) {
		return nil, nil, errMalformed
	}
	if err := s.enter(ctx); err != nil {
		return nil, nil, err
	}
	var p *provider
	issuer, isJWT := issuerOf(text)
	if isJWT {
		p = s.issuers[issuer]
	} else {
		p = s.opaque
	}
	if p == nil || p.asks != nil {
		s.leave()
		if p == nil {
			return nil, nil, errNobody
		}
		found, err := p.asks.principal(ctx, text, sum, now,
			func() (*identity.Principal, error) { e, _ := s.sessions.get(sum, now); return e.principal, e.err },
			func(found *identity.Principal, err error) { s.keep(p, sum, found, err, now) })
		return p, found, err
	}
	found, err := p.verify(text, now)
	s.leave()
	again := func() bool {
		if err := s.enter(ctx); err != nil {
			return false
		}
		defer s.leave()
		found, err = p.verify(text, now)
		return errors.Is(err, errUnknownKey)
	}
	if errors.Is(err, errUnknownKey) && p.keys.await(ctx, again) && errors.Is(err, errUnknownKey) {
		again()
	}
	s.keep(p, sum, found, err, now)
	return p, found, err
}

func (s *Set) enter(ctx context.Context) error {
	select {
	case s.verify <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.IdentityProviderUnavailable, ctx.Err(), "the caller has gone before it was identified")
	}
}

func (s *Set) leave() { <-s.verify }

// shortest is the least length of an opaque token: fewer characters cannot
// hold what nobody guesses, and need not be asked about.
const shortest = 16

// bearer reports whether the text has the form of a bearer token (RFC 6750,
// b68token) and the length of one.
func bearer(text string) bool {
	end := strings.TrimRight(text, "=")
	if len(text) < shortest || end == "" {
		return false
	}
	letters := 0
	for i := range len(end) {
		switch b := end[i]; {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9':
			letters++
		case b == '-', b == '.', b == '_', b == '~', b == '+', b == '/':
		default:
			return false
		}
	}
	return letters >= shortest/2
}
