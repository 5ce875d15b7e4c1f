package provider

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/muster-registry/muster/identity"
)

// The kinds of provider.
const (
	OIDC          = "oidc"          // OpenID Connect: keys by discovery
	JWT           = "jwt"           // JWTs under keys from a file or a URL
	Introspection = "introspection" // opaque tokens, asked about one by one
)

// Config is one provider. The zero value of a field without a comment to the
// contrary means its default; see [Defaults].
type Config struct {
	Name   string // a label, which becomes part of principals' ids and of metrics
	Kind   string
	Issuer string // compared exactly with iss; not needed for Introspection

	Audiences  []string // one of them must be in aud; needed for OIDC and JWT
	Algorithms []string // of signatures that count; no others are looked at
	Subject    string   // the claim that names the caller

	JWKSFile  string        // JWT: a file with the keys, read again each minute
	JWKSURL   string        // JWT: or where they are published
	KeyMaxAge time.Duration // how long keys count that the provider did not confirm again

	IntrospectionURL string
	ClientID         string // what muster is to the introspection endpoint
	ClientSecret     string

	CAFile   string // PEM: who signs the provider's certificate; "": the system's
	Insecure bool   // allows http:// on loopback

	SessionTTL time.Duration // for which a proven token is not proven again
	ClockSkew  time.Duration // by which nbf and iat may lie in the future
}

// Defaults are what a provider's configuration need not say.
func Defaults() Config {
	return Config{
		Algorithms: []string{"RS256", "ES256", "EdDSA"}, Subject: "sub",
		KeyMaxAge: 15 * time.Second, SessionTTL: 5 * time.Minute, ClockSkew: 30 * time.Second,
	}
}

func (c Config) complete() Config {
	d := Defaults()
	if len(c.Algorithms) == 0 {
		c.Algorithms = d.Algorithms
	}
	if c.Subject == "" {
		c.Subject = d.Subject
	}
	if c.KeyMaxAge == 0 {
		c.KeyMaxAge = d.KeyMaxAge
	}
	if c.SessionTTL == 0 {
		c.SessionTTL = d.SessionTTL
	}
	if c.ClockSkew == 0 {
		c.ClockSkew = d.ClockSkew
	}
	return c
}

// asymmetric are the algorithms that may be pinned. With a shared secret, such
// as HS256, everyone who can verify a token can make one.
var asymmetric = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

func (c *Config) algorithms() []jose.SignatureAlgorithm {
	out := make([]jose.SignatureAlgorithm, len(c.Algorithms))
	for i, a := range c.Algorithms {
		out[i] = jose.SignatureAlgorithm(a)
	}
	return out
}

var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Validate names every mistake, one sentence each; nil: there is none.
func Validate(configs []Config) error {
	var errs []error
	names, issuers, opaque := map[string]bool{}, map[string]string{}, ""
	for i, c := range configs {
		at := fmt.Sprintf("identity.providers[%d]", i)
		wrong := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf(at+"."+format, args...))
		}
		switch {
		case !label.MatchString(c.Name):
			wrong("name: %q is not a name; use lower-case letters, digits and dashes, at most 63", c.Name)
		case c.Name == identity.ProviderSPIFFE:
			wrong("name: %q stands for the trust domains in role rules; take another", c.Name)
		case names[c.Name]:
			wrong("name: %q is taken by another provider", c.Name)
		default:
			at = fmt.Sprintf("identity.providers[%s]", c.Name)
		}
		names[c.Name] = true
		if other, taken := issuers[c.Issuer]; taken && c.Issuer != "" {
			wrong("issuer: the provider %q has the same; a token has one provider", other)
		}
		issuers[c.Issuer] = c.Name
		c.validate(wrong)
		if c.Kind == Introspection {
			if opaque != "" {
				wrong("kind: %q takes the opaque tokens already; they do not say whose they are, so there is one provider for them", opaque)
			}
			opaque = c.Name
		}
	}
	return errors.Join(errs...)
}

