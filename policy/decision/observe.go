package decision

import (
	"context"
	"time"

	"github.com/muster-registry/muster/policy"
)

// Observed gives a decider that answers as next does and tells the observers
// of each answer.
func Observed(next policy.Decider, observers ...policy.Observer) policy.Decider {
	return &observed{next: next, observers: observers}
}

type observed struct {
	next      policy.Decider
	observers policy.Observers
}

// Decide implements [policy.Decider].
func (o *observed) Decide(ctx context.Context, rev *policy.Revision, in *policy.Input) policy.Decision {
	began := time.Now()
	d := o.next.Decide(ctx, rev, in)
	o.tell(rev, &policy.Question{Input: in, Call: in.Call}, &d, time.Since(began))
	return d
}

// DecideRaw implements [policy.Decider].
func (o *observed) DecideRaw(ctx context.Context, rev *policy.Revision, entrypoint string, input []byte) (policy.Decision, error) {
	began := time.Now()
	d, err := o.next.DecideRaw(ctx, rev, entrypoint, input)
	if err == nil {
		o.tell(rev, &policy.Question{Entrypoint: entrypoint, Raw: input, Call: policy.CallOf(ctx)}, &d, time.Since(began))
	}
	return d, err
}

// DecideResponse implements [policy.Decider].
func (o *observed) DecideResponse(ctx context.Context, rev *policy.Revision, entrypoint string, input []byte) (policy.Decision, error) {
	began := time.Now()
	d, err := o.next.DecideResponse(ctx, rev, entrypoint, input)
	if err == nil {
		o.tell(rev, &policy.Question{Entrypoint: entrypoint, Raw: input, Response: true, Call: policy.CallOf(ctx)}, &d, time.Since(began))
	}
	return d, err
}

func (o *observed) tell(rev *policy.Revision, q *policy.Question, d *policy.Decision, took time.Duration) {
	o.observers.Decided(rev, q, d, took)
}
