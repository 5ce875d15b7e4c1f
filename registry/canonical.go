package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry/definition"
)

// ignored are the members that only a stored record has. A body may carry
// them, so that what a GET returned can be put back; they have no effect.
type ignored struct {
	Revision  jsontext.Value `json:"revision"`
	CreatedAt jsontext.Value `json:"created_at"`
	UpdatedAt jsontext.Value `json:"updated_at"`
	CreatedBy jsontext.Value `json:"created_by"`
}

type serviceBody struct {
	ignored
	Namespace   *string        `json:"namespace"`
	Name        *string        `json:"name"`
	Protocol    string         `json:"protocol"`
	Owner       string         `json:"owner"`
	Description string         `json:"description"`
	Tags        []string       `json:"tags"`
	Metadata    jsontext.Value `json:"metadata"`
}

// CanonicalService reads the body of a put of a service and returns its spec:
// compact JSON with every field, in a fixed order, object keys sorted, numbers
// as they were written. Errors as those of DecodeStrict; invalid_field lists
// what breaks a rule. A name in the body must be that of the path.
func CanonicalService(ns, name string, body []byte) (spec []byte, err error) {
	var b serviceBody
	if err := DecodeStrict(body, &b); err != nil {
		return nil, err
	}
	if b.Protocol == "" {
		b.Protocol = "rest"
	}
	var f fields
	f.name("/namespace", ns, nameMistake(ns), b.Namespace)
	f.name("/name", name, nameMistake(name), b.Name)
	f.among("/protocol", b.Protocol, "rest", "grpc", "graphql", "soap", "websocket")
	f.text("/owner", b.Owner, maxText)
	f.description(b.Description)
	f.tags(b.Tags)
	metadata := f.object(b.Metadata)
	if err := f.err(); err != nil {
		return nil, err
	}
	if b.Tags == nil {
		b.Tags = []string{}
	}
	return json.Marshal(struct {
		Protocol    string         `json:"protocol"`
		Owner       string         `json:"owner"`
		Description string         `json:"description"`
		Tags        []string       `json:"tags"`
		Metadata    jsontext.Value `json:"metadata"`
	}{b.Protocol, b.Owner, b.Description, b.Tags, metadata})
}

// object checks a service's metadata and gives its canonical form.
func (f *fields) object(raw jsontext.Value) jsontext.Value {
	switch raw.Kind() {
	case 0, 'n':
		return jsontext.Value("{}")
	case '{':
	default:
		f.add("/metadata", "must be an object")
		return nil
	}
	out, err := jsontext.AppendFormat(nil, raw, jsontext.ReorderRawObjects(true))
	if err != nil {
		f.add("/metadata", "cannot be read")
		return nil
	}
	if len(out) > maxMetadata {
		f.add("/metadata", "must be at most 64 KiB")
	}
	if hasNUL(out) {
		f.add("/metadata", "must not contain NUL")
	}
	var members map[string]jsontext.Value
	if err := json.Unmarshal(out, &members); err != nil {
		f.add("/metadata", "cannot be read")
	}
	if len(members) > maxKeys {
		f.add("/metadata", "must have at most 64 keys")
	}
	for _, k := range sortedKeys(members) {
		if k == "" || len(k) > maxTag {
			f.add("/metadata", "must have keys of 1 to 128 bytes")
			break
		}
	}
	return out
}

// hasNUL finds an escaped NUL in compact JSON, where it has one form only.
func hasNUL(b []byte) bool {
	for {
		i := bytes.IndexByte(b, '\\')
		if i < 0 || i+1 >= len(b) {
			return false
		}
		if bytes.HasPrefix(b[i+1:], []byte("u0000")) {
			return true
		}
		b = b[i+2:]
	}
}

type instanceBody struct {
	ignored
	Status          jsontext.Value    `json:"status"`
	StatusBy        jsontext.Value    `json:"status_by"`
	OwnStatus       jsontext.Value    `json:"own_status"`
	States          jsontext.Value    `json:"check_states"`
	Namespace       *string           `json:"namespace"`
	Service         *string           `json:"service"`
	ID              *string           `json:"id"`
	Address         string            `json:"address"`
	Port            int               `json:"port"`
	Version         string            `json:"version"`
	Zone            string            `json:"zone"`
	Weight          *int              `json:"weight"`
	Tags            []string          `json:"tags"`
	Metadata        map[string]string `json:"metadata"`
	TTL             *Duration         `json:"ttl"`
	DeregisterAfter *Duration         `json:"deregister_after"`
	Checks          []checkBody       `json:"checks"`
}

