package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
	"github.com/muster-registry/muster/registry/definition"
)

// maxBundle is how much a bundle may hold unpacked, as nodes have it by default.
const maxBundle = 16 << 20

// bundles says whether a file is one.
func isBundle(name string) bool {
	return strings.HasSuffix(name, ".tar.gz") || strings.HasSuffix(name, ".tgz")
}

// sources reads policies as a push would send them: Rego files, folders and
// data, or one bundle. Files gives for each module the file it came from.
func (a *app) sources(names []string) (c *policy.Content, files map[string]string, err error) {
	if slices.ContainsFunc(names, isBundle) {
		if len(names) > 1 {
			return nil, nil, usage("name one bundle, or files and folders")
		}
		b, err := os.ReadFile(names[0])
		if err != nil {
			return nil, nil, err
		}
		push, err := rego.ReadBundle(b, maxBundle)
		if err != nil {
			return nil, nil, err
		}
		return &push.Content, nil, nil
	}
	body, files, err := content(names, "")
	if err != nil {
		return nil, nil, err
	}
	c, err = policy.ParseContent(body)
	return c, files, err
}

// formatFlag gives a command --format, the first of the choices by default.
func formatFlag(c *cobra.Command, value *string, choices ...string) {
	c.Flags().StringVar(value, "format", choices[0], "how to print: "+strings.Join(choices, ", "))
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp))
	c.PreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains(choices, *value) {
			return fmt.Errorf("--format %s: it is one of %s", *value, strings.Join(choices, ", "))
		}
		return nil
	}
}

func coverageFlag(c *cobra.Command, value *float64) {
	c.Flags().Float64Var(value, "min-coverage", 0, "fail where the tests evaluate less than this percentage of the lines")
}

func (a *app) policyCheck() *cobra.Command {
	var form string
	var least float64
	c := &cobra.Command{
		Use: "check FILE|DIR…", Short: "Compile policies, run their tests and look for mistakes, without a cluster",
		Long: "Compile policies as a node would, run their tests and look for mistakes, without a\ncluster. Exit code 1 where a finding is of severity error; a push would be refused.",
		Args: cobra.MinimumNArgs(1),
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			c, files, err := a.sources(args)
			if err != nil {
				return err
			}
			engine := rego.New(rego.Options{ValidSchema: definition.Valid, MinCoverage: least})
			defer engine.Close()
			report, refused := engine.Check(cmd.Context(), c)
			if refused != nil && !fault.Is(refused, fault.InvalidPolicy) {
				return refused
			}
			if err := a.report(form, c, report, files); err != nil {
				return err
			}
			if refused != nil {
				f := fault.From(refused) // its places have been printed
				return fmt.Errorf("%s: %s", f.Code, f.Detail)
			}
			return nil
		}),
	}
	formatFlag(c, &form, "text", "json", "sarif")
	coverageFlag(c, &least)
	return c
}

// report prints what checking found. Places are those of the files read.
func (a *app) report(form string, c *policy.Content, r policy.Report, files map[string]string) error {
	for i, f := range r.Findings {
		r.Findings[i].File = onDisk(files, f.File)
	}
	switch form {
	case "sarif":
		return a.json(sarif(r.Findings))
	case "json":
		return a.json(r)
	}
	printFindings(a.out, r.Findings)
	covered := ""
	if r.Coverage != nil {
		covered = fmt.Sprintf(", %.1f %% covered", r.Coverage.Percent)
	}
	_, err := fmt.Fprintf(a.out, "%s, %s passed, %d failed%s, %s\n", count(len(c.Modules), "module"), count(r.Tests.Passed, "test"), r.Tests.Failed, covered, count(len(r.Findings), "finding"))
	return err
}

