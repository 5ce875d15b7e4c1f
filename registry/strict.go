package registry

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
)

// MaxDepth is how deep objects and arrays may nest in a body, whatever an edge
// allows.
const MaxDepth = 64

// maxFields bounds how many mistakes one answer lists.
const maxFields = 16

// DecodeStrict reads exactly one JSON value into out, a pointer. Duplicate
// keys, trailing data, invalid UTF-8, NUL outside of an escape and nesting
// beyond MaxDepth are bad_request; an unknown member or one of the wrong type
// is invalid_field with its JSON pointer, all such members of the outermost
// object together (at most 16). The cost is linear in the body. What out holds
// after an error is not specified.
func DecodeStrict(body []byte, out any) error {
	if err := CheckDepth(body, MaxDepth); err != nil {
		return err
	}
	err := json.Unmarshal(body, out, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	if f := syntaxFault(err); f != nil {
		return f
	}
	return memberFaults(body, out, err)
}

// CheckDepth refuses with bad_request what nests deeper than most levels, before
// any parser descends into it. It says nothing of what is no JSON.
func CheckDepth(body []byte, most int) error {
	depth := 0
	for i := 0; i < len(body); i++ {
		switch body[i] {
		case '{', '[':
			if depth++; depth > most {
				return fault.New(fault.BadRequest, "the body nests deeper than %d levels at byte %d; flatten it", most, i)
			}
		case '}', ']':
			depth--
		case '"':
			i = endOfString(body, i)
		}
	}
	return nil
}

// endOfString gives the index of the quote that ends the string begun at i,
// or the length when none does.
func endOfString(body []byte, i int) int {
	for i++; i < len(body); i++ {
		switch body[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return len(body)
}

// syntaxFault turns what makes a body no JSON into bad_request; nil when err
// is about its meaning.
func syntaxFault(err error) error {
	se, ok := errors.AsType[*jsontext.SyntacticError](err)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return fault.Wrap(fault.BadRequest, err, "the body ends before its JSON value does; send the whole value")
	case !ok:
		return nil
	case errors.Is(se.Err, jsontext.ErrDuplicateName):
		return fault.New(fault.BadRequest, "the key %s stands twice in one object, at %s; keep one of them",
			strconv.Quote(clip(se.JSONPointer.LastToken())), strconv.Quote(clip(string(se.JSONPointer))))
	}
	return fault.Wrap(fault.BadRequest, err, "the body is not one valid JSON value: %s", syntaxDetail(se))
}

func syntaxDetail(se *jsontext.SyntacticError) string {
	d := "error at byte " + strconv.FormatInt(se.ByteOffset, 10)
	if se.Err != nil {
		d = clip(strings.TrimPrefix(se.Err.Error(), "jsontext: ")) + " at byte " + strconv.FormatInt(se.ByteOffset, 10)
	}
	return d
}

// memberFaults reads each member of the outermost object on its own, to report
// the mistakes of all of them; first is the mistake already known.
func memberFaults(body []byte, out any, first error) error {
	fields := fields{field(first)}
	dec := jsontext.NewDecoder(bytes.NewReader(body))
	if dec.PeekKind() != '{' {
		return fields.err()
	}
	if _, err := dec.ReadToken(); err != nil {
		return syntaxOr(err, fields)
	}
	fields = fields[:0]
	typ := reflect.TypeOf(out).Elem()
	for dec.PeekKind() == '"' {
		name, err := dec.ReadValue()
		if err != nil {
			return syntaxOr(err, fields)
		}
		one := append(append([]byte{'{'}, name...), ':')
		value, err := dec.ReadValue()
		if err != nil {
			return syntaxOr(err, fields)
		}
		if len(fields) == maxFields {
			continue // only the syntax of the rest matters
		}
		one = append(append(one, value...), '}')
		if err := json.Unmarshal(one, reflect.New(typ).Interface(), json.RejectUnknownMembers(true)); err != nil {
			fields = append(fields, field(err))
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return syntaxOr(err, fields)
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return fault.New(fault.BadRequest, "something follows the JSON value at byte %d; send one value only", dec.InputOffset())
	}
	if len(fields) == 0 {
		fields = append(fields, field(first))
	}
	return fields.err()
}

func syntaxOr(err error, f fields) error {
	if s := syntaxFault(err); s != nil {
		return s
	}
	return f.err()
}

// field says in our words what a member got wrong.
func field(err error) fault.Field {
	se, ok := errors.AsType[*json.SemanticError](err)
	if !ok {
		return fault.Field{Message: "cannot be read"}
	}
	f := fault.Field{Pointer: string(se.JSONPointer)}
	switch {
	case se.Err == json.ErrUnknownName:
		f.Message = "is not a field of this record; remove it"
	case se.Err == errDuration:
		f.Message = errDuration.Error()
	case se.GoType != nil:
		f.Message = "must be " + wanted(se.GoType)
		if se.JSONKind != 0 {
			f.Message += ", not " + given(se.JSONKind, se.JSONValue)
		}
	default:
		f.Message = "has the wrong type"
	}
	return f
}

func wanted(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[Duration]() {
		return "a duration"
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number in range"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number of at least 0 in range"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Map, reflect.Struct:
		return "an object"
	}
	return "another type"
}

func given(k jsontext.Kind, v jsontext.Value) string {
	switch k {
	case 'n':
		return "null"
	case 'f', 't':
		return "true or false"
	case '"':
		return "a string"
	case '{':
		return "an object"
	case '[':
		return "an array"
	}
	if len(v) > 0 && len(v) <= 32 {
		return string(v)
	}
	return "this number"
}

// fields collects mistakes in a body.
type fields []fault.Field

func (f *fields) add(pointer, message string) {
	if len(*f) < maxFields {
		*f = append(*f, fault.Field{Pointer: pointer, Message: message})
	}
}

// err is nil when there is no mistake.
func (f fields) err() error {
	if len(f) == 0 {
		return nil
	}
	where := f[0].Pointer
	if where == "" {
		where = "the body"
	}
	e := fault.New(fault.InvalidField, "%s %s", clip(where), f[0].Message)
	if len(f) > 1 {
		e.Detail += "; errors lists " + strconv.Itoa(len(f)) + " mistakes in all"
	}
	e.Fields = f
	return e
}

// clip shortens what a caller sent before it is said back.
func clip(s string) string {
	const most = 128
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
