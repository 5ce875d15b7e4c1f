package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

// schemaReport says which records would not meet a schema, as the cluster
// answers it.
type schemaReport struct {
	Checked  int `json:"checked"`
	Failing  int `json:"failing"`
	Failures []struct {
		Namespace string        `json:"namespace"`
		Service   string        `json:"service"`
		Name      string        `json:"name"`
		Message   string        `json:"message"`
		Errors    []fault.Field `json:"errors"`
	} `json:"failures"`
}

// checkSchemas tries schemas out: nothing is stored. The exit code is 1 when
// there are records that would not meet them.
func (a *app) checkSchemas(ctx context.Context, c *client.Client, ms []*manifest) error {
	for _, m := range ms {
		if m.ref().Kind != client.Schema {
			return usage("%s (%s): only schemas can be tried out by --check", m.label(), m.origin)
		}
	}
	answers := make([]jsontext.Value, 0, len(ms))
	t := table{head: []string{"SCHEMA", "RECORD", "AT", "PROBLEM"}}
	failing := 0
	for _, m := range ms {
		answer, err := c.CheckSchema(ctx, m.ref(), m.Spec)
		if err != nil {
			return fmt.Errorf("%s: %w", m.origin, err)
		}
		var r schemaReport
		if err := json.Unmarshal(answer, &r); err != nil {
			return err
		}
		answers, failing = append(answers, answer), failing+r.Failing
		label := m.ref().Namespace + "/" + m.ref().Name
		for _, f := range r.Failures {
			record := strings.TrimSuffix(f.Namespace+"/"+f.Service+"/"+f.Name, "/")
			for _, e := range f.Errors {
				t.rows = append(t.rows, []string{label, record, e.Pointer, e.Message})
			}
			t.names = append(t.names, record)
		}
		a.say("schema %s: %s checked, %d would not meet it", label, count(r.Checked, "record"), r.Failing)
		if more := r.Failing - len(r.Failures); more > 0 {
			a.say("schema %s: %d more are not listed", label, more)
		}
	}
	var v any = map[string]any{"items": answers}
	if len(answers) == 1 {
		v = answers[0]
	}
	if err := a.show(v, func() table { return t }); err != nil {
		return err
	}
	if failing > 0 {
		return silent(exitError)
	}
	return nil
}
