package door

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
)

// The values of Muster-Consistency.
const (
	Local        = "local"
	Linearizable = "linearizable"
)

// Request is a call as it came in. The door asks for its parts when it needs
// them, so that most calls never make them.
type Request interface {
	// Context ends when the caller has gone.
	Context() context.Context
	// Credentials gives all values of the header Authorization, and what is
	// known of the connection; nil without TLS.
	Credentials() (authorization []string, conn *tls.ConnectionState)
	// Form gives what policies and the leader get to see of the call.
	Form() Form
}

// Form is what policies and the leader get to see of a call, whatever protocol
// it came in.
type Form struct {
	Method  string              // "PUT"
	Path    string              // with the query, in one form however the caller escaped it
	Route   []string            // the decoded segments of the path
	Host    string              // that was asked for
	Scheme  string              // https, http
	Headers map[string][]string // canonical names
	Source  string              // the caller's address, without a port
}

// Call is one call on its way through the door. It is for one goroutine. An
// edge embeds it, begins it, and then asks for what the call needs, in the
// order: Ready, Authenticate, Permit; View; Decide or Submit.
type Call struct {
	ID    string    // of the request
	Began time.Time // when it came in
	State *State    // that answers; Look and View take a newer one

	Who  *identity.Principal // nil until authenticated
	Role policy.Principal    // Who, as policy sees it

	Consistency string // of the answer
	Decision    string // id of the decision that the answer names; "" where none was made
	Filtered    bool   // a policy replaced content of the answer, or of what was stored

	door   *Door
	anyone *identity.Principal // whoever calls; nil: it is proven
	visit  flow.Visit
	req    Request
	action policy.Action
	may    permit // what the caller was permitted last

	seen      time.Time     // when the age of State was asked for
	age       time.Duration // of State, at that time
	confirmed time.Time     // start of a read index that State is not older than
	refused   bool          // Decision is a refusal: those of a list's items that follow do not replace it
	input     *policy.Input
	form      *Form // that input was made of; nil: none was
}

// Begin takes in a call and looks at the newest state. id is what
// [Door.RequestID] gave.
func (c *Call) Begin(d *Door, req Request, id string) {
	*c = Call{ID: id, Began: time.Now(), Consistency: Local, door: d, req: req}
	c.Look()
}

// BeginAs is Begin for a listener whose protocol has no credentials: whoever
// calls is anyone.
func (c *Call) BeginAs(d *Door, req Request, id string, anyone *identity.Principal) {
	c.Begin(d, req, id)
	c.anyone = anyone
}

// Look takes the newest local state, and its age first: a state can only be
// younger than an age that was asked for before.
func (c *Call) Look() {
	c.seen = time.Now()
	c.age = c.door.backend.Staleness()
	if !c.confirmed.IsZero() {
		c.age = min(c.age, c.seen.Sub(c.confirmed))
	}
	c.State = c.door.backend.State()
}

// Staleness bounds the age of the answer now.
func (c *Call) Staleness() time.Duration {
	if c.age > 1<<62 {
		return c.age
	}
	return c.age + time.Since(c.seen)
}

// Ready refuses while the node has not caught up. It comes before Authenticate:
// such a node may not know a token that is good. decided says whether the
// policy has a say on the call: a node that cannot compile the policy can still
// be told of a better one.
func (c *Call) Ready(decided bool) error {
	if err := c.door.backend.Ready(); err != nil && (decided || !fault.Is(err, fault.PolicyUnavailable)) {
		return err
	}
	if c.age > proven {
		c.Look() // the node may have proved just now what it knows, and so know more
	}
	return nil
}

// proven is an age of the state that a node has without proving anything anew.
const proven = 500 * time.Millisecond

// Authenticate finds out who calls, by the state that answers.
func (c *Call) Authenticate() error {
	if c.anyone != nil {
		return c.known(c.anyone, nil)
	}
	header, conn, err := c.credential()
	if err != nil {
		return err
	}
	return c.known(c.door.auth.Authenticate(c.req.Context(), c.State.Tokens, header, conn, time.Now()))
}

