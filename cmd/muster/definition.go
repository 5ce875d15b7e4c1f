package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego/library"
	"github.com/muster-registry/muster/registry/definition"
)

// offline is how long the rules may take over one file: nobody else waits.
const offline = time.Minute

func (a *app) definition() *cobra.Command {
	return group("definition", "Check API definitions", a.definitionCheck())
}

// checked is what definition check says of one file.
type checked struct {
	File     string               `json:"file"`
	Format   string               `json:"format"`
	Counts   map[string]int       `json:"finding_counts,omitempty"`
	Findings []definition.Finding `json:"findings"`
}

func (a *app) definitionCheck() *cobra.Command {
	var form, fail string
	var policies []string
	c := &cobra.Command{
		Use: "check FILE…", Short: "Check OpenAPI, Swagger and AsyncAPI documents by the built-in rules, without a cluster",
		Long: "Check OpenAPI, Swagger and AsyncAPI documents as a cluster would when they are registered:\nwhat it would refuse, and what the built-in rules find (muster policy library lists them).\nExit code 1 where something of the severity given by --fail, or worse, is found.",
		Args: cobra.MinimumNArgs(1),
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			worst := slices.Index(definition.Severities, fail)
			if worst < 0 && fail != "none" {
				return usage("--fail %s: it is one of %s, none", fail, strings.Join(definition.Severities, ", "))
			}
			rules, err := library.New(library.Options{Limit: offline})
			if err != nil {
				return err
			}
			var settings *policy.Revision
			if len(policies) > 0 {
				content, _, err := a.sources(policies)
				if err != nil {
					return err
				}
				settings = &policy.Revision{Content: *content, Digest: content.Digest()}
			}
			failed := false
			all := []checked{}
			for _, name := range args {
				document, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				r := checked{File: name, Format: definition.FormatOf(document)}
				if _, err := definition.Parse(r.Format, document); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				review := rules.Review(cmd.Context(), settings, r.Format, document, nil)
				r.Counts, r.Findings = review.Counts, review.Findings
				failed = failed || review.Counts == nil
				for i, s := range definition.Severities {
					failed = failed || i <= worst && review.Counts[s] > 0
				}
				all = append(all, r)
			}
			if form == "json" {
				err = a.json(all)
			} else {
				err = a.findings(all)
			}
			if err == nil && failed {
				return silent(exitError)
			}
			return err
		}),
	}
	formatFlag(c, &form, "text", "json")
	c.Flags().StringVar(&fail, "fail", "high", "least severity that fails: high, medium, low, info, or none")
	c.Flags().StringSliceVar(&policies, "policy", nil, "policies whose data changes severities and leaves rules out, as policy push takes them")
	return c
}

// findings prints what was found, a line each.
func (a *app) findings(all []checked) error {
	for _, r := range all {
		for _, f := range r.Findings {
			fmt.Fprintln(a.out, clean([]string{fmt.Sprintf("%s#%s: %s: %s (%s)", r.File, f.Path, f.Severity, f.Message, f.Rule)})[0])
		}
		if r.Counts == nil {
			fmt.Fprintf(a.out, "%s: not checked\n", r.File)
			continue
		}
		sums := []string{}
		for _, s := range definition.Severities {
			sums = append(sums, strconv.Itoa(r.Counts[s])+" "+s)
		}
		if _, err := fmt.Fprintf(a.out, "%s: %s\n", r.File, strings.Join(sums, ", ")); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) policyLibrary() *cobra.Command {
	var export string
	c := &cobra.Command{
		Use: "library", Short: "List the built-in rules about API definitions, or write their Rego to a folder", Args: cobra.NoArgs,
		RunE: a.do(func(*cobra.Command, []string) error {
			if export != "" {
				return a.exportLibrary(export)
			}
			rules, err := library.New(library.Options{})
			if err != nil {
				return err
			}
			return a.show(rules.Rules(), func() table {
				t := table{head: []string{"RULE", "SEVERITY", "OWASP", "NIST", "TITLE"}}
				for _, r := range rules.Rules() {
					t.rows = append(t.rows, []string{r.ID, r.Severity, r.OWASP, r.NIST, r.Title})
					t.names = append(t.names, r.ID)
				}
				return t
			})
		}),
	}
	c.Flags().StringVar(&export, "export", "", "folder to write the Rego modules to, for reading and testing")
	a.outputFlag(c)
	return c
}

// exportLibrary writes the modules into a folder; a file that is there already
// is not touched.
func (a *app) exportLibrary(folder string) error {
	modules, err := library.Modules()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, name := range sorted(modules) {
		f, err := os.OpenFile(filepath.Join(folder, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		if _, err := f.WriteString(modules[name]); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(a.out, "%s written to %s\n", count(len(modules), "module"), folder)
	return err
}
