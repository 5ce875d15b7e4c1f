package rego

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
)

const (
	maxKey     = 8 << 10  // bytes; questions that take more are not remembered
	maxVerdict = 64 << 10 // bytes; nor are answers
	entryCost  = 256      // bytes of bookkeeping for each one remembered, roughly
)

var keyPool = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

// cache remembers verdicts by everything that the entry point reads, in full:
// two questions are the same only when all of that is. The entry point itself
// is part of the key, and it belongs to one compiled set, so another policy
// never meets its answers.
type cache struct {
	hits, misses atomic.Uint64
	verdicts     *otter.Cache[question, *verdict]
}

type question struct {
	entry *entry
	reads string
}

func newCache(ttl time.Duration, bytes uint64) *cache {
	return &cache{verdicts: otter.Must(&otter.Options[question, *verdict]{
		MaximumWeight:    bytes,
		Weigher:          func(q question, v *verdict) uint32 { return uint32(entryCost + len(q.reads) + v.size()) },
		ExpiryCalculator: otter.ExpiryWriting[question, *verdict](ttl),
	})}
}

func (c *cache) get(e *entry, reads []byte) (*verdict, bool) {
	v, ok := c.verdicts.GetIfPresent(question{e, string(reads)})
	if ok {
		c.hits.Add(1)
	} else {
		c.misses.Add(1)
	}
	return v, ok
}

func (c *cache) put(e *entry, reads []byte, v *verdict) {
	if v.size() <= maxVerdict {
		c.verdicts.Set(question{e, string(reads)}, v)
	}
}

func (c *cache) close() { c.verdicts.StopAllGoroutines() }
