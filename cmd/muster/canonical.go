package main

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/webhook"
	"github.com/muster-registry/muster/quota"
	"github.com/muster-registry/muster/registry"
)

// canonical gives a spec the form the cluster stores, with its defaults, so
// that the two can be compared. document is a version's definition.
func canonical(r client.Ref, spec jsontext.Value) (body, document []byte, err error) {
	switch r.Kind {
	case client.Service:
		body, err = registry.CanonicalService(r.Namespace, r.Name, spec)
	case client.Version:
		if body, document, err = registry.CanonicalVersion(r.Namespace, r.Service, r.Name, spec); err == nil {
			body, err = withoutFindings(body)
		}
	case client.Instance:
		body, err = registry.CanonicalInstance(r.Namespace, r.Service, r.Name, spec)
	case client.Schema:
		body, err = wholeSchema(spec)
	case client.Role:
		body, err = canonicalRule(spec)
	case client.Quota:
		body, err = quota.Canonical(spec)
	case client.Webhook:
		// Where it may lead is the cluster's to say.
		anywhere := &egress.Dialer{Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}
		if body, err = webhook.Canonical(r.Name, spec, anywhere); err == nil {
			body, err = webhook.Shown(body)
		}
	}
	return body, document, err
}

// canonicalRule brings a role rule into the form that the cluster stores.
func canonicalRule(spec jsontext.Value) (jsontext.Value, error) {
	rule := new(identity.Rule)
	if err := registry.DecodeStrict(spec, rule); err != nil {
		return nil, err
	}
	if err := rule.Check(policy.Roles(), registry.ValidName); err != nil {
		return nil, err
	}
	return json.Marshal(rule, json.Deterministic(true))
}

// wholeSchema names both halves of a schema: one that a manifest leaves out is
// one that the cluster is not to have.
func wholeSchema(spec jsontext.Value) (jsontext.Value, error) {
	var members map[string]jsontext.Value
	if err := json.Unmarshal(spec, &members); err != nil {
		return nil, err
	}
	for _, half := range []string{"metadata", "payload"} {
		if members[half].Kind() == 'n' || members[half] == nil {
			members[half] = nil
		}
	}
	return json.Marshal(members, json.Deterministic(true))
}

// withoutFindings leaves out what only the cluster can say about a version.
func withoutFindings(spec jsontext.Value) (jsontext.Value, error) {
	var members map[string]jsontext.Value
	if err := json.Unmarshal(spec, &members); err != nil {
		return nil, err
	}
	delete(members, "findings")
	return json.Marshal(members, json.Deterministic(true))
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
