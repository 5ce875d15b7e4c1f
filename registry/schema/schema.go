// Package schema owns the JSON Schemas (draft 2020-12) that records must meet:
// what may be registered as one, and whether a record's metadata and payload
// are valid by it. It is deterministic: the same schema and record give the
// same answer everywhere, however slow the machine.
//
// A schema is somebody's program. The room refuses what reaches outside of
// itself, since nothing is ever fetched; regular expressions are RE2; and a
// check ends after a fixed number of steps, as a refusal.
package schema

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
)

// Limits on one registered schema, and on a check by it.
const (
	MaxSize       = 256 << 10 // bytes of a body
	MaxDepth      = 64        // of nested JSON
	MaxSubschemas = 2_000     // schemas within a schema, references followed
	MaxSteps      = 500_000   // of one check; one takes about a microsecond
	maxErrors     = 20        // mistakes that a refusal lists
)

// Kinds are the kinds of record that can have schemas.
var Kinds = []string{"service", "version", "instance"}

// Spec is what is registered for a kind of record in a namespace, or in all of
// them: at least one of the two schemas. Metadata is that of the record.
// Payload is what a policy sees as input.resource.payload: the definition of a
// version, and all that a caller sends of a service or an instance.
type Spec struct {
	Metadata jsontext.Value `json:"metadata,omitzero"`
	Payload  jsontext.Value `json:"payload,omitzero"`
}

// Parse reads the body of a call that registers a schema, compiles it, and
// gives its canonical form. Errors are bad_request, too_large and
// invalid_field.
func Parse(kind string, body []byte) (spec []byte, err error) {
	if !slices.Contains(Kinds, kind) {
		return nil, fault.Invalid("/name", "a schema is for service, version or instance, not for %q", kind)
	}
	if len(body) > MaxSize {
		return nil, fault.New(fault.TooLarge, "the schema has %d bytes, and %d is the most", len(body), MaxSize)
	}
	s, err := read(body)
	if err != nil {
		return nil, err
	}
	if s.Metadata == nil && s.Payload == nil {
		return nil, fault.Invalid("", `give a schema for metadata or for payload: {"metadata":{…},"payload":{…}}`)
	}
	if kind == "version" && s.Metadata != nil {
		return nil, fault.Invalid("/metadata", "a version has no metadata of its own; give a schema for service")
	}
	if _, err := compile(s); err != nil {
		return nil, err
	}
	return json.Marshal(s, json.Deterministic(true))
}

// read decodes a spec. What is stored beside it in a record that a GET gave may
// be put back; it has no effect.
func read(body []byte) (*Spec, error) {
	if err := shallow(body); err != nil {
		return nil, err
	}
	var b struct {
		Spec
		Namespace jsontext.Value `json:"namespace"`
		Name      jsontext.Value `json:"name"`
		Revision  jsontext.Value `json:"revision"`
		CreatedAt jsontext.Value `json:"created_at"`
		CreatedBy jsontext.Value `json:"created_by"`
		UpdatedAt jsontext.Value `json:"updated_at"`
		UpdatedBy jsontext.Value `json:"updated_by"`
	}
	if err := json.Unmarshal(body, &b, json.RejectUnknownMembers(true)); err != nil {
		if e, ok := errors.AsType[*json.SemanticError](err); ok {
			if errors.Is(e.Err, json.ErrUnknownName) {
				return nil, fault.Invalid(string(e.JSONPointer), "is not a known field; a schema has metadata and payload")
			}
			return nil, fault.Invalid(string(e.JSONPointer), "has the wrong type")
		}
		return nil, fault.Wrap(fault.BadRequest, err, "the body is not valid JSON")
	}
	for _, v := range []*jsontext.Value{&b.Metadata, &b.Payload} {
		if v.Kind() == 'n' {
			*v = nil
		}
		if err := v.Compact(); *v != nil && err != nil {
			return nil, fault.Wrap(fault.BadRequest, err, "the body is not valid JSON")
		}
	}
	return &b.Spec, nil
}

// shallow refuses what is nested too deep before anything is made of it.
func shallow(body []byte) error {
	d := jsontext.NewDecoder(strings.NewReader(string(body)))
	for {
		if _, err := d.ReadToken(); err != nil {
			return nil //nolint:nilerr // whoever decodes it says what is wrong
		}
		if d.StackDepth() > MaxDepth {
			return fault.New(fault.BadRequest, "the JSON is nested deeper than %d levels", MaxDepth)
		}
	}
}

// Registered is a schema as it is stored.
type Registered struct {
	Namespace string // or "*"
	Kind      string
	Spec      []byte // not to be modified
}

// Record is what is checked: JSON, nil for none.
type Record struct {
	Metadata []byte // an object; nil is {}
	Payload  []byte
	At       string // where the payload stands in what the caller sent: "" or "/document"
}

// Cache keeps compiled schemas. The zero value is ready for use; it is safe
// for concurrent use.
type Cache struct {
	limit int // of the steps of a check; 0: MaxSteps

	mu   sync.Mutex // guards kept
	kept map[string]*shelf
}

// Kept compiled schemas, and idle copies of each: a copy checks one record at a time.
const (
	maxKept = 256
	copies  = 4
)

// shelf holds the idle copies of one schema.
type shelf struct {
	spec []byte
	idle chan *compiled
}

// Check says whether the record is valid by the schema. The error is
// invalid_field, and names the schema and each mistake; or internal, when what
// is stored is no schema.
func (c *Cache) Check(r Registered, rec Record) error {
	h := c.shelf(r)
	var s *compiled
	select {
	case s = <-h.idle:
	default:
		spec, err := read(r.Spec)
		if err == nil {
			s, err = compile(spec)
		}
		if err != nil {
			return fault.Wrap(fault.Internal, err, "the stored schema for %s in %s cannot be used; register it again", r.Kind, r.Namespace)
		}
	}
	fields, err := s.check(rec, cmp.Or(c.limit, MaxSteps))
	select {
	case h.idle <- s:
	default:
	}
	if err == nil && len(fields) == 0 {
		return nil
	}
	name := fmt.Sprintf("the JSON Schema for %s in %s", r.Kind, scope(r.Namespace))
	if err != nil {
		return fault.Invalid("", "%s: %v", name, err)
	}
	f := fault.New(fault.InvalidField, "the record does not meet %s: %s: %s", name, fields[0].Pointer, fields[0].Message)
	f.Fields = fields
	return f
}

func scope(namespace string) string {
	if namespace == "*" {
		return "all namespaces"
	}
	return "namespace " + namespace
}

func (c *Cache) shelf(r Registered) *shelf {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := r.Namespace + "/" + r.Kind
	h, ok := c.kept[key]
	if ok && bytes.Equal(h.spec, r.Spec) {
		return h
	}
	if c.kept == nil || len(c.kept) >= maxKept && !ok {
		c.kept = map[string]*shelf{} // whatever is in use compiles once more
	}
	h = &shelf{spec: r.Spec, idle: make(chan *compiled, copies)}
	c.kept[key] = h
	return h
}
