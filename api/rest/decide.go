package rest

import (
	"crypto/tls"
	"strings"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
)

// Credentials implements door.Request.
func (c *call) Credentials() ([]string, *tls.ConnectionState) {
	return c.R.Header["Authorization"], c.R.TLS
}

// Form implements door.Request.
func (c *call) Form() door.Form {
	return door.Form{
		Method: c.R.Method, Path: c.target(), Route: strings.Split(strings.Trim(c.R.URL.Path, "/"), "/"),
		Host: c.R.Host, Scheme: c.Scheme(), Headers: c.R.Header, Source: c.Source(),
	}
}

// target is the path and the query in the one form that policies see, however
// the caller escaped the path: a rule must not miss what the mux has matched.
func (c *call) target() string {
	u := *c.R.URL
	u.RawPath = ""
	return u.RequestURI()
}

// intent is the call as the leader gets to see it, without a command. The digest
// of call and body tells a repeat from another use of its Idempotency-Key.
func (c *call) intent(body []byte) (*command.Intent, error) {
	when, err := c.condition(body)
	if err != nil {
		return nil, err
	}
	if when.DryRun && c.route.ID != restoreID {
		return nil, fault.New(fault.BadRequest, "this change cannot be tried out; leave dry_run out")
	}
	when.DryRun = false // a restore has its own
	return c.Intent(when)
}
