package rest

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3gen"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// describe writes the route table down as an OpenAPI document.
func (a *API) describe() ([]byte, error) {
	d := &description{doc: &openapi3.T{
		OpenAPI: "3.0.3",
		Info: &openapi3.Info{Title: "muster", Version: a.opt.Version,
			Description: "The control API of muster, a registry of APIs. Callers are known by a bearer token or by a client certificate."},
		Paths: openapi3.NewPaths(),
		Components: &openapi3.Components{
			Schemas:         openapi3.Schemas{},
			SecuritySchemes: openapi3.SecuritySchemes{"bearer": {Value: openapi3.NewSecurityScheme().WithType("http").WithScheme("bearer")}},
		},
		Security: *openapi3.NewSecurityRequirements().With(openapi3.NewSecurityRequirement().Authenticate("bearer")),
	}}
	if _, err := d.schema(Problem{}); err != nil {
		return nil, err
	}
	for i := range a.routes {
		if err := d.add(&a.routes[i]); err != nil {
			return nil, fmt.Errorf("rest: describe %s: %w", a.routes[i].ID, err)
		}
	}
	for i := range a.opt.Foreign {
		if err := d.foreign(&a.opt.Foreign[i]); err != nil {
			return nil, fmt.Errorf("rest: describe %s: %w", a.opt.Foreign[i].ID, err)
		}
	}
	return d.doc.MarshalJSON()
}

type description struct{ doc *openapi3.T }

func (d *description) add(r *Route) error {
	op := &openapi3.Operation{OperationID: r.ID, Summary: r.Summary, Responses: openapi3.NewResponsesWithCapacity(4)}
	if r.Open {
		op.Security = openapi3.NewSecurityRequirements()
	}
	parameters(op, r)
	if err := d.body(op, r); err != nil {
		return err
	}
	success, err := d.success(r)
	if err != nil {
		return err
	}
	op.Responses.Set(strconv.Itoa(r.Status), &openapi3.ResponseRef{Value: success})
	if r.Status == http.StatusOK && r.Writes && r.Method == http.MethodPut {
		op.Responses.Set("201", &openapi3.ResponseRef{Value: success})
	}
	if r.Pending != nil {
		later, err := d.success(&Route{Status: http.StatusAccepted, Answer: r.Pending})
		if err != nil {
			return err
		}
		op.Responses.Set(strconv.Itoa(http.StatusAccepted), &openapi3.ResponseRef{Value: later})
	}
	d.refusals(op, r)
	d.doc.AddOperation(r.Path, r.Method, op)
	return nil
}

// body describes what is read. What the caller need not send is not required,
// so the schema asks for nothing by name.
func (d *description) body(op *openapi3.Operation, r *Route) error {
	if r.Body == nil && (r.Media == "" || r.Method == http.MethodGet) {
		return nil
	}
	content := openapi3.Content{}
	if r.Body == nil {
		content[r.Media] = &openapi3.MediaType{Schema: openapi3.NewStringSchema().WithFormat("binary").NewRef()}
	} else {
		ref, err := d.schema(r.Body)
		if err != nil {
			return err
		}
		content[mediaJSON] = &openapi3.MediaType{Schema: ref}
	}
	if _, ok := r.Body.(policy.Push); ok {
		content["application/gzip"] = &openapi3.MediaType{Schema: openapi3.NewStringSchema().WithFormat("binary").NewRef()}
	}
	op.RequestBody = &openapi3.RequestBodyRef{Value: openapi3.NewRequestBody().WithContent(content)}
	return nil
}

func (d *description) success(r *Route) (*openapi3.Response, error) {
	res := openapi3.NewResponse().WithDescription(http.StatusText(r.Status))
	switch {
	case r.Answer == nil && r.Media != "":
		res.Content = openapi3.Content{strings.TrimSuffix(r.Media, "; charset=utf-8"): {Schema: openapi3.NewStringSchema().NewRef()}}
	case r.Pages:
		item, err := d.schema(r.Answer)
		if err != nil {
			return nil, err
		}
		items := openapi3.NewArraySchema()
		items.Items = item
		page := openapi3.NewObjectSchema().WithProperty("items", items).
			WithProperty("next_page_token", openapi3.NewStringSchema()).WithProperty("revision", openapi3.NewInt64Schema())
		res.Content = openapi3.Content{mediaJSON: {Schema: page.NewRef()}}
	case r.Answer != nil:
		ref, err := d.schema(r.Answer)
		if err != nil {
			return nil, err
		}
		res.Content = openapi3.Content{mediaJSON: {Schema: ref}}
	}
	return res, nil
}

// refusals lists by status the codes that a call may be refused with.
func (d *description) refusals(op *openapi3.Operation, r *Route) {
	codes := slices.Clone(r.Refusals)
	if !r.Open {
		codes = append(codes, fault.BadPath, fault.Unauthenticated, fault.Forbidden, fault.NotReady, fault.RateLimited)
	}
	if r.Reads {
		codes = append(codes, fault.BadRequest, fault.TooStale, fault.NoLeader)
	}
	if r.Writes {
		codes = append(codes, fault.BadRequest, fault.RevisionMismatch, fault.NoLeader, fault.Conflict)
	}
	if r.Body != nil {
		codes = append(codes, fault.InvalidField, fault.TooLarge, fault.UnsupportedMediaType)
	}
	if r.Action.LookUp() || r.Action == policy.Register || r.Action == policy.Update || r.Action == policy.Delete || r.Action == policy.Issue {
		codes = append(codes, fault.PolicyDenied)
	}
	byStatus := map[int][]string{}
	for _, code := range codes {
		if s := code.Status(); !slices.Contains(byStatus[s], string(code)) {
			byStatus[s] = append(byStatus[s], string(code))
		}
	}
	for status, names := range byStatus {
		slices.Sort(names)
		res := openapi3.NewResponse().WithDescription("code: " + strings.Join(names, ", "))
		res.Content = openapi3.Content{"application/problem+json": {Schema: component("Problem")}}
		op.Responses.Set(strconv.Itoa(status), &openapi3.ResponseRef{Value: res})
	}
}

