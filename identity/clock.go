package identity

import (
	"sync"
	"time"
)

// jumpBy is the least step of the wall clock that is told of.
const jumpBy = time.Second

// Clock is the time by which credentials end: the wall clock's, but never behind
// what is reckoned from the start of the process by the clock that only counts,
// which time services slew and do not step. So a clock that is set back makes
// nothing valid again that has ended; one that is set forward ends credentials
// early, and only until it is set right.
//
// A clock that was ahead when the process started, and is then set right, ends
// them early until the next start. A machine that was suspended did not count, so
// there is no such protection for as long as it slept.
type Clock struct {
	wall  func() time.Time
	began time.Time // by the counting clock
	at    time.Time // what the wall clock said then

	mu     sync.Mutex    // guards what follows
	ahead  time.Duration // of the wall clock, of what was reckoned from the start
	jumped time.Time     // when it last jumped, by the counting clock
	by     time.Duration
}

// NewClock begins to count. Wall is the wall clock; nil: the system's.
func NewClock(wall func() time.Time) *Clock {
	if wall == nil {
		wall = time.Now
	}
	return &Clock{wall: wall, began: time.Now(), at: wall().Round(0)}
}

// Now is the time.
func (c *Clock) Now() time.Time {
	reckoned := c.at.Add(time.Since(c.began))
	ahead := c.wall().Round(0).Sub(reckoned)
	c.mu.Lock()
	defer c.mu.Unlock()
	if step := ahead - c.ahead; step.Abs() >= jumpBy {
		c.jumped, c.by = time.Now(), step
		c.ahead = ahead
	}
	return reckoned.Add(max(ahead, 0))
}

// Wall is what the wall clock says.
func (c *Clock) Wall() time.Time { return c.wall() }

// Jump gives the last step of the wall clock: by how much, and how long ago. 0: it
// has made none since the start.
func (c *Clock) Jump() (by, ago time.Duration) {
	c.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == 0 {
		return 0, 0
	}
	return c.by, time.Since(c.jumped)
}
