// Package client is the Go client of muster's REST API: several addresses with
// failover, retries only where they are safe, sessions that read their own
// writes, and errors with the codes of the contract. It refuses to repeat a
// change whose fate is unknown unless the cluster can recognise the repeat.
package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/muster-registry/muster/pki"
)

// Config says where the cluster is and who calls. Addresses are tried in
// order, from the one that answered last.
type Config struct {
	Addresses []string // https://host:port of any nodes, at least one

	Token      string // bearer token
	CACert     string // PEM file; empty: the system's authorities
	ClientCert string // PEM files of a client certificate
	ClientKey  string

	// Timeout bounds one call with all its retries unless the caller's context
	// ends sooner; 0: 15 s. Streams are not bounded once they have begun.
	Timeout time.Duration
	// Session makes every read see what this client has written and read
	// before, whichever node answers.
	Session   bool
	UserAgent string // empty: muster-client
}

// Client calls the cluster. It is safe for concurrent use and keeps its
// connections; make one and share it.
type Client struct {
	addresses []*url.URL
	token     string
	agent     string
	timeout   time.Duration
	session   bool
	http      *http.Client

	last atomic.Int64  // index of the address that answered last
	seen atomic.Uint64 // highest revision seen
}

// New checks the configuration and loads its certificates. It does not connect.
func New(cfg Config) (*Client, error) {
	c := &Client{token: cfg.Token, agent: cfg.UserAgent, timeout: cfg.Timeout, session: cfg.Session}
	if c.timeout == 0 {
		c.timeout = 15 * time.Second
	}
	if c.agent == "" {
		c.agent = "muster-client"
	}
	for _, a := range cfg.Addresses {
		u, err := address(a)
		if err != nil {
			return nil, err
		}
		c.addresses = append(c.addresses, u)
	}
	if len(c.addresses) == 0 {
		return nil, errors.New("no address of a node is given")
	}
	tlsConfig, err := cfg.tls()
	if err != nil {
		return nil, err
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			TLSClientConfig:     tlsConfig,
			TLSHandshakeTimeout: 3 * time.Second,
			ForceAttemptHTTP2:   true,
			// A node that stands still, or a connection that leads nowhere, is
			// noticed also while an answer is waited for.
			HTTP2:                 &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
			MaxIdleConnsPerHost:   64,
			IdleConnTimeout:       90 * time.Second,
			ExpectContinueTimeout: time.Second,
		},
		// The API never redirects: a redirect would carry the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

func (cfg Config) tls() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CACert != "" {
		roots, err := pki.Roots(cfg.CACert)
		if err != nil {
			return nil, err
		}
		t.RootCAs = roots
	}
	if (cfg.ClientCert == "") != (cfg.ClientKey == "") {
		return nil, errors.New("a client certificate and its key belong together; give both or none")
	}
	if cfg.ClientCert != "" {
		pair, err := tls.LoadX509KeyPair(cfg.ClientCert, cfg.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("the client certificate cannot be used: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// address reads https://host:port; the scheme may be left out.
func address(a string) (*url.URL, error) {
	if !strings.Contains(a, "://") {
		a = "https://" + a
	}
	u, err := url.Parse(a)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("%q is not an address of a node; write https://host:port", a)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "8443")
	}
	u.Path = ""
	return u, nil
}

// Revision returns the highest revision this client has seen.
func (c *Client) Revision() uint64 { return c.seen.Load() }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }
