// Package quota owns the rate limits of the services behind the registry: the
// document that sets them, which of them a call counts against, and the count
// itself, which holds for the cluster as a whole. With the backend embedded
// the leader keeps one bucket for each limit and the nodes draw credit from
// it; with the backend redis a Redis does. It refuses a call whose count it
// cannot settle, and it keeps no more counts than it has room for. It does not
// protect the control plane itself.
package quota

import (
	"math"
	"strings"
	"time"
)

// The backends that can keep the count.
const (
	Embedded = "embedded"
	Redis    = "redis"
)

// Kind says what a limit is about.
type Kind string

// The kinds of limit.
const (
	OfService   Kind = "service"
	OfNamespace Kind = "namespace"
	OfPrincipal Kind = "principal"
)

// DefaultNamespace is that of a service whose namespace is not given.
const DefaultNamespace = "default"

// MaxHits is the most that one call may count for.
const MaxHits = 1_000_000

// Rate is one limit.
type Rate struct {
	RequestsPerSecond float64 `json:"requests_per_second"`
	BurstCapacity     int64   `json:"burst_capacity"` // of hits at one time
}

// refill is the time in which n hits come in.
func (r Rate) refill(n float64) time.Duration {
	seconds := n / r.RequestsPerSecond
	if seconds > math.MaxInt64/float64(2*time.Second) {
		return math.MaxInt64 / 2
	}
	return time.Duration(seconds * float64(time.Second))
}

// Window is the time in which an empty bucket fills, in whole seconds.
func (r Rate) Window() int64 {
	return int64(math.Ceil(float64(r.BurstCapacity) / r.RequestsPerSecond))
}

// Key names one count: kind/name, of a service kind/namespace/name.
type Key string

// Kind is the kind of limit that the count is for.
func (k Key) Kind() Kind {
	kind, _, _ := strings.Cut(string(k), "/")
	return Kind(kind)
}

// Call is what is counted.
type Call struct {
	ServiceID string
	Namespace string // of the service; "": DefaultNamespace
	Principal string // who calls the service; "": nobody is named
	Hits      int64  // 1 to MaxHits
}

// Limit is one limit that a call counts against.
type Limit struct {
	Key  Key
	Rate Rate
}

// limits lists what the call counts against.
func (s *Spec) limits(c Call) []Limit {
	if c.Namespace == "" {
		c.Namespace = DefaultNamespace
	}
	all := make([]Limit, 0, 3)
	for _, k := range []Key{serviceKey(c.Namespace, c.ServiceID), Key(string(OfNamespace) + "/" + c.Namespace), Key(string(OfPrincipal) + "/" + c.Principal)} {
		if rate, ok := s.rate(k); ok {
			all = append(all, Limit{k, rate})
		}
	}
	return all
}

// rate is the limit that a key stands for, if there is one.
func (s *Spec) rate(k Key) (Rate, bool) {
	if rate, ok := s.index[k]; ok {
		return rate, true
	}
	if s.Defaults != nil && k.Kind() == OfService {
		return *s.Defaults, true
	}
	return Rate{}, false
}

func serviceKey(namespace, id string) Key {
	return Key(string(OfService) + "/" + namespace + "/" + id)
}

// Result is the answer to a call. The zero Result, with Allowed, is that of a
// call that no limit concerns.
type Result struct {
	Allowed bool
	Limits  []Limit // that the call counts against

	Tightest   int           // index in Limits of the limit that is nearest to its end, or that refused
	Remaining  int64         // hits that it has left, as far as this node knows
	Reset      time.Duration // until it has all of them again
	RetryAfter time.Duration // of a refusal: when the call may be tried again
}
