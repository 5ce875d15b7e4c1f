// Package admit owns the leader's gate: it turns what a caller wants (an
// intent) into what the cluster will do (a command), or refuses it. Role,
// preconditions and policy are decided here, on exactly the bytes that will be
// stored, and everything that is not a function of the state is stamped here:
// time, identity, decision, the revisions the decision was made on.
//
// Apply drops a command whose record, whose policy or whose conditions (the
// webhooks, schemas and other settings that admission asks) have changed since;
// the gate then admits it again on the new state. So no change is ever applied
// under a policy, under conditions or over a record that its decision did not see.
//
// The room refuses to write: it proposes.
package admit

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/registry/schema"
	"github.com/muster-registry/muster/setting"
	"github.com/muster-registry/muster/trace"
)

// attempts is how often an intent is admitted anew when the state moves
// between its decision and its turn.
const attempts = 4

// State is the part of the replicated state that admission looks at.
type State struct {
	Revision uint64
	Registry *registry.Snapshot
	Policy   *policy.Table
	Settings *setting.Table
	Tokens   *identity.Table
	Restore  string // id of a restore in progress, or empty

	// Repeat gives the first answer to the command's Idempotency-Key, if any.
	Repeat func(*command.Command) (*command.Receipt, error)

	round *round
}

// Log is the replicated log as the gate sees it.
type Log interface {
	// Propose puts a command into the log and returns its result on this node.
	Propose(ctx context.Context, c *command.Command) (*command.Receipt, error)
	// ReadIndex returns when the local state has every change acknowledged
	// before the call.
	ReadIndex(ctx context.Context) error
}

// Checker compiles and tests the content of a policy revision.
type Checker interface {
	Check(ctx context.Context, c *policy.Content) (policy.Report, error)
	// Version names the engine that checks and decides, as "opa 1.22.2".
	Version() string
}

// Gate admits intents on the leader. Safe for concurrent use.
type Gate struct {
	state   func() State
	log     Log
	decider policy.Decider
	checker Checker
	stale   func(error) bool // whether Apply asks for another admission
	keys    keyLock

	settings map[setting.Kind]Setting

	signedOnly bool
	schemas    schema.Cache
	reviewer   Reviewer
	webhooks   Webhooks
	newID      func() string   // of a decision by webhooks
	observer   policy.Observer // is told of those
}

// New makes a gate. stale tells the errors by which Apply asks for another
// admission from all others.
func New(state func() State, log Log, decider policy.Decider, checker Checker, stale func(error) bool) *Gate {
	return &Gate{state: state, log: log, decider: decider, checker: checker, stale: stale, keys: keyLock{held: map[string]*keyHolder{}}, settings: map[setting.Kind]Setting{}}
}

// Execute admits the intent, proposes it and waits for its result. Errors are
// faults; only a fault with an unknown outcome leaves open whether the change
// happened.
func (g *Gate) Execute(ctx context.Context, in *command.Intent) (receipt *command.Receipt, err error) {
	ctx, span := trace.Start(trace.WithRequest(ctx, in.RequestId), "admit")
	defer func() { span.End(err) }()
	if in.Command == nil || in.Principal == nil {
		return nil, fault.New(fault.BadRequest, "the intent names no command or no principal")
	}
	release, err := g.keys.lock(ctx, lockKey(in.Command))
	if err != nil {
		return nil, fault.Wrap(fault.NotReady, err, "the change did not get its turn in time; nothing was changed")
	}
	defer release()

	confirmed, r := false, &round{began: time.Now()}
	for stale := 0; stale < attempts; {
		cmd, repeated, err := g.admit(ctx, in, r)
		if repeated != nil {
			return repeated, nil
		}
		if err != nil {
			// The refusal may rest on a state that a newer leader has already
			// replaced. It is given only after the state was confirmed.
			if confirmed || !confirmable(err) {
				return nil, err
			}
			if unsure := g.log.ReadIndex(ctx); unsure != nil {
				return nil, unsure
			}
			if confirmed = true; basisOf(g.state(), in.Command) == r.basis {
				return nil, err
			}
			continue
		}
		receipt, err := g.propose(ctx, in, cmd)
		if err == nil {
			return receipt, nil
		}
		if !g.stale(err) && !lostService(in.Command, err) {
			return nil, err
		}
		stale++
	}
	return nil, fault.New(fault.Conflict, "the record or the policy kept changing while this was decided; nothing was changed, try again")
}

