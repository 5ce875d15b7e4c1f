// Package trace owns what follows one request through the rooms and from node
// to node: its request id and, where tracing is on, its spans, as OpenTelemetry
// and W3C Trace Context have them. It is the only room that imports
// OpenTelemetry. It refuses to carry what a request says: spans hold names,
// ids, codes and times, and no header, body or query.
//
// Off is free: a nil [Tracer] wraps nothing, and without a span in the context
// [Start] gives back what it got.
package trace

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/muster-registry/muster/fault"
)

const scope = "github.com/muster-registry/muster"

// w3c reads and writes traceparent and tracestate. Baggage is left alone: what
// it holds is not muster's to pass on.
var w3c = propagation.TraceContext{}

// Span is one step of a request; the zero value records nothing.
type Span struct{ span trace.Span }

// Start begins a step within the one of the context. Without one, or where it
// is not recorded, it gives the context back.
func Start(ctx context.Context, name string) (context.Context, Span) {
	return start(ctx, name, trace.SpanKindInternal)
}

// Ask begins a step that waits for another process.
func Ask(ctx context.Context, name string) (context.Context, Span) {
	return start(ctx, name, trace.SpanKindClient)
}

func start(ctx context.Context, name string, kind trace.SpanKind) (context.Context, Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, Span{}
	}
	ctx, s := parent.TracerProvider().Tracer(scope).Start(ctx, name, trace.WithSpanKind(kind))
	return ctx, Span{s}
}

// Past notes a step that is over already.
func Past(ctx context.Context, name string, began, ended time.Time) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() || began.IsZero() {
		return
	}
	_, s := parent.TracerProvider().Tracer(scope).Start(ctx, name, trace.WithTimestamp(began))
	s.End(trace.WithTimestamp(ended))
}

// Note adds a value to the step. It must not be a secret.
func (s Span) Note(key, value string) {
	if s.span != nil {
		s.span.SetAttributes(attribute.String("muster."+key, value))
	}
}

// End ends the step; of an error only the code is kept.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		code := string(fault.From(err).Code)
		s.span.SetAttributes(attribute.String("error.type", code))
		s.span.SetStatus(codes.Error, code)
	}
	s.span.End()
}

type nameKey struct{}

// Name names the step of a request's context, which its beginning could not
// yet, and the request it belongs to.
func Name(ctx context.Context, name, request string) {
	if s := trace.SpanFromContext(ctx); s.IsRecording() {
		s.SetName(name)
		if n, ok := ctx.Value(nameKey{}).(*string); ok {
			*n = name // otelhttp names the span once more when the handler has returned
		}
		s.SetAttributes(attribute.String("muster.request_id", request))
	}
}

// Inject writes the context's step into the headers of a request to another
// process; nothing where there is none.
func Inject(ctx context.Context, h http.Header) { w3c.Inject(ctx, propagation.HeaderCarrier(h)) }

// Parent gives the context's step as a traceparent; "" where there is none.
func Parent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	m := propagation.MapCarrier{}
	w3c.Inject(ctx, m)
	return m["traceparent"]
}
