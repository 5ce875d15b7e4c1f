package xds

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// kinds are the types of resource on offer, by their URL.
var kinds = map[string]string{
	resourcev3.ListenerType: "listener", resourcev3.RouteType: "route", resourcev3.ClusterType: "cluster", resourcev3.EndpointType: "endpoints",
}

// Kinds lists the kinds of resource on offer.
func Kinds() []string { return slices.Sorted(maps.Values(kinds)) }

// named are the types that nobody gets without naming them.
var named = []string{resourcev3.RouteType, resourcev3.EndpointType}

var streams atomic.Uint64

// stream is one ADS stream: a cache of its own with what it has named, which
// the protocol's server watches, and a goroutine for each service in it, woken
// by the changes of that service.
type stream struct {
	ctx   context.Context // ends with the caller, and when the stream must not go on
	stop  context.CancelCauseFunc
	opt   Options
	shelf *shelf
	done  sync.WaitGroup

	caches map[string]*cachev3.LinearCache // by type

	mu       sync.Mutex // guards what follows
	call     *door.Call
	node     *corev3.Node
	names    map[string]map[string]bool // by type: what the client has named
	all      context.CancelFunc         // ends following all services; nil: the client does not ask for all
	followed map[registry.Key]*followed
}

// followed is one service on a stream.
type followed struct {
	cancel  context.CancelFunc
	named   map[target]bool // what the client has named
	made    made            // of what the resources are made
	edition *edition        // nil: the service is not shown
	current map[target]*serialised
}

// target is a resource of a service: its type, and the versions whose instances
// it is about; "" for all.
type target struct{ url, versions string }

// name is what the resource is called.
func (t target) name(key registry.Key) string {
	name := key.Service + "." + key.Namespace
	if t.versions != "" {
		name += "/" + t.versions
	}
	return name
}

// made is all that the resources of a service depend on. While it is the same,
// so are they.
type made struct {
	entry    *registry.Entry
	service  *registry.Service
	versions []*registry.Version
	policies *policy.Table
	settings any
	who      any
}

func (m *made) same(o *made) bool {
	return m.entry == o.entry && m.service == o.service && m.policies == o.policies && m.settings == o.settings && m.who == o.who && slices.Equal(m.versions, o.versions)
}

func newStream(ctx context.Context, c *door.Call, opt Options, on *shelf) *stream {
	s := &stream{opt: opt, shelf: on, call: c, caches: map[string]*cachev3.LinearCache{}, names: map[string]map[string]bool{}, followed: map[registry.Key]*followed{}}
	s.ctx, s.stop = context.WithCancelCause(ctx)
	// A version of another stream, or of another node, never looks like one of this.
	prefix := c.ID + "-" + strconv.FormatUint(streams.Add(1), 36) + "-"
	for url := range kinds {
		s.caches[url] = cachev3.NewLinearCache(url, cachev3.WithVersionPrefix(prefix))
	}
	return s
}

func (s *stream) close() {
	s.stop(nil)
	s.done.Wait()
}

// CreateWatch implements cachev3.ConfigWatcher.
func (s *stream) CreateWatch(req *cachev3.Request, sub cachev3.Subscription, to chan cachev3.Response) (func(), error) {
	if err := s.subscribe(req.GetTypeUrl(), req.GetNode(), req.GetErrorDetail(), sub); err != nil {
		return nil, err
	}
	return s.caches[req.GetTypeUrl()].CreateWatch(req, sub, to)
}

// CreateDeltaWatch implements cachev3.ConfigWatcher.
func (s *stream) CreateDeltaWatch(req *cachev3.DeltaRequest, sub cachev3.Subscription, to chan cachev3.DeltaResponse) (func(), error) {
	if err := s.subscribe(req.GetTypeUrl(), req.GetNode(), req.GetErrorDetail(), sub); err != nil {
		return nil, err
	}
	return s.caches[req.GetTypeUrl()].CreateDeltaWatch(req, sub, to)
}

