package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

var outputs = []string{"table", "wide", "json", "yaml", "name"}

// outputFlag gives a command -o.
func (a *app) outputFlag(c *cobra.Command) {
	a.output = ""
	c.Flags().VarP((*format)(&a.output), "output", "o", "how to print: "+strings.Join(outputs, ", ")+" (default table)")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
}

// format is the value of -o.
type format string

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }
func (f *format) Set(s string) error {
	if !slices.Contains(outputs, s) {
		return fmt.Errorf("it is one of %s", strings.Join(outputs, ", "))
	}
	*f = format(s)
	return nil
}

// table is what a person reads. Columns from wideFrom on are for -o wide only;
// 0: there are none such.
type table struct {
	head     []string
	rows     [][]string
	wideFrom int
	names    []string // what -o name prints, one per row
}

// show prints a value in the form asked for. v is anything JSON can hold.
func (a *app) show(v any, human func() table) error {
	switch a.output {
	case "json", "yaml":
		b, err := json.Marshal(v, json.Deterministic(true))
		if err != nil {
			return err
		}
		return a.raw(b)
	case "name":
		for _, n := range human().names {
			fmt.Fprintln(a.out, n)
		}
		return nil
	}
	t := human()
	w := tabwriter.NewWriter(a.out, 0, 8, 3, ' ', 0)
	rows := t.rows
	if len(t.head) > 0 {
		rows = slices.Insert(slices.Clone(rows), 0, t.head)
	}
	for _, r := range rows {
		if t.wideFrom > 0 && a.output != "wide" {
			r = r[:t.wideFrom]
		}
		fmt.Fprintln(w, strings.Join(clean(r), "\t"))
	}
	return w.Flush()
}

// raw prints JSON as indented JSON or as YAML, in the order it has.
func (a *app) raw(b []byte) error {
	if a.output == "yaml" {
		out, err := toYAML(b)
		if err != nil {
			return err
		}
		_, err = a.out.Write(out)
		return err
	}
	v := jsontext.Value(bytes.Clone(b))
	if err := v.Indent(jsontext.WithIndent("  ")); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.out, "%s\n", v)
	return err
}

// toYAML relies on JSON being YAML: it only changes the style.
func toYAML(b []byte) ([]byte, error) {
	var n yaml.Node
	if err := yaml.Unmarshal(b, &n); err != nil {
		return nil, err
	}
	block(&n)
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(&n); err != nil {
		return nil, err
	}
	return out.Bytes(), e.Close()
}

func block(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		n.Style = 0 // the encoder quotes what needs it
	}
	for _, c := range n.Content {
		block(c)
	}
}

// clean keeps what others have stored from steering the terminal.
func clean(cells []string) []string {
	out := make([]string, len(cells))
	for i, s := range cells {
		out[i] = strings.Map(func(r rune) rune {
			if r < 0x20 || r >= 0x7f && r < 0xa0 {
				return '�'
			}
			return r
		}, s)
		if s == "" {
			out[i] = "-"
		}
	}
	return out
}