// printFindings prints each finding with its place and what to write instead.
func printFindings(w io.Writer, findings []policy.Finding) {
	for _, f := range findings {
		place := ""
		if f.File != "" {
			place = fmt.Sprintf("%s:%d:%d: ", f.File, f.Row, f.Col)
		}
		fmt.Fprintln(w, clean([]string{fmt.Sprintf("%s%s: %s (%s)", place, f.Severity, f.Message, f.Rule)})[0])
		if f.Remedy != "" {
			fmt.Fprintln(w, "    "+f.Remedy)
		}
	}
}

func onDisk(files map[string]string, module string) string {
	if f, ok := files[module]; ok {
		return f
	}
	return module
}

func (a *app) json(v any) error {
	b, err := json.Marshal(v, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s\n", b)
	return err
}

func (a *app) policyTest() *cobra.Command {
	var form, run string
	var least float64
	var verbose bool
	c := &cobra.Command{
		Use: "test FILE|DIR…", Short: "Run the tests of policies, without a cluster",
		Long: "Run the tests of policies, which are the rules named test_… in files named …_test.rego,\nwithout a cluster. Exit code 1 where one fails.",
		Args: cobra.MinimumNArgs(1),
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			if _, err := regexp.Compile(run); err != nil {
				return usage("--run: %v", err)
			}
			c, files, err := a.sources(args)
			if err != nil {
				return err
			}
			engine := rego.New(rego.Options{ValidSchema: definition.Valid, Print: true})
			defer engine.Close()
			ran, err := engine.Test(cmd.Context(), c, run)
			if err != nil {
				return err
			}
			for i, t := range ran.Cases {
				ran.Cases[i].File = onDisk(files, t.File)
			}
			if err := a.testReport(form, ran, verbose, files); err != nil {
				return err
			}
			covered := 0.0
			if ran.Coverage != nil {
				covered = ran.Coverage.Percent
			}
			switch {
			case ran.Tests.Failed > 0:
				return silent(exitError)
			case run != "" && len(ran.Cases) == 0:
				return fmt.Errorf("no test matches %s", run)
			case covered < least:
				return fmt.Errorf("the tests cover %.1f %% of the lines, and %g %% is the least; policy test -v names the lines that no test reaches", covered, least)
			}
			return nil
		}),
	}
	formatFlag(c, &form, "text", "json", "junit")
	coverageFlag(c, &least)
	c.Flags().StringVar(&run, "run", "", "run only the tests whose name, as data.PACKAGE.RULE, matches the regular expression")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "name the tests that pass, and the lines that no test reaches")
	return c
}

func (a *app) testReport(form string, run *rego.TestRun, verbose bool, files map[string]string) error {
	switch form {
	case "junit":
		b, err := xml.MarshalIndent(junit(run), "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "%s%s\n", xml.Header, b)
		return err
	case "json":
		return a.json(testJSON(run))
	}
	for _, t := range run.Cases {
		switch {
		case t.Failed:
			fmt.Fprintf(a.out, "FAIL %s.%s (%s:%d)\n    %s\n", t.Package, t.Name, t.File, t.Row, t.Message)
		case t.Skipped && verbose:
			fmt.Fprintf(a.out, "SKIP %s.%s\n", t.Package, t.Name)
		case verbose:
			fmt.Fprintf(a.out, "PASS %s.%s (%v)\n", t.Package, t.Name, t.Took)
		}
		if t.Output != "" && (t.Failed || verbose) {
			fmt.Fprint(a.out, indent(t.Output))
		}
	}
	if run.Coverage == nil {
		_, err := fmt.Fprintln(a.out, "no tests")
		return err
	}
	if verbose {
		for _, file := range sortedKeys(run.Coverage.Uncovered) {
			for _, r := range run.Coverage.Uncovered[file] {
				fmt.Fprintf(a.out, "not covered: %s:%d-%d\n", onDisk(files, file), r.From, r.To)
			}
		}
	}
	_, err := fmt.Fprintf(a.out, "%s passed, %d failed, %.1f %% covered\n", count(run.Tests.Passed, "test"), run.Tests.Failed, run.Coverage.Percent)
	return err
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n    ") + "\n"
}
