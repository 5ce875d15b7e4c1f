package main

import (
	"maps"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/registry"
)

// canonical gives a spec the form the cluster stores, with its defaults, so
// that the two can be compared. document is a version's definition.
func canonical(r client.Ref, spec jsontext.Value) (body, document []byte, err error) {
	switch r.Kind {
	case client.Service:
		body, err = registry.CanonicalService(r.Namespace, r.Name, spec)
	case client.Version:
		body, document, err = registry.CanonicalVersion(r.Namespace, r.Service, r.Name, spec)
	case client.Instance:
		body, err = registry.CanonicalInstance(r.Namespace, r.Service, r.Name, spec)
	}
	return body, document, err
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
