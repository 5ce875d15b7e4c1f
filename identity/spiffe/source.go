package spiffe

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

// The profiles of bundle endpoints, as SPIFFE Federation has them.
const (
	ProfileWeb    = "https_web"    // the endpoint has a certificate of a public or a given CA
	ProfileSPIFFE = "https_spiffe" // the endpoint has an X.509-SVID
)

// How bundles are refreshed.
const (
	lookEvery    = 5 * time.Second // at files
	refreshEvery = 5 * time.Minute // at URLs, unless the bundle says otherwise
	minRefresh   = 10 * time.Second
	maxRefresh   = time.Hour
	fetchTime    = 10 * time.Second
	maxBundle    = 1 << 20 // bytes

	// MaxAge is how long a bundle counts for JWT-SVIDs without being confirmed.
	// X.509 authorities carry their own end.
	MaxAge = 24 * time.Hour
)

// Domain is a trust domain whose members are believed, and where its bundle is.
type Domain struct {
	Name       string
	BundleFile string // as JSON (SPIFFE bundle) or PEM; beside a URL it counts until the first fetch
	BundleURL  string // https
	Profile    string // of the URL; "": ProfileWeb
	EndpointID string // SPIFFE id of the endpoint, with ProfileSPIFFE
	CAFile     string // who signs the endpoint, with ProfileWeb; "": the system's authorities
}

// Validate says what is wrong with the settings, one sentence for each mistake.
func Validate(own string, domains []Domain, audiences []string) error {
	var errs []error
	wrong := func(d Domain, format string, args ...any) {
		errs = append(errs, fmt.Errorf("trust domain %q: %s", d.Name, fmt.Sprintf(format, args...)))
	}
	var seen []string
	for _, d := range domains {
		if td, err := spiffeid.TrustDomainFromString(d.Name); err != nil || td.Name() != d.Name {
			wrong(d, "is not the name of a trust domain; write it such as example.org")
		}
		switch {
		case d.Name == own:
			wrong(d, "is the cluster's own, whose authorities are those of tls.ca")
		case slices.Contains(seen, d.Name):
			wrong(d, "is there twice")
		}
		seen = append(seen, d.Name)
		if d.BundleFile == "" && d.BundleURL == "" {
			wrong(d, "has no bundle; set bundle_file or bundle_url")
		}
		if u, err := url.Parse(d.BundleURL); d.BundleURL != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil) {
			wrong(d, "bundle_url: %q is not an https URL without credentials", d.BundleURL)
		}
		switch d.Profile {
		case "", ProfileWeb:
			if d.EndpointID != "" {
				wrong(d, "endpoint_id goes with profile: https_spiffe")
			}
		case ProfileSPIFFE:
			if _, err := spiffeid.FromString(d.EndpointID); err != nil {
				wrong(d, "endpoint_id: %q is not a SPIFFE id", d.EndpointID)
			} else if id, _ := spiffeid.FromString(d.EndpointID); id.TrustDomain().Name() != d.Name {
				wrong(d, "endpoint_id: %s is of another trust domain", d.EndpointID)
			}
			if d.BundleURL == "" || d.BundleFile == "" {
				wrong(d, "https_spiffe needs bundle_url, and bundle_file for the first fetch")
			}
			if d.CAFile != "" {
				wrong(d, "ca_file goes with profile: https_web")
			}
		default:
			wrong(d, "profile: %q is neither https_web nor https_spiffe", d.Profile)
		}
	}
	if slices.Contains(audiences, "") {
		errs = append(errs, errors.New("an audience is empty"))
	}
	return errors.Join(errs...)
}

// source is where the bundle of one domain comes from.
type source struct {
	Domain
	trust   *Trust
	td      spiffeid.TrustDomain
	content []byte // of the file, as it was last looked at
	client  *http.Client
}

