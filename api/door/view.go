package door

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/policy"
)

// How long a read waits: by default, and at most.
const (
	WaitRevision    = 5 * time.Second
	MaxWaitRevision = time.Minute
	WaitChange      = 30 * time.Second
	MaxWaitChange   = 10 * time.Minute
)

// Reading is what a caller asks of the state that answers.
type Reading struct {
	Linearizable bool
	MinRevision  uint64
	MaxStaleness time.Duration // math.MaxInt64: no matter how old
	Index        uint64        // blocking, where not 0: answer when what is read changed after it
	Wait         time.Duration // how long, for a revision or a change
}

// Any is what a reader asks who asks for nothing.
func Any() Reading { return Reading{MaxStaleness: math.MaxInt64, Wait: WaitRevision} }

// Changes tells a blocked read what it waits for.
type Changes struct {
	Scope feed.Scope // no change outside of it wakes the read
	// Revision is that of the last change of what is read in a state. What is
	// not there has changed: nobody waits for it.
	Revision func(*State) uint64
}

// View settles which state answers a read, after whatever the caller asks to
// wait for. changes is nil where a read cannot wait for its next change.
func (c *Call) View(rd Reading, changes *Changes) error {
	if rd == Any() {
		return c.Young()
	}
	if rd.Index > 0 && changes == nil {
		return fault.New(fault.BadRequest, "this list cannot be waited for; leave index out here")
	}
	ctx, cancel := context.WithTimeout(c.req.Context(), rd.Wait)
	defer cancel()

	if rd.Linearizable {
		c.Consistency = Linearizable
		if err := c.confirm(c.req.Context()); err != nil {
			return err
		}
	}
	if c.State.Revision < rd.MinRevision {
		if err := c.await(ctx, rd.MinRevision); err != nil {
			return err
		}
	}
	if rd.Index > 0 {
		return c.block(ctx, changes, rd)
	}
	return c.settle(ctx, rd.MaxStaleness)
}

// confirm has the leader confirm that the local state is as new as this moment.
func (c *Call) confirm(ctx context.Context) error {
	start := time.Now()
	c.visit.Pause()
	if err := c.door.backend.ReadIndex(ctx); err != nil {
		return err
	}
	c.confirmed = start
	return c.resume()
}

// await waits until the local state has the revision.
func (c *Call) await(ctx context.Context, revision uint64) error {
	c.visit.Pause()
	err := c.door.backend.AwaitRevision(ctx, revision)
	if err == nil {
		if err := c.resume(); err != nil || c.State.Revision >= revision {
			return err
		}
		return fault.New(fault.TooStale, "this node has not yet made revision %d its own; try again", revision)
	}
	if gone := c.Gone(); gone != nil {
		return gone
	}
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) && !fault.Is(err, fault.TooStale) {
		return err
	}
	c.Look()
	return fault.Wrap(fault.TooStale, err, "this node is at revision %d and did not reach %d in time; wait longer, or ask another node", c.State.Revision, revision)
}

// block waits for the next change of what the call is about, and only for
// that. When the time is over, the state at that moment answers.
func (c *Call) block(ctx context.Context, changes *Changes, rd Reading) error {
	for over := false; ; {
		next, release := c.door.backend.Feed().Watch(changes.Scope)
		err := c.Again()
		if err == nil && !over && changes.Revision(c.State) <= rd.Index {
			if err := c.visit.Block(); err != nil {
				release()
				return err
			}
			select {
			case <-next:
			case <-c.superseded():
			case <-ctx.Done():
				err, over = c.Gone(), true
			}
			release()
			if err != nil {
				return err
			}
			continue
		}
		release()
		if err == nil {
			err = c.visit.Resume(c.req.Context())
		}
		if err != nil {
			return err
		}
		round, cancel := context.WithTimeout(c.req.Context(), WaitRevision)
		defer cancel()
		return c.settle(round, rd.MaxStaleness)
	}
}

// superseded is closed when what makes a credential good has changed, so that a
// call that waits asks again who waits.
func (c *Call) superseded() <-chan struct{} {
	if a := c.State.Tokens.Access(); a != nil {
		return a.Superseded()
	}
	return nil
}

// Again looks once more after waiting, and asks again who the caller is and
// whether the role allows the call: a token may have been revoked, or a role
// taken away, in the meantime.
func (c *Call) Again() error {
	before := c.Who
	if err := c.Anew(); err != nil || c.Who == before || c.may == (permit{}) {
		return err
	}
	return policy.Permit(c.Role, c.may.action, c.may.kind, c.may.namespace)
}

// Anew is Again for whoever then asks the role itself.
func (c *Call) Anew() error {
	c.Look()
	return c.Authenticate()
}

// settle refuses a state that is older than the caller allows, after asking
// the leader once: a round with it may be all that is missing.
func (c *Call) settle(ctx context.Context, most time.Duration) error {
	if c.age <= most {
		return c.Young()
	}
	if err := c.confirm(ctx); err != nil {
		return fault.Wrap(fault.TooStale, err, "this node's state may be older than %s, and no leader confirmed it in time; ask another node, or allow more", most)
	}
	return nil
}

// Young refuses a state that is older than the node's own limit on isolation.
func (c *Call) Young() error {
	limit := c.door.opt.MaxStaleness
	if c.age <= limit || limit < 0 {
		return nil
	}
	return fault.New(fault.TooStale, "this node has been without a leader too long: its state may be older than %s; ask another node", limit)
}
