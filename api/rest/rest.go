// Package rest owns the REST edge on the control port: it finds out who calls
// and what is asked, decodes strictly, asks the node, and encodes. It keeps no
// rule of the domain and no state of its own beside counters. Look-ups are
// decided and answered here, on one state; changes are handed to the node,
// which sees to it that the leader decides them.
package rest

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzhttp"
	"golang.org/x/time/rate"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/sign"
	"github.com/muster-registry/muster/quota"
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

// Backend is the node, as this edge needs it. All methods are safe for
// concurrent use, and their errors are faults.
type Backend interface {
	// NodeID names this node.
	NodeID() string
	// State gives the newest local state; it costs no more than a pointer. It
	// is never older than what AwaitRevision, ReadIndex or Watch has announced.
	State() *State
	// Document gives a definition's exact bytes, as the version record of that
	// revision describes it.
	Document(namespace, service, version string, revision uint64) ([]byte, error)
	// Watch gives a channel that is closed at the next change of the service's
	// instances, and a function that gives the channel back. It is taken before
	// the state is read.
	Watch(namespace, service string) (changed <-chan struct{}, release func())
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

	// The intents below say who asks and how; they carry no command.

	// StagePolicy checks, stores and, if wanted, activates a policy. Once it
	// is active, every live, ready node decides by it.
	StagePolicy(ctx context.Context, intent *command.Intent, content *policy.Content, origin policy.Origin, activate bool) (*policy.Revision, error)
	// StageShadow checks and stores a policy and makes it the shadow.
	StageShadow(ctx context.Context, intent *command.Intent, content *policy.Content, origin policy.Origin, share float64) (*policy.Revision, error)
	ActivatePolicy(ctx context.Context, intent *command.Intent, number uint64) (*policy.Revision, error)
	// SyncPolicy has the leader pull from the Git source at once. Where the
	// caller waits, it gives the state of the source as JSON, with how this pull
	// ended; not_found when the leader has no source.
	SyncPolicy(ctx context.Context, wait bool) ([]byte, error)
	RollbackPolicy(ctx context.Context, intent *command.Intent) (*policy.Revision, error)
	// ShadowPolicy has a revision evaluated beside the active one, for a share
	// of the decisions; StopShadow ends that.
	ShadowPolicy(ctx context.Context, intent *command.Intent, number uint64, share float64) (*policy.Revision, error)
	StopShadow(ctx context.Context, intent *command.Intent) (*policy.Revision, error)
	// ShadowReport tells how the shadow has differed on all nodes; nil when no
	// revision is the shadow.
	ShadowReport(ctx context.Context) (*policy.Impact, error)
	// ReplayPolicy asks a revision about the newest decisions of each node, up
	// to limit, made since so long ago; since 0 is as far as they are kept.
	ReplayPolicy(ctx context.Context, number uint64, since time.Duration, limit int) (*policy.Impact, error)

	// Decision gives the record of a decision that any node made, masked and as
	// JSON, with each rule's outcome where asked for.
	Decision(ctx context.Context, id string, rules bool) ([]byte, error)

	// CheckQuota counts a call to a service against the quotas. Errors say that
	// it cannot be settled, or is not one.
	CheckQuota(ctx context.Context, c quota.Call) (*quota.Result, error)

	ClusterStatus(ctx context.Context) (*ClusterStatus, error)
	Members(ctx context.Context) ([]Member, error)
	// TransferLeader hands the leadership to a member; "" leaves the choice.
	TransferLeader(ctx context.Context, intent *command.Intent, to string) error
	RemoveMember(ctx context.Context, intent *command.Intent, id string) error

	// Snapshot writes a consistent snapshot of the local state.
	Snapshot(ctx context.Context, w io.Writer) error
	// Restore checks a snapshot and, unless it is a dry run, makes it the
	// state of the whole cluster. force allows one of another cluster.
	Restore(ctx context.Context, intent *command.Intent, r io.Reader, dryRun, force bool) (*RestoreReport, error)
}

