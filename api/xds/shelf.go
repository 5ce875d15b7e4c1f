package xds

import (
	"runtime"
	"slices"
	"strings"
	"sync"
	"weak"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/runtime/protoiface"

	"github.com/muster-registry/muster/registry"
)

// serialised is a resource as it is sent. Streams share it, and so it is the
// bytes alone that the protocol's caches get to hold: marshalling it gives them
// as they are.
type serialised struct {
	proto.Message // of the type, and empty
	bytes         []byte
}

// ProtoReflect implements proto.Message.
func (s *serialised) ProtoReflect() protoreflect.Message {
	return reflected{s.Message.ProtoReflect(), s.bytes}
}

type reflected struct {
	protoreflect.Message
	bytes []byte
}

// ProtoMethods implements protoreflect.Message. What is marshalled must not be
// modified, and is not: it becomes part of answers.
func (r reflected) ProtoMethods() *protoiface.Methods {
	return &protoiface.Methods{
		Flags: protoiface.SupportMarshalDeterministic,
		Marshal: func(in protoiface.MarshalInput) (protoiface.MarshalOutput, error) {
			if in.Buf == nil {
				return protoiface.MarshalOutput{Buf: r.bytes}, nil
			}
			return protoiface.MarshalOutput{Buf: append(in.Buf, r.bytes...)}, nil
		},
		CheckInitialized: func(protoiface.CheckInitializedInput) (protoiface.CheckInitializedOutput, error) {
			return protoiface.CheckInitializedOutput{}, nil
		},
	}
}

// edition is a service as it was at one time, and the resources that were made
// of it so far.
type edition struct {
	of        made // what nobody changes: entry, service and versions
	instances []instance

	// groups are the sets of versions that some route leads to and others do
	// not, each as the names of resources have it.
	groups func() []string

	mu  sync.Mutex // guards cut
	cut map[variant]*serialised
}

// variant is what resources of one service differ in.
type variant struct {
	target
	zone, region string
	grpc         bool
}

// resource gives one resource for a client.
func (e *edition) resource(t target, node *corev3.Node) (*serialised, error) {
	v := variant{target: t, grpc: strings.HasPrefix(node.GetUserAgentName(), "gRPC")}
	if t.url == resourcev3.EndpointType {
		v.zone, v.region = e.near(node.GetLocality())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.cut[v]; s != nil {
		return s, nil
	}
	full := build(t, &e.of, e.instances, v)
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(full)
	if err != nil {
		return nil, err
	}
	s := &serialised{full.ProtoReflect().Type().New().Interface(), b}
	if len(e.cut) < maxVariants { // clients that name more sets of versions than anybody has get their own
		e.cut[v] = s
	}
	return s, nil
}

// near gives the zone and the region of a client as far as the instances' zones
// have to do with them: with others nothing comes first. So a client that makes
// zones up shares the resource of those that have none.
func (e *edition) near(l *corev3.Locality) (zone, region string) {
	for _, i := range e.instances {
		if i.Zone != "" && i.Zone == l.GetZone() {
			zone = i.Zone
		}
		if l.GetRegion() != "" && strings.HasPrefix(i.Zone, l.GetRegion()) {
			region = l.GetRegion()
		}
	}
	return zone, region
}

// maxVariants bounds the resources of one edition that are kept.
const maxVariants = 4096

// shelf holds the newest edition of each service for as long as a stream uses it.
type shelf struct {
	mu sync.Mutex // guards of
	of map[registry.Key]weak.Pointer[edition]
}

// edition gives the resources of a service that streams share.
func (s *shelf) edition(key registry.Key, m *made) *edition {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.of[key].Value(); e != nil && e.of.entry == m.entry && e.of.service == m.service && slices.Equal(e.of.versions, m.versions) {
		return e
	}
	e := newEdition(m, known(m.entry))
	p := weak.Make(e)
	s.of[key] = p
	runtime.AddCleanup(e, func(key registry.Key) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.of[key] == p {
			delete(s.of, key)
		}
	}, key)
	return e
}

func newEdition(m *made, instances []instance) *edition {
	e := &edition{of: made{entry: m.entry, service: m.service, versions: m.versions}, instances: instances, cut: map[variant]*serialised{}}
	e.groups = sync.OnceValue(func() []string { return groups(registered(e.of.versions)) })
	return e
}
