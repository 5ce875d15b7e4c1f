package schema

import (
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/muster-registry/muster/fault"
)

const (
	draft   = "https://json-schema.org/draft/2020-12/schema"
	drafts  = "https://json-schema.org/"
	base    = "muster:///"
	maxInst = 2_000 // instructions of one regular expression
)

// compiled is a spec that is ready to check, one record at a time.
type compiled struct {
	metadata, payload *jsonschema.Schema
	steps             int // that are left to the check under way
}

// errSteps ends a check from within.
var errSteps = errors.New("a check of this record takes too many steps; make the schema simpler or the record smaller")

func (c *compiled) spend(n int) {
	if c.steps -= n; c.steps < 0 {
		panic(errSteps)
	}
}

// compile errors are invalid_field.
func compile(s *Spec) (*compiled, error) {
	c := &compiled{steps: MaxSteps}
	var err error
	if c.metadata, err = c.one("/metadata", s.Metadata); err != nil {
		return nil, err
	}
	c.payload, err = c.one("/payload", s.Payload)
	return c, err
}

// nowhere is the loader of what lies outside of a schema.
type nowhere struct{}

func (nowhere) Load(url string) (any, error) {
	return nil, fmt.Errorf("%s lies outside of this schema, and nothing is fetched; put it under $defs", url)
}

func (c *compiled) one(at string, text []byte) (sch *jsonschema.Schema, err error) {
	if text == nil {
		return nil, nil
	}
	defer func() { // whatever a schema may do to its compiler
		if v := recover(); v != nil {
			sch, err = nil, fault.Invalid(at, "cannot be compiled: %v", v)
		}
	}()
	doc, err := decode(text)
	if err != nil {
		return nil, fault.Invalid(at, "%v", err)
	}
	if where, found := foreign(doc, ""); found {
		return nil, fault.Invalid(at+where, "must be %s", draft)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.UseLoader(nowhere{})
	compiler.UseRegexpEngine(c.regexp)
	compiler.AssertFormat()
	if err := compiler.AddResource(base, doc); err != nil {
		return nil, fault.Invalid(at, "%s", clip(err.Error()))
	}
	if sch, err = compiler.Compile(base); err != nil {
		return nil, invalid(at, err)
	}
	seen := map[*jsonschema.Schema]bool{}
	if err := c.meter(sch, seen); err != nil {
		return nil, fault.Invalid(at, "%v", err)
	}
	return sch, nil
}

// invalid says what is wrong with a schema.
func invalid(at string, err error) error {
	if outer, ok := errors.AsType[*jsonschema.SchemaValidationError](err); ok {
		err = outer.Err
	}
	if e, ok := errors.AsType[*jsonschema.ValidationError](err); ok {
		var fields []fault.Field
		mistakes(e, at, &fields)
		if len(fields) > 0 {
			f := fault.Invalid(fields[0].Pointer, "is not a JSON Schema: %s", fields[0].Message)
			f.Fields = fields
			return f
		}
	}
	return fault.Invalid(at, "%s", clip(strings.ReplaceAll(err.Error(), base+"#", "")))
}

// foreign finds a schema that says it is of another draft.
func foreign(v any, at string) (where string, found bool) {
	switch v := v.(type) {
	case map[string]any:
		if s, ok := v["$schema"].(string); ok && strings.TrimSuffix(s, "#") != draft {
			return at + "/$schema", true
		}
		for key, value := range v {
			switch key {
			case "const", "enum", "default", "examples": // values, not schemas
				continue
			}
			if where, found := foreign(value, at+"/"+pointer.Replace(key)); found {
				return where, true
			}
		}
	case []any:
		for i, value := range v {
			if where, found := foreign(value, at+"/"+strconv.Itoa(i)); found {
				return where, true
			}
		}
	}
	return "", false
}

var pointer = strings.NewReplacer("~", "~0", "/", "~1")

// expression is a regular expression whose use is counted.
type expression struct {
	*regexp.Regexp
	of    *compiled
	steps int // for 64 bytes
}

// MatchString counts, since a long text by a long expression takes long.
func (e *expression) MatchString(s string) bool {
	e.of.spend(1 + len(s)/64*e.steps)
	return e.Regexp.MatchString(s)
}

func (c *compiled) regexp(text string) (jsonschema.Regexp, error) {
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, err
	}
	if len(program.Inst) > maxInst {
		return nil, fmt.Errorf("the regular expression is too large")
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, err
	}
	return &expression{Regexp: re, of: c, steps: 1 + len(program.Inst)}, nil
}

// meter has every schema count its use before anything else is done by it: the
// library asks for the format first, whatever the rest may say.
func (c *compiled) meter(s *jsonschema.Schema, seen map[*jsonschema.Schema]bool) error {
	if s == nil || seen[s] {
		return nil
	}
	seen[s] = true
	switch {
	case len(seen) > MaxSubschemas:
		return fmt.Errorf("holds more than %d schemas", MaxSubschemas)
	case strings.HasPrefix(s.Location, drafts):
		return fmt.Errorf("refers to %s, which is outside of this schema", clip(s.Location))
	case s.Bool != nil:
		return nil
	}
	here, parts, named := below(s)
	once := 1 + len(s.Required)
	for _, b := range here {
		once += weight(b)
	}
	each, most := 0, 0
	for _, b := range parts {
		each += weight(b)
	}
	for _, b := range named {
		most = max(most, weight(b))
	}
	inner := s.Format
	s.Format = &jsonschema.Format{Validate: func(v any) error {
		c.spend(once + size(v)*(1+each+most))
		if inner == nil {
			return nil
		}
		return inner.Validate(v)
	}}
	if inner != nil {
		s.Format.Name = inner.Name
	}
	for _, b := range slices.Concat(here, parts, named) {
		if err := c.meter(b, seen); err != nil {
			return err
		}
	}
	return nil
}

