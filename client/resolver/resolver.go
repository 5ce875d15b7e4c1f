// Package resolver gives gRPC the instances of a muster service by name:
//
//	conn, err := grpc.NewClient("muster:///shop/payments", grpc.WithResolvers(resolver.New(r)), …)
//
// muster:///payments is the service of the namespace default. The package owns
// nothing but the translation; what is known, and for how long, is the
// [client.Resolver]'s. It never takes away addresses because the cluster cannot
// be asked.
package resolver

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/muster-registry/muster/client"
)

// Scheme begins the targets that this package resolves.
const Scheme = "muster"

// New makes a builder for grpc.WithResolvers. Connections share r, which must
// not be closed before them.
func New(r *client.Resolver) resolver.Builder { return builder{r} }

type builder struct{ from *client.Resolver }

// Scheme implements resolver.Builder.
func (builder) Scheme() string { return Scheme }

// OverrideAuthority implements resolver.AuthorityOverrider: servers are asked
// for the name that the service has in DNS, and TLS expects it in their
// certificates unless grpc.WithAuthority names another.
func (builder) OverrideAuthority(t resolver.Target) string {
	namespace, service, err := parse(t)
	if err != nil {
		return ""
	}
	return service + "." + namespace + ".svc.muster"
}

// Build implements resolver.Builder.
func (b builder) Build(t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	namespace, service, err := parse(t)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &follower{from: b.from, cc: cc, namespace: namespace, service: service, cancel: cancel}
	r.done.Go(func() { _ = b.from.Follow(ctx, namespace, service, r.tell) })
	return r, nil
}

func parse(t resolver.Target) (namespace, service string, err error) {
	namespace, service, ok := strings.Cut(t.Endpoint(), "/")
	if !ok {
		namespace, service = "default", namespace
	}
	if t.URL.Host != "" || namespace == "" || service == "" || strings.Contains(service, "/") {
		return "", "", fmt.Errorf("%s names no service; write muster:///service or muster:///namespace/service", t.URL.String())
	}
	return namespace, service, nil
}

type follower struct {
	from               *client.Resolver
	cc                 resolver.ClientConn
	namespace, service string
	cancel             context.CancelFunc
	done               sync.WaitGroup
}

// ResolveNow implements resolver.Resolver.
func (r *follower) ResolveNow(resolver.ResolveNowOptions) { r.from.Refresh(r.namespace, r.service) }

// Close implements resolver.Resolver.
func (r *follower) Close() {
	r.cancel()
	r.done.Wait()
}

type attribute string

// Instance is the attribute of an address under which the id of its instance
// stands, a string, and Zone that of its zone.
const (
	Instance attribute = "instance"
	Zone     attribute = "zone"
)

func (r *follower) tell(a *client.Answer, err error) {
	if err != nil {
		r.cc.ReportError(status.Errorf(codes.Unavailable, "muster does not tell who provides %s in %s: %v", r.service, r.namespace, err))
		return
	}
	var s resolver.State
	for _, i := range a.Nearest() {
		s.Endpoints = append(s.Endpoints, resolver.Endpoint{
			Addresses:  []resolver.Address{{Addr: net.JoinHostPort(i.Address, strconv.Itoa(i.Port))}},
			Attributes: attributes.New(Instance, i.ID).WithValue(Zone, i.Zone),
		})
	}
	_ = r.cc.UpdateState(s) // an error says that the balancer wants another answer; there is one at the next change
}
