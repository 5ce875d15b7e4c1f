package opa

import (
	"net/url"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/server/types"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/lineage"

	"github.com/muster-registry/muster/policy/rego"
)

// params are what a caller may ask for beside the answer.
type params struct {
	values                                            url.Values
	pretty, metrics, instrument, provenance, strictly bool
	explain                                           types.ExplainModeV1
}

// params reads the query part of the URL; what cannot be read is left out, as
// in OPA.
func (c *call) params() params {
	if c.r.URL.RawQuery == "" {
		return params{explain: types.ExplainOffV1}
	}
	v := c.r.URL.Query()
	return params{
		values: v,
		pretty: flag(v, types.ParamPrettyV1), metrics: flag(v, types.ParamMetricsV1), instrument: flag(v, types.ParamInstrumentV1),
		provenance: flag(v, types.ParamProvenanceV1), strictly: flag(v, types.ParamStrictBuiltinErrors),
		explain: explainMode(v[types.ParamExplainV1]),
	}
}

// flag is set by its name alone, and by true.
func flag(v url.Values, name string) bool {
	given := v[name]
	if len(given) == 1 && given[0] == "" {
		return true
	}
	for _, x := range given {
		if strings.EqualFold(x, "true") {
			return true
		}
	}
	return false
}

func explainMode(given []string) types.ExplainModeV1 {
	for _, x := range given {
		switch mode := types.ExplainModeV1(x); mode {
		case types.ExplainNotesV1, types.ExplainFailsV1, types.ExplainFullV1, types.ExplainDebugV1:
			return mode
		}
	}
	return types.ExplainOffV1
}

// last gives the last value of a parameter, as OPA takes it.
func (p *params) last(name string) (string, bool) {
	given := p.values[name]
	if len(given) == 0 {
		return "", false
	}
	return given[len(given)-1], true
}

// measured says whether figures are part of the answer.
func (p *params) measured() bool { return p.metrics || p.instrument }

// looked says whether the evaluation itself is to be looked at, so that it
// cannot come from a cache.
func (p *params) looked() bool { return p.measured() || p.explain != types.ExplainOffV1 }

// query is a question with these parameters.
func (p *params) query(body ast.Body, input ast.Value, m metrics.Metrics) *rego.Query {
	return &rego.Query{
		Body: body, Input: input, Strict: p.strictly, Explain: p.explain != types.ExplainOffV1, Instrument: p.instrument, Metrics: m,
	}
}

// explanation is the trace in the form that was asked for; nil: none was.
func (p *params) explanation(trace []*topdown.Event) (types.TraceV1, error) {
	switch p.explain {
	case types.ExplainNotesV1:
		trace = lineage.Notes(trace)
	case types.ExplainFailsV1:
		trace = lineage.Fails(trace)
	case types.ExplainFullV1:
		trace = lineage.Full(trace)
	case types.ExplainDebugV1:
		trace = lineage.Debug(trace)
	default:
		return nil, nil
	}
	return types.NewTraceV1(trace, p.pretty)
}
