package admit

import (
	"net/url"
	"strings"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// target is the record an intent is about.
type target struct {
	kind                     command.Kind
	namespace, service, name string
}

// found is the target as the state has it.
type found struct {
	exists         bool
	revision       uint64
	json           []byte
	serviceMissing bool
}

func (t target) kindName() string {
	switch t.kind {
	case command.Kind_SERVICE:
		return "service"
	case command.Kind_VERSION:
		return "version"
	case command.Kind_INSTANCE:
		return "instance"
	}
	return "record"
}

// serviceName is the service the target is or belongs to.
func (t target) serviceName() string {
	if t.kind == command.Kind_SERVICE {
		return t.name
	}
	return t.service
}

func (t target) look(r *registry.Snapshot) found {
	var f found
	switch t.kind {
	case command.Kind_SERVICE:
		if rec, ok := r.Service(t.namespace, t.name); ok {
			f = found{exists: true, revision: rec.Revision, json: rec.JSON}
		}
		return f
	case command.Kind_VERSION:
		if rec, ok := r.Version(t.namespace, t.service, t.name); ok {
			f = found{exists: true, revision: rec.Revision, json: rec.JSON}
		}
	case command.Kind_INSTANCE:
		if rec, ok := r.Instance(t.namespace, t.service, t.name); ok {
			f = found{exists: true, revision: rec.Revision, json: rec.JSON}
		}
	}
	if !f.exists {
		_, ok := r.Service(t.namespace, t.service)
		f.serviceMissing = !ok
	}
	return f
}

// resource is input.resource for the target as it stands; the caller adds the
// payload. Metadata are the record's own, or the service's for a version.
func (t target) resource(r *registry.Snapshot, now found) policy.Resource {
	res := policy.Resource{Kind: t.kindName(), Namespace: t.namespace, Name: t.name, Previous: now.json}
	switch {
	case t.kind == command.Kind_VERSION:
		if s, ok := r.Service(t.namespace, t.service); ok {
			res.Holder = s.JSON
		}
	case now.exists:
		res.Holder = now.json
	}
	return res
}

func (t target) mustExist(now found) error {
	switch {
	case now.exists:
		return nil
	case now.serviceMissing || t.kind == command.Kind_SERVICE:
		return noService(t)
	case t.kind == command.Kind_VERSION:
		return fault.New(fault.VersionNotFound, "service %s/%s has no version %s", t.namespace, t.service, t.name)
	default:
		return fault.New(fault.InstanceNotFound, "service %s/%s has no instance %s; register it", t.namespace, t.service, t.name)
	}
}

func noService(t target) error {
	advice := ""
	switch t.kind {
	case command.Kind_VERSION:
		advice = "; register it first"
	case command.Kind_INSTANCE:
		advice = "; register it first, or register the instance with create_service=true"
	}
	return fault.New(fault.ServiceNotFound, "there is no service %s in namespace %s%s", t.serviceName(), t.namespace, advice)
}

// refilter makes what a policy's `filtered` gave into the spec and the document
// to store, by the same rules as if a caller had sent it.
func (t target) refilter(p *command.Put, filtered []byte) (spec, document []byte, err error) {
	switch t.kind {
	case command.Kind_SERVICE:
		spec, err = registry.CanonicalService(t.namespace, t.name, filtered)
	case command.Kind_INSTANCE:
		spec, err = registry.CanonicalInstance(t.namespace, t.service, t.name, filtered)
	case command.Kind_VERSION:
		spec, document, err = registry.FilteredVersion(t.namespace, t.service, t.name, p.Spec, filtered)
	}
	if err != nil {
		return nil, nil, fault.Wrap(fault.PolicyUnavailable, err, "the policy's filtered payload cannot be stored: %v", err)
	}
	return spec, document, nil
}

// Permit says whether the built-in roles of who asks allow the action, as
// [policy.Permit] does.
func Permit(in *command.Intent, action policy.Action, kind, namespace string) error {
	return policy.Permit(principal(in), action, kind, namespace)
}

func principal(in *command.Intent) policy.Principal {
	p := in.GetPrincipal()
	return policy.Principal{ID: p.GetId(), Kind: p.GetKind(), Roles: p.GetRoles(), Namespaces: p.GetNamespaces(), Claims: p.GetClaims(), Grants: grants(p)}
}

func grants(p *command.Principal) []policy.Grant {
	if len(p.GetGrants()) == 0 {
		return nil
	}
	all := make([]policy.Grant, len(p.GetGrants()))
	for i, g := range p.GetGrants() {
		all[i] = policy.Grant{Roles: g.GetRoles(), Namespaces: g.GetNamespaces()}
	}
	return all
}

// lockKey names what two intents must not change at the same time. Versions
// share their service's key: they are decided on its metadata.
func lockKey(c *command.Command) string {
	switch op := c.Op.(type) {
	case *command.Command_Put:
		if op.Put.Kind == command.Kind_VERSION {
			return command.Kind_SERVICE.String() + "/" + op.Put.Namespace + "//" + op.Put.Service
		}
		return op.Put.Kind.String() + "/" + op.Put.Namespace + "/" + op.Put.Service + "/" + op.Put.Name
	case *command.Command_Delete:
		return op.Delete.Kind.String() + "/" + op.Delete.Namespace + "/" + op.Delete.Service + "/" + op.Delete.Name
	case *command.Command_Status:
		return command.Kind_INSTANCE.String() + "/" + op.Status.Namespace + "/" + op.Status.Service + "/" + op.Status.Name
	case *command.Command_PolicyActivate, *command.Command_PolicyShadow:
		return "policy"
	}
	return ""
}

// headers makes a map of names and values that follow upon each other.
func headers(pairs []string) map[string]string {
	out := make(map[string]string, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		out[pairs[i]] = pairs[i+1]
	}
	return out
}

// input is the document the policy decides on.
func input(in *command.Intent, action policy.Action, res policy.Resource, revision uint64) *policy.Input {
	out := &policy.Input{Action: action, Principal: principal(in), Resource: res, Protocol: "https", Time: time.Now().UTC()}
	if r := in.Request; r != nil {
		out.Method, out.RawPath, out.Path = r.Method, r.Path, segments(r.Path)
		out.Host, out.Scheme, out.Headers = r.Host, r.Scheme, headers(r.Headers)
		out.Source, out.Token = r.SourceAddress, r.Token
		if r.Scheme != "" {
			out.Protocol = r.Scheme
		}
	}
	out.Call = policy.Call{RequestID: in.RequestId, Source: out.Source, Principal: out.Principal.ID, Trace: out.Headers["Traceparent"], Revision: revision}
	return out
}

// segments splits a path and unescapes its parts; the query is not part of it.
func segments(path string) []string {
	path, _, _ = strings.Cut(path, "?")
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	for i, p := range parts {
		if plain, err := url.PathUnescape(p); err == nil {
			parts[i] = plain
		}
	}
	return parts
}
