package opa

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	regoapi "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/server/types"

	"github.com/muster-registry/muster/policy"
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
	return c.query(&p, q, nil, nil)
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
	return c.query(&p, ask.Query, ask.Input, input)
}

// inputOf reads an input within a request; null is none.
func inputOf(b []byte) (ast.Value, error) {
	if len(b) == 0 || string(b) == "null" {
		return nil, nil
	}
	return rego.InputJSON(b)
}

// query answers a query in Rego; raw is its input as it was sent.
func (c *call) query(p *params, text string, raw []byte, input ast.Value) error {
	m := metrics.New()
	m.Timer(metrics.ServerHandler).Start()
	body, err := rego.ParseQuery(text, ast.ParserOptions{})
	if err != nil {
		return uncompiled(types.CodeInvalidParameter, types.MsgParseQueryError, err)
	}
	began := time.Now()
	found, err := c.api.engine.Query(c.r.Context(), c.state.Policy.Active(), p.query(body, input, m))
	m.Timer(metrics.ServerHandler).Stop()
	var answer types.QueryResponseV1
	yes := false
	if err == nil {
		for _, r := range found.Results {
			answer.Result = append(answer.Result, r.Bindings.WithoutWildcards())
			// A comparison that does not hold is an answer, which says false.
			yes = yes || !slices.ContainsFunc(r.Expressions, func(x *regoapi.ExpressionValue) bool { return x.Value == false })
		}
	}
	if err := c.queried(policy.Question{Entrypoint: policy.Query, Query: text, Raw: raw}, yes, answer.Result, err, began); err != nil {
		return failed(types.MsgCompileQueryError, err)
	}
	if p.measured() {
		answer.Metrics = m.All()
	}
	if answer.Explanation, err = p.explanation(found.Trace); err != nil {
		return err
	}
	return c.ok(answer, p.pretty)
}

// queried tells of what became of a query: yes where it holds. The error is the query's own, or says that the result cannot be written.
func (c *call) queried(q policy.Question, yes bool, result any, err error, began time.Time) error {
	a := &rego.Answer{Yes: yes, Name: "the query", Input: q.Raw}
	if err == nil {
		if a.Result, err = json.Marshal(result); err != nil {
			return err
		}
		if string(a.Result) == "null" {
			a.Result = nil
		}
	}
	if string(q.Raw) == "null" {
		q.Raw = nil
	}
	c.tell(rego.NewID(), q, a, err, began)
	return err
}

// postCompile evaluates as far as that is possible without what is unknown.
func postCompile(c *call) error {
	p := c.params()
	m := metrics.New()
	m.Timer(metrics.ServerHandler).Start()
	m.Timer(metrics.RegoQueryParse).Start()
	asked, q, release, err := c.compileRequest(&p, m)
	if err != nil {
		return err
	}
	defer release()
	m.Timer(metrics.RegoQueryParse).Stop()
	began := time.Now()
	found, err := c.api.engine.Partial(c.r.Context(), c.state.Policy.Active(), q)
	m.Timer(metrics.ServerHandler).Stop()
	var parts any
	if err == nil {
		parts = types.PartialEvaluationResultV1{Queries: found.Partial.Queries, Support: found.Partial.Support}
	}
	// Without a query that is left, the answer is no whatever the unknowns are.
	if err := c.queried(asked, err == nil && len(found.Partial.Queries) > 0, parts, err, began); err != nil {
		return failed(types.MsgCompileModuleError, err)
	}
	answer := types.CompileResponseV1{Result: &parts}
	if p.measured() {
		answer.Metrics = m.All()
	}
	if answer.Explanation, err = p.explanation(found.Trace); err != nil {
		return err
	}
	return c.ok(answer, p.pretty)
}

// compileRequest reads the body: what is on record of it, and what is asked.
// Release is to be called when it is answered.
func (c *call) compileRequest(p *params, m metrics.Metrics) (asked policy.Question, q *rego.Query, release func(), err error) {
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
		return asked, nil, nil, err
	}
	texts := append([]string{ask.Query}, ask.Options.DisableInlining...)
	if ask.Unknowns != nil {
		texts = append(texts, *ask.Unknowns...)
	}
	if err := rego.QueryText(texts...); err != nil {
		return asked, nil, nil, err
	}
	body, err := rego.ParseQuery(ask.Query, ast.ParserOptions{})
	if err != nil {
		return asked, nil, nil, uncompiled(types.CodeInvalidParameter, types.MsgParseQueryError, err)
	}
	if len(body) == 0 {
		return asked, nil, nil, invalid("missing required 'query' value")
	}
	free, err := c.api.engine.Room(c.r.Context(), len(ask.Input))
	if err != nil {
		return asked, nil, nil, err
	}
	defer func() {
		if err != nil {
			free()
		}
	}()
	input, err := inputOf(ask.Input)
	if err != nil {
		return asked, nil, nil, err
	}
	q = p.query(body, input, m)
	q.DisableInlining, q.Nondeterministic = ask.Options.DisableInlining, ask.Options.NondeterministicBuiltins
	if ask.Unknowns != nil {
		q.Unknowns = make([]*ast.Term, len(*ask.Unknowns))
		for i, text := range *ask.Unknowns {
			if q.Unknowns[i], err = ast.ParseTerm(text); err != nil {
				return asked, nil, nil, invalid("error(s) occurred while parsing unknowns: %v", err)
			}
		}
	}
	return policy.Question{Entrypoint: policy.Partial, Query: ask.Query, Raw: ask.Input}, q, free, nil
}
