package policy

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Document gives the input as JSON, as the public contract has it and as rules
// see it: the same input gives the same bytes. The error says that one of the
// parts that are JSON is not.
func (in *Input) Document() ([]byte, error) {
	return in.AppendDocument(make([]byte, 0, 1<<10+len(in.Resource.Payload)+len(in.Resource.Previous)))
}

// AppendDocument appends the input to b, as [Input.Document] gives it. It is
// written by hand, since every decision that is kept is written so.
func (in *Input) AppendDocument(b []byte) ([]byte, error) {
	b = append(b, `{"action":`...)
	b = AppendText(b, string(in.Action))
	b = append(in.Time.UTC().AppendFormat(append(b, `,"time":"`...), time.RFC3339Nano), '"')
	b = AppendText(append(b, `,"protocol":`...), in.Protocol)
	b = AppendText(append(b, `,"method":`...), in.Method)
	b = appendTexts(append(b, `,"path":`...), in.Path)
	b = appendHeaders(append(b, `,"headers":`...), in.Headers, false)
	b = AppendText(append(b, `,"token":`...), in.Token)

	b = AppendText(append(b, `,"principal":{"id":`...), in.Principal.ID)
	b = AppendText(append(b, `,"kind":`...), in.Principal.Kind)
	b = appendTexts(append(b, `,"roles":`...), in.Principal.Roles)
	b = appendTexts(append(b, `,"namespaces":`...), in.Principal.Namespaces)
	b, err := appendJSON(append(b, `,"claims":`...), in.Principal.Claims, "{}", nil)

	b = AppendText(append(b, `},"attributes":{"request":{"http":{"method":`...), in.Method)
	b = AppendText(append(b, `,"path":`...), in.RawPath)
	b = AppendText(append(b, `,"host":`...), in.Host)
	b = AppendText(append(b, `,"scheme":`...), in.Scheme)
	b = appendHeaders(append(b, `,"headers":`...), in.Headers, true)
	b = AppendText(append(b, `}},"source":{"address":`...), in.Source)
	b = AppendText(append(b, `,"principal":`...), in.Principal.ID)

	res := &in.Resource
	b = AppendText(append(b, `}},"resource":{"kind":`...), res.Kind)
	b = AppendText(append(b, `,"namespace":`...), res.Namespace)
	b = AppendText(append(b, `,"name":`...), res.Name)
	b, err = appendJSON(append(b, `,"metadata":`...), res.MetadataJSON(), "{}", err)
	b, err = appendJSON(append(b, `,"payload":`...), res.Payload, "null", err)
	b, err = appendJSON(append(b, `,"previous":`...), res.Previous, "null", err)
	if res.Findings != nil {
		b, err = appendJSON(append(b, `,"findings":`...), res.Findings, "null", err)
	}
	if res.FindingCounts != nil {
		b, err = appendJSON(append(b, `,"finding_counts":`...), res.FindingCounts, "null", err)
	}
	if err != nil {
		return nil, err
	}
	return append(b, "}}"...), nil
}

// AppendText appends a string as JSON. What is not UTF-8 in it is replaced, as
// rules see it.
func AppendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			b, _ = jsontext.AppendQuote(b, s) // the error only tells of the replacement
			return b
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

func appendTexts(b []byte, texts []string) []byte {
	b = append(b, '[')
	for i, s := range texts {
		if i > 0 {
			b = append(b, ',')
		}
		b = AppendText(b, s)
	}
	return append(b, ']')
}

// appendHeaders appends an object in the order of its names.
func appendHeaders(b []byte, headers map[string]string, lower bool) []byte {
	var room [24][2]string
	sorted := room[:0]
	for name, value := range headers {
		if lower {
			name = strings.ToLower(name)
		}
		sorted = append(sorted, [2]string{name, value})
	}
	slices.SortFunc(sorted, func(a, b [2]string) int { return cmp.Or(strings.Compare(a[0], b[0]), strings.Compare(a[1], b[1])) })
	b = append(b, '{')
	for i, h := range sorted {
		switch {
		case i == 0:
		case h[0] == sorted[i-1][0]:
			continue // a name stands once
		default:
			b = append(b, ',')
		}
		b = AppendText(append(AppendText(b, h[0]), ':'), h[1])
	}
	return append(b, '}')
}

// appendJSON appends a part that is JSON, and goes on after an error.
func appendJSON(b []byte, value jsontext.Value, absent string, err error) ([]byte, error) {
	switch {
	case err != nil:
	case len(value) == 0:
		b = append(b, absent...)
	case value.IsValid():
		b = append(b, value...)
	default: // what is not UTF-8 can be put right
		if value, err = json.Marshal(value, jsontext.AllowInvalidUTF8(true)); err == nil {
			b = append(b, value...)
		}
	}
	return b, err
}