func (c *Call) credential() (header string, conn *tls.ConnectionState, err error) {
	values, conn := c.req.Credentials()
	if len(values) > 0 {
		if header = values[0]; len(values) > 1 || header == "" {
			return "", nil, fault.New(fault.Unauthenticated, "send one Authorization header: Bearer TOKEN")
		}
	}
	return header, conn, nil
}

// Stranger says that the caller has no credential, as far as that can be told at
// once; Authenticate says the rest.
func (c *Call) Stranger() bool {
	header, conn, err := c.credential()
	return err != nil || c.door.auth.Stranger(c.State.Tokens, header, conn, time.Now())
}

// known takes over what was found out about who calls.
func (c *Call) known(who *identity.Principal, err error) error {
	if err != nil {
		return c.proven(err)
	}
	if who != c.Who {
		c.Who, c.Role, c.input = who, Principal(who), nil
	}
	return c.proven(nil)
}

// Permit asks the caller's role. The action is what policies are asked about
// from here on. While the call waits, the role is asked about the same again.
func (c *Call) Permit(action policy.Action, kind, namespace string) error {
	c.action, c.may = action, permit{action, kind, namespace}
	return policy.Permit(c.Role, action, kind, namespace)
}

// permit is a question to the caller's role; its zero value is none.
type permit struct {
	action          policy.Action
	kind, namespace string
}

// Admit is Ready, Authenticate and Permit for a call that a policy decides.
func (c *Call) Admit(action policy.Action, kind, namespace string) error {
	if err := c.Ready(true); err != nil {
		return err
	}
	if err := c.Authenticate(); err != nil {
		return err
	}
	return c.Permit(action, kind, namespace)
}

// Refuse tells whoever keeps record that the call is about to be turned away.
// operation is what the edge calls it.
func (c *Call) Refuse(operation string, err *fault.Error) {
	f := c.req.Form()
	c.door.opt.Refused(&Refusal{Who: c.Who, Operation: operation, RequestID: c.ID, Trace: f.header("Traceparent"), Form: f, Err: err})
}

// Gone says that nobody waits for the answer any more, or that the node stops.
func (c *Call) Gone() error {
	if err := c.req.Context().Err(); err != nil {
		return fault.Wrap(fault.NotReady, err, "the request was cancelled; try again, or another node")
	}
	return nil
}

func (f *Form) header(name string) string {
	if v := f.Headers[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func (f *Form) token() string {
	token, _ := identity.Bearer(f.header("Authorization"))
	return token
}

// Principal is who as policy sees it.
func Principal(who *identity.Principal) policy.Principal {
	return policy.Principal{ID: who.ID, Kind: who.Kind, Roles: who.Roles, Namespaces: who.Namespaces, Claims: claims(who), Grants: grants(who)}
}

func grants(who *identity.Principal) []policy.Grant {
	if len(who.Grants) == 0 {
		return nil
	}
	all := make([]policy.Grant, len(who.Grants))
	for i, g := range who.Grants {
		all[i] = policy.Grant(g)
	}
	return all
}

// Sent is who as the leader gets to see it.
func Sent(who *identity.Principal) *command.Principal {
	p := &command.Principal{Id: who.ID, Kind: who.Kind, Roles: who.Roles, Namespaces: who.Namespaces, Claims: claims(who)}
	for _, g := range who.Grants {
		p.Grants = append(p.Grants, &command.Grant{Roles: g.Roles, Namespaces: g.Namespaces})
	}
	return p
}

func claims(who *identity.Principal) []byte {
	if len(who.Claims) == 0 {
		return nil
	}
	b, err := json.Marshal(who.Claims, json.Deterministic(true))
	if err != nil { // claims came from JSON
		return nil
	}
	return b
}
