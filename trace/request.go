package trace

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

type requestKey struct{}

// WithRequest gives a context that belongs to a request.
func WithRequest(ctx context.Context, id string) context.Context {
	if id == "" {
		return ctx
	}
	return context.WithValue(ctx, requestKey{}, id)
}

// Request gives the id of the request that the context belongs to; "" of none.
func Request(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// Logs adds request_id and trace_id to every record that is written with the
// context of a request.
func Logs(h slog.Handler) slog.Handler { return &logs{h} }

type logs struct{ slog.Handler }

func (l *logs) Handle(ctx context.Context, r slog.Record) error {
	id, span := Request(ctx), trace.SpanContextFromContext(ctx)
	if id != "" || span.IsValid() {
		r = r.Clone()
	}
	if id != "" && !names(r, "request_id") {
		r.AddAttrs(slog.String("request_id", id))
	}
	if span.IsValid() {
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()))
	}
	return l.Handler.Handle(ctx, r)
}

func names(r slog.Record, key string) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		found = a.Key == key
		return !found
	})
	return found
}

// WithAttrs implements slog.Handler.
func (l *logs) WithAttrs(a []slog.Attr) slog.Handler { return &logs{l.Handler.WithAttrs(a)} }

// WithGroup implements slog.Handler.
func (l *logs) WithGroup(name string) slog.Handler { return &logs{l.Handler.WithGroup(name)} }