func component(name string) *openapi3.SchemaRef {
	return openapi3.NewSchemaRef("#/components/schemas/"+name, nil)
}

// schema gives a reference to the schema of v's type, which is made once.
func (d *description) schema(v any) (*openapi3.SchemaRef, error) {
	t := reflect.TypeOf(v)
	if t == reflect.TypeFor[string]() {
		return openapi3.NewStringSchema().NewRef(), nil
	}
	if t.Name() == "" && (t.Kind() == reflect.Slice || t.Kind() == reflect.Map) && t.Elem().Name() != "" {
		return d.several(t)
	}
	name := t.Name()
	how := []openapi3gen.Option{openapi3gen.SchemaCustomizer(ownJSON)}
	if edge, ok := strings.CutPrefix(t.PkgPath(), edges); ok && edge != "rest" {
		name = strings.ToUpper(edge[:1]) + edge[1:] + name // each edge has its own names
		how = append(how, openapi3gen.UseAllExportedFields())
	}
	switch v.(type) {
	case map[string]any:
		return openapi3.NewObjectSchema().NewRef(), nil
	case policy.Revision:
		name = "PolicyRevision"
	case policy.Push:
		name = "Policy"
	}
	if _, ok := d.doc.Components.Schemas[name]; ok {
		return component(name), nil
	}
	made, err := openapi3gen.NewSchemaRefForValue(v, nil, how...)
	if err != nil {
		return nil, err
	}
	d.doc.Components.Schemas[name] = made
	return component(name), nil
}

// edges begins the import paths of the edges.
const edges = "github.com/muster-registry/muster/api/"

// several is the schema of a list, or of an object whose members are of one
// type.
func (d *description) several(t reflect.Type) (*openapi3.SchemaRef, error) {
	of, err := d.schema(reflect.Zero(t.Elem()).Interface())
	s := openapi3.NewArraySchema()
	if s.Items = of; t.Kind() == reflect.Map {
		s = openapi3.NewObjectSchema()
		s.AdditionalProperties = openapi3.AdditionalProperties{Schema: of}
	}
	return s.NewRef(), err
}

// ownJSON corrects the schemas of types that write their own JSON.
func ownJSON(_ string, t reflect.Type, _ reflect.StructTag, schema *openapi3.Schema) error {
	switch t {
	case reflect.TypeFor[registry.Duration]():
		*schema = *openapi3.NewStringSchema()
		schema.Example = "30s"
	case reflect.TypeFor[jsontext.Value]():
		*schema = openapi3.Schema{}
	}
	return nil
}

func parameters(op *openapi3.Operation, r *Route) {
	for segment := range strings.SplitSeq(r.Path, "/") {
		if name, ok := strings.CutPrefix(segment, "{"); ok {
			op.AddParameter(openapi3.NewPathParameter(strings.TrimSuffix(name, "}")).WithSchema(openapi3.NewStringSchema()))
		}
	}
	query := slices.Clone(r.Query)
	if r.Reads {
		query = append(query,
			Param{Name: "consistency", Type: "string", Description: "local (default) or linearizable"},
			Param{Name: "min_revision", Type: "integer", Description: "wait until the node has this revision"},
			Param{Name: "max_staleness", Type: "string", Description: "refuse rather than answer from an older state, such as 5s"},
			Param{Name: "wait", Type: "string", Description: "how long to wait, such as 5s"})
	}
	if r.Blocks {
		query = append(query, Param{Name: "index", Type: "integer", Description: "answer when what is read changed after this revision, or when wait is over"})
	}
	if r.Pages {
		query = append(query, Param{Name: "limit", Type: "integer", Description: "1 to 1000, by default 100"},
			Param{Name: "page_token", Type: "string", Description: "next_page_token of the page before"})
	}
	for _, q := range query {
		schema := &openapi3.Schema{Type: &openapi3.Types{q.Type}}
		if q.Repeats {
			schema = openapi3.NewArraySchema().WithItems(schema)
		}
		op.AddParameter(openapi3.NewQueryParameter(q.Name).WithDescription(q.Description).WithSchema(schema))
	}
	for _, h := range r.Headers {
		op.AddParameter(openapi3.NewHeaderParameter(h.Name).WithDescription(h.Description).WithSchema(&openapi3.Schema{Type: &openapi3.Types{h.Type}}))
	}
	if r.tried() {
		op.AddParameter(openapi3.NewQueryParameter("dry_run").WithDescription("decide, and answer what would be stored; change nothing").WithSchema(&openapi3.Schema{Type: &openapi3.Types{"boolean"}}))
	}
	if r.Writes {
		for _, name := range []string{"If-Match", "If-None-Match", "Idempotency-Key"} {
			op.AddParameter(openapi3.NewHeaderParameter(name).WithSchema(openapi3.NewStringSchema()))
		}
	}
}