// CanonicalInstance is CanonicalService for an instance. A status in the body
// has no effect, nor have the states of checks.
func CanonicalInstance(ns, service, id string, body []byte) (spec []byte, err error) {
	var b instanceBody
	if err := DecodeStrict(body, &b); err != nil {
		return nil, err
	}
	s := b.spec()
	var f fields
	f.name("/namespace", ns, nameMistake(ns), b.Namespace)
	f.name("/service", service, nameMistake(service), b.Service)
	f.name("/id", id, nameMistake(id), b.ID)
	f.address(s.Address)
	f.number("/port", s.Port, 1, 65535)
	if s.Version != "" {
		if m := versionMistake(s.Version); m != "" {
			f.add("/version", m)
		}
	}
	f.text("/zone", s.Zone, maxName)
	f.number("/weight", s.Weight, 0, 65535)
	f.tags(s.Tags)
	f.metadata(s.Metadata)
	if s.TTL != 0 {
		f.duration("/ttl", s.TTL, minTTL, maxTTL)
	}
	if s.DeregisterAfter != 0 {
		f.duration("/deregister_after", s.DeregisterAfter, max(s.TTL, minTTL), 0)
	}
	f.checks(s.Checks)
	if err := f.err(); err != nil {
		return nil, err
	}
	return s.appendSpec(nil), nil
}

// spec fills in the defaults.
func (b *instanceBody) spec() *InstanceSpec {
	s := &InstanceSpec{Address: b.Address, Port: b.Port, Version: b.Version, Zone: b.Zone, Tags: b.Tags, Metadata: b.Metadata}
	s.Weight = or(b.Weight, 1)
	s.TTL = or(b.TTL, defaultTTL)
	s.DeregisterAfter = or(b.DeregisterAfter, max(defaultDeregister, s.TTL))
	taken := map[string]bool{}
	for i := range b.Checks {
		taken[b.Checks[i].ID] = true
	}
	for i := range b.Checks {
		check := b.Checks[i].check(taken)
		taken[check.ID] = true
		s.Checks = append(s.Checks, check)
	}
	return s
}

func or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

type versionBody struct {
	ignored
	Digest      jsontext.Value `json:"digest"`
	Size        jsontext.Value `json:"size"`
	ContentType jsontext.Value `json:"content_type"`
	Routes      jsontext.Value `json:"routes"`
	Findings    jsontext.Value `json:"findings"`
	Namespace   *string        `json:"namespace"`
	Service     *string        `json:"service"`
	Version     *string        `json:"version"`
	Format      string         `json:"format"`
	Lifecycle   string         `json:"lifecycle"`
	Document    jsontext.Value `json:"document"`
	Content     *string        `json:"content"`
}

// CanonicalVersion is CanonicalService for a version: the definition comes as
// a JSON object in document or as text in content, and document is its exact
// bytes. Besides, it is invalid_definition when the definition is not one of
// its format, too_large when it is too large to be read.
func CanonicalVersion(ns, service, version string, body []byte) (spec, document []byte, err error) {
	var b versionBody
	if err := DecodeStrict(body, &b); err != nil {
		return nil, nil, err
	}
	if b.Lifecycle == "" {
		b.Lifecycle = "draft"
	}
	var f fields
	f.name("/namespace", ns, nameMistake(ns), b.Namespace)
	f.name("/service", service, nameMistake(service), b.Service)
	f.name("/version", version, versionMistake(version), b.Version)
	f.among("/format", b.Format, definition.Formats...)
	f.among("/lifecycle", b.Lifecycle, "draft", "published", "deprecated", "retired")
	document = f.document(&b)
	if err := f.err(); err != nil {
		return nil, nil, err
	}
	d, err := definition.Parse(b.Format, document)
	if err != nil {
		return nil, nil, err
	}
	digest := sha256.Sum256(document)
	spec, err = json.Marshal(VersionSpec{Format: b.Format, Lifecycle: b.Lifecycle, Digest: hex.EncodeToString(digest[:]),
		Size: len(document), ContentType: d.ContentType, Routes: d.Routes, Findings: d.Findings})
	if err != nil {
		return nil, nil, fault.Wrap(fault.InvalidDefinition, err, "what the definition offers cannot be written as JSON")
	}
	return spec, document, nil
}

func (f *fields) document(b *versionBody) []byte {
	given := b.Document.Kind() != 0 && b.Document.Kind() != 'n'
	switch {
	case given && b.Content != nil:
		f.add("/content", "must not stand beside document; send one of the two")
	case given && b.Document.Kind() != '{':
		f.add("/document", "must be an object; send text as content")
	case given:
		return b.Document
	case b.Content == nil || *b.Content == "":
		f.add("/document", "is required, or content")
	default:
		return []byte(*b.Content)
	}
	return nil
}