// subscribe has the caches hold what a client names from now on. An error ends
// the stream.
func (s *stream) subscribe(url string, node *corev3.Node, nack *statuspb.Status, sub cachev3.Subscription) error {
	kind, known := kinds[url]
	if !known {
		return fault.New(fault.BadRequest, "there are listeners, routes, clusters and endpoints here, and nothing of the type %q", url)
	}
	if nack != nil {
		s.opt.Rejected(kind)
		s.opt.Logger.Warn("a client does not take its configuration", "kind", kind, "client", clip(node.GetId()), "error", clip(nack.GetMessage()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node == nil {
		s.node = node
	}
	before := s.names[url]
	now := map[string]bool{}
	for name := range sub.SubscribedResources() {
		if name != "*" {
			now[name] = true
		}
	}
	if len(now) > maxServices {
		return errTooMany
	}
	s.names[url] = now
	if url == resourcev3.ClusterType && sub.IsWildcard() != (s.all != nil) {
		if err := s.followAll(sub.IsWildcard()); err != nil {
			return err
		}
	}
	return s.turn(url, before, now)
}

// turn follows what the client names now and leaves what it did before. The
// caller holds mu.
func (s *stream) turn(url string, before, now map[string]bool) error {
	if maps.Equal(before, now) {
		return nil
	}
	more := map[registry.Key]bool{}
	for name := range now {
		key, versions, ok := parse(url, name)
		if !ok || before[name] {
			continue
		}
		f, err := s.follow(key)
		if err != nil {
			return err
		}
		f.named[target{url, versions}] = true
		f.made = made{} // who asks for more is decided about anew
		more[key] = true
	}
	for name := range before {
		key, versions, ok := parse(url, name)
		if f := s.followed[key]; ok && !now[name] && f != nil {
			delete(f.named, target{url, versions})
			s.leave(key, f)
		}
	}
	for key := range more {
		if err := s.sync(key, s.followed[key]); err != nil {
			return err
		}
	}
	return nil
}

// guarded has a panic end the stream and not the node.
func (s *stream) guarded(run func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.opt.Logger.Error("panic on an ADS stream", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "the node failed to make the configuration; its log says why")
		}
	}()
	return run()
}

func clip(s string) string { return s[:min(len(s), 256)] }

// parse reads the name of a resource, <service>.<namespace>, of clusters and
// endpoints also <service>.<namespace>/<version>,<version>: in order.
func parse(url, name string) (key registry.Key, versions string, ok bool) {
	name, versions, some := strings.Cut(name, "/")
	key.Service, key.Namespace, ok = strings.Cut(name, ".")
	if !ok || registry.ValidName(key.Service) != nil || registry.ValidName(key.Namespace) != nil {
		return registry.Key{}, "", false
	}
	if !some {
		return key, "", true
	}
	last := ""
	for v := range strings.SplitSeq(versions, ",") {
		if v <= last || registry.ValidVersion(v) != nil {
			return registry.Key{}, "", false
		}
		last = v
	}
	return key, versions, url == resourcev3.ClusterType || url == resourcev3.EndpointType
}

// wanted lists what the client wants of a service, in the order in which it is
// to learn of it: a route names a cluster, not the other way round. The caller
// holds mu.
func (s *stream) wanted(f *followed) (all []target) {
	set := maps.Clone(f.named)
	if s.all != nil {
		set[target{url: resourcev3.ClusterType}] = true
		if f.edition != nil {
			for _, versions := range f.edition.groups() {
				set[target{resourcev3.ClusterType, versions}] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(set), func(a, b target) int {
		return cmp.Or(slices.Index(order, a.url)-slices.Index(order, b.url), strings.Compare(a.versions, b.versions))
	})
}

var order = []string{resourcev3.ClusterType, resourcev3.EndpointType, resourcev3.ListenerType, resourcev3.RouteType}

// renew asks again who calls, and whether it may follow anything at all.
func (s *stream) renew() error {
	if err := s.call.Renew(); err != nil {
		return err
	}
	return s.call.Permit(policy.Watch, registry.KindService, "")
}

// sync brings the caches to the newest state of a service. The error ends the
// stream: the node cannot vouch for an answer. The caller holds mu.
func (s *stream) sync(key registry.Key, f *followed) error {
	if err := s.renew(); err != nil {
		return err
	}
	c := s.call
	now := made{policies: c.State.Policy, settings: c.State.Settings, who: c.Who}
	now.entry, _ = c.State.Registry.Discover(key.Namespace, key.Service)
	now.service, _ = c.State.Registry.Service(key.Namespace, key.Service)
	now.versions, _ = c.State.Registry.Versions(key.Namespace, key.Service, "", 0)
	if f.made.same(&now) && f.made.policies != nil {
		return nil
	}
	f.edition = nil
	replaced, err := s.visible(key)
	switch {
	case fault.Is(err, fault.PolicyDenied), fault.Is(err, fault.Forbidden), fault.Is(err, fault.ServiceNotFound):
	case err != nil: // nobody has said no: the node is too busy to decide, or cannot
		return err
	case replaced != nil:
		f.edition = newEdition(&now, *replaced)
	default:
		f.edition = s.shelf.edition(key, &now)
	}
	f.made = now
	return s.show(key, f)
}

// show has the caches hold what the client wants of a service, as it is now.
// The caller holds mu.
func (s *stream) show(key registry.Key, f *followed) error {
	if f.edition != nil {
		for _, t := range s.wanted(f) {
			res, err := f.edition.resource(t, s.node)
			if err != nil {
				return err
			}
			before := f.current[t]
			if before == res || before != nil && bytes.Equal(before.bytes, res.bytes) {
				continue
			}
			f.current[t] = res
			if err := s.caches[t.url].UpdateResource(t.name(key), res); err != nil {
				return err
			}
		}
	}
	return s.drop(key, f)
}

// drop takes out of the caches what the client wants no more of a service, and
// all of it where it is not shown. The caller holds mu.
func (s *stream) drop(key registry.Key, f *followed) error {
	wanted := s.wanted(f)
	for t := range maps.Clone(f.current) {
		if f.edition != nil && slices.Contains(wanted, t) {
			continue
		}
		delete(f.current, t)
		if err := s.caches[t.url].DeleteResource(t.name(key)); err != nil {
			return err
		}
	}
	return nil
}

// visible says whether the caller may see a service, and gives the instances
// that a policy put in the place of those it has; nil: none.
func (s *stream) visible(key registry.Key) (*[]instance, error) {
	if err := s.call.Permit(policy.Watch, registry.KindService, key.Namespace); err != nil {
		return nil, err
	}
	found, err := s.call.Discover(key.Namespace, key.Service, registry.Query{AnyStatus: true})
	if err != nil {
		if found.Decision.Missed && !fault.Is(err, fault.PolicyUnavailable) {
			// No answer is no refusal: nothing is taken away because of it.
			return nil, fault.New(fault.PolicyUnavailable, "the policy gave no answer in time about service %s in namespace %s: %s", key.Service, key.Namespace, strings.Join(found.Decision.Reasons, "; "))
		}
		return nil, err
	}
	if found.Decision.Filtered == nil {
		return nil, nil
	}
	all, err := door.Replaced[instance](found.Body)
	return &all, err
}

var _ cachev3.ConfigWatcher = (*stream)(nil)