// Options are the limits and the optional parts. The zero value of a field
// means its default.
type Options struct {
	Logger *slog.Logger // default: slog.Default

	MaxBody       int64         // bytes of a body; 4 MiB
	MaxDefinition int64         // bytes of a body that brings a definition or a policy; 16 MiB
	MaxDepth      int           // levels of nesting in a JSON body; registry.MaxDepth, which is also the most
	MaxInFlight   int64         // requests at one time; 10 000
	BodyTimeout   time.Duration // for a body to arrive; 1 min. Snapshots take as long as they take
	MaxStaleness  time.Duration // local reads older than this are refused; 30 s, negative: never

	// Version of the program, for /openapi.json.
	Version string
	// ParseBundle reads an OPA bundle and verifies its own signature, on the
	// newest state; nil: bundles are not taken.
	ParseBundle func(bundle []byte) (*policy.Push, error)
	// Signatures verifies detached signatures, on the newest state; nil: they
	// are not taken.
	Signatures *sign.Verifier
	// Diff compares two contents; nil: policy.NewDiff, which cannot read rules.
	Diff func(from, to *policy.Content) *policy.Diff
	// WebhookSecret is what webhooks of the Git host are signed with; empty: none is believed.
	WebhookSecret []byte
	// Observe is told of every answer; operation is "" where no route matched.
	Observe func(operation string, status int, elapsed time.Duration)
	// Refused is told of every call that is about to be answered 401, 403 or
	// 429. who is nil where nobody proved an identity.
	Refused func(r *http.Request, who *identity.Principal, action, requestID string, err *fault.Error)
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.MaxBody == 0 {
		o.MaxBody = 4 << 20
	}
	if o.MaxDefinition == 0 {
		o.MaxDefinition = 16 << 20
	}
	if o.MaxDepth == 0 {
		o.MaxDepth = registry.MaxDepth
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = 10_000
	}
	if o.BodyTimeout == 0 {
		o.BodyTimeout = time.Minute
	}
	if o.MaxStaleness == 0 {
		o.MaxStaleness = 30 * time.Second
	}
	if o.Version == "" {
		o.Version = "dev"
	}
	if o.Diff == nil {
		o.Diff = policy.NewDiff
	}
	if o.Observe == nil {
		o.Observe = func(string, int, time.Duration) {}
	}
	if o.Refused == nil {
		o.Refused = func(*http.Request, *identity.Principal, string, string, *fault.Error) {}
	}
}

// API is the handler of the control port's REST calls.
type API struct {
	backend Backend
	auth    *identity.Authenticator
	opt     Options

	routes    []Route
	mux       *http.ServeMux
	discover  *Route // the hot path is found without the mux
	zipped    http.Handler
	openapi   []byte
	ids       requestIDs
	origins   *http.CrossOriginProtection
	inFlight  atomic.Int64
	webhooks  *rate.Limiter // of all callers together: each is somebody until verified
	nodeValue []string      // of the header Muster-Node
}

// New builds the edge. The error says that the route table cannot be
// described, which is a mistake in this package.
func New(backend Backend, auth *identity.Authenticator, opt Options) (*API, error) {
	opt.setDefaults()
	a := &API{backend: backend, auth: auth, opt: opt, mux: http.NewServeMux(), nodeValue: []string{backend.NodeID()}}
	a.ids.init()
	a.webhooks = rate.NewLimiter(rate.Every(time.Second), 10)
	a.origins = http.NewCrossOriginProtection()
	a.routes = routes()
	for i := range a.routes {
		route := &a.routes[i]
		a.mux.HandleFunc(route.Method+" "+route.Path, func(w http.ResponseWriter, r *http.Request) {
			c := w.(*call)
			c.r = r
			c.serve(route)
		})
		if route.ID == discoverID {
			a.discover = route
		}
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { w.(*call).unmatched() })

	var err error
	if a.openapi, err = a.describe(); err != nil {
		return nil, err
	}
	wrap, err := gzhttp.NewWrapper(gzhttp.MinSize(1024), gzhttp.CompressionLevel(1))
	if err != nil {
		return nil, err
	}
	a.zipped = wrap(http.HandlerFunc(a.answer))
	return a, nil
}

// Routes lists every call this edge answers.
func (a *API) Routes() []Route { return a.routes }

// ServeHTTP answers one request. Bodies above 1 KiB are compressed for who
// asks for it.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, ok := r.Header["Accept-Encoding"]; ok {
		a.zipped.ServeHTTP(w, r)
		return
	}
	a.answer(w, r)
}
