package opa

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/server/types"
	"github.com/open-policy-agent/opa/v1/version"

	"github.com/muster-registry/muster/policy/rego"
)

// postData answers with a document for the input in the body.
func postData(c *call) error {
	p := c.params()
	body, err := c.readInput()
	if err != nil {
		return err
	}
	return c.data(&p, &rego.Ask{Path: c.path(), Body: body, Strict: p.strictly})
}

// getData is postData with the input, if any, among the parameters.
func getData(c *call) error {
	p := c.params()
	ask := &rego.Ask{Path: c.path(), Strict: p.strictly}
	if input, ok := p.last(types.ParamInputV1); ok {
		if ask.Body, ask.Envelope = []byte(input), rego.Bare; input == "" {
			return invalid("parameter contains malformed input document: it is empty")
		}
	}
	return c.data(&p, ask)
}

func (c *call) data(p *params, ask *rego.Ask) error {
	if p.looked() {
		return c.lookedAt(p, ask)
	}
	id := rego.NewID()
	a, err := c.ask(id, ask)
	if err != nil {
		return failed("", err)
	}
	missing := a.Input == nil && c.r.Method == http.MethodPost
	if p.pretty || p.provenance {
		answer := types.DataResponseV1{DecisionID: id, Result: result(a.Result)}
		c.complete(&answer, p, missing)
		return c.ok(answer, p.pretty)
	}
	b := make([]byte, 0, len(a.Result)+160)
	b = append(append(append(b, `{"decision_id":"`...), id...), '"')
	if a.Result != nil {
		b = append(append(b, `,"result":`...), a.Result...)
	}
	if missing {
		b = append(b, missingInput...)
	}
	c.send(http.StatusOK, append(b, "}\n"...))
	return nil
}

const missingInput = `,"warning":{"code":"` + types.CodeAPIUsageWarn + `","message":"` + types.MsgInputKeyMissing + `"}`

// lookedAt answers by an evaluation that is looked at: explained or measured.
func (c *call) lookedAt(p *params, ask *rego.Ask) error {
	m := metrics.New()
	m.Timer(metrics.ServerHandler).Start()
	ref, err := rego.DataRef(ask.Path)
	if err != nil {
		return err
	}
	body, err := ast.ParseBody(ref.String()) // for the places in it
	if err != nil {
		return invalid("invalid path: %s", ask.Path)
	}
	release, err := c.api.engine.Room(c.r.Context(), len(ask.Body))
	if err != nil {
		return err
	}
	defer release()
	m.Timer(metrics.RegoInputParse).Start()
	input, raw, err := ask.Envelope.Open(ask.Body)
	if err != nil {
		return err
	}
	m.Timer(metrics.RegoInputParse).Stop()
	id, began := rego.NewID(), time.Now()
	found, err := c.api.engine.Query(c.r.Context(), c.state.Policy.Active(), p.query(body, input, m))
	m.Timer(metrics.ServerHandler).Stop()
	a := &rego.Answer{Input: raw, Name: ref.String()}
	var value *any
	if err == nil && len(found.Results) > 0 {
		value = &found.Results[0].Expressions[0].Value
		if a.Result, err = json.Marshal(*value); err != nil {
			return err
		}
		a.Yes = string(a.Result) != "false"
	}
	c.tell(id, question(ask, a, err), a, err, began)
	if err != nil {
		return failed("", err)
	}
	answer := types.DataResponseV1{DecisionID: id, Result: value}
	if p.measured() {
		answer.Metrics = m.All()
	}
	if value != nil || p.explain == types.ExplainFullV1 { // as OPA has it
		if answer.Explanation, err = p.explanation(found.Trace); err != nil {
			return err
		}
	}
	c.complete(&answer, p, raw == nil && c.r.Method == http.MethodPost)
	return c.ok(answer, p.pretty)
}

func (c *call) complete(answer *types.DataResponseV1, p *params, missing bool) {
	if missing {
		answer.Warning = types.NewWarning(types.CodeAPIUsageWarn, types.MsgInputKeyMissing)
	}
	if p.provenance {
		answer.Provenance = c.provenance()
	}
}

// provenance names the engine, and the revision as a bundle would be.
func (c *call) provenance() *types.ProvenanceV1 {
	p := &types.ProvenanceV1{Version: version.Version, Vcs: version.Vcs, Timestamp: version.Timestamp, Hostname: version.Hostname,
		Bundles: map[string]types.ProvenanceBundleV1{}}
	if n := c.revision(); n > 0 {
		p.Bundles[bundleName] = types.ProvenanceBundleV1{Revision: strconv.FormatUint(n, 10)}
	}
	return p
}

// bundleName is what the active revision is called where OPA names bundles.
const bundleName = "muster"

// result is an encoded document for an answer; nil where it is undefined.
func result(document []byte) *any {
	if document == nil {
		return nil
	}
	var x any = json.RawMessage(document)
	return &x
}

// postDataV0 takes a body that is the input, and answers with the document
// itself: what webhooks speak.
func postDataV0(c *call) error { return c.bare(&rego.Ask{Path: c.path()}) }

// postMain is postDataV0 for the document that the revision has made its main.
func postMain(c *call) error { return c.bare(&rego.Ask{Main: true}) }

func (c *call) bare(ask *rego.Ask) error {
	body, err := c.readInput()
	if err != nil {
		return err
	}
	ask.Body, ask.Envelope = body, rego.Bare
	a, err := c.ask(rego.NewID(), ask)
	if err != nil {
		return failed("", err)
	}
	if a.Result == nil {
		what := types.MsgMissingError
		if a.Ruled {
			what = types.MsgFoundUndefinedError
		}
		return &refusal{http.StatusNotFound, types.NewErrorV1(types.CodeUndefinedDocument, "%v: %v", what, a.Name)}
	}
	var b bytes.Buffer
	b.Write(a.Result)
	if p := c.params(); p.pretty {
		b.Reset()
		if err := json.Indent(&b, a.Result, "", "  "); err != nil {
			return err
		}
	}
	b.WriteByte('\n')
	c.send(http.StatusOK, b.Bytes())
	return nil
}