// size is how many parts of a value a schema may go through.
func size(v any) int {
	switch v := v.(type) {
	case map[string]any:
		return len(v)
	case []any:
		return len(v)
	case string:
		return len(v) / 64
	}
	return 0
}

// weight is what it costs to begin with a schema: the library compares with
// const and enum before it asks for the format.
func weight(s *jsonschema.Schema) int {
	if s == nil {
		return 0
	}
	n := 1
	if s.Const != nil {
		n += whole(*s.Const)
	}
	if s.Enum != nil {
		for _, v := range s.Enum.Values {
			n += whole(v)
		}
	}
	return n
}

// whole is how many parts a value has in all.
func whole(v any) int {
	n := 1 + size(v)
	switch v := v.(type) {
	case map[string]any:
		for _, part := range v {
			n += whole(part)
		}
	case []any:
		for _, part := range v {
			n += whole(part)
		}
	}
	return n
}

// below lists the schemas that are used on the same value, on each of its
// parts, and on the one part of a name or place.
func below(s *jsonschema.Schema) (here, parts, named []*jsonschema.Schema) {
	here = append(here, s.Ref, s.RecursiveRef, s.Not, s.If, s.Then, s.Else, s.ContentSchema)
	if s.DynamicRef != nil {
		here = append(here, s.DynamicRef.Ref)
	}
	here = slices.Concat(here, s.AllOf, s.AnyOf, s.OneOf, slices.Collect(maps.Values(s.DependentSchemas)))
	parts = append(parts, s.PropertyNames, s.UnevaluatedProperties, s.Contains, s.Items2020, s.UnevaluatedItems)
	for _, some := range []any{s.AdditionalProperties, s.Items, s.AdditionalItems} {
		if one, ok := some.(*jsonschema.Schema); ok {
			parts = append(parts, one)
		}
	}
	parts = slices.AppendSeq(parts, maps.Values(s.PatternProperties))
	named = slices.AppendSeq(named, maps.Values(s.Properties))
	return here, parts, append(named, s.PrefixItems...)
}

// check gives the mistakes of a record, or why they cannot be told.
func (c *compiled) check(r Record, steps int) (fields []fault.Field, err error) {
	defer func() {
		if v := recover(); v != nil {
			if v != any(errSteps) {
				v = "it cannot be checked"
			}
			fields, err = nil, fmt.Errorf("%v", v)
		}
	}()
	c.steps = steps
	metadata := r.Metadata
	if metadata == nil {
		metadata = []byte("{}")
	}
	for _, part := range []struct {
		schema *jsonschema.Schema
		value  []byte
		at     string
	}{{c.metadata, metadata, "/metadata"}, {c.payload, r.Payload, r.At}} {
		if part.schema == nil {
			continue
		}
		if part.value == nil {
			return nil, errors.New("there is nothing to check: the definition cannot be read as JSON")
		}
		v, err := decode(part.value)
		if err != nil {
			return nil, err
		}
		err = part.schema.Validate(v)
		if e, ok := errors.AsType[*jsonschema.ValidationError](err); ok {
			mistakes(e, part.at, &fields)
		} else if err != nil {
			return nil, err
		}
	}
	return fields, nil
}

var english = message.NewPrinter(language.English)

// mistakes lists what lies at the bottom of an error.
func mistakes(e *jsonschema.ValidationError, at string, fields *[]fault.Field) {
	if len(*fields) == maxErrors {
		return
	}
	if len(e.Causes) > 0 {
		for _, cause := range e.Causes {
			mistakes(cause, at, fields)
		}
		return
	}
	for _, token := range e.InstanceLocation {
		at += "/" + pointer.Replace(token)
	}
	text := "is not valid"
	if e.ErrorKind != nil {
		text = clip(e.ErrorKind.LocalizedString(english))
	}
	*fields = append(*fields, fault.Field{Pointer: clip(at), Message: text})
}

func clip(s string) string {
	if len(s) > 300 {
		return strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

// decode reads JSON with its numbers as they were written, unless that could
// stand for one of a million digits.
func decode(text []byte) (any, error) {
	d := stdjson.NewDecoder(strings.NewReader(string(text)))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, errors.New("is not valid JSON")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("is more than one JSON value")
	}
	return plainNumbers(v)
}

func plainNumbers(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case stdjson.Number:
		if len(v) <= 64 && !strings.ContainsAny(string(v), "eE") {
			return v, nil
		}
		f, err := v.Float64()
		if err != nil {
			return nil, errors.New("holds a number beyond what a 64-bit float can say")
		}
		return f, nil
	case map[string]any:
		for key, value := range v {
			if v[key], err = plainNumbers(value); err != nil {
				return nil, err
			}
		}
	case []any:
		for i, value := range v {
			if v[i], err = plainNumbers(value); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}
