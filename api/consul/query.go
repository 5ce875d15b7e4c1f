package consul

import (
	"errors"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-bexpr"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
)

// What a caller gets for consistency, as Consul names it.
const (
	modeLeader     = "leader"     // by default: nothing acknowledged is missing
	modeStale      = "stale"      // what this node knows
	modeConsistent = "consistent" // as leader
)

// query is what the query string asks.
type query struct {
	values url.Values
	mode   string
	cached bool
	rd     door.Reading
	hash   string // of the answer that the caller has

	passing  bool
	tags     []string
	near     string
	nodeMeta [][2]string
	filter   *bexpr.Evaluator

	// err is a mistake that is told once the caller is known to be allowed.
	err error
}

// How long a blocking query waits, by default; at most as everywhere.
const waitDefault = 5 * time.Minute

// The bounds of a filter: of its text, and of the work to parse it.
const (
	maxFilter = 2048
	maxParse  = 50_000
)

// readQuery reads the query string; what Consul does not know is left out, as
// there. An error is for who may not even be told of mistakes: none.
func (c *call) readQuery() error {
	q := &c.q
	q.mode, q.rd = modeStale, door.Any()
	values, err := url.ParseQuery(c.R.URL.RawQuery)
	if err != nil {
		q.values = url.Values{}
		q.err = fault.Wrap(fault.BadRequest, err, "the query string is malformed; escape what is not a letter or a digit")
		return nil
	}
	q.values = values
	c.namespace = values.Get("ns")
	if c.namespace == "" {
		c.namespace = c.R.Header.Get("X-Consul-Namespace")
	}
	if c.namespace == "" && !c.route.body {
		c.namespace = "default"
	}
	if q.err = q.check(c.api.opt.Datacenter); q.err == nil && c.route.reads {
		q.err = q.read(c.R.Header.Get("Cache-Control"))
	}
	return nil
}

// check refuses what cannot be answered as it was meant.
func (q *query) check(dc string) error {
	for name, values := range q.values {
		for _, v := range values {
			if len(v) > 4096 || !door.Printable(v) {
				return fault.New(fault.BadRequest, "the parameter %q is too long, not valid UTF-8 or contains control characters", door.Clip(name))
			}
		}
	}
	if v := q.values.Get("dc"); v != "" && v != dc {
		return noPath(v, dc)
	}
	if v := q.values.Get("partition"); v != "" && v != "default" {
		return fault.New(fault.BadRequest, "there are no admin partitions here; leave partition out")
	}
	if q.values.Get("peer") != "" {
		return fault.New(fault.BadRequest, "there are no cluster peers here; leave peer out")
	}
	return nil
}

// errNoPath marks a datacenter that is not this cluster, which Consul answers
// with 500.
var errNoPath = errors.New("another datacenter")

func noPath(asked, dc string) error {
	return fault.Wrap(fault.BadRequest, errNoPath, "No path to datacenter %q: this cluster is %s", door.Clip(asked), dc)
}

func (q *query) read(cacheControl string) error {
	stale, consistent := q.flag("stale"), q.flag("consistent")
	q.cached = q.flag("cached")
	switch {
	case stale && consistent:
		return fault.New(fault.BadRequest, "Cannot specify ?stale with ?consistent, conflicting semantics.")
	case stale, q.cached && !consistent:
		q.mode = modeStale
	case consistent:
		q.mode, q.rd.Linearizable = modeConsistent, true
	default:
		q.mode, q.rd.Linearizable = modeLeader, true
	}
	if q.cached {
		if err := q.age(cacheControl); err != nil {
			return err
		}
	}
	if err := q.block(); err != nil {
		return err
	}
	q.passing, q.tags, q.near = q.flag("passing"), q.values["tag"], q.values.Get("near")
	for _, pair := range q.values["node-meta"] {
		name, value, _ := strings.Cut(pair, ":")
		q.nodeMeta = append(q.nodeMeta, [2]string{name, value})
	}
	return nil
}

// compile reads the filter, which is work: it takes the call's turn.
func (q *query) compile() (err error) {
	q.filter, err = filter(q.values.Get("filter"))
	return err
}

// flag is set by its name alone, and by what reads as true.
func (q *query) flag(name string) bool {
	if !q.values.Has(name) {
		return false
	}
	v := q.values.Get(name)
	on, err := strconv.ParseBool(v)
	return v == "" || err != nil || on
}

// age reads how old a cached answer may be.
func (q *query) age(cacheControl string) error {
	for _, d := range strings.Split(strings.ToLower(cacheControl), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(d), "=")
		switch name {
		case "must-revalidate":
			q.rd.Linearizable = true
		case "max-age":
			n, err := strconv.ParseUint(value, 10, 31)
			if err != nil {
				return fault.New(fault.BadRequest, "Cache-Control: max-age must be whole seconds")
			}
			q.rd.MaxStaleness = time.Duration(n) * time.Second
			q.rd.Linearizable = q.rd.Linearizable || n == 0
		}
	}
	return nil
}

// block reads index, wait and hash. A wait gets up to a sixteenth more, so that
// callers who began together do not all come back together.
func (q *query) block() (err error) {
	if v := q.values.Get("index"); v != "" {
		if q.rd.Index, err = strconv.ParseUint(v, 10, 64); err != nil {
			return fault.New(fault.BadRequest, "Invalid index")
		}
	}
	q.hash = q.values.Get("hash")
	wait := waitDefault
	if v := q.values.Get("wait"); v != "" {
		if wait, err = time.ParseDuration(v); err != nil || wait < 0 {
			return fault.New(fault.BadRequest, "Invalid wait time")
		}
		if wait == 0 {
			wait = waitDefault
		}
	}
	if q.rd.Index == 0 && q.hash == "" {
		return nil
	}
	wait = min(wait, door.MaxWaitChange)
	q.rd.Wait = wait + rand.N(wait/16+1)
	return nil
}

// filter reads an expression as Consul's clients write it.
func filter(text string) (*bexpr.Evaluator, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxFilter {
		return nil, fault.New(fault.BadRequest, "a filter has at most %d characters", maxFilter)
	}
	f, err := bexpr.CreateEvaluator(text, bexpr.WithMaxExpressions(maxParse))
	if err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "Failed to create boolean expression evaluator: %s", door.Clip(err.Error()))
	}
	return f, nil
}

// filtered keeps the items that the filter takes.
func filtered[T any](c *call, items []T) ([]T, error) { return sift(&c.q, c.Gone, items) }

// sift is filtered until gone says that nobody waits any more: many items and a
// long filter take their time.
func sift[T any](q *query, gone func() error, items []T) ([]T, error) {
	if q.filter == nil {
		return items, nil
	}
	kept := items[:0]
	for i, it := range items {
		if i%256 == 0 {
			if err := gone(); err != nil {
				return nil, err
			}
		}
		ok, err := q.filter.Evaluate(it)
		if err != nil {
			return nil, fault.Wrap(fault.BadRequest, err, "Failed to evaluate the filter: %s", door.Clip(err.Error()))
		}
		if ok {
			kept = append(kept, it)
		}
	}
	return kept, nil
}
