package rest

import (
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/registry/definition"
	"github.com/muster-registry/muster/registry/schema"
	"github.com/muster-registry/muster/setting"
)

func schemaRoute() settingRoute {
	return settingRoute{kind: setting.Schema, resource: "schema", base: "/v1/schemas", spaced: true, one: "Schema", many: "Schemas",
		body: schema.Spec{}, answer: Schema{}, check: checkSchema}
}

// Schema is a registered JSON Schema, as it is answered.
type Schema struct {
	Namespace string         `json:"namespace"` // or "*"
	Name      string         `json:"name"`      // the kind of record
	Metadata  jsontext.Value `json:"metadata,omitzero"`
	Payload   jsontext.Value `json:"payload,omitzero"`
	Revision  uint64         `json:"revision"`
	CreatedAt time.Time      `json:"created_at"`
	CreatedBy string         `json:"created_by"`
	UpdatedAt time.Time      `json:"updated_at"`
	UpdatedBy string         `json:"updated_by"`
}

// SchemaReport says which records would not meet a schema.
type SchemaReport struct {
	Checked  int             `json:"checked"`
	Failing  int             `json:"failing"`
	Failures []SchemaFailure `json:"failures"` // the first of them
}

// SchemaFailure is one record that would not meet a schema.
type SchemaFailure struct {
	Namespace string        `json:"namespace"`
	Service   string        `json:"service"`
	Name      string        `json:"name,omitempty"` // of a version or an instance
	Message   string        `json:"message"`
	Errors    []fault.Field `json:"errors,omitempty"`
}

// maxFailures is how many failures a report lists.
const maxFailures = 100

// survey goes through the records that a schema is for.
type survey struct {
	*call
	cache  schema.Cache
	schema schema.Registered
	report SchemaReport
}

// checkSchema answers which records of this node's state would not meet the
// schema. Nothing is stored.
func checkSchema(c *call, namespace, kind string, body []byte) error {
	spec, err := schema.Parse(kind, body)
	if err != nil {
		return err
	}
	s := &survey{call: c, schema: schema.Registered{Namespace: namespace, Kind: kind, Spec: spec}}
	s.report.Failures = []SchemaFailure{}
	in := namespace
	if in == "*" {
		in = ""
	}
	for after, more := "", true; more; more = after != "" {
		var page []*registry.Service
		page, after = c.State.Registry.Services(in, after, 100)
		for _, service := range page {
			if err := s.service(service); err != nil {
				return err
			}
		}
	}
	out, err := json.Marshal(&s.report)
	if err != nil {
		return err
	}
	c.send(http.StatusOK, mediaJSON, out)
	return nil
}

func (s *survey) service(rec *registry.Service) error {
	if err := s.R.Context().Err(); err != nil {
		return fault.Wrap(fault.NotReady, err, "the check was given up")
	}
	switch s.schema.Kind {
	case registry.KindService:
		spec, err := registry.CanonicalService(rec.Namespace, rec.Name, rec.JSON)
		return s.one(rec, "", spec, err)
	case registry.KindVersion:
		return s.versions(rec)
	}
	return s.instances(rec)
}

func (s *survey) versions(rec *registry.Service) error {
	for after, more := "", true; more; more = after != "" {
		var page []*registry.Version
		page, after = s.State.Registry.Versions(rec.Namespace, rec.Name, after, 100)
		for _, v := range page {
			document, err := s.api.backend.Document(v.Namespace, v.Service, v.Version, v.Revision)
			if err != nil {
				continue // it was replaced or deleted meanwhile
			}
			if err := s.tell(rec, v.Version, schema.Record{Payload: definition.JSON(v.Format, document), At: "/document"}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *survey) instances(rec *registry.Service) error {
	for after, more := "", true; more; more = after != "" {
		var page []*registry.Instance
		page, after = s.State.Registry.Instances(rec.Namespace, rec.Name, after, 100)
		for _, i := range page {
			spec, err := registry.CanonicalInstance(i.Namespace, i.Service, i.ID, i.JSON)
			if err := s.one(rec, i.ID, spec, err); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *survey) one(of *registry.Service, name string, spec []byte, err error) error {
	if err != nil {
		return err
	}
	var part struct {
		Metadata jsontext.Value `json:"metadata"`
	}
	if err := json.Unmarshal(spec, &part); err != nil {
		return err
	}
	return s.tell(of, name, schema.Record{Metadata: part.Metadata, Payload: spec})
}

func (s *survey) tell(of *registry.Service, name string, rec schema.Record) error {
	s.report.Checked++
	err := s.cache.Check(s.schema, rec)
	if err == nil {
		return nil
	}
	f := fault.From(err)
	if f.Code != fault.InvalidField {
		return err
	}
	if s.report.Failing++; s.report.Failing <= maxFailures {
		s.report.Failures = append(s.report.Failures, SchemaFailure{
			Namespace: of.Namespace, Service: of.Name, Name: name, Message: f.Detail, Errors: f.Fields,
		})
	}
	return nil
}
