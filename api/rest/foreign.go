package rest

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

// Foreign is a call that another edge answers on the control port, in a protocol
// of its own, as /openapi.json describes it. It answers 200, and errors are lines
// of text.
type Foreign struct {
	Method  string
	Path    string // as http.ServeMux takes it
	ID      string // operation id
	Summary string
	Tag     string // the edge; the names of its schemas begin with it
	Query   []Param
	Body    bool // takes a JSON object, which its protocol describes
	Answer  any  // a value of the type that is answered; nil: nothing
}

func (d *description) foreign(f *Foreign) error {
	op := &openapi3.Operation{OperationID: f.ID, Summary: f.Summary, Tags: []string{f.Tag}, Responses: openapi3.NewResponsesWithCapacity(8)}
	path := strings.ReplaceAll(f.Path, "...}", "}")
	parameters(op, &Route{Path: path, Query: f.Query})
	if f.Body {
		body := openapi3.NewRequestBody().WithJSONSchema(openapi3.NewObjectSchema().WithAnyAdditionalProperties())
		op.RequestBody = &openapi3.RequestBodyRef{Value: body}
	}
	success := openapi3.NewResponse().WithDescription(http.StatusText(http.StatusOK))
	if f.Answer != nil {
		ref, err := d.schema(f.Answer)
		if err != nil {
			return err
		}
		success.Content = openapi3.Content{mediaJSON: {Schema: ref}}
	}
	op.Responses.Set(strconv.Itoa(http.StatusOK), &openapi3.ResponseRef{Value: success})
	for _, status := range []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound,
		http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusServiceUnavailable} {
		refusal := openapi3.NewResponse().WithDescription(http.StatusText(status))
		refusal.Content = openapi3.Content{"text/plain": {Schema: openapi3.NewStringSchema().NewRef()}}
		op.Responses.Set(strconv.Itoa(status), &openapi3.ResponseRef{Value: refusal})
	}
	d.doc.AddOperation(path, f.Method, op)
	return nil
}