func (t *Trust) newSource(d Domain) (*source, error) {
	td, err := spiffeid.TrustDomainFromString(d.Name)
	if err != nil {
		return nil, err
	}
	s := &source{Domain: d, trust: t, td: td}
	if d.BundleFile != "" {
		if err := s.readFile(); err != nil {
			return nil, fmt.Errorf("the bundle of trust domain %s: %w", td, err)
		}
	}
	if d.BundleURL != "" {
		cfg := &tls.Config{MinVersion: tls.VersionTLS12}
		if d.CAFile != "" {
			pem, err := os.ReadFile(d.CAFile)
			if err != nil {
				return nil, err
			}
			cfg.RootCAs = x509.NewCertPool()
			if !cfg.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%s holds no certificate in PEM", d.CAFile)
			}
		}
		if d.Profile == ProfileSPIFFE {
			id, err := spiffeid.FromString(d.EndpointID)
			if err != nil {
				return nil, err
			}
			cfg = tlsconfig.TLSClientConfig(s, tlsconfig.AuthorizeID(id))
		}
		s.client = &http.Client{
			Timeout: fetchTime,
			// Each fetch proves the endpoint anew: connections are not kept.
			Transport:     &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true, TLSHandshakeTimeout: fetchTime},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return s, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source: what the endpoint's
// own SVID is proven by.
func (s *source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	b, ok := s.trust.current.Load().bundles[td]
	if !ok || td != s.td {
		return nil, fmt.Errorf("there is no bundle of %s", td)
	}
	return b.X509Bundle(), nil
}

// parse reads a bundle in either form.
func (s *source) parse(content []byte) (*spiffebundle.Bundle, error) {
	var b *spiffebundle.Bundle
	if text := bytes.TrimSpace(content); len(text) > 0 && text[0] != '{' {
		x, err := x509bundle.Parse(s.td, content)
		if err != nil {
			return nil, err
		}
		b = spiffebundle.FromX509Bundle(x)
	} else {
		var err error
		if b, err = spiffebundle.Parse(s.td, content); err != nil {
			return nil, err
		}
	}
	if b.Empty() {
		return nil, errors.New("the bundle holds no authority")
	}
	return b, nil
}

func (s *source) readFile() error {
	content, err := os.ReadFile(s.BundleFile)
	if err != nil {
		return err
	}
	if s.content != nil && bytes.Equal(content, s.content) {
		s.confirm()
		return nil
	}
	b, err := s.parse(content)
	if err != nil {
		return fmt.Errorf("%s: %w", s.BundleFile, err)
	}
	s.content = content
	s.trust.set(s.td, b)
	return nil
}

func (s *source) confirm() {
	if b, ok := s.trust.current.Load().bundles[s.td]; ok {
		b.at.Store(s.trust.opt.Now().Unix())
	}
}

// fetch asks the endpoint, and gives when to ask again.
func (s *source) fetch(ctx context.Context) (next time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.BundleURL, http.NoBody)
	if err != nil {
		return 0, err
	}
	res, err := s.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s answers %s", s.BundleURL, res.Status)
	}
	content, err := io.ReadAll(io.LimitReader(res.Body, maxBundle+1))
	if err != nil {
		return 0, err
	}
	if len(content) > maxBundle {
		return 0, fmt.Errorf("the bundle has more than %d bytes", maxBundle)
	}
	b, err := s.parse(content)
	if err != nil {
		return 0, err
	}
	if old, ok := s.trust.current.Load().bundles[s.td]; ok && old.Equal(b) {
		s.confirm()
	} else {
		s.trust.set(s.td, b)
		s.trust.opt.Logger.Info("a trust domain's bundle is in use", "trust_domain", s.td.Name(),
			"x509_authorities", len(b.X509Authorities()), "jwt_authorities", len(b.JWTAuthorities()))
	}
	next = refreshEvery
	if hint, ok := b.RefreshHint(); ok && hint > 0 {
		next = min(max(hint, minRefresh), maxRefresh)
	}
	return next, nil
}

// run refreshes until the context ends. What fails leaves the bundle as it is.
func (s *source) run(ctx context.Context) {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = time.Second, time.Minute
	told := false
	for {
		var next time.Duration
		var err error
		if s.client != nil {
			next, err = s.fetch(ctx)
		} else {
			next, err = lookEvery, s.readFile()
		}
		if ctx.Err() != nil {
			return
		}
		s.trust.metrics.refreshed(s.td.Name(), err == nil)
		if err != nil {
			if next = lookEvery; s.client != nil {
				next = retry.NextBackOff()
			}
			if !told {
				s.trust.opt.Logger.Error("the bundle of a trust domain cannot be refreshed; what is there stays", "trust_domain", s.td.Name(), "error", err)
			}
		} else {
			retry.Reset()
		}
		told = err != nil
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}
