package admit

import (
	"context"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/registry/definition"
	"github.com/muster-registry/muster/registry/schema"
	"github.com/muster-registry/muster/setting"
)

// Schemas is the rule for JSON Schemas as settings: their name is the kind of
// record, their namespace one or "*".
func Schemas() Setting {
	return Setting{
		Resource: "schema",
		Canonical: func(_ context.Context, _ State, _ *command.Intent, _ *command.Command, p *command.Put) ([]byte, error) {
			if p.Namespace != "*" {
				if err := registry.ValidName(p.Namespace); err != nil {
					return nil, fault.Invalid("/namespace", "%q is neither a namespace nor *", p.Namespace)
				}
			}
			return schema.Parse(p.Name, p.Spec)
		},
	}
}

// meets holds a record, as it is about to be stored, to the JSON Schemas of
// all namespaces and of its own. The error is invalid_field.
func (g *Gate) meets(st State, p *command.Put) error {
	kind := target{kind: p.Kind}.kindName()
	for _, namespace := range []string{"*", p.Namespace} {
		r, ok := st.Settings.Get(setting.Schema, namespace, kind)
		if !ok {
			continue
		}
		rec, err := SchemaRecord(kind, p.Spec, p.Document)
		if err != nil {
			return err
		}
		if err := g.schemas.Check(schema.Registered{Namespace: namespace, Kind: kind, Spec: r.Spec}, rec); err != nil {
			return err
		}
	}
	return nil
}

// SchemaRecord gives what a schema sees of a record: of a version its
// definition, of the others their canonical spec and the metadata in it.
func SchemaRecord(kind string, spec, document []byte) (schema.Record, error) {
	if kind == registry.KindVersion {
		return schema.Record{Payload: definition.JSON(registry.SpecFormat(spec), document), At: "/document"}, nil
	}
	var part struct {
		Metadata jsontext.Value `json:"metadata"`
	}
	if err := json.Unmarshal(spec, &part); err != nil {
		return schema.Record{}, fault.Wrap(fault.BadRequest, err, "the change carries a spec that cannot be read; send the record through the API")
	}
	return schema.Record{Metadata: part.Metadata, Payload: spec}, nil
}
