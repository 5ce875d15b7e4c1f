package rest

import (
	"context"
	"crypto/tls"
	"net"
	"strings"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/command"
)

// Context implements door.Request.
func (c *call) Context() context.Context { return c.r.Context() }

// Credentials implements door.Request.
func (c *call) Credentials() ([]string, *tls.ConnectionState) {
	return c.r.Header["Authorization"], c.r.TLS
}

// Form implements door.Request.
func (c *call) Form() door.Form {
	scheme := "http"
	if c.r.TLS != nil {
		scheme = "https"
	}
	return door.Form{
		Method: c.r.Method, Path: c.target(), Route: strings.Split(strings.Trim(c.r.URL.Path, "/"), "/"),
		Host: c.r.Host, Scheme: scheme, Headers: c.r.Header, Source: c.source(),
	}
}

// target is the path and the query in the one form that policies see, however
// the caller escaped the path: a rule must not miss what the mux has matched.
func (c *call) target() string {
	u := *c.r.URL
	u.RawPath = ""
	return u.RequestURI()
}

func (c *call) source() string {
	host, _, err := net.SplitHostPort(c.r.RemoteAddr)
	if err != nil {
		return c.r.RemoteAddr
	}
	return host
}

// intent is the call as the leader gets to see it, without a command. The digest
// of call and body tells a repeat from another use of its Idempotency-Key.
func (c *call) intent(body []byte) (*command.Intent, error) {
	when, err := c.condition(body)
	if err != nil {
		return nil, err
	}
	return c.Intent(when)
}
