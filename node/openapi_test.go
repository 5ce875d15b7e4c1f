package node_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/muster-registry/muster/api/consul"
)

// /openapi.json describes Consul's calls too, all of them, and what they answer
// is as it says.
func TestOpenAPIDescribesConsulsCalls(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	e.ok(t, 0, "PUT", "/v1/agent/service/register", `{"ID":"web-1","Name":"web","Address":"10.0.0.1","Port":8080,"Tags":["a"],"Meta":{"env":"x"},
		"TaggedAddresses":{"wan":{"Address":"192.0.2.1","Port":80}},"Check":{"TTL":"1h","Status":"passing"}}`)
	doc, err := openapi3.NewLoader().LoadFromData(e.ok(t, 0, "GET", "/openapi.json", "").body)
	must(t, err)
	must(t, doc.Validate(t.Context()))
	answers := 0
	names := strings.NewReplacer("{service}", "web", "{node}", tr.nodes[0].id, "{state}", "any")
	for _, r := range consul.Table() {
		path := strings.ReplaceAll(r.Path, "...}", "}")
		item := doc.Paths.Value(path)
		if item == nil || item.GetOperation(r.Method) == nil {
			t.Errorf("%s %s is not described", r.Method, path)
			continue
		}
		op := item.GetOperation(r.Method)
		if op.OperationID != r.ID || len(op.Tags) != 1 || op.Tags[0] != "consul" || op.Summary == "" {
			t.Errorf("%s %s is described as %s, %q %q", r.Method, path, op.OperationID, op.Tags, op.Summary)
		}
		if r.Method != "GET" {
			continue
		}
		id := "web-1"
		if strings.Contains(path, "/check") {
			id = "service:web-1"
		}
		var v any
		must(t, json.Unmarshal(e.ok(t, 0, "GET", strings.ReplaceAll(names.Replace(path), "{id}", id), "").body, &v))
		if err := op.Responses.Value("200").Value.Content.Get("application/json").Schema.Value.VisitJSON(v); err != nil {
			t.Errorf("%s answers otherwise than it is described: %v", path, err)
		}
		// Nothing that it answers is left out of the description.
		if left := beyond(op.Responses.Value("200").Value.Content.Get("application/json").Schema.Value, v); left != "" {
			t.Errorf("%s answers with %s, which is not described", path, left)
		}
		answers++
	}
	if answers < 15 {
		t.Errorf("only %d answers were compared", answers)
	}
}

// beyond finds a member of a value that its schema does not name.
func beyond(s *openapi3.Schema, v any) string {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			if left := beyond(s.Items.Value, one); left != "" {
				return left
			}
		}
	case map[string]any:
		for name, one := range v {
			of := s.Properties[name]
			if of == nil {
				of = s.AdditionalProperties.Schema
			}
			if of == nil {
				return name
			}
			if left := beyond(of.Value, one); left != "" {
				return name + "/" + left
			}
		}
	}
	return ""
}