// confirmable says whether a refusal depends on the state at all.
func confirmable(err error) bool {
	var f *fault.Error
	if !errors.As(err, &f) {
		return false
	}
	switch f.Code {
	case fault.RevisionMismatch, fault.ServiceNotFound, fault.VersionNotFound, fault.InstanceNotFound,
		fault.NotFound, fault.Conflict, fault.PolicyDenied, fault.PolicyUnavailable:
		return true
	}
	return false
}

// lostService says whether Apply missed a service that was there when an
// instance was admitted, and that the caller wants made when it is not.
func lostService(c *command.Command, err error) bool {
	return c.GetPut().GetCreateService() && fault.Is(err, fault.ServiceNotFound)
}

// admit decides on the state as it is and gives the command to propose, or the
// answer that the same request was given before.
func (g *Gate) admit(ctx context.Context, in *command.Intent, r *round) (cmd *command.Command, repeated *command.Receipt, err error) {
	st := g.state()
	st.round, r.basis = r, basisOf(st, in.Command)
	if st.Restore != "" && !partOfRestore(in.Command) {
		return nil, nil, fault.New(fault.NotReady, "a restore is in progress; try again when it has ended")
	}
	cmd = &command.Command{
		Principal: in.Principal.Id, Time: time.Now().UnixNano(), RequestId: in.RequestId, TraceId: traceID(in.Request),
		IdempotencyKey: in.IdempotencyKey, RequestDigest: in.RequestDigest, Op: in.Command.Op,
	}
	if repeated, err = st.Repeat(cmd); repeated != nil || err != nil {
		return nil, repeated, err
	}
	if p := in.Command.GetPolicyStage(); p != nil {
		if repeated, err = g.stagedBefore(st, in, p); repeated != nil || err != nil {
			return nil, repeated, err
		}
	}
	if cmd, err = g.admitOp(ctx, st, in, cmd); err == nil && conditional(cmd) {
		cmd.Conditions = st.Settings.Conditions()
	}
	return cmd, nil, err
}

func (g *Gate) admitOp(ctx context.Context, st State, in *command.Intent, cmd *command.Command) (*command.Command, error) {
	switch op := in.Command.Op.(type) {
	case *command.Command_Put:
		if op.Put.Kind == command.Kind_TOKEN {
			return cmd, Permit(in, policy.Manage, "token", "")
		}
		if op.Put.Kind == command.Kind_SETTING {
			return g.admitSetting(ctx, st, in, cmd, op.Put)
		}
		return g.admitPut(ctx, st, in, cmd, op.Put)
	case *command.Command_Delete:
		if op.Delete.Kind == command.Kind_TOKEN {
			return g.admitTokenEnd(st, in, cmd, op.Delete)
		}
		if op.Delete.Kind == command.Kind_SETTING {
			return g.admitUnset(ctx, st, in, cmd, op.Delete)
		}
		return g.admitDelete(ctx, st, in, cmd, op.Delete)
	case *command.Command_Status:
		return g.admitStatus(ctx, st, in, cmd, op.Status)
	case *command.Command_PolicyStage:
		return g.admitStage(ctx, st, in, cmd, op.PolicyStage)
	case *command.Command_PolicyActivate:
		return g.admitActivate(st, in, cmd, op.PolicyActivate)
	case *command.Command_PolicyShadow:
		return g.admitShadow(st, in, cmd, op.PolicyShadow)
	case *command.Command_RestoreBegin, *command.Command_RestoreChunk, *command.Command_RestoreCommit, *command.Command_RestoreAbort:
		return cmd, Permit(in, policy.Manage, "snapshot", "")
	}
	return nil, fault.New(fault.BadRequest, "a caller cannot ask for %T", in.Command.Op)
}

