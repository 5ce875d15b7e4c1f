package policy

import (
	"context"
	"time"
)

// Question is what was asked: about an input of the registry's own, or about
// exactly the JSON that a caller sent. It is immutable.
type Question struct {
	Entrypoint string // "a/b"; "" where the action selects it
	Input      *Input // nil where Raw is given
	Raw        []byte
	Document   bool   // the document at the entry point was asked for, not a verdict (OPA's data API)
	Query      string // in Rego, where Entrypoint is Query or Partial
	Response   bool   // the answer to a proxied request was asked for along with the verdict
	Call       Call
}

// What stands as the entry point of a question in Rego: for all its answers, or
// for what is left of it while parts are unknown. No replay makes them again.
const (
	Query   = "query"
	Partial = "compile"
)

// Call is the request behind a question, as far as it is known, for the record
// alone: no rule sees it.
type Call struct {
	RequestID string
	Trace     string // the header traceparent, as it was sent
	Source    string // the caller's address
	Principal string
	Revision  uint64 // of the state that is decided on
}

type callKey struct{}

// WithCall gives a context that brings the call to whoever asks [CallOf].
func WithCall(ctx context.Context, c Call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// CallOf gives the call of the context; empty where there is none.
func CallOf(ctx context.Context) Call {
	c, _ := ctx.Value(callKey{}).(Call)
	return c
}

// Observer is told of every decision after it was made, on the goroutine of
// whoever asked: it must return at once. It may keep what it is given, and must
// change none of it.
type Observer interface {
	Decided(rev *Revision, q *Question, d *Decision, took time.Duration)
}

// Observers are told one after the other.
type Observers []Observer

// Decided implements [Observer].
func (all Observers) Decided(rev *Revision, q *Question, d *Decision, took time.Duration) {
	for _, o := range all {
		o.Decided(rev, q, d, took)
	}
}
