package envoy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// shape is how a policy wants the answer to be; see [policy.Responses].
type shape struct {
	status          typev3.StatusCode
	body            string
	headers         []*corev3.HeaderValueOption // for the service where it is allowed, for the caller where it is denied
	responseHeaders []*corev3.HeaderValueOption
	removeHeaders   []string
	setQuery        []*corev3.QueryParameter
	removeQuery     []string
	metadata        *structpb.Struct
}

// readShape reads what a policy gave; nil is nothing. The error says which rule
// has a value that cannot be used.
func readShape(result []byte) (*shape, error) {
	s := &shape{status: typev3.StatusCode_Forbidden}
	if len(result) == 0 {
		return s, nil
	}
	var given struct {
		Headers         jsontext.Value `json:"headers"`
		Status          *int32         `json:"http_status"`
		Body            *string        `json:"body"`
		Metadata        jsontext.Value `json:"dynamic_metadata"`
		ResponseHeaders jsontext.Value `json:"response_headers_to_add"`
		RemoveHeaders   []string       `json:"request_headers_to_remove"`
		SetQuery        jsontext.Value `json:"query_parameters_to_set"`
		RemoveQuery     []string       `json:"query_parameters_to_remove"`
	}
	if err := json.Unmarshal(result, &given); err != nil {
		return nil, fmt.Errorf("the policy's answer cannot be used: %w", err)
	}
	if given.Status != nil {
		// Envoy takes no others, and 1xx would never end the request.
		if _, known := typev3.StatusCode_name[*given.Status]; !known || *given.Status < 200 {
			return nil, fmt.Errorf("the policy's http_status %d is not one that Envoy can answer", *given.Status)
		}
		s.status = typev3.StatusCode(*given.Status)
	}
	if given.Body != nil {
		s.body = *given.Body
	}
	var err error
	if s.headers, err = headers("headers", given.Headers); err != nil {
		return nil, err
	}
	if s.responseHeaders, err = headers("response_headers_to_add", given.ResponseHeaders); err != nil {
		return nil, err
	}
	for _, name := range given.RemoveHeaders {
		if !httpguts.ValidHeaderFieldName(name) {
			return nil, fmt.Errorf("the policy's request_headers_to_remove names %q, which is no header", name)
		}
	}
	s.removeHeaders, s.removeQuery = given.RemoveHeaders, given.RemoveQuery
	err = pairs("query_parameters_to_set", given.SetQuery, func(name, value string) error {
		s.setQuery = append(s.setQuery, &corev3.QueryParameter{Key: name, Value: value})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if given.Metadata != nil {
		s.metadata = new(structpb.Struct)
		if err := protojson.Unmarshal(given.Metadata, s.metadata); err != nil {
			return nil, fmt.Errorf("the policy's dynamic_metadata must be an object: %w", err)
		}
	}
	return s, nil
}

// headers reads an object of headers, or an array of such objects.
func headers(rule string, value jsontext.Value) (all []*corev3.HeaderValueOption, err error) {
	add := func(name, value string) error {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) || !utf8.ValidString(value) {
			return fmt.Errorf("the policy's %s sets %q, which is no header that can be sent", rule, name)
		}
		h := header(name, value)
		if n := len(all); n > 0 && all[n-1].Header.Key == h.Header.Key {
			//lint:ignore SA1019 it is the field that every Envoy reads in these answers
			h.Append = wrapperspb.Bool(true)
		}
		all = append(all, h)
		return nil
	}
	if value.Kind() != '[' {
		return all, pairs(rule, value, add)
	}
	var list []jsontext.Value
	if err := json.Unmarshal(value, &list); err != nil {
		return nil, err
	}
	for _, v := range list {
		if err := pairs(rule, v, add); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// header is one that takes the place of any of its name.
func header(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: strings.ToLower(name), Value: value}}
}

// pairs reads an object whose values are texts or lists of them, in order of
// the names.
func pairs(rule string, value jsontext.Value, add func(name, value string) error) error {
	if value == nil {
		return nil
	}
	var object map[string]jsontext.Value
	if err := json.Unmarshal(value, &object); err != nil || object == nil {
		return fmt.Errorf("the policy's %s must be an object of texts", rule)
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		v := object[name]
		var list []string
		if v.Kind() == '"' {
			v = jsontext.Value("[" + string(v) + "]")
		}
		if err := json.Unmarshal(v, &list); err != nil || v.Kind() != '[' {
			return fmt.Errorf("the policy's %s must have texts or lists of them; %q is something else", rule, name)
		}
		for _, text := range list {
			if err := add(name, text); err != nil {
				return err
			}
		}
	}
	return nil
}
