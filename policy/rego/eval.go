package rego

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// Evaluation is what a query in Rego came to.
type Evaluation struct {
	Result  jsontext.Value // as opa eval prints it: {"result":[{"expressions":[…],"bindings":{…}}]}
	Defined bool           // there is at least one result
	Steps   string         // each step of the evaluation, where it was asked for
}

// Eval evaluates a query in Rego, such as data.api.registry.authz.allow, on an
// input document; nil: there is none. The errors are bad_request, where the
// query or the input cannot be used, invalid_policy, and those of
// [Engine.Query].
func (e *Engine) Eval(ctx context.Context, rev *policy.Revision, query string, input []byte, explain bool) (*Evaluation, error) {
	body, err := ParseQuery(query, ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: e.catalog.capabilities})
	if err != nil {
		if fault.Is(err, fault.BadRequest) {
			return nil, err
		}
		return nil, fault.Wrap(fault.BadRequest, err, "the query is not Rego: %v", err)
	}
	q := &Query{Body: body, Explain: explain, Metrics: metrics.New()}
	if input != nil {
		if q.Input, err = InputJSON(input); err != nil {
			return nil, err
		}
	}
	found, err := e.Query(ctx, rev, q)
	if err != nil {
		return nil, err
	}
	out := struct {
		Result oparego.ResultSet `json:"result,omitempty"`
	}{found.Results}
	v := &Evaluation{Defined: len(found.Results) > 0}
	// The results hold numbers as OPA keeps them, which only encoding/json writes as numbers.
	var b bytes.Buffer
	w := json.NewEncoder(&b)
	w.SetEscapeHTML(false)
	if err := w.Encode(out); err != nil {
		return nil, fault.Wrap(fault.InvalidPolicy, err, "the result cannot be written as JSON")
	}
	v.Result = bytes.TrimSpace(b.Bytes())
	if explain {
		var steps bytes.Buffer
		topdown.PrettyTraceWithLocation(&steps, found.Trace)
		v.Steps = steps.String()
	}
	return v, nil
}
