package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
	"github.com/muster-registry/muster/registry/definition"
)

func (a *app) policyEval() *cobra.Command {
	var input string
	var standard bool
	var bundles []string
	var local localEval
	c := &cobra.Command{
		Use: "eval [-d FILE|DIR…] [-i INPUT] [QUERY]", Short: "Ask for a decision on an input document: the active policy, or policies in files", Args: cobra.MaximumNArgs(1),
		Long: `Ask for a decision on an input document. Without -d the active policy of the
cluster is asked; with it, policies in files, without a cluster. A query in Rego
is evaluated as it stands; otherwise the decision of an entry point is printed,
and a refusal is an answer too, with exit code 0.`,
		Example: "  muster policy eval -i input.json\n  muster policy eval -d policies -i input.json --explain data.api.registry.authz.allow",
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				local.query = args[0]
			}
			local.data = append(local.data, bundles...)
			offline := len(local.data) > 0
			if standard {
				input = "-"
			}
			switch {
			case !slices.Contains(evalFormats, local.form):
				return usage("--format %s: it is one of %s", local.form, strings.Join(evalFormats, ", "))
			case local.form != evalFormats[0] && local.query == "":
				return usage("--format is about the results of a query: give one")
			case !offline && (local.query != "" || local.explain || local.fail || local.defined):
				return usage("a query, --explain and --fail need policies from files: name them with -d")
			case local.query != "" && local.entrypoint != "":
				return usage("give a query or --entrypoint, not both")
			case local.query == "" && (local.fail || local.defined):
				return usage("--fail and --fail-defined are about a query: give one")
			case input == "" && local.query == "":
				return usage("name the file with the input document, or - for standard input, with -i")
			}
			document, err := a.inputDocument(input)
			if err != nil {
				return err
			}
			if offline {
				return a.evalLocally(cmd.Context(), local, document)
			}
			ask := map[string]any{"input": jsontext.Value(document)}
			if local.entrypoint != "" {
				ask["entrypoint"] = local.entrypoint
			}
			b, err := json.Marshal(ask)
			if err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			answer, err := c.Authorize(cmd.Context(), b)
			if err != nil {
				return err
			}
			return a.raw(answer)
		}),
	}
	f := c.Flags()
	f.StringVarP(&input, "input", "i", "", "file with the input document, or - for standard input")
	f.BoolVarP(&standard, "stdin-input", "I", false, "read the input document from standard input")
	f.StringVarP(&local.form, "format", "f", evalFormats[0], "how to print what a query gives: "+strings.Join(evalFormats, ", "))
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(evalFormats, cobra.ShellCompDirectiveNoFileComp))
	f.StringVar(&local.entrypoint, "entrypoint", "", "package to ask, such as api/registry/authz; else the input's action selects it")
	f.StringArrayVarP(&local.data, "data", "d", nil, "Rego files, data, folders or one bundle to evaluate; may be repeated")
	f.StringArrayVarP(&bundles, "bundle", "b", nil, "the same as --data")
	f.BoolVar(&local.explain, "explain", false, "print each step of the evaluation on standard error")
	f.BoolVar(&local.fail, "fail", false, "exit with 1 where the query is undefined")
	f.BoolVar(&local.defined, "fail-defined", false, "exit with 1 where the query is defined")
	c.MarkFlagsMutuallyExclusive("input", "stdin-input")
	a.outputFlag(c)
	return c
}

// inputDocument reads the one document in a file as JSON; nil: no file is named.
func (a *app) inputDocument(name string) ([]byte, error) {
	var b []byte
	var err error
	switch name {
	case "":
		return nil, nil
	case "-":
		b, err = io.ReadAll(a.in)
	default:
		b, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, err
	}
	docs, err := documents(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(docs) != 1 {
		return nil, fmt.Errorf("%s: one input document is needed, there are %d", name, len(docs))
	}
	return docs[0], nil
}

// localEval evaluates policies from files.
type localEval struct {
	data          []string
	query         string // empty: a decision by the entry point is asked for
	form          string // of what a query gives, one of evalFormats
	entrypoint    string
	explain       bool
	fail, defined bool
}

func (a *app) evalLocally(ctx context.Context, l localEval, input []byte) error {
	c, _, err := a.sources(l.data)
	if err != nil {
		return err
	}
	engine := rego.New(rego.Options{ValidSchema: definition.Valid})
	defer engine.Close()
	rev := &policy.Revision{Digest: c.Digest(), Content: *c}
	if err := engine.Prepare(ctx, rev); err != nil {
		return err
	}
	if l.query == "" && !l.explain {
		d, err := engine.DecideRaw(ctx, rev, l.entrypoint, input)
		if err != nil {
			return err
		}
		reasons := d.Reasons
		if reasons == nil {
			reasons = []string{}
		}
		return a.json(struct {
			Allow    bool           `json:"allow"`
			Reasons  []string       `json:"reasons"`
			Filtered jsontext.Value `json:"filtered,omitzero"`
		}{d.Allow, reasons, d.Filtered})
	}
	query := l.query
	if query == "" {
		if query, err = entryQuery(c, l.entrypoint, input); err != nil {
			return err
		}
	}
	v, err := engine.Eval(ctx, rev, query, input, l.explain)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(a.err, v.Steps); err != nil {
		return err
	}
	if err := a.results(l.form, v.Result); err != nil {
		return err
	}
	if (l.fail && !v.Defined) || (l.defined && v.Defined) {
		return silent(exitError)
	}
	return nil
}

// entryQuery asks for all that an entry point says.
func entryQuery(c *policy.Content, entrypoint string, input []byte) (string, error) {
	var of struct {
		Action policy.Action `json:"action"`
	}
	if entrypoint == "" {
		if len(input) > 0 {
			if err := json.Unmarshal(input, &of); err != nil {
				return "", fmt.Errorf("the input's action cannot be read: %w", err)
			}
		}
		entrypoint = c.EntryPoints.For(of.Action)
	}
	path, err := policy.EntryPoint(entrypoint)
	return "data." + strings.ReplaceAll(path, "/", "."), err
}

// evalFormats are the forms of a query's results, as users of opa eval know
// them.
var evalFormats = []string{"json", "values", "pretty", "raw", "discard"}

// results prints what a query gave.
func (a *app) results(form string, b jsontext.Value) error {
	if form == "discard" {
		return nil
	}
	if form == "json" || form == "" {
		return a.raw(b)
	}
	var got struct {
		Result []struct {
			Expressions []struct {
				Value jsontext.Value `json:"value"`
			} `json:"expressions"`
		} `json:"result"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		return err
	}
	if len(got.Result) == 0 && form == "pretty" {
		_, err := fmt.Fprintln(a.out, "undefined")
		return err
	}
	for _, r := range got.Result {
		values := make([]jsontext.Value, 0, len(r.Expressions))
		for _, e := range r.Expressions {
			values = append(values, e.Value)
		}
		if err := a.values(form, values); err != nil {
			return err
		}
	}
	return nil
}

// values prints one result: an array of its values, each by itself, or all in
// one line with texts as they are.
func (a *app) values(form string, values []jsontext.Value) error {
	switch form {
	case "values":
		return a.json(values)
	case "pretty":
		for _, v := range values {
			if err := a.raw(v); err != nil {
				return err
			}
		}
		return nil
	}
	line := make([]string, 0, len(values))
	for _, v := range values {
		text := string(v)
		if v.Kind() == '"' {
			if err := json.Unmarshal(v, &text); err != nil {
				return err
			}
		}
		line = append(line, text)
	}
	_, err := fmt.Fprintln(a.out, strings.Join(line, " "))
	return err
}
