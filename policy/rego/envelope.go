package rego

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// Envelope is how a body holds the input document.
type Envelope uint8

// The envelopes of OPA's API.
const (
	Wrapped Envelope = iota // {"input": …}
	Bare                    // the body is the input
)

// Open finds the input in a body, as rules see it and as it was sent. Both are
// nil where there is none: an empty body, or an input that is absent or null
// within its envelope. A bare body that is empty is null, as OPA has it. The
// error is bad_request.
func (v Envelope) Open(body []byte) (ast.Value, []byte, error) {
	empty := len(bytes.TrimSpace(body)) == 0
	if v == Bare && empty {
		body = []byte("null")
	}
	if v == Bare {
		input, err := InputJSON(body)
		return input, body, err
	}
	if empty {
		return nil, nil, nil
	}
	d := decoders.Get().(*jsontext.Decoder)
	defer decoders.Put(d)
	d.Reset(bytes.NewBuffer(body))
	if kind := d.PeekKind(); kind != '{' && kind != 'n' {
		if _, err := d.ReadToken(); err != nil {
			return nil, nil, malformed(err)
		}
		return nil, nil, fault.New(fault.BadRequest, `the body must be an object with the member "input"`)
	}
	if token, err := d.ReadToken(); err != nil || token.Kind() == 'n' {
		return nil, nil, malformed(errors.Join(err, ended(d)))
	}
	var input ast.Value
	var raw []byte
	most := maxValues
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, nil, malformed(err)
		}
		isInput := name.String() == "input"
		from := d.InputOffset()
		t, err := term(d, &most)
		if err != nil {
			return nil, nil, malformed(err)
		}
		if _, null := t.Value.(ast.Null); isInput && !null {
			raw = bytes.TrimLeft(body[from:d.InputOffset()], ": \t\r\n")
			input = t.Value
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, nil, malformed(err)
	}
	return input, raw, malformed(ended(d))
}

// InputJSON reads a JSON document that a caller sent, within the limits that
// hold for inputs. The error is bad_request.
func InputJSON(b []byte) (ast.Value, error) {
	v, err := inputJSON(b)
	if err != nil {
		return nil, malformed(err)
	}
	return v, nil
}

func ended(d *jsontext.Decoder) error {
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return errors.New("there is something after the JSON value")
	}
	return nil
}

// malformed says what is wrong with a body.
func malformed(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*jsontext.SyntacticError](err); ok && errors.Is(e.Err, jsontext.ErrDuplicateName) {
		return fault.New(fault.BadRequest, "body contains malformed input document: the key at %s stands twice in one object", e.JSONPointer)
	}
	return fault.New(fault.BadRequest, "body contains malformed input document: %v", err)
}

var errDepth = fault.New(fault.BadRequest, "the JSON is nested deeper than %d levels", policy.MaxDepth)
