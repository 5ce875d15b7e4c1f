package provider

import (
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/muster-registry/muster/identity"
)

const (
	refusalTTL   = 5 * time.Second // for which a definite refusal is not looked into again
	refusalCount = 8192            // refusals that are remembered
	sessionBytes = 64 << 20
	sessionCost  = 1 << 10 // of an entry beside its claims, roughly
)

// session is what came of one token: whose it is, or why it was refused.
type session struct {
	counters  counters
	principal *identity.Principal
	err       error
	until     time.Time
}

// sessions remember tokens by their hash. Refusals are kept apart, so that
// made-up tokens push out no session.
type sessions struct {
	good *otter.Cache[[32]byte, session]
	bad  *otter.Cache[[32]byte, session]
}

func newSessions(bytes int64) *sessions {
	if bytes <= 0 {
		bytes = sessionBytes
	}
	left := func(e otter.Entry[[32]byte, session]) time.Duration {
		return max(time.Until(e.Value.until), time.Millisecond)
	}
	return &sessions{
		good: otter.Must(&otter.Options[[32]byte, session]{
			MaximumWeight: uint64(bytes),
			Weigher: func(_ [32]byte, s session) uint32 {
				return sessionCost + uint32(weight(s.principal.Claims))
			},
			ExpiryCalculator: otter.ExpiryWritingFunc(left),
		}),
		bad: otter.Must(&otter.Options[[32]byte, session]{MaximumSize: refusalCount, ExpiryCalculator: otter.ExpiryWritingFunc(left)}),
	}
}

// weight is roughly what a decoded JSON value takes in memory.
func weight(v any) int {
	switch v := v.(type) {
	case string:
		return 32 + len(v)
	case []any:
		n := 48
		for _, e := range v {
			n += weight(e)
		}
		return n
	case map[string]any:
		n := 320
		for k, e := range v {
			n += 48 + len(k) + weight(e)
		}
		return n
	}
	return 16
}

func (s *sessions) get(sum [32]byte, now time.Time) (session, bool) {
	if e, ok := s.good.GetIfPresent(sum); ok && now.Before(e.until) {
		return e, true
	}
	if e, ok := s.bad.GetIfPresent(sum); ok && now.Before(e.until) {
		return e, true
	}
	return session{}, false
}

func (s *sessions) keep(sum [32]byte, e session, now time.Time) {
	switch {
	case !now.Before(e.until):
	case e.err != nil:
		s.bad.Set(sum, e)
	default:
		s.good.Set(sum, e)
	}
}

func (s *sessions) len() int { return s.good.EstimatedSize() }

func (s *sessions) close() {
	s.good.StopAllGoroutines()
	s.bad.StopAllGoroutines()
}
