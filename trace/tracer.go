package trace

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
)

// The protocols of OTLP that spans are sent by, in OpenTelemetry's words.
const (
	GRPC = "grpc"
	HTTP = "http/protobuf"
)

// Options say where spans go. What is left empty is taken from OpenTelemetry's
// own variables, OTEL_EXPORTER_OTLP_… and OTEL_TRACES_SAMPLER.
type Options struct {
	Endpoint string            // URL of the collector; http:// is not encrypted
	Protocol string            // GRPC or HTTP
	Sample   float64           // share of the traces begun here that is recorded, 0 to 1
	Headers  map[string]string // of each call to the collector; secrets
	CA       *x509.CertPool    // nil: the system's
	Node     string            // service.instance.id
	Version  string
	Logger   *slog.Logger
	Sent     func(spans int, err error) // is told of each batch; nil: nobody is
	Mask     func(path string) string   // takes secrets out of a request's path; nil: there are none
}

// Tracer makes the spans of one node and sends them. A nil Tracer is one that
// is off. Safe for concurrent use.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	mask     func(path string) string
}

// Open begins to trace. The collector need not be there: spans it does not take
// in time are lost, and nothing waits for it.
func Open(ctx context.Context, o Options) (*Tracer, error) {
	exporter, err := o.exporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	about, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", "muster"), attribute.String("service.version", o.Version), attribute.String("service.instance.id", o.Node),
	), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("tracing: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	limits := sdk.NewSpanLimits()
	limits.AttributeValueLengthLimit = 256
	options := []sdk.TracerProviderOption{sdk.WithBatcher(exporter), sdk.WithResource(about), sdk.WithRawSpanLimits(limits)}
	if os.Getenv("OTEL_TRACES_SAMPLER") == "" {
		options = append(options, sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(o.Sample))))
	}
	few := rate.Sometimes{First: 1, Interval: time.Minute}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		few.Do(func() { o.Logger.Warn("spans were not sent", "error", err) })
	}))
	p := sdk.NewTracerProvider(options...)
	return &Tracer{provider: p, tracer: p.Tracer(scope), mask: o.Mask}, nil
}

func (o *Options) exporter(ctx context.Context) (sdk.SpanExporter, error) {
	var secure *tls.Config
	if o.CA != nil {
		secure = &tls.Config{RootCAs: o.CA, MinVersion: tls.VersionTLS13}
	}
	var e sdk.SpanExporter
	var err error
	switch o.protocol() {
	case HTTP:
		var options []otlptracehttp.Option
		if o.Endpoint != "" {
			options = append(options, otlptracehttp.WithEndpointURL(tracesPath(o.Endpoint)))
		}
		if secure != nil {
			options = append(options, otlptracehttp.WithTLSClientConfig(secure))
		}
		if len(o.Headers) > 0 {
			options = append(options, otlptracehttp.WithHeaders(o.Headers))
		}
		e, err = otlptracehttp.New(ctx, options...)
	default:
		var options []otlptracegrpc.Option
		if o.Endpoint != "" {
			options = append(options, otlptracegrpc.WithEndpointURL(o.Endpoint))
		}
		if secure != nil {
			options = append(options, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(secure)))
		}
		if len(o.Headers) > 0 {
			options = append(options, otlptracegrpc.WithHeaders(o.Headers))
		}
		e, err = otlptracegrpc.New(ctx, options...)
	}
	if err != nil || o.Sent == nil {
		return e, err
	}
	return &counted{e, o.Sent}, nil
}

func (o *Options) protocol() string {
	for _, p := range []string{o.Protocol, os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")} {
		if p != "" {
			return p
		}
	}
	return GRPC
}

// tracesPath completes the URL of a collector as OpenTelemetry does for
// OTEL_EXPORTER_OTLP_ENDPOINT.
func tracesPath(endpoint string) string {
	_, rest, _ := strings.Cut(endpoint, "://")
	if _, path, ok := strings.Cut(rest, "/"); ok && path != "" {
		return endpoint
	}
	return strings.TrimSuffix(endpoint, "/") + "/v1/traces"
}

type counted struct {
	sdk.SpanExporter
	sent func(int, error)
}

func (c *counted) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := c.SpanExporter.ExportSpans(ctx, spans)
	c.sent(len(spans), err)
	return err
}

// Close sends what waits, until the context ends.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// Handler records the requests to a handler that are not about the node's
// health. The handler finds the request's own step in the header Traceparent,
// whether or not the caller sent one, so that the audit trail and decisions
// name the trace.
func (t *Tracer) Handler(h http.Handler) http.Handler {
	if t == nil {
		return h
	}
	inner := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		Inject(r.Context(), r.Header)
		if t.mask != nil {
			if path := t.mask(r.URL.Path); path != r.URL.Path {
				trace.SpanFromContext(r.Context()).SetAttributes(attribute.String("url.path", path))
			}
		}
		h.ServeHTTP(w, r)
	})
	traced := otelhttp.NewHandler(inner, "request",
		otelhttp.WithTracerProvider(t.provider), otelhttp.WithMeterProvider(noop.NewMeterProvider()), otelhttp.WithPropagators(w3c),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string {
			if n, ok := r.Context().Value(nameKey{}).(*string); ok && *n != "" {
				return *n
			}
			return r.Method
		}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/livez", "/readyz", "/health", "/metrics":
			h.ServeHTTP(w, r)
		default:
			traced.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), nameKey{}, new(string))))
		}
	})
}

// Serve goes on, on this node, with what another node began: the step of the
// traceparent.
func (t *Tracer) Serve(ctx context.Context, traceparent, name string) (context.Context, Span) {
	if t == nil || traceparent == "" {
		return ctx, Span{}
	}
	ctx = w3c.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
	ctx, s := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
	return ctx, Span{s}
}

// Take goes on with the trace of a caller, or begins one where it brings none.
// Where the context has a step of the call already, that is named instead.
func (t *Tracer) Take(ctx context.Context, traceparent, name, request string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	if trace.SpanContextFromContext(ctx).IsValid() {
		Name(ctx, name, request)
		return ctx, Span{}
	}
	ctx = w3c.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
	ctx, s := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attribute.String("muster.request_id", request)))
	return ctx, Span{s}
}

// Begin begins a trace of the node's own work, such as sending decisions away.
func (t *Tracer) Begin(ctx context.Context, name string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	ctx, s := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient))
	return ctx, Span{s}
}
