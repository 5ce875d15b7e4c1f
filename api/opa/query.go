package opa

import (
	"encoding/json"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/server/types"

	"github.com/muster-registry/muster/policy/rego"
)

// decodingRequest is how OPA begins what is wrong with a request's body.
const decodingRequest = "error(s) occurred while decoding request: "

// getQuery answers the query in the parameter q.
func getQuery(c *call) error {
	p := c.params()
	q, ok := p.last(types.ParamQueryV1)
	if !ok {
		return invalid("missing parameter 'q'")
	}
	return c.query(&p, q, nil)
}

// postQuery answers the query in the body.
func postQuery(c *call) error {
	p := c.params()
	var ask struct {
		Query string          `json:"query"`
		Input json.RawMessage `json:"input"`
	}
	if err := c.decode(c.api.opt.MaxBody, &ask, decodingRequest); err != nil {
		return err
	}
	release, err := c.api.engine.Room(c.r.Context(), len(ask.Input))
	if err != nil {
		return err
	}
	defer release()
	input, err := inputOf(ask.Input)
	if err != nil {
		return err
	}
	return c.query(&p, ask.Query, input)
}

// inputOf reads an input within a request; null is none.
func inputOf(b []byte) (ast.Value, error) {
	if len(b) == 0 || string(b) == "null" {
		return nil, nil
	}
	return rego.InputJSON(b)
}

func (c *call) query(p *params, text string, input ast.Value) error {
	m := metrics.New()
	m.Timer(metrics.ServerHandler).Start()
	body, err := rego.ParseQuery(text, ast.ParserOptions{})
	if err != nil {
		return uncompiled(types.CodeInvalidParameter, types.MsgParseQueryError, err)
	}
	found, err := c.api.engine.Query(c.r.Context(), c.state.Policy.Active(), p.query(body, input, m))
	if err != nil {
		return failed(types.MsgCompileQueryError, err)
	}
	m.Timer(metrics.ServerHandler).Stop()
	var answer types.QueryResponseV1
	for _, r := range found.Results {
		answer.Result = append(answer.Result, r.Bindings.WithoutWildcards())
	}
	if p.measured() {
		answer.Metrics = m.All()
	}
	if answer.Explanation, err = p.explanation(found.Trace); err != nil {
		return err
	}
	return c.ok(answer, p.pretty)
}

// postCompile evaluates as far as that is possible without what is unknown.
func postCompile(c *call) error {
	p := c.params()
	m := metrics.New()
	m.Timer(metrics.ServerHandler).Start()
	m.Timer(metrics.RegoQueryParse).Start()
	q, release, err := c.compileRequest(&p, m)
	if err != nil {
		return err
	}
	defer release()
	m.Timer(metrics.RegoQueryParse).Stop()
	found, err := c.api.engine.Partial(c.r.Context(), c.state.Policy.Active(), q)
	if err != nil {
		return failed(types.MsgCompileModuleError, err)
	}
	m.Timer(metrics.ServerHandler).Stop()
	var parts any = types.PartialEvaluationResultV1{Queries: found.Partial.Queries, Support: found.Partial.Support}
	answer := types.CompileResponseV1{Result: &parts}
	if p.measured() {
		answer.Metrics = m.All()
	}
	if answer.Explanation, err = p.explanation(found.Trace); err != nil {
		return err
	}
	return c.ok(answer, p.pretty)
}

// compileRequest reads the body. Release is to be called when it is answered.
func (c *call) compileRequest(p *params, m metrics.Metrics) (q *rego.Query, release func(), err error) {
	var ask struct {
		Query    string          `json:"query"`
		Input    json.RawMessage `json:"input"`
		Unknowns *[]string       `json:"unknowns"`
		Options  struct {
			DisableInlining          []string `json:"disableInlining"`
			NondeterministicBuiltins bool     `json:"nondeterministicBuiltins"`
		} `json:"options"`
	}
	if err := c.decode(c.api.opt.MaxBody, &ask, decodingRequest); err != nil {
		return nil, nil, err
	}
	texts := append([]string{ask.Query}, ask.Options.DisableInlining...)
	if ask.Unknowns != nil {
		texts = append(texts, *ask.Unknowns...)
	}
	if err := rego.QueryText(texts...); err != nil {
		return nil, nil, err
	}
	body, err := rego.ParseQuery(ask.Query, ast.ParserOptions{})
	if err != nil {
		return nil, nil, uncompiled(types.CodeInvalidParameter, types.MsgParseQueryError, err)
	}
	if len(body) == 0 {
		return nil, nil, invalid("missing required 'query' value")
	}
	free, err := c.api.engine.Room(c.r.Context(), len(ask.Input))
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			free()
		}
	}()
	input, err := inputOf(ask.Input)
	if err != nil {
		return nil, nil, err
	}
	q = p.query(body, input, m)
	q.DisableInlining, q.Nondeterministic = ask.Options.DisableInlining, ask.Options.NondeterministicBuiltins
	if ask.Unknowns != nil {
		q.Unknowns = make([]*ast.Term, len(*ask.Unknowns))
		for i, text := range *ask.Unknowns {
			if q.Unknowns[i], err = ast.ParseTerm(text); err != nil {
				return nil, nil, invalid("error(s) occurred while parsing unknowns: %v", err)
			}
		}
	}
	return q, free, nil
}
