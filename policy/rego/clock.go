package rego

import (
	"sync"
	"sync/atomic"
	"time"
)

// clock ends an evaluation that takes too long. It is OPA's Cancel, with a
// timer in place of a goroutine for each evaluation.
type clock struct {
	cancelled atomic.Bool
	timer     *time.Timer

	// Used by the evaluating goroutine only.
	deadline time.Time
	paused   time.Time
	spare    time.Duration // how long the clock may still be paused
}

var clocks = sync.Pool{New: func() any {
	c := &clock{}
	c.timer = time.AfterFunc(time.Hour, c.Cancel)
	c.timer.Stop()
	return c
}}

func startClock(limit time.Duration) *clock {
	c := clocks.Get().(*clock)
	c.deadline = time.Now().Add(limit)
	c.spare = schemaAllowance
	c.timer.Reset(limit)
	return c
}

// stop ends the clock's use. One that went off, or may be going off right now,
// is not used again: it could end another evaluation.
func (c *clock) stop() {
	if c.timer.Stop() && !c.cancelled.Load() {
		clocks.Put(c)
	}
}

// pause takes the time until resume out of the limit.
func (c *clock) pause() {
	if !c.timer.Stop() {
		c.Cancel() // it went off already, though this may not show yet
	}
	c.paused = time.Now()
}

func (c *clock) resume() {
	took := time.Since(c.paused)
	if c.spare -= took; c.spare < 0 {
		c.Cancel()
	}
	c.deadline = c.deadline.Add(took)
	c.timer.Reset(time.Until(c.deadline))
}

// Cancel implements topdown.Cancel.
func (c *clock) Cancel() { c.cancelled.Store(true) }

// Cancelled implements topdown.Cancel.
func (c *clock) Cancelled() bool { return c.cancelled.Load() }
