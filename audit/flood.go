package audit

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A caller may fill so much of a trail with what it is refused: a burst of ten
// seconds' worth, and then the rate. All callers that proved no identity
// together get crowd times that.
const (
	burst      = 10
	crowd      = 20
	maxCallers = 10_000 // that are told apart; further ones count as one
	summary    = 10 * time.Second
)

// flood keeps those who are refused over and over from pushing everything else
// out of the trail: what is above the rate is counted for each caller, and
// the count gets a line of its own.
type flood struct {
	perSecond int // 0: no limit

	mu     sync.Mutex        // guards all below
	known  map[string]*calls // by identity
	asking map[string]*calls // the same, of decisions, which must not hide what the caller is refused
	others map[string]*calls // by address
	anyone *rate.Limiter     // the others together
	next   time.Time         // when the counts are written
}

type calls struct {
	limit      *rate.Limiter
	suppressed uint64
	since      time.Time
	of         Entry // the last one
}

func newFlood(perSecond int) *flood {
	return &flood{
		perSecond: perSecond, known: map[string]*calls{}, asking: map[string]*calls{}, others: map[string]*calls{},
		anyone: rate.NewLimiter(rate.Limit(crowd*perSecond), crowd*burst*perSecond),
	}
}

// take reports whether an entry gets a line of its own; otherwise it is counted.
func (f *flood) take(e *Entry) bool {
	if f.perSecond <= 0 {
		return true
	}
	known := e.Principal != Anonymous && e.Type != Connection
	f.mu.Lock()
	defer f.mu.Unlock()
	callers, who := f.others, e.Source
	if known {
		callers, who = f.known, e.Principal
	}
	if known && e.Type == Decision {
		callers = f.asking
	}
	c := callers[who]
	many := c == nil && len(callers) >= maxCallers
	if many {
		who = ""
		c = callers[who]
	}
	if c == nil {
		c = &calls{limit: rate.NewLimiter(rate.Limit(f.perSecond), burst*f.perSecond)}
		callers[who] = c
	}
	if c.limit.AllowN(e.Time, 1) && (known || f.anyone.AllowN(e.Time, 1)) {
		return true
	}
	if c.suppressed == 0 {
		c.since = e.Time
	}
	c.suppressed++
	c.of = *e
	c.of.Request = nil
	if many {
		c.of.Principal, c.of.Source = "", ""
	}
	return false
}

// counts gives a line for each caller that lines were suppressed of, when it is
// time for that, and forgets callers that have been quiet.
func (f *flood) counts(now time.Time, all bool) (lines []Entry) {
	if f.perSecond <= 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !all && now.Before(f.next) {
		return nil
	}
	f.next = now.Add(summary)
	for _, callers := range []map[string]*calls{f.known, f.asking, f.others} {
		for who, c := range callers {
			if c.suppressed > 0 {
				lines = append(lines, Entry{
					Time: now, Type: c.of.Type, Principal: c.of.Principal, Source: c.of.Source, Outcome: Refused, Suppressed: c.suppressed, Since: c.since.UTC(),
				})
				c.suppressed = 0
			} else if c.limit.TokensAt(now) >= float64(burst*f.perSecond) {
				delete(callers, who)
			}
		}
	}
	return lines
}
