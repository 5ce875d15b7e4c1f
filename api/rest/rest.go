// Package rest owns the REST edge on the control port: it finds out what is
// asked, decodes strictly, goes through the door, and encodes. It keeps no rule
// of the domain and no state of its own. The checks that are the same on every
// edge are the door's.
package rest

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/klauspost/compress/gzhttp"
	"golang.org/x/time/rate"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/pki/issuer"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/sign"
	"github.com/muster-registry/muster/quota"
	"github.com/muster-registry/muster/registry"
)

// Backend is the node, as this edge needs it. All methods are safe for
// concurrent use, and their errors are faults.
type Backend interface {
	door.Backend

	// Votes is nil when the node has its vote; else a not_ready that says when
	// it gets one. Reads are answered without.
	Votes() error

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

	// Everywhere returns when no node answers by a state before the revision any
	// more, or after wait: then pending lists those that may, and until says when
	// the last of them ceases to; zero: not by itself.
	Everywhere(ctx context.Context, revision uint64, wait time.Duration) (pending []string, until time.Time)

	ClusterStatus(ctx context.Context) (*ClusterStatus, error)
	Members(ctx context.Context) ([]Member, error)
	// TransferLeader hands the leadership to a member; "" leaves the choice.
	TransferLeader(ctx context.Context, intent *command.Intent, to string) error
	RemoveMember(ctx context.Context, intent *command.Intent, id string) error

	// AuditHeads tells what the local state knows of the nodes' audit trails,
	// by node. ForgetAuditHead has the trail of a node accepted as it is;
	// not_found where none is known.
	AuditHeads() []AuditHead
	ForgetAuditHead(ctx context.Context, intent *command.Intent, node string) error

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
	BodyTimeout   time.Duration // for a body to arrive; 1 min. Snapshots take as long as they take

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
	// Library is the built-in rules about API definitions.
	Library Library
	// WebhookSecret is what webhooks of the Git host are signed with; empty: none is believed.
	WebhookSecret []byte
	// Issuer makes certificates for workloads; nil: this node makes none.
	Issuer *issuer.Issuer
	// Issuance puts a certificate on record before its caller gets it. It is
	// asked before one is signed, too. Its error keeps the certificate back.
	Issuance func(*Issuance) error
	// Health gives further lines for /readyz?verbose.
	Health func() []string
	// Foreign are the calls of other edges on the control port, for /openapi.json.
	Foreign []Foreign
	// Traced says that requests may belong to a trace, whose step the edge names.
	Traced bool
	// Observe is told of every answer; operation is "" where no route matched.
	Observe func(operation string, status int, elapsed time.Duration)
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
	if o.BodyTimeout == 0 {
		o.BodyTimeout = time.Minute
	}
	if o.Version == "" {
		o.Version = "dev"
	}
	if o.Diff == nil {
		o.Diff = policy.NewDiff
	}
	if o.Health == nil {
		o.Health = func() []string { return nil }
	}
	if o.Issuance == nil {
		o.Issuance = func(*Issuance) error { return nil }
	}
	if o.Observe == nil {
		o.Observe = func(string, int, time.Duration) {}
	}
}

// API is the handler of the control port's REST calls.
type API struct {
	backend Backend
	door    *door.Door
	opt     Options

	routes    []Route
	mux       *http.ServeMux
	discover  *Route // the hot path is found without the mux
	zipped    http.Handler
	openapi   []byte
	origins   *http.CrossOriginProtection
	webhooks  *rate.Limiter // of all callers together: each is somebody until verified
	nodeValue []string      // of the header Muster-Node
}

// New builds the edge. The error says that the route table cannot be
// described, which is a mistake in this package.
func New(backend Backend, d *door.Door, opt Options) (*API, error) {
	opt.setDefaults()
	a := &API{backend: backend, door: d, opt: opt, mux: http.NewServeMux(), nodeValue: []string{backend.NodeID()}}
	a.webhooks = rate.NewLimiter(rate.Every(time.Second), 10)
	a.origins = http.NewCrossOriginProtection()
	a.routes = routes()
	for i := range a.routes {
		route := &a.routes[i]
		a.mux.HandleFunc(route.Method+" "+route.Path, func(w http.ResponseWriter, r *http.Request) {
			c := w.(*call)
			c.R = r
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
	if _, ok := r.Header["Accept-Encoding"]; ok && r.URL.Path != watchPath {
		a.zipped.ServeHTTP(w, r)
		return
	}
	a.answer(w, r)
}
