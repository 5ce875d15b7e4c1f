package rego

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/policy"
)

var decoders = sync.Pool{New: func() any { return jsontext.NewDecoder(&bytes.Buffer{}) }}

// fromJSON gives one JSON value as rules see it, without the detour through
// Go maps that OPA's own conversion takes. Numbers keep all their digits;
// those with very many, or written with a huge exponent, are refused.
func fromJSON(b []byte) (ast.Value, error) { return fromJSONOf(b, math.MaxInt) }

// maxValues bounds the values and names in one part of an input: reading and
// comparing them cannot be interrupted, and takes seconds where there are many
// millions, which 16 MiB can hold.
const maxValues = 1 << 20

var errValues = fmt.Errorf("the input holds more than %d values", maxValues)

// inputJSON is fromJSON for what a caller sent. Most of what is too large is
// refused before anything is built from it.
func inputJSON(b []byte) (ast.Value, error) {
	if tooMany(b) {
		return nil, errValues
	}
	return fromJSONOf(b, maxValues)
}

// tooMany counts the commas and colons outside of strings: each comes before
// a value or a name of its own, so there are never fewer of those.
func tooMany(b []byte) bool {
	if len(b) <= maxValues { // each takes a byte at least
		return false
	}
	n := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case ',', ':':
			n++
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		}
	}
	return n > maxValues
}

func fromJSONOf(b []byte, most int) (ast.Value, error) {
	d := decoders.Get().(*jsontext.Decoder)
	defer decoders.Put(d)
	d.Reset(bytes.NewBuffer(b))
	t, err := term(d, &most)
	if err != nil {
		return nil, err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something after the JSON value")
	}
	return t.Value, nil
}

func term(d *jsontext.Decoder, most *int) (*ast.Term, error) {
	token, err := d.ReadToken()
	if err != nil {
		return nil, err
	}
	if *most--; *most < 0 {
		return nil, errValues
	}
	if d.StackDepth() > policy.MaxDepth {
		return nil, errDepth
	}
	switch token.Kind() {
	case 'n':
		return ast.InternedNullTerm, nil
	case 't', 'f':
		return ast.InternedTerm(token.Bool()), nil
	case '"':
		return ast.InternedTerm(token.String()), nil
	case '0':
		number := token.String()
		if !plain(number) {
			return nil, errNumber
		}
		return ast.NumberTerm(json.Number(number)), nil
	case '[':
		var items []*ast.Term
		for d.PeekKind() != ']' {
			item, err := term(d, most)
			if err != nil {
				return nil, err
			}
			items = append(items, item)
		}
		_, err := d.ReadToken()
		return ast.ArrayTerm(items...), err
	default: // '{'
		object := ast.NewObject()
		for d.PeekKind() != '}' {
			name, err := term(d, most)
			if err != nil {
				return nil, err
			}
			member, err := term(d, most)
			if err != nil {
				return nil, err
			}
			object.Insert(name, member)
		}
		_, err := d.ReadToken()
		return ast.NewTerm(object), err
	}
}
