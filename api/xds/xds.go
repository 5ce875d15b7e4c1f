// Package xds owns what service meshes are configured by: Envoy's discovery
// protocol xDS v3 over one aggregated stream (ADS), state of the world and
// incremental, for Envoy and for gRPC clients without a proxy. The protocol
// itself is go-control-plane's; this room makes the resources out of what the
// registry knows, for the services that a stream names and no others.
//
// A stream shows what its caller may see, as a watch does: a service that the
// policy refuses is not there, and a caller that loses its standing loses the
// stream. It refuses to hand out an answer that this node cannot vouch for:
// rather it ends the stream, and clients keep what they have and go on at
// another node.
package xds

import (
	"context"
	"log/slog"
	"weak"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"google.golang.org/grpc"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// Find gives the authenticated call of a handler's context, as which policies
// see what method and path are in REST.
type Find func(ctx context.Context, method, path string) *door.Call

// Options are what may be left out.
type Options struct {
	Logger *slog.Logger
	// Stream is told when a stream begins (1) and ends (-1).
	Stream func(delta int)
	// Rejected is told when a client does not take what it was sent; kind is
	// listener, route, cluster or endpoints.
	Rejected func(kind string)
}

// Register offers the aggregated discovery service on a gRPC edge, on which
// find finds the calls.
func Register(on grpc.ServiceRegistrar, find Find, opt Options) {
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	if opt.Stream == nil {
		opt.Stream = func(int) {}
	}
	if opt.Rejected == nil {
		opt.Rejected = func(string) {}
	}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(on, service{find: find, opt: opt, shelf: &shelf{of: map[registry.Key]weak.Pointer[edition]{}}})
}

type service struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	find  Find
	opt   Options
	shelf *shelf
}

// StreamAggregatedResources implements discoveryv3.AggregatedDiscoveryServiceServer.
func (s service) StreamAggregatedResources(ads discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(ads.Context(), func(ctx context.Context, st *stream) error {
		return sotw.NewServer(ctx, st, nil, sotw.DeactivateLegacyWildcardForTypes(named)).StreamHandler(ads, "")
	})
}

// DeltaAggregatedResources implements discoveryv3.AggregatedDiscoveryServiceServer.
func (s service) DeltaAggregatedResources(ads discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(ads.Context(), func(ctx context.Context, st *stream) error {
		return delta.NewServer(ctx, st, nil, delta.DeactivateLegacyWildcardForTypes(named)).DeltaStreamHandler(ads, "")
	})
}

// serve runs the protocol on a stream until the caller goes or may not go on.
func (s service) serve(ctx context.Context, run func(context.Context, *stream) error) error {
	c := s.find(ctx, "GET", "/v1/watch")
	if err := c.Permit(policy.Watch, registry.KindService, ""); err != nil {
		return err
	}
	if err := c.Young(); err != nil {
		return err
	}
	st := newStream(ctx, c, s.opt, s.shelf)
	s.opt.Stream(1)
	defer s.opt.Stream(-1)
	defer st.close()
	err := run(st.ctx, st)
	if cause := context.Cause(st.ctx); cause != nil && ctx.Err() == nil {
		return cause
	}
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return err
}

// maxServices bounds what one stream may follow.
const maxServices = 10_000

var errTooMany = fault.New(fault.RateLimited, "one stream follows at most %d services; open another", maxServices)
