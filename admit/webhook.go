package admit

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/setting"
)

// Webhooks are the outside policy endpoints.
type Webhooks interface {
	// Ask asks all that are set for the action in the namespace and gives why
	// they refuse: nothing when none does. Lifted says that the change goes on
	// all the same. Document is the input as JSON; id names the question towards
	// the endpoints.
	Ask(ctx context.Context, settings *setting.Table, id string, in *policy.Input, document []byte) (reasons []string, lifted bool)
}

// Webhooks has the gate ask outside before a change of a record is proposed.
// The observer is told of each refusal, which is a decision with an id of its
// own. To be called before the gate is used.
func (g *Gate) Webhooks(w Webhooks, newID func() string, o policy.Observer) {
	g.webhooks, g.newID, g.observer = w, newID, o
}

// WebhookEntryPoint stands in the record of a decision that webhooks made.
const WebhookEntryPoint = "webhook"

// round is one intent on its way through the gate, however often it is
// admitted.
type round struct {
	began   time.Time
	basis   basis                        // of the newest decision
	answers map[[sha256.Size]byte]answer // of webhooks, by what they were asked
}

// answer is what the webhooks said to one question.
type answer struct {
	id      string
	reasons []string
	lifted  bool
}

// consult asks the webhooks about a change that the policy allows, with the
// payload as it will be stored, when nothing else stands in its way. When the
// intent is admitted again, on the same record and with the same webhooks, the
// answers of the first time hold: an endpoint is asked once about one change.
func (g *Gate) consult(ctx context.Context, st State, in *command.Intent, action policy.Action, res policy.Resource, d policy.Decision) error {
	if g.webhooks == nil {
		return nil
	}
	h, any := sha256.New(), false
	for r := range st.Settings.All(setting.Webhook) {
		any = true
		h.Write(append(binary.BigEndian.AppendUint64(nil, r.Revision), r.Name...))
	}
	if !any {
		return nil
	}
	q := input(in, action, res, st.Revision)
	q.Time = st.round.began.UTC()
	document, err := q.Document()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "the webhooks cannot be asked about this change; nothing was changed")
	}
	h.Write(document)
	key := [sha256.Size]byte(h.Sum(nil))
	a, asked := st.round.answers[key]
	if !asked {
		a = g.ask(ctx, st, q, document, d)
		if st.round.answers == nil {
			st.round.answers = map[[sha256.Size]byte]answer{}
		}
		st.round.answers[key] = a
	}
	if len(a.reasons) == 0 || a.lifted {
		return nil
	}
	f := fault.New(fault.PolicyDenied, "a webhook refuses this %s; the reasons say which and why", action)
	f.Reasons, f.DecisionID, f.PolicyRevision = a.reasons, a.id, d.PolicyRevision
	return f
}

// ask asks the webhooks, and tells of their refusal.
func (g *Gate) ask(ctx context.Context, st State, q *policy.Input, document []byte, d policy.Decision) answer {
	began := time.Now()
	a := answer{id: g.newID()}
	a.reasons, a.lifted = g.webhooks.Ask(ctx, st.Settings, a.id, q, document)
	if len(a.reasons) > 0 {
		g.observer.Decided(st.Policy.Active(), &policy.Question{Entrypoint: WebhookEntryPoint, Input: q, Call: q.Call}, &policy.Decision{
			ID: a.id, Allow: a.lifted, BreakGlass: a.lifted, Reasons: a.reasons, PolicyRevision: d.PolicyRevision,
			EntryPoint: WebhookEntryPoint, Time: q.Time, Cause: policy.ByWebhook,
		}, time.Since(began))
	}
	return a
}
