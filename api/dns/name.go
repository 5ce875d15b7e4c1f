package dns

import (
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/muster-registry/muster/registry"
)

// zone is a domain that this edge answers for.
type zone struct {
	origin     string // fully qualified, lower case
	consul     bool   // names below it are Consul's
	datacenter string // that they may give
}

// kind is what a name stands for.
type kind uint8

const (
	nothing  kind = iota // there can be nothing of that name
	inner                // nothing by itself, but names may lie below it
	apex                 // the zone
	service              // the instances of a service
	instance             // one instance
	node                 // one member of the cluster
	nodes                // all of them
)

// subject is what a question is about.
type subject struct {
	kind               kind
	zone               *zone
	namespace, service string
	tag                string // "": whatever they carry
	id                 string // of an instance or a node
	located            bool   // the name is one of RFC 2782, made for SRV
}

// find gives the zone of a fully qualified name; nil: it is not ours.
func (s *Server) find(name string) *zone {
	name = strings.ToLower(name)
	for i := range s.zones {
		if dns.IsSubDomain(s.zones[i].origin, name) {
			return &s.zones[i]
		}
	}
	return nil
}

// subject reads a name in the zone.
func (z *zone) subject(name string) subject {
	labels := dns.SplitDomainName(strings.ToLower(name))
	labels = labels[:len(labels)-dns.CountLabel(z.origin)]
	s := subject{zone: z}
	if len(labels) == 0 {
		s.kind = apex
		return s
	}
	if z.consul {
		s.likeConsul(labels)
	} else {
		s.own(labels)
	}
	return s
}

// own reads <service>.<namespace>.svc and what belongs to it. Whether there is
// such a namespace is not said: names in between are there, and empty.
func (s *subject) own(labels []string) {
	last := len(labels) - 1
	sort, labels := labels[last], labels[:last]
	switch {
	case sort == "node":
		s.member(labels)
	case sort == "ns" && len(labels) == 0:
		s.kind = nodes
	case sort != "svc" && sort != "inst":
	case len(labels) == 0:
		s.kind = inner
	default:
		s.namespace = labels[len(labels)-1]
		s.below(sort, labels[:len(labels)-1])
	}
}

// likeConsul reads <service>.service, with the endings .<datacenter>, or
// .<namespace>.ns and .<datacenter>.dc.
func (s *subject) likeConsul(labels []string) {
	s.namespace = "default"
	if n := len(labels); n > 2 && labels[n-1] == "dc" && labels[n-2] == s.zone.datacenter {
		labels = labels[:n-2]
	}
	if n := len(labels); n > 2 && labels[n-1] == "ns" {
		s.namespace, labels = labels[n-2], labels[:n-2]
	}
	if n := len(labels); n > 1 && labels[n-1] == s.zone.datacenter {
		labels = labels[:n-1]
	}
	sort, labels := labels[len(labels)-1], labels[:len(labels)-1]
	switch sort {
	case "service":
		s.below("svc", labels)
	case "inst":
		s.below(sort, labels)
	case "node":
		s.member(labels)
	case "ns":
		if len(labels) == 0 {
			s.kind = nodes
		}
	}
}

// below reads what stands before the namespace.
func (s *subject) below(sort string, labels []string) {
	s.kind = nothing
	if !named(s.namespace) {
		return
	}
	if len(labels) == 0 {
		s.kind = inner
		return
	}
	s.service = labels[len(labels)-1]
	switch before := labels[:len(labels)-1]; {
	case sort == "inst" && named(s.service):
		s.kind = inner
		if len(before) > 0 {
			s.kind, s.id = instance, before[0]
		}
		if len(before) > 1 || s.id != "" && !named(s.id) {
			s.kind = nothing
		}
	case sort == "inst":
	case strings.HasPrefix(s.service, "_"):
		s.locate(before, s.service[1:])
	case named(s.service) && len(before) < 2:
		s.kind = service
		if len(before) > 0 {
			s.tag = unescaped(before[0])
		}
	}
}

// locate reads the names of RFC 2782, _service._proto, as Consul does: what is
// not tcp is a tag.
func (s *subject) locate(before []string, proto string) {
	switch {
	case proto == "" || len(before) > 1:
	case len(before) == 0:
		s.kind = inner
	default:
		name, ok := strings.CutPrefix(before[0], "_")
		if !ok || !named(name) {
			return
		}
		s.kind, s.service, s.located = service, name, true
		if proto != "tcp" {
			s.tag = unescaped(proto)
		}
	}
}

// member reads what stands before node.
func (s *subject) member(labels []string) {
	switch {
	case len(labels) == 0:
		s.kind = inner
	case len(labels) == 1 && named(labels[0]):
		s.kind, s.id = node, labels[0]
	}
}

// instanceName is a name of an instance in the zone.
func (z *zone) instanceName(namespace, service, id string) string {
	labels := []string{id, service}
	switch {
	case !z.consul:
		labels = append(labels, namespace, "inst")
	case namespace == "default":
		labels = append(labels, "inst")
	default:
		labels = append(labels, "inst", namespace, "ns")
	}
	return strings.Join(append(labels, z.origin), ".")
}

// nodeName is the name of a member in the zone.
func (z *zone) nodeName(id string) string { return id + ".node." + z.origin }

func named(label string) bool { return registry.ValidName(label) == nil }

// unescaped gives the bytes of a label that is written as in a zone file.
func unescaped(label string) string {
	if !strings.Contains(label, `\`) {
		return label
	}
	b := make([]byte, 0, len(label))
	for i := 0; i < len(label); i++ {
		switch {
		case label[i] != '\\':
			b = append(b, label[i])
		case i+3 < len(label) && !slices.ContainsFunc([]byte(label[i+1:i+4]), func(c byte) bool { return c < '0' || c > '9' }):
			n := int(label[i+1]-'0')*100 + int(label[i+2]-'0')*10 + int(label[i+3]-'0')
			b = append(b, byte(n))
			i += 3
		case i+1 < len(label):
			i++
			b = append(b, label[i])
		}
	}
	return string(b)
}