func (c *Config) validate(wrong func(string, ...any)) {
	c.validateKind(wrong)
	for _, a := range c.Algorithms {
		if !slices.Contains(asymmetric, jose.SignatureAlgorithm(a)) {
			wrong("algorithms: %q is none of %v", a, asymmetric)
		}
	}
	for _, a := range c.Audiences {
		if a == "" {
			wrong("audiences: one of them is empty")
		}
	}
	for name, d := range map[string]time.Duration{"session_ttl": c.SessionTTL, "clock_skew": c.ClockSkew, "key_max_age": c.KeyMaxAge} {
		if d < 0 {
			wrong("%s: must not be negative", name)
		}
	}
	if c.ClockSkew > 5*time.Minute {
		wrong("clock_skew: %v is more than 5m0s; set the clocks right instead", c.ClockSkew)
	}
	if c.SessionTTL > 24*time.Hour {
		wrong("session_ttl: %v is more than 24h0m0s", c.SessionTTL)
	}
	if c.KeyMaxAge != 0 && c.KeyMaxAge < time.Second {
		wrong("key_max_age: %v is less than 1s", c.KeyMaxAge)
	}
}

func (c *Config) validateKind(wrong func(string, ...any)) {
	needs := func(key, value, why string) {
		if value == "" {
			wrong("%s: %s", key, why)
		}
	}
	foreign := func(key, value, kind string) {
		if value != "" {
			wrong("%s: is for the kind %s", key, kind)
		}
	}
	switch c.Kind {
	case OIDC:
		needs("issuer", c.Issuer, "is needed; the provider's URL, exactly as its tokens have it in iss")
		c.url("issuer", c.Issuer, wrong)
		foreign("jwks_file", c.JWKSFile, JWT)
		foreign("jwks_url", c.JWKSURL, JWT)
	case JWT:
		needs("issuer", c.Issuer, "is needed; exactly what the tokens have in iss")
		if (c.JWKSFile == "") == (c.JWKSURL == "") {
			wrong("jwks_file: give either a file with the keys or, as jwks_url, where they are published")
		}
		c.url("jwks_url", c.JWKSURL, wrong)
	case Introspection:
		needs("introspection_url", c.IntrospectionURL, "is needed")
		needs("client_id", c.ClientID, "is needed; RFC 7662 has the endpoint ask who asks")
		needs("client_secret_file", c.ClientSecret, "is needed")
		c.url("introspection_url", c.IntrospectionURL, wrong)
		foreign("jwks_file", c.JWKSFile, JWT)
		foreign("jwks_url", c.JWKSURL, JWT)
	default:
		wrong("kind: %q is none of oidc, jwt, introspection", c.Kind)
		return
	}
	if c.Kind != Introspection {
		if len(c.Audiences) == 0 {
			wrong("audiences: name what the tokens for this cluster have in aud; without it, tokens for others would count")
		}
		foreign("introspection_url", c.IntrospectionURL, Introspection)
		foreign("client_id", c.ClientID, Introspection)
		foreign("client_secret_file", c.ClientSecret, Introspection)
	}
}

func (c *Config) url(key, text string, wrong func(string, ...any)) {
	if text == "" {
		return
	}
	if err := c.reachable(text); err != nil {
		wrong("%s: %w", key, err)
	}
}

// reachable refuses URLs whose answers could be anybody's.
func (c *Config) reachable(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return errors.New("is not a plain URL, such as https://login.example.org")
	}
	switch {
	case u.Scheme == "https":
		return nil
	case u.Scheme != "http":
		return errors.New("must be an https:// URL")
	case !c.Insecure:
		return errors.New("is http://, which anyone in between can change; use https, or insecure: true on loopback")
	case !net.ParseIP(u.Hostname()).IsLoopback():
		return errors.New("is http:// and not a loopback address such as 127.0.0.1; only there can it be insecure")
	}
	return nil
}

const (
	callTime   = 5 * time.Second // of one call to a provider, with all of its answer
	answerMax  = 512 << 10       // bytes of one answer
	concurrent = 32              // calls to one introspection endpoint at the same time
)

// client talks to this provider only: no answer leads it to another host.
func (c *Config) client() (*http.Client, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost, t.MaxConnsPerHost = concurrent, concurrent
	t.MaxResponseHeaderBytes = 64 << 10
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("identity.providers[%s].ca_file: %w", c.Name, err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("identity.providers[%s].ca_file: %s holds no PEM certificate", c.Name, c.CAFile)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return &http.Client{Transport: bounded{t}, Timeout: callTime, CheckRedirect: sameHost}, nil
}

// sameHost follows redirects of one host, and none that carries a body.
func sameHost(next *http.Request, before []*http.Request) error {
	if first := before[0]; len(before) > 3 || next.Method != http.MethodGet || first.Method != http.MethodGet ||
		next.URL.Scheme != first.URL.Scheme || next.URL.Host != first.URL.Host {
		return errors.New("redirects to another place are not followed")
	}
	return nil
}

// bounded cuts off answers that are too large.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, answerMax)
	}
	return resp, err
}
