// Package policy owns what a policy is to the cluster: the content of a
// revision, the history of revisions with exactly one active, the document a
// decision is made on, the decision itself, and the built-in roles that decide
// where no policy does. It refuses to evaluate anything: an engine does that,
// behind [Decider]. It is deterministic: time and identity come from its
// callers.
package policy

import (
	"context"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Action is what a caller wants to do, as policies see it in input.action.
type Action string

// The actions of the registry. The first six are named in the public
// contract, Issue stands beside them; Heartbeat, Spend, Read and Manage are decided by roles alone.
const (
	Register  Action = "register"
	Update    Action = "update"
	Delete    Action = "delete"
	Lookup    Action = "lookup"
	Watch     Action = "watch"
	Authorize Action = "authorize"

	Issue Action = "issue" // a certificate; it asks the entry point for writes

	Heartbeat Action = "heartbeat"
	Spend     Action = "spend"  // count a call against the quotas
	Read      Action = "read"   // a resource of the cluster's own: policy, token, …
	Manage    Action = "manage" // change one of those
)

// LookUp says whether the action asks the look-up entry point; all others ask
// the one for writes.
func (a Action) LookUp() bool { return a == Lookup || a == Watch }

// Changes says whether the action changes what the cluster keeps. Heartbeats do
// not: they hold on to what is there.
func (a Action) Changes() bool { return a == Register || a == Update || a == Delete || a == Manage }

// Principal is who is calling, as far as decisions are concerned. Empty
// Namespaces means all of them.
type Principal struct {
	ID         string
	Kind       string // spiffe, oidc, token, anonymous
	Roles      []string
	Namespaces []string
	Claims     []byte  // a JSON object; nil is {}
	Grants     []Grant // which roles hold where; nil: all of Roles in all of Namespaces
}

// Grant is some roles in some namespaces. Empty Namespaces means all of them.
type Grant struct {
	Roles      []string
	Namespaces []string
}

// Resource is what the call is about. Metadata, Payload and Previous are JSON;
// nil is {} for Metadata and null for the other two. The engine keeps no
// reference to them after the decision.
type Resource struct {
	Kind      string // service, version, instance, certificate
	Namespace string
	Name      string
	Metadata  []byte
	Holder    []byte // a record whose member metadata is taken where Metadata is nil, if a policy reads it
	Payload   []byte // what would be stored, or what would be returned
	Previous  []byte // what is stored now

	// For a version that is about to be stored: what its definition shows. Nil
	// counts mean that it was not checked.
	Findings      []byte // a JSON array of objects with rule, severity, path, message
	FindingCounts []byte // a JSON object of numbers by severity
}

// MetadataJSON gives the metadata, from the holder if need be; nil is {}.
// Most policies never ask, so callers hand over the record that holds the
// metadata instead of looking inside.
func (r *Resource) MetadataJSON() []byte {
	if r.Metadata != nil || r.Holder == nil {
		return r.Metadata
	}
	var holder struct {
		Metadata jsontext.Value `json:"metadata"`
	}
	if err := json.Unmarshal(r.Holder, &holder); err != nil {
		return nil
	}
	return holder.Metadata
}

// Input is the document a decision is made on: the Go form of the input
// document in the public contract. The zero value of a field is "" or {} there.
type Input struct {
	Action   Action
	Time     time.Time
	Protocol string            // "https"
	Method   string            // "PUT"
	Path     []string          // decoded segments, without empty ones
	RawPath  string            // as requested, for attributes.request.http.path
	Host     string            // attributes.request.http.host
	Scheme   string            // attributes.request.http.scheme
	Headers  map[string]string // canonical names; lower-cased for attributes
	Token    string            // the bearer token, or ""
	Source   string            // the caller's address

	Principal Principal
	Resource  Resource

	Call Call // no rule sees it
}

// Decision is the answer to one question. It names exactly one policy
// revision.
type Decision struct {
	Allow          bool
	Reasons        []string // why not; empty when allowed, but for BreakGlass
	ID             string   // unique, also for answers from a cache
	PolicyRevision uint64   // 0: no policy is active
	Filtered       []byte   // JSON that replaces what is stored or returned; nil: not defined
	Missed         bool     // refused because no answer came in time: asking again may give another
	Unavailable    bool     // Missed, since this node cannot evaluate the revision, or not yet: nothing was decided
	BreakGlass     bool     // refused, and allowed all the same since break-glass is open; Reasons say why it was refused
	Default        bool     // no package is defined: the built-in roles alone have decided
	Result         []byte   // JSON of the document that was asked for by its path (OPA's data API), or of the answer to a proxy ([Decider.DecideResponse]); nil: undefined, or not asked so

	// How it was made, for the record. A replay needs all of it.
	EntryPoint string    // the path that was asked, "a/b"; "" where none was
	Time       time.Time // as the policy saw it
	Chance     Chance    // nil: the policy asked for nothing that may differ next time
	Cause      Cause     // of a refusal by the rules; see [Decision.Why]
}

// Cause is the kind of thing that a refusal comes from.
type Cause string

// The causes of a refusal.
const (
	Denied     Cause = "denied"      // a deny gave its reason
	NotAllowed Cause = "not_allowed" // no rule allows it
	Failed     Cause = "failed"      // the policy failed, or gave no plain answer
	Unanswered Cause = "unanswered"  // no answer came in time
	ByRole     Cause = "role"        // no policy is defined, and the roles do not allow it
	ByWebhook  Cause = "webhook"     // the policy allows it, and an outside endpoint does not
)

// Why gives the cause of a refusal, also of one that was lifted; "" for what
// is allowed.
func (d *Decision) Why() Cause {
	switch {
	case d.Allow && d.Cause != ByWebhook:
		return ""
	case d.Cause != "":
		return d.Cause
	case d.Missed:
		return Unanswered
	case d.Default:
		return ByRole
	}
	return Failed
}

// Chance are the results of built-ins that may give another one next time, such
// as the time or a random number. It is immutable; its JSON is an object of
// built-ins, each an object of results by the arguments.
type Chance interface{ MarshalJSON() ([]byte, error) }

// Decider answers questions by a policy revision. It is safe for concurrent
// use.
type Decider interface {
	// Decide asks the entry point that in.Action selects. A nil revision means
	// that no policy is active. It never fails: what goes wrong is a refusal
	// that carries its reason.
	Decide(ctx context.Context, rev *Revision, in *Input) Decision

	// DecideRaw asks about exactly the JSON document given. The entry point is
	// the named one, "a/b" or "a.b", or the one that input.action selects when
	// the name is empty. The error is bad_request when the name or the JSON
	// cannot be used; nothing has been evaluated then.
	DecideRaw(ctx context.Context, rev *Revision, entrypoint string, input []byte) (Decision, error)

	// DecideResponse is DecideRaw for a proxy, which asks for the answer to a
	// request along with the verdict: Result holds those of [Responses] that are
	// defined at the entry point, which must be named. It may also be a rule, and
	// allow or that rule an object whose member allowed is the verdict.
	DecideResponse(ctx context.Context, rev *Revision, entrypoint string, input []byte) (Decision, error)
}

// Responses are the rules that shape the answer to a proxied request, beside
// the verdict: those that users of OPA's plugin for Envoy know.
var Responses = []string{
	"headers", "http_status", "body", "dynamic_metadata", "response_headers_to_add",
	"request_headers_to_remove", "query_parameters_to_set", "query_parameters_to_remove",
}
