package policy

import (
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// document is the input document of the public contract.
type document struct {
	Action     Action            `json:"action"`
	Time       time.Time         `json:"time"`
	Protocol   string            `json:"protocol"`
	Method     string            `json:"method"`
	Path       []string          `json:"path"`
	Headers    map[string]string `json:"headers"`
	Token      string            `json:"token"`
	Principal  documentPrincipal `json:"principal"`
	Attributes struct {
		Request struct {
			HTTP documentHTTP `json:"http"`
		} `json:"request"`
		Source documentSource `json:"source"`
	} `json:"attributes"`
	Resource documentResource `json:"resource"`
}

type documentPrincipal struct {
	ID         string         `json:"id"`
	Kind       string         `json:"kind"`
	Roles      []string       `json:"roles"`
	Namespaces []string       `json:"namespaces"`
	Claims     jsontext.Value `json:"claims"`
}

type documentHTTP struct {
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Host    string            `json:"host"`
	Scheme  string            `json:"scheme"`
	Headers map[string]string `json:"headers"`
}

type documentSource struct {
	Address   string `json:"address"`
	Principal string `json:"principal"`
}

type documentResource struct {
	Kind      string         `json:"kind"`
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Metadata  jsontext.Value `json:"metadata"`
	Payload   jsontext.Value `json:"payload"`
	Previous  jsontext.Value `json:"previous"`

	Findings      jsontext.Value `json:"findings,omitzero"`
	FindingCounts jsontext.Value `json:"finding_counts,omitzero"`
}

// Document gives the input as JSON, as the public contract has it and as rules
// see it: the same input gives the same bytes. The error says that one of the
// parts that are JSON is not.
func (in *Input) Document() ([]byte, error) {
	d := document{
		Action: in.Action, Time: in.Time.UTC(), Protocol: in.Protocol, Method: in.Method, Path: in.Path, Headers: in.Headers, Token: in.Token,
		Principal: documentPrincipal{
			ID: in.Principal.ID, Kind: in.Principal.Kind, Roles: in.Principal.Roles, Namespaces: in.Principal.Namespaces,
			Claims: either(in.Principal.Claims, "{}"),
		},
		Resource: documentResource{
			Kind: in.Resource.Kind, Namespace: in.Resource.Namespace, Name: in.Resource.Name,
			Metadata: either(in.Resource.MetadataJSON(), "{}"), Payload: either(in.Resource.Payload, "null"), Previous: either(in.Resource.Previous, "null"),
			Findings: in.Resource.Findings, FindingCounts: in.Resource.FindingCounts,
		},
	}
	lower := make(map[string]string, len(in.Headers))
	for name, value := range in.Headers {
		lower[strings.ToLower(name)] = value
	}
	d.Attributes.Request.HTTP = documentHTTP{Method: in.Method, Path: in.RawPath, Host: in.Host, Scheme: in.Scheme, Headers: lower}
	d.Attributes.Source = documentSource{Address: in.Source, Principal: in.Principal.ID}
	// What is not UTF-8 in a header or a path is replaced, as rules see it.
	return json.Marshal(d, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
}

func either(value []byte, absent string) jsontext.Value {
	if len(value) == 0 {
		return jsontext.Value(absent)
	}
	return value
}
