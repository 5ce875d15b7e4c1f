// Package opa owns the policy port: Open Policy Agent's REST API, for programs
// that were written for an OPA. It answers from the cluster's active policy
// revision, within the limits that hold for every decision, and hands a change
// to the node as a new revision. Paths, bodies and errors have OPA's form.
//
// It refuses callers without a credential, whatever belongs to the engine
// itself (data.system), and changes by anyone who may not manage policies.
package opa

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/klauspost/compress/gzhttp"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
)

// State is what this edge looks at, at one revision. It is immutable; an
// answer is made from one state only.
type State struct {
	Policy   *policy.Table
	Tokens   *identity.Table
	Revision uint64
}

// Backend is the node, as this edge needs it. All methods are safe for
// concurrent use, and their errors are faults.
type Backend interface {
	// NodeID names this node.
	NodeID() string
	// Policies gives the newest local state.
	Policies() State
	// Staleness bounds the age of the local state; it never understates.
	Staleness() time.Duration
	// Ready is nil when the node has caught up since its start.
	Ready() error
	// ReadIndex returns when the local state has every change that was
	// acknowledged anywhere before the call.
	ReadIndex(ctx context.Context) error
	// StagePolicy checks, stores and, if wanted, activates a policy. Once it
	// is active, every live, ready node decides by it.
	StagePolicy(ctx context.Context, intent *command.Intent, content *policy.Content, origin policy.Origin, activate bool) (*policy.Revision, error)
}

// Options are the limits and the optional parts. The zero value of a field
// means its default.
type Options struct {
	Logger *slog.Logger // default: slog.Default

	MaxBody      int64         // bytes of a body that asks; 4 MiB
	MaxPolicy    int64         // bytes of a body that changes; 16 MiB
	BodyTimeout  time.Duration // for a body to arrive; 1 min
	MaxStaleness time.Duration // answers from an older state are refused; 30 s, negative: never

	// Flow bounds what is under way; default: flow.New.
	Flow *flow.Flow
	// Version of the program.
	Version string
	// Decided is told of every answer of the data API; nil: nobody is.
	Decided policy.Observer
	// Traced says that requests may belong to a trace, whose step the edge names.
	Traced bool
	// Observe is told of every answer; the handler is named as OPA names it.
	Observe func(handler, method string, status int, elapsed time.Duration)
	// Refused is told of every call that is about to be answered 401, 403 or
	// 429, and of every change that is about to be answered by an error. who is
	// nil where nobody proved an identity.
	Refused func(r *http.Request, who *identity.Principal, action, requestID string, err *fault.Error)
	// Answered is told of every call after its answer; nil: nobody is.
	Answered func(*http.Request, *Answered)
}

// Answered is what became of a call.
type Answered struct {
	Principal  *identity.Principal // nil: nobody proved an identity
	Operation  string              // as metrics name it
	Action     policy.Action
	RequestID  string
	DecisionID string
	Status     int
	Elapsed    time.Duration
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.MaxBody == 0 {
		o.MaxBody = 4 << 20
	}
	if o.MaxPolicy == 0 {
		o.MaxPolicy = 16 << 20
	}
	if o.Flow == nil {
		o.Flow = flow.New(flow.Limits{})
	}
	if o.BodyTimeout == 0 {
		o.BodyTimeout = time.Minute
	}
	if o.MaxStaleness == 0 {
		o.MaxStaleness = 30 * time.Second
	}
	if o.Observe == nil {
		o.Observe = func(string, string, int, time.Duration) {}
	}
	if o.Refused == nil {
		o.Refused = func(*http.Request, *identity.Principal, string, string, *fault.Error) {}
	}
}

// API is the handler of the policy port.
type API struct {
	backend Backend
	engine  *rego.Engine
	auth    *identity.Authenticator
	opt     Options

	mux       *http.ServeMux
	hot       *route // POST /v1/data/…, found without the mux
	zipped    http.Handler
	origins   *http.CrossOriginProtection
	changing  chan struct{} // one change at a time from this node, so that they do not overtake each other
	nodeValue []string      // of the header Muster-Node
}

// New builds the edge.
func New(backend Backend, engine *rego.Engine, auth *identity.Authenticator, opt Options) (*API, error) {
	opt.setDefaults()
	a := &API{
		backend: backend, engine: engine, auth: auth, opt: opt, mux: http.NewServeMux(),
		origins: http.NewCrossOriginProtection(), changing: make(chan struct{}, 1), nodeValue: []string{backend.NodeID()},
	}
	for _, route := range routes() {
		a.mux.HandleFunc(route.pattern, func(w http.ResponseWriter, r *http.Request) {
			c := w.(*call)
			c.r = r
			c.serve(&route)
		})
		if route.pattern == hotPattern {
			a.hot = &route
		}
	}
	wrap, err := gzhttp.NewWrapper(gzhttp.MinSize(1024), gzhttp.CompressionLevel(1))
	if err != nil {
		return nil, err
	}
	a.zipped = wrap(http.HandlerFunc(a.answer))
	return a, nil
}

// ServeHTTP answers one request. Bodies above 1 KiB are compressed for who
// asks for it.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, ok := r.Header["Accept-Encoding"]; ok {
		a.zipped.ServeHTTP(w, r)
		return
	}
	a.answer(w, r)
}
