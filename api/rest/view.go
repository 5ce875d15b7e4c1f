package rest

import (
	"context"
	"errors"
	"math"
	"net/url"
	"time"

	"github.com/muster-registry/muster/fault"
)

// How long a read waits: by default, and at most.
const (
	waitRevision    = 5 * time.Second
	maxWaitRevision = time.Minute
	waitChange      = 30 * time.Second
	maxWaitChange   = 10 * time.Minute
)

// reading is what a caller asks of the state that answers.
type reading struct {
	linearizable bool
	minRevision  uint64
	maxStaleness time.Duration
	index        uint64 // blocking: answer when the service changed after it
	blocking     bool
	wait         time.Duration
}

func parseReading(q url.Values) (rd reading, err error) {
	switch v := q.Get("consistency"); v {
	case linearizable:
		rd.linearizable = true
	case local, "":
	default:
		return rd, fault.New(fault.BadRequest, "consistency must be local or linearizable, not %q", clip(v))
	}
	if rd.minRevision, err = number(q, "min_revision"); err != nil {
		return rd, err
	}
	if rd.index, err = number(q, "index"); err != nil {
		return rd, err
	}
	rd.blocking = rd.index > 0
	if rd.maxStaleness, err = duration(q, "max_staleness", math.MaxInt64, math.MaxInt64); err != nil {
		return rd, err
	}
	fallback, most := waitRevision, maxWaitRevision
	if rd.blocking {
		fallback, most = waitChange, maxWaitChange
	}
	rd.wait, err = duration(q, "wait", fallback, most)
	return rd, err
}

// view settles which state answers a read, after whatever the caller asks to
// wait for. changed gives the revision of what is read in a state; it is nil
// where a read cannot wait for its next change.
func (c *call) view(changed func(*State) uint64) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	if q == nil {
		return c.young()
	}
	rd, err := parseReading(q)
	if err != nil {
		return err
	}
	if rd.blocking && changed == nil {
		return fault.New(fault.BadRequest, "index works on discovery, on one record, and on the instances of one service; leave it out here")
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), rd.wait)
	defer cancel()

	if rd.linearizable {
		c.consistency = linearizable
		if err := c.confirm(c.r.Context()); err != nil {
			return err
		}
	}
	if c.state.Revision < rd.minRevision {
		if err := c.await(ctx, rd.minRevision); err != nil {
			return err
		}
	}
	if rd.blocking {
		return c.block(ctx, changed, rd)
	}
	return c.settle(ctx, rd.maxStaleness)
}

// confirm has the leader confirm that the local state is as new as this moment.
func (c *call) confirm(ctx context.Context) error {
	start := time.Now()
	if err := c.api.backend.ReadIndex(ctx); err != nil {
		return err
	}
	c.confirmed = start
	return c.again()
}

// await waits until the local state has the revision.
func (c *call) await(ctx context.Context, revision uint64) error {
	err := c.api.backend.AwaitRevision(ctx, revision)
	if err == nil {
		if err := c.again(); err != nil || c.state.Revision >= revision {
			return err
		}
		return fault.New(fault.TooStale, "this node has not yet made revision %d its own; try again", revision)
	}
	if gone := c.gone(); gone != nil {
		return gone
	}
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) && !fault.Is(err, fault.TooStale) {
		return err
	}
	c.look()
	return fault.Wrap(fault.TooStale, err, "this node is at revision %d and did not reach %d in time; wait longer, or ask another node", c.state.Revision, revision)
}

// block waits for the next change of the service the call is about, and only
// for that. When the time is over, the state at that moment answers.
func (c *call) block(ctx context.Context, changed func(*State) uint64, rd reading) error {
	for over := false; ; {
		next, release := c.api.backend.Watch(c.namespace, c.service)
		err := c.again()
		if err == nil && !over && changed(c.state) <= rd.index {
			select {
			case <-next:
			case <-ctx.Done():
				err, over = c.gone(), true
			}
			release()
			if err != nil {
				return err
			}
			continue
		}
		release()
		if err != nil {
			return err
		}
		round, cancel := context.WithTimeout(c.r.Context(), waitRevision)
		defer cancel()
		return c.settle(round, rd.maxStaleness)
	}
}

// again looks once more after waiting, and asks again who the caller is: a
// token may have been revoked in the meantime.
func (c *call) again() error {
	c.look()
	if err := c.authenticate(); err != nil {
		return err
	}
	return nil
}

// settle refuses a state that is older than the caller allows, after asking
// the leader once: a round with it may be all that is missing.
func (c *call) settle(ctx context.Context, most time.Duration) error {
	if c.age <= most {
		return c.young()
	}
	if err := c.confirm(ctx); err != nil {
		return fault.Wrap(fault.TooStale, err, "this node's state may be older than %s, and no leader confirmed it in time; ask another node, or allow more", most)
	}
	return nil
}

// young refuses a state that is older than the node's own limit on isolation.
func (c *call) young() error {
	limit := c.api.opt.MaxStaleness
	if c.age <= limit || limit < 0 {
		return nil
	}
	return fault.New(fault.TooStale, "this node has been without a leader too long: its state may be older than %s; ask another node", limit)
}

// gone says that nobody waits for the answer any more, or that the node stops.
func (c *call) gone() error {
	if err := c.r.Context().Err(); err != nil {
		return fault.Wrap(fault.NotReady, err, "the request was cancelled; try again, or another node")
	}
	return nil
}
