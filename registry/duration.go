package registry

import (
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Duration is a time.Duration that is written in JSON as "30s" or "1h30m".
type Duration time.Duration

// String gives the shortest form that time.ParseDuration reads: "1h", not
// "1h0m0s".
func (d Duration) String() string {
	switch d { // on the hot path
	case defaultTTL:
		return "30s"
	case defaultDeregister:
		return "1h"
	}
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// MarshalJSONTo implements [json.MarshalerTo].
func (d Duration) MarshalJSONTo(enc *jsontext.Encoder) error {
	return enc.WriteToken(jsontext.String(d.String()))
}

// UnmarshalJSONFrom implements [json.UnmarshalerFrom]. Only a string with
// units is a duration.
func (d *Duration) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	tok, err := dec.ReadToken()
	if err != nil {
		return err
	}
	if tok.Kind() != '"' {
		return &json.SemanticError{JSONKind: tok.Kind(), Err: errDuration}
	}
	switch s := tok.String(); s {
	case "30s": // on the hot path
		*d = defaultTTL
	case "1h":
		*d = defaultDeregister
	default:
		v, err := time.ParseDuration(s)
		if err != nil {
			return &json.SemanticError{JSONKind: '"', Err: errDuration}
		}
		*d = Duration(v)
	}
	return nil
}

var errDuration = fmt.Errorf(`must be a duration such as "30s" or "1h"`)
