package registry

import (
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
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
