// Package door is what every edge lets its callers through, whatever protocol
// they speak: who calls, whether the role allows it, which state answers a
// read and how old that may be, what the policy says of a look-up, and how a
// change is handed to the leader. It owns the order of these checks, and asks
// flow for a place and a turn; the edges in front of it decode and encode.
//
// It refuses to know a protocol, and to answer from a state that may lack what
// the caller is owed: rather an error than a wrong empty answer.
package door

import (
	"context"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
)

// State is everything this node knows at one revision. It is immutable; an
// answer is made from one state only.
type State struct {
	Registry  *registry.Snapshot
	Policy    *policy.Table
	Tokens    *identity.Table
	Settings  *setting.Table
	Revision  uint64
	ClusterID string
}

// Backend is the node, as every edge needs it. All methods are safe for
// concurrent use, and their errors are faults.
type Backend interface {
	// NodeID names this node.
	NodeID() string
	// State gives the newest local state; it costs no more than a pointer. It
	// is never older than what AwaitRevision, ReadIndex or Feed has announced.
	State() *State
	// Document gives a definition's exact bytes, as the version record of that
	// revision describes it.
	Document(namespace, service, version string, revision uint64) ([]byte, error)
	// Feed tells of changes. The state has every change that it tells of.
	Feed() *feed.Feed
	// AwaitRevision returns when the local state has the revision.
	AwaitRevision(ctx context.Context, revision uint64) error
	// ReadIndex returns when the local state has every change that was
	// acknowledged anywhere before the call.
	ReadIndex(ctx context.Context) error
	// Staleness bounds the age of the local state; it never understates.
	Staleness() time.Duration
	// Ready is nil when the node has caught up since its start and can decide
	// by the active policy; where it cannot, it says policy_unavailable.
	Ready() error
	// IsLeader reports whether changes are admitted here.
	IsLeader() bool
	// Decider answers for the policies.
	Decider() policy.Decider

	// Submit has a change decided and applied, here or by the leader.
	Submit(ctx context.Context, intent *command.Intent) (*command.Receipt, error)
	// Heartbeat renews an instance's lease; instance_not_found when it has
	// none. The caller has been permitted to.
	Heartbeat(ctx context.Context, namespace, service, id string) error
	// Report passes on what somebody says of an instance's check of type ttl:
	// passing, warning or critical, and a text. It renews the check; not_found
	// when there is none.
	Report(ctx context.Context, namespace, service, id, check, status, output string) error
}

// Options are the limits. The zero value of a field means its default.
type Options struct {
	Flow         *flow.Flow    // bounds what is under way; default: flow.New
	ZoneShare    float64       // of a zone's instances that must pass for a look-up to stay in it; see registry.Query
	MaxStaleness time.Duration // reads of a state older than this are refused; 30 s, negative: never
	// Refused is told of every call that is about to be answered
	// unauthenticated, refused or limited, and of every change that is about to
	// be answered by an error.
	Refused func(*Refusal)
	// Answered is told of every look-up after its answer, unless that was an error;
	// nil: nobody is.
	Answered func(*Answer)
}

// Refusal is a call that was turned away, as the audit trail keeps it.
type Refusal struct {
	Who       *identity.Principal // nil where nobody proved an identity
	Operation string              // as the edge names it; "" where none was found
	RequestID string
	Trace     string // the header traceparent, as it was sent
	Form      Form
	Err       *fault.Error
}

// Door is where calls of all edges come in.
type Door struct {
	backend Backend
	auth    *identity.Authenticator
	opt     Options
	ids     requestIDs
}

// New builds the door.
func New(backend Backend, auth *identity.Authenticator, opt Options) *Door {
	if opt.Flow == nil {
		opt.Flow = flow.New(flow.Limits{})
	}
	if opt.MaxStaleness == 0 {
		opt.MaxStaleness = 30 * time.Second
	}
	if opt.Refused == nil {
		opt.Refused = func(*Refusal) {}
	}
	d := &Door{backend: backend, auth: auth, opt: opt}
	d.ids.init()
	return d
}

// RequestID takes over the caller's identifier where it is harmless in a log
// and in a header, and makes one otherwise.
func (d *Door) RequestID(given []string) string { return d.ids.of(given) }
