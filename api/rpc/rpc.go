// Package rpc owns the gRPC edge on the control port: the server that muster's
// own service and those of other protocols (Envoy's) are offered on, who may
// call each, and how a fault becomes a status. Calls go through the door like
// those of every edge. It refuses a method that nobody said how to admit.
package rpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/trace"
)

// Options are the limits. The zero value of a field means its default.
type Options struct {
	Logger     *slog.Logger
	NodeID     string
	MaxBody    int // bytes of a message; 4 MiB
	MaxHeaders int // bytes of a call's metadata; 64 KiB
	// ArriveTimeout is for the first message of a call to arrive; 1 min.
	ArriveTimeout time.Duration
	// Late is how many calls may take more than 2 s of it at one time; 64.
	Late int
	// Credentials of the native server; nil: it takes connections as they are.
	Credentials credentials.TransportCredentials
	Tracer      *trace.Tracer // nil: calls are not traced
	// Observe is told of every answer, by method and HTTP status.
	Observe func(operation string, status int, elapsed time.Duration)
}

func (o *Options) panicked(p any) error {
	o.Logger.Error("panic in a handler", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return fault.New(fault.Internal, "the node failed to handle the request; its log says why")
}

// Server is the gRPC edge: one native server for connections that speak
// nothing else, and one for calls that come in over net/http.
type Server struct {
	door   *door.Door
	opt    Options
	native *grpc.Server
	web    *grpc.Server
	health *health.Server
	late   chan struct{} // places of calls whose first message takes its time
}

// New builds the edge with muster's own service, health and reflection on it.
func New(d *door.Door, opt Options) *Server {
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	if opt.MaxBody == 0 {
		opt.MaxBody = 4 << 20
	}
	if opt.MaxHeaders == 0 {
		opt.MaxHeaders = 64 << 10
	}
	if opt.ArriveTimeout == 0 {
		opt.ArriveTimeout = time.Minute
	}
	if opt.Late <= 0 {
		opt.Late = 64
	}
	if opt.Observe == nil {
		opt.Observe = func(string, int, time.Duration) {}
	}
	s := &Server{door: d, opt: opt, health: health.NewServer(), late: make(chan struct{}, opt.Late)}
	recovered := recovery.WithRecoveryHandler(opt.panicked)
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(opt.MaxBody),
		grpc.MaxHeaderListSize(uint32(opt.MaxHeaders)),
		grpc.MaxConcurrentStreams(1000),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 10 * time.Minute, Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.unary, recovery.UnaryServerInterceptor(recovered)),
		grpc.ChainStreamInterceptor(s.stream, recovery.StreamServerInterceptor(recovered)),
	}
	s.web = grpc.NewServer(append(options[:len(options):len(options)], grpc.StatsHandler(taken{}))...)
	options = append(options, grpc.InTapHandle(s.tapped))
	if opt.Credentials != nil {
		options = append(options, grpc.Creds(opt.Credentials))
	}
	s.native = grpc.NewServer(options...)
	grpc_health_v1.RegisterHealthServer(s, s.health)
	reflection.Register(s)
	s.registerRegistry()
	return s
}

// RegisterService implements grpc.ServiceRegistrar. It is for before Serve.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	s.native.RegisterService(desc, impl)
	s.web.RegisterService(desc, impl)
}

// GetServiceInfo implements reflection.GRPCServer.
func (s *Server) GetServiceInfo() map[string]grpc.ServiceInfo { return s.native.GetServiceInfo() }

// Serve serves connections that speak gRPC only.
func (s *Server) Serve(l net.Listener) error { return s.native.Serve(l) }

// IsCall reports whether an HTTP request is a gRPC call.
func IsCall(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// Shutdown lets calls end until the context does. Streams have been told.
func (s *Server) Shutdown(ctx context.Context) {
	s.health.Shutdown()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.native.GracefulStop()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.native.Stop()
		<-done
	}
	s.web.Stop()
}

// Call is one call on its way through this edge; [CallOf] finds it.
type Call struct {
	door.Call
	ctx    context.Context
	server *Server
	method string // "/muster.v1.Registry/Resolve"
	header metadata.MD

	// What the call would be in REST, for policies; "" where it has no like.
	verb, path string
	span       trace.Span
}

type callKey struct{}

// CallOf gives the call of a handler's context.
func CallOf(ctx context.Context) *Call {
	c, _ := ctx.Value(callKey{}).(*Call)
	return c
}

// As gives the call of a handler's context to a room that offers a service on
// this edge, and says what the call would be in REST.
func As(ctx context.Context, method, path string) *door.Call {
	c := CallOf(ctx)
	c.Like(method, path)
	return &c.Call
}

// Like says what the call would be in REST, before a policy or the leader gets
// to see it.
func (c *Call) Like(method, path string) { c.verb, c.path = method, path }

// Context implements door.Request.
func (c *Call) Context() context.Context { return c.ctx }

// Credentials implements door.Request.
func (c *Call) Credentials() ([]string, *tls.ConnectionState) {
	var conn *tls.ConnectionState
	if p, ok := peer.FromContext(c.ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			conn = &info.State
		}
	}
	return c.header["authorization"], conn
}

