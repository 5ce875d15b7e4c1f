package main

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/registry"
)

// describeChecks prints what is known of an instance's checks, one a line.
func (a *app) describeChecks(record []byte) error {
	var in registry.Instance
	if err := json.Unmarshal(record, &in); err != nil {
		return fmt.Errorf("the instance cannot be read: %w", err)
	}
	t := table{head: []string{"CHECK", "TYPE", "STATUS", "FOR", "OUTPUT"}}
	for _, c := range in.Checks {
		row := []string{c.ID, c.Type, "", "", ""}
		for _, s := range in.States {
			if s.ID == c.ID {
				row = []string{c.ID, c.Type, s.Status, time.Since(s.ChangedAt).Round(time.Second).String(), printable(s.Output)}
			}
		}
		t.rows, t.names = append(t.rows, row), append(t.names, c.ID)
	}
	fmt.Fprintf(a.out, "\n%s\n", count(len(in.Checks), "check"))
	if len(in.Checks) == 0 {
		return nil
	}
	states, err := json.Marshal(in.States)
	if err != nil {
		return err
	}
	return a.show(jsontext.Value(states), func() table { return t })
}

// printable makes text that came from outside fit to print in a table: whatever
// steers a terminal is left out.
func printable(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) && !unicode.IsSpace(r) {
			return -1
		}
		return r
	}, s)), " ")
	const most = 120
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return s
}
