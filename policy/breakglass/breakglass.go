// Package breakglass owns the emergency in which a policy stands in the way: a
// namespace whose refusals are lifted for a time, with a reason, by whoever has
// the role for it. It turns refusals of the policy and of webhooks about records
// of that namespace into allows, loudly, and ends by itself. It refuses to open
// every namespace at once, to open one without an end, and to touch anything
// but decisions about records: who is calling and what roles allow is not its
// matter, nor are policies, tokens and settings.
package breakglass

import (
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
)

// How long a namespace may be open, and how much may be said about why.
const (
	MinTTL    = time.Second
	MaxTTL    = 24 * time.Hour
	maxReason = 500
)

// Grace is how much longer than its time an opening may last where its end is
// not known: on a node that is cut off, or while nobody can lead.
const Grace = 30 * time.Second

// Body is what a caller sends to open a namespace.
type Body struct {
	Namespace string `json:"namespace"`
	TTL       string `json:"ttl"` // such as "30m"; at most 24h
	Reason    string `json:"reason"`
}

// Opening is a namespace whose refusals are lifted until a moment.
type Opening struct {
	Namespace string    `json:"-"`
	TTL       string    `json:"ttl"`
	Reason    string    `json:"reason"`
	Until     time.Time `json:"until"`
}

// ReadBody reads what a caller sends. Errors are bad_request and invalid_field.
func ReadBody(sent []byte) (*Body, error) {
	b := new(Body)
	if err := registry.DecodeStrict(sent, b); err != nil {
		return nil, err
	}
	if strings.Trim(b.Namespace, "* ") == "" {
		return nil, fault.Invalid("/namespace", "name one namespace; break-glass never opens all of them")
	}
	if err := registry.ValidName(b.Namespace); err != nil {
		return nil, fault.Invalid("/namespace", "is not the name of a namespace")
	}
	return b, nil
}

// Canonical reads what a caller sends to open the namespace and gives the spec
// to store: open from now, the leader's time, for as long as was asked. Errors
// are bad_request and invalid_field.
func Canonical(namespace string, sent []byte, now time.Time) ([]byte, error) {
	b, err := ReadBody(sent)
	if err != nil {
		return nil, err
	}
	if b.Namespace != namespace {
		return nil, fault.Invalid("/namespace", "is %q in the body and %q in the path", b.Namespace, namespace)
	}
	ttl, err := time.ParseDuration(b.TTL)
	if err != nil || ttl < MinTTL || ttl > MaxTTL {
		return nil, fault.Invalid("/ttl", `must say how long, such as "30m": from %v to %v`, MinTTL, MaxTTL)
	}
	b.Reason = strings.TrimSpace(b.Reason)
	switch {
	case b.Reason == "":
		return nil, fault.Invalid("/reason", "say why; whoever reads the log will ask")
	case len(b.Reason) > maxReason:
		return nil, fault.Invalid("/reason", "must be at most %d characters", maxReason)
	case strings.ContainsFunc(b.Reason, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return nil, fault.Invalid("/reason", "must be one line of text")
	}
	return json.Marshal(Opening{TTL: b.TTL, Reason: b.Reason, Until: now.Add(ttl).UTC()}, json.Deterministic(true))
}

// Open tells whether the namespace is open, and gives the opening. It is open
// while the opening is among the settings: from one position in the sequence of
// changes to another, the same on every node, whatever their clocks say. The
// leader ends it by its own clock ([Keeper]). The node's time is the last
// resort: [Grace] after its end, an opening counts no more.
func Open(settings *setting.Table, namespace string, now time.Time) (*Opening, bool) {
	r, ok := settings.Get(setting.BreakGlass, namespace, namespace)
	if !ok {
		return nil, false
	}
	return read(r, now)
}

// All goes through the namespaces that are open.
func All(settings *setting.Table, now time.Time) iter.Seq[*Opening] {
	return func(yield func(*Opening) bool) {
		for r := range settings.All(setting.BreakGlass) {
			if o, ok := read(r, now); ok && !yield(o) {
				return
			}
		}
	}
}

// String says what is open and until when; not why, which not everybody may see.
func (o *Opening) String() string {
	return fmt.Sprintf("break-glass is open in namespace %s until %s", o.Namespace, o.Until.Format(time.RFC3339))
}

// read gives an opening, and whether it may still count.
func read(r *setting.Record, now time.Time) (*Opening, bool) {
	o := &Opening{Namespace: r.Namespace}
	return o, r.Decode(o) == nil && now.Before(o.Until.Add(Grace))
}
