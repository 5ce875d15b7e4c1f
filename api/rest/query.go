package rest

import (
	"net/url"
	"strconv"
	"time"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
)

// query parses the query string once. A parameter that cannot be repeated and
// is, means two things at once: bad_request.
func (c *call) query() (url.Values, error) {
	if c.params != nil || c.R.URL.RawQuery == "" {
		return c.params, nil
	}
	values, err := url.ParseQuery(c.R.URL.RawQuery)
	if err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the query string is malformed; escape what is not a letter or a digit")
	}
	for name, v := range values {
		if len(v) > 1 && name != "tag" {
			return nil, fault.New(fault.BadRequest, "the parameter %q stands %d times in the query; give it once", door.Clip(name), len(v))
		}
		for _, s := range v {
			if !door.Printable(s) {
				return nil, fault.New(fault.BadRequest, "the parameter %q is not valid UTF-8 or contains control characters", door.Clip(name))
			}
		}
	}
	c.params = values
	return values, nil
}

// flag reads a parameter that is true or false; present without a value it is
// true.
func flag(q url.Values, name string) (bool, error) {
	if !q.Has(name) {
		return false, nil
	}
	switch q.Get(name) {
	case "", "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, fault.New(fault.BadRequest, "%s must be true or false", name)
}

func number(q url.Values, name string) (uint64, error) {
	if !q.Has(name) {
		return 0, nil
	}
	n, err := strconv.ParseUint(q.Get(name), 10, 64)
	if err != nil {
		return 0, fault.New(fault.BadRequest, "%s must be a whole number, not %q", name, door.Clip(q.Get(name)))
	}
	return n, nil
}

func duration(q url.Values, name string, fallback, most time.Duration) (time.Duration, error) {
	if !q.Has(name) {
		return fallback, nil
	}
	d, err := time.ParseDuration(q.Get(name))
	if err != nil || d < 0 {
		return 0, fault.New(fault.BadRequest, "%s must be a duration such as 5s or 500ms, not %q", name, door.Clip(q.Get(name)))
	}
	return min(d, most), nil
}
