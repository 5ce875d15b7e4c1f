// Package envoy owns what Envoy asks about the requests that pass through it:
// its external authorization (envoy.service.auth.v3) and its global rate limits
// (envoy.service.ratelimit.v3). It turns a request as Envoy describes it into
// the input that policies know, and a decision into the answer that Envoy gives.
//
// It refuses a request whose path could be read in two ways before any rule
// sees it, and answers no where it has no answer. What it does not decide is
// whether Envoy itself may ask: that is a role, as at every edge.
package envoy

import (
	"context"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/quota"
)

// Quotas keeps the count of calls to services. Its errors are faults.
type Quotas interface {
	// CheckQuota counts a call that passed [quota.Call.Check].
	CheckQuota(ctx context.Context, c quota.Call) (*quota.Result, error)
}

// Find gives the authenticated call of a handler's context, as which policies
// see what method and path are in REST.
type Find func(ctx context.Context, method, path string) *door.Call

// Register offers both services on a gRPC edge, on which find finds the calls.
func Register(on grpc.ServiceRegistrar, find Find, quotas Quotas) {
	authv3.RegisterAuthorizationServer(on, authorization{find: find})
	ratelimitv3.RegisterRateLimitServiceServer(on, rateLimit{find: find, quotas: quotas})
}
