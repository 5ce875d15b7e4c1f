package rego

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/singleflight"
)

// shelf keeps the compiled revisions that were used last, by digest.
type shelf struct {
	size   int
	flight singleflight.Group
	made   atomic.Uint64 // how many sets were ever put on the shelf

	mu   sync.Mutex                      // serialises writers of sets
	sets atomic.Pointer[map[string]*set] // replaced as a whole, never changed
}

func newShelf(size int) *shelf {
	s := &shelf{size: size}
	s.sets.Store(&map[string]*set{})
	return s
}

// get gives the set of that digest; nil when it is not there.
func (h *shelf) get(digest string) *set {
	s := (*h.sets.Load())[digest]
	if s != nil {
		// Written only after something new has come, to leave the line shared.
		if now := h.made.Load(); s.used.Load() != now {
			s.used.Store(now)
		}
	}
	return s
}

// make has build called once for all who ask at the same time, and keeps what
// it gives. The context ends the waiting, not the building.
func (h *shelf) make(ctx context.Context, digest string, build func() *set) (*set, error) {
	done := h.flight.DoChan(digest, func() (any, error) {
		if s := h.get(digest); s != nil {
			return s, nil
		}
		s := build()
		h.put(digest, s)
		return s, nil
	})
	select {
	case r := <-done:
		return r.Val.(*set), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *shelf) put(digest string, s *set) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.used.Store(h.made.Add(1))
	next := maps.Clone(*h.sets.Load())
	next[digest] = s
	for len(next) > h.size {
		oldest := ""
		for d, o := range next {
			if d != digest && (oldest == "" || o.used.Load() < next[oldest].used.Load()) {
				oldest = d
			}
		}
		delete(next, oldest)
	}
	h.sets.Store(&next)
}