// remote is the address that the call comes from.
func (c *Call) remote() string {
	if p, ok := peer.FromContext(c.ctx); ok {
		return p.Addr.String()
	}
	return ""
}

// Form implements door.Request.
func (c *Call) Form() door.Form {
	f := door.Form{Method: c.verb, Path: c.path, Scheme: "https", Headers: make(map[string][]string, len(c.header))}
	if c.path == "" {
		f.Method, f.Path = http.MethodPost, c.method
	}
	path, _, _ := strings.Cut(f.Path, "?")
	f.Route = strings.Split(strings.Trim(path, "/"), "/")
	for name, values := range c.header {
		if strings.HasPrefix(name, ":") || strings.HasSuffix(name, "-bin") {
			continue
		}
		f.Headers[http.CanonicalHeaderKey(name)] = values
	}
	if host := c.header[":authority"]; len(host) > 0 {
		f.Host = host[0]
	}
	if p, ok := peer.FromContext(c.ctx); ok {
		f.Source = p.Addr.String()
		if host, _, err := net.SplitHostPort(f.Source); err == nil {
			f.Source = host
		}
		if p.AuthInfo == nil {
			f.Scheme = "http"
		}
	}
	return f
}

// begin takes a call in. A caller is known before anything else is looked at;
// what it may do is the handler's question, but for reflection and health, which have none.
func (s *Server) begin(ctx context.Context, method string) (*Call, context.Context, error) {
	arrived(ctx)
	c := &Call{server: s, method: method}
	c.header, _ = metadata.FromIncomingContext(ctx)
	id := s.door.RequestID(c.header["x-request-id"])
	if s.opt.Tracer != nil && !open(method) {
		ctx, c.span = s.opt.Tracer.Take(ctx, strings.Join(c.header["traceparent"], ","), operation(method), id)
		c.header = c.header.Copy()
		c.header.Set("traceparent", trace.Parent(ctx)) // where audit trail and decisions look
	}
	c.ctx = context.WithValue(trace.WithRequest(ctx, id), callKey{}, c)
	c.Begin(s.door, c, id)
	if open(method) {
		return c, c.ctx, nil
	}
	if err := c.Arrive(c.remote()); err != nil {
		return c, c.ctx, err
	}
	if err := c.Ready(true); err != nil {
		return c, c.ctx, err
	}
	if err := c.Authenticate(); err != nil {
		return c, c.ctx, err
	}
	if look(method) {
		return c, c.ctx, c.Permit(policy.Read, "cluster", "")
	}
	return c, c.ctx, nil
}

// end makes the answer's status of how the call ended, and tells who wants to know.
func (s *Server) end(c *Call, err error) error {
	c.Leave()
	if err == nil {
		c.span.End(nil)
	} else {
		c.span.End(known(err))
	}
	operation := operation(c.method)
	status := http.StatusOK
	if err != nil {
		f := fault.From(known(err))
		status = f.Code.Status()
		if f.Code == fault.Internal {
			s.opt.Logger.Error("request failed", "request_id", c.ID, "method", c.method, "err", err)
		}
		switch status {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests:
			c.Refuse(operation, f)
		}
		err = Status(f, c.ID).Err()
	}
	s.opt.Observe(operation, status, time.Since(c.Began))
	return err
}

// operation names a method as metrics and the audit trail do.
func operation(method string) string {
	method = strings.TrimPrefix(method, "/")
	return "grpc:" + method
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	c, ctx, err := s.begin(ctx, info.FullMethod)
	var res any
	if err == nil {
		res, err = handle(ctx, req)
	}
	md := c.answer()
	if r, ok := res.(interface{ GetRevision() uint64 }); ok && c.Consistency == door.Linearizable && c.verb != http.MethodGet && r.GetRevision() > 0 {
		md.Set("muster-revision", fmt.Sprint(r.GetRevision())) // of the change
	}
	_ = grpc.SetHeader(ctx, md) // fails only after the answer
	return res, s.end(c, err)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	c, ctx, err := s.begin(ss.Context(), info.FullMethod)
	if err == nil && !open(info.FullMethod) {
		err = c.Visit().Follow()
	}
	if err == nil {
		_ = ss.SetHeader(c.answer())
		err = handle(srv, &serverStream{ss, ctx})
	}
	return s.end(c, err)
}

type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *serverStream) Context() context.Context { return s.ctx }

// answer is what every answer says beside its message; see REST's headers.
func (c *Call) answer() metadata.MD {
	md := metadata.Pairs(
		"muster-node", c.server.opt.NodeID, "x-request-id", c.ID, "muster-consistency", c.Consistency,
		"muster-revision", fmt.Sprint(c.State.Revision), "muster-staleness-ms", fmt.Sprint((c.Staleness()+time.Millisecond-1)/time.Millisecond))
	if c.Decision != "" {
		md.Set("muster-decision-id", c.Decision)
	}
	if c.Filtered {
		md.Set("muster-filtered", "true")
	}
	return md
}