// admitTokenEnd puts a revocation in the place of the token: a restore may bring
// the token back, and must not make it good again.
func (g *Gate) admitTokenEnd(st State, in *command.Intent, cmd *command.Command, d *command.Delete) (*command.Command, error) {
	if err := Permit(in, policy.Manage, "token", ""); err != nil {
		return nil, err
	}
	rev := identity.Revocation{Kind: identity.RevokeToken, Value: d.Name, Reason: "the token was revoked"}
	if st.Tokens != nil {
		if t, ok := st.Tokens.Get(d.Name); ok {
			rev.ExpiresAt = t.ExpiresAt
		}
	}
	spec, err := json.Marshal(&rev, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	cmd.Op = &command.Command_Delete{Delete: &command.Delete{Kind: d.Kind, Name: d.Name, Revocation: spec, RevocationName: rev.ID()}}
	return cmd, nil
}

func partOfRestore(c *command.Command) bool {
	switch c.Op.(type) {
	case *command.Command_RestoreChunk, *command.Command_RestoreCommit, *command.Command_RestoreAbort:
		return true
	}
	return false
}

func (g *Gate) admitPut(ctx context.Context, st State, in *command.Intent, cmd *command.Command, p *command.Put) (*command.Command, error) {
	t := target{kind: p.Kind, namespace: p.Namespace, service: p.Service, name: p.Name}
	now := t.look(st.Registry)
	action := policy.Register
	if now.exists {
		action = policy.Update
	}
	if err := Permit(in, action, t.kindName(), t.namespace); err != nil {
		return nil, err
	}
	res := t.resource(st.Registry, now)
	res.Payload = in.Payload
	if len(res.Payload) == 0 {
		res.Payload = p.Spec
	}
	if t.kind != command.Kind_VERSION {
		res.Holder = p.Spec
	}
	spec, err := g.review(ctx, st, t, p.Spec, p.Document, &res)
	if err != nil {
		return nil, err
	}
	d, err := g.decide(ctx, st, in, action, res)
	if err != nil {
		return nil, err
	}
	if err := precondition(in, now); err != nil {
		return nil, err
	}
	if now.serviceMissing {
		if !p.CreateService {
			return nil, noService(t)
		}
		if err := g.admitService(ctx, st, in, t); err != nil {
			return nil, err
		}
	}
	next := &command.Put{
		Kind: p.Kind, Namespace: p.Namespace, Service: p.Service, Name: p.Name, Spec: spec, Document: p.Document,
		CreateService: now.serviceMissing, Observed: now.revision,
	}
	if d.Filtered != nil {
		cmd.Filtered = true
		if next.Spec, next.Document, err = t.refilter(p, d.Filtered); err != nil {
			return nil, err
		}
		if next.Spec, err = g.review(ctx, st, t, next.Spec, next.Document, &res); err != nil {
			return nil, err
		}
	}
	if err := g.meets(st, next); err != nil {
		return nil, err
	}
	if d.Filtered != nil {
		res.Payload = d.Filtered
		if t.kind != command.Kind_VERSION {
			res.Payload, res.Holder = next.Spec, next.Spec
		}
	}
	if err := g.consult(ctx, st, in, action, res, d); err != nil {
		return nil, err
	}
	cmd.Op = &command.Command_Put{Put: next}
	return stamp(cmd, d), nil
}

// admitService decides on the service that is made for its first instance, as
// if it were registered by itself: nothing is stored that no decision saw.
func (g *Gate) admitService(ctx context.Context, st State, in *command.Intent, instance target) error {
	t := target{kind: command.Kind_SERVICE, namespace: instance.namespace, name: instance.service}
	spec, err := registry.CanonicalService(t.namespace, t.name, []byte(`{}`))
	if err != nil {
		return err
	}
	res := t.resource(st.Registry, found{})
	res.Payload, res.Holder = spec, spec
	d, err := g.decide(ctx, st, in, policy.Register, res)
	if err != nil {
		return err
	}
	if d.Filtered != nil {
		return fault.New(fault.ServiceNotFound, "there is no service %s in namespace %s, and the policy changes what is stored of a service, so create_service cannot make it; register it first", t.name, t.namespace)
	}
	if err := g.meets(st, &command.Put{Kind: t.kind, Namespace: t.namespace, Name: t.name, Spec: spec}); err != nil {
		return err
	}
	return g.consult(ctx, st, in, policy.Register, res, d)
}

func (g *Gate) admitDelete(ctx context.Context, st State, in *command.Intent, cmd *command.Command, p *command.Delete) (*command.Command, error) {
	t := target{kind: p.Kind, namespace: p.Namespace, service: p.Service, name: p.Name}
	now, d, err := g.decideExisting(ctx, st, in, policy.Delete, t)
	if err != nil {
		return nil, err
	}
	next := &command.Delete{Kind: p.Kind, Namespace: p.Namespace, Service: p.Service, Name: p.Name, Observed: now.revision}
	cmd.Op = &command.Command_Delete{Delete: next}
	return stamp(cmd, d), nil
}

func (g *Gate) admitStatus(ctx context.Context, st State, in *command.Intent, cmd *command.Command, p *command.InstanceStatus) (*command.Command, error) {
	t := target{kind: command.Kind_INSTANCE, namespace: p.Namespace, service: p.Service, name: p.Name}
	now, d, err := g.decideExisting(ctx, st, in, policy.Update, t)
	if err != nil {
		return nil, err
	}
	next := &command.InstanceStatus{Namespace: p.Namespace, Service: p.Service, Name: p.Name, Status: p.Status, Observed: now.revision}
	cmd.Op = &command.Command_Status{Status: next}
	return stamp(cmd, d), nil
}

// decideExisting decides on a change to a record that must be there. The policy
// has its say before anything is told of whether it is.
func (g *Gate) decideExisting(ctx context.Context, st State, in *command.Intent, action policy.Action, t target) (now found, d policy.Decision, err error) {
	if err = Permit(in, action, t.kindName(), t.namespace); err != nil {
		return now, d, err
	}
	now = t.look(st.Registry)
	res := t.resource(st.Registry, now)
	res.Payload = in.Payload
	if d, err = g.decide(ctx, st, in, action, res); err != nil {
		return now, d, err
	}
	if err = t.mustExist(now); err != nil {
		return now, d, err
	}
	if err = precondition(in, now); err != nil {
		return now, d, err
	}
	return now, d, g.consult(ctx, st, in, action, res, d)
}

// decide asks the active policy; a refusal is policy_denied with its reasons.
func (g *Gate) decide(ctx context.Context, st State, in *command.Intent, action policy.Action, res policy.Resource) (policy.Decision, error) {
	ctx, span := trace.Start(ctx, "decide")
	d := g.decider.Decide(ctx, st.Policy.Active(), input(in, action, res, st.Revision))
	span.Note("decision_id", d.ID)
	span.End(nil)
	if d.Allow {
		return d, nil
	}
	if d.Unavailable {
		return d, fault.New(fault.PolicyUnavailable, "the leader cannot decide: %s", strings.Join(d.Reasons, "; "))
	}
	f := fault.New(fault.PolicyDenied, "the policy refuses this %s; the reasons say why", action)
	f.Reasons, f.DecisionID, f.PolicyRevision = d.Reasons, d.ID, d.PolicyRevision
	return d, f
}

// stamp puts the decision into the command; from here on Apply holds it to the
// policy revision that made it.
func stamp(cmd *command.Command, d policy.Decision) *command.Command {
	cmd.Gated, cmd.PolicyRevision, cmd.DecisionId = true, d.PolicyRevision, d.ID
	return cmd
}
