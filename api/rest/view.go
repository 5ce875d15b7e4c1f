package rest

import (
	"math"
	"net/url"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
)

func parseReading(q url.Values) (rd door.Reading, err error) {
	switch v := q.Get("consistency"); v {
	case door.Linearizable:
		rd.Linearizable = true
	case door.Local, "":
	default:
		return rd, fault.New(fault.BadRequest, "consistency must be local or linearizable, not %q", door.Clip(v))
	}
	if rd.MinRevision, err = number(q, "min_revision"); err != nil {
		return rd, err
	}
	if rd.Index, err = number(q, "index"); err != nil {
		return rd, err
	}
	if rd.MaxStaleness, err = duration(q, "max_staleness", math.MaxInt64, math.MaxInt64); err != nil {
		return rd, err
	}
	fallback, most := door.WaitRevision, door.MaxWaitRevision
	if rd.Index > 0 {
		fallback, most = door.WaitChange, door.MaxWaitChange
	}
	rd.Wait, err = duration(q, "wait", fallback, most)
	return rd, err
}

// listChanged is the revision of the last change in the namespace of the list,
// or in any, as far as the state has it: the feed may be ahead of it.
func (c *call) listChanged(s *door.State) uint64 {
	return min(c.api.backend.Feed().Changed(c.namespace), s.Revision)
}

// view settles which state answers a read. changed gives the revision of what
// is read in a state; it is nil where a read cannot wait for its next change.
func (c *call) view(changed func(*door.State) uint64) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	if q == nil {
		return c.Young()
	}
	rd, err := parseReading(q)
	if err != nil {
		return err
	}
	if changed == nil {
		return c.View(rd, nil)
	}
	return c.View(rd, &door.Changes{Revision: changed, Scope: feed.Scope{Namespace: c.namespace, Service: c.service}})
}
