package policy

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
)

// MaxDepth is how deep JSON may be nested.
const MaxDepth = 64

// WellFormed checks, with memory bounded by the depth limit, that body is one
// JSON value without duplicate names, not nested deeper than MaxDepth. The error is bad_request.
func WellFormed(body []byte) error {
	d := jsontext.NewDecoder(bytes.NewReader(body))
	for {
		_, err := d.ReadToken()
		if errors.Is(err, io.EOF) {
			return fault.New(fault.BadRequest, "the body is empty; send a JSON object")
		}
		if err != nil {
			return decodeFault(err)
		}
		if d.StackDepth() > MaxDepth {
			return fault.New(fault.BadRequest, "the JSON is nested deeper than %d levels", MaxDepth)
		}
		if d.StackDepth() == 0 {
			break
		}
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return fault.New(fault.BadRequest, "there is something after the JSON value; send one value only")
	}
	return nil
}

// decodeFault says what is wrong with a body that could not be decoded.
func decodeFault(err error) error {
	if e, ok := errors.AsType[*json.SemanticError](err); ok {
		pointer := string(e.JSONPointer)
		if errors.Is(e.Err, json.ErrUnknownName) {
			return fault.Invalid(pointer, "is not a known field")
		}
		return fault.Invalid(pointer, "has the wrong type")
	}
	if e, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		if errors.Is(e.Err, jsontext.ErrDuplicateName) {
			return fault.New(fault.BadRequest, "the key %s stands twice in one object", shorten(string(e.JSONPointer)))
		}
		return fault.Wrap(fault.BadRequest, err, "the body is not valid JSON at byte %d", e.ByteOffset)
	}
	return fault.Wrap(fault.BadRequest, err, "the body is not valid JSON")
}
