package registry

import (
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/registry/definition"
)

// SpecFormat gives the format in a version's spec.
func SpecFormat(spec []byte) string {
	var part struct {
		Format string `json:"format"`
	}
	if err := json.Unmarshal(spec, &part); err != nil {
		return ""
	}
	return part.Format
}

// FilteredVersion gives the spec and the document of a version whose
// definition a policy has replaced by filtered: a JSON document, or a JSON
// string that holds a definition's text. Format and lifecycle are kept. The
// errors are those of [CanonicalVersion].
func FilteredVersion(ns, service, version string, spec, filtered []byte) (newSpec, document []byte, err error) {
	var kept struct {
		Format    string         `json:"format"`
		Lifecycle string         `json:"lifecycle"`
		Document  jsontext.Value `json:"document,omitzero"`
		Content   jsontext.Value `json:"content,omitzero"`
	}
	if err := json.Unmarshal(spec, &kept); err != nil {
		return nil, nil, err
	}
	kept.Document, kept.Content = nil, nil
	if value := jsontext.Value(filtered); value.Kind() == '"' {
		kept.Content = value
	} else {
		kept.Document = value
	}
	body, err := json.Marshal(kept)
	if err != nil {
		return nil, nil, err
	}
	return CanonicalVersion(ns, service, version, body)
}

// Reviewed gives the spec of a version with what a review of its definition
// found.
func Reviewed(spec []byte, findings []Finding) ([]byte, error) {
	var s VersionSpec
	if err := readSpec(spec, &s); err != nil {
		return nil, err
	}
	s.Findings = findings
	return json.Marshal(s)
}

// VersionContext gives what the registry knows about a version that is about
// to be stored with the spec.
func (s *Snapshot) VersionContext(ns, service, version string, spec []byte) (format string, c *definition.Context, err error) {
	var v VersionSpec
	if err := readSpec(spec, &v); err != nil {
		return "", nil, err
	}
	c = &definition.Context{Lifecycle: v.Lifecycle}
	if svc, ok := s.Service(ns, service); ok {
		c.Owner = svc.Owner
	}
	if v.Lifecycle != "published" {
		return v.Format, c, nil
	}
	others, _ := s.Versions(ns, service, "", 0)
	for _, other := range others {
		if other.Version != version && other.Lifecycle == "published" && len(c.Published) < maxCompared {
			c.Published = append(c.Published, definition.Published{Version: other.Version, Routes: other.Routes})
		}
	}
	return v.Format, c, nil
}

// maxCompared is how many other versions the routes of one are compared with.
const maxCompared = 20
