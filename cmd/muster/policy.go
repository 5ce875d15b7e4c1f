package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
)

func (a *app) policy() *cobra.Command {
	return group("policy", "Check, push, activate and take back policies",
		a.policyCheck(), a.policyTest(), a.policyPush(), a.policyList(), a.policyGet(), a.policyActivate(),
		a.policyExplain(),
		a.policyShadow(), a.policyDiff(), a.policyRollback(), a.policySync(), a.policyEval(), a.policyKey(), a.policyLibrary(), a.policyBuiltin(), a.policyBreakGlass())
}

func (a *app) policyPush() *cobra.Command {
	var activate, shadow bool
	var note, signature string
	var share float64
	c := &cobra.Command{
		Use: "push FILE|DIR…", Short: "Store a new policy revision from Rego files and data.json or data.yaml, or from an OPA bundle", Args: cobra.MinimumNArgs(1),
		Long: "Store a new policy revision from Rego files and data.json or data.yaml, or from one OPA\nbundle (.tar.gz). What is pushed is the whole policy: nothing of the active revision is\nkept. With --signature the file named is sent byte for byte: a bundle, or\nJSON such as {\"modules\":{\"a.rego\":\"…\"},\"number\":7}.",
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			if p, ok, err := asIs(args, note, signature); ok {
				if err != nil {
					return err
				}
				c, err := a.dial()
				if err != nil {
					return err
				}
				if p.Activate = activate; shadow {
					p.Shadow = share
				}
				return a.pushed(c.PushPolicy(cmd.Context(), p))
			}
			body, _, err := content(args, note)
			if err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			if shadow {
				return a.pushed(c.PushShadow(cmd.Context(), body, share))
			}
			return a.pushed(c.Push(cmd.Context(), body, activate))
		}),
	}
	c.Flags().BoolVar(&activate, "activate", false, "make it the active one at once")
	c.Flags().BoolVar(&shadow, "shadow", false, "evaluate it beside the active one, without effect")
	c.Flags().Float64Var(&share, "share", 1, "of the decisions that the shadow sees, above 0 and at most 1")
	c.MarkFlagsMutuallyExclusive("activate", "shadow")
	c.Flags().StringVar(&note, "note", "", "what the revision is for")
	c.Flags().StringVar(&signature, "signature", "", "file with an OpenPGP signature over the file that is pushed, as gpg --detach-sign makes it")
	a.outputFlag(c)
	return c
}

// pushed prints a new revision, and what was found in it to standard error.
func (a *app) pushed(rec *client.Record, err error) error {
	if err != nil {
		return err
	}
	var p struct {
		Findings []policy.Finding `json:"findings"`
	}
	if err := json.Unmarshal(rec.JSON, &p); err != nil {
		return err
	}
	printFindings(a.err, p.Findings)
	return a.showPolicy(rec, nil)
}

// showPolicy prints a revision after a change.
func (a *app) showPolicy(rec *client.Record, err error) error {
	if err != nil {
		return err
	}
	if a.output == "json" || a.output == "yaml" {
		return a.raw(rec.JSON)
	}
	t, err := policyTable([]jsontext.Value{rec.JSON})
	if err != nil {
		return err
	}
	return a.show(nil, func() table { return t })
}

func policyTable(items []jsontext.Value) (table, error) {
	t := table{head: []string{"REVISION", "STATE", "TESTS", "FINDINGS", "CREATED", "NOTE", "SIGNED BY", "NUMBER", "SOURCE", "DIGEST"}, wideFrom: 6}
	for _, item := range items {
		var p struct {
			Revision  uint64           `json:"revision"`
			State     string           `json:"state"`
			Digest    string           `json:"digest"`
			Note      string           `json:"note"`
			Tests     policy.Tests     `json:"tests"`
			Findings  []policy.Finding `json:"findings"`
			CreatedAt time.Time        `json:"created_at"`
			policy.Origin
		}
		if err := json.Unmarshal(item, &p); err != nil {
			return t, err
		}
		tests := fmt.Sprintf("%d passed", p.Tests.Passed)
		at := ""
		if !p.CreatedAt.IsZero() {
			at = p.CreatedAt.Local().Format(time.DateTime)
		}
		by, number, source := signer(p.Signature, p.Source)
		t.rows = append(t.rows, []string{strconv.FormatUint(p.Revision, 10), p.State, tests, strconv.Itoa(len(p.Findings)), at, p.Note, by, number, source, p.Digest})
		t.names = append(t.names, "policy/"+strconv.FormatUint(p.Revision, 10))
	}
	return t, nil
}

func (a *app) policyList() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List the policy revisions", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			items, err := c.Policies(cmd.Context())
			if err != nil {
				return err
			}
			t, err := policyTable(items)
			if err != nil {
				return err
			}
			return a.show(map[string]any{"items": items}, func() table { return t })
		}),
	}
	a.outputFlag(c)
	return c
}

func (a *app) policyGet() *cobra.Command {
	c := &cobra.Command{
		Use: "get REVISION", Short: "Print a policy revision with its modules", Args: cobra.ExactArgs(1),
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			n, err := revisionNumber(args[0])
			if err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			v, err := c.Policy(cmd.Context(), n)
			if err != nil {
				return err
			}
			switch a.output {
			case "name":
				_, err := fmt.Fprintf(a.out, "policy/%d\n", n)
				return err
			case "":
				a.output = "yaml"
			}
			return a.raw(v)
		}),
	}
	a.outputFlag(c)
	return c
}

func revisionNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "policy/"), 10, 64)
	if err != nil {
		return 0, usage("%q is not the number of a policy revision", s)
	}
	return n, nil
}

func (a *app) policyActivate() *cobra.Command {
	var active uint64
	c := &cobra.Command{
		Use: "activate REVISION", Short: "Make a policy revision the active one on every node", Args: cobra.ExactArgs(1),
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			n, err := revisionNumber(args[0])
			if err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("if-active") {
				return a.showPolicy(c.ActivateIf(cmd.Context(), n, active))
			}
			return a.showPolicy(c.Activate(cmd.Context(), n))
		}),
	}
	c.Flags().Uint64Var(&active, "if-active", 0, "only while this revision is active, 0: none")
	a.outputFlag(c)
	return c
}

func (a *app) policyRollback() *cobra.Command {
	c := &cobra.Command{
		Use: "rollback", Short: "Go back to the policy revision that was active before", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return a.showPolicy(c.Rollback(cmd.Context()))
		}),
	}
	a.outputFlag(c)
	return c
}

// content gathers policy files as the body of a push. Folders are read whole;
// data.json and data.yaml in them land where their folder lies, and .manifest
// may name the entry points, as a bundle has it.
// Files gives for each module the file it was read from.
func content(names []string, note string) (body []byte, files map[string]string, err error) {
	modules := map[string]string{}
	files = map[string]string{}
	data := map[string]any{}
	var entries policy.EntryPoints
	read := func(file, name string) error {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		switch base := path.Base(name); {
		case path.Ext(base) == ".rego":
			if _, twice := modules[name]; twice {
				return fmt.Errorf("there are two files %s", name)
			}
			modules[name], files[name] = string(b), file
		case base == "data.json" || base == "data.yaml" || base == "data.yml":
			return place(data, path.Dir(name), b)
		case name == ".manifest":
			entries, err = rego.ManifestEntryPoints(b)
			return err
		}
		return nil
	}
	for _, root := range names {
		info, err := os.Stat(root)
		if err != nil {
			return nil, nil, err
		}
		if !info.IsDir() {
			name := filepath.Base(root)
			if path.Ext(name) != ".rego" && name != ".manifest" {
				name = "data" + path.Ext(name) // named as data, whatever the file is called
			}
			if err := read(root, name); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", root, err)
			}
			continue
		}
		err = filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			name, err := filepath.Rel(root, file)
			if err != nil {
				return err
			}
			return read(file, filepath.ToSlash(name))
		})
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", root, err)
		}
	}
	if len(modules) == 0 {
		return nil, nil, errors.New("there is no .rego file in what is named")
	}
	push := map[string]any{"modules": modules, "note": note}
	if len(data) > 0 {
		push["data"] = data
	}
	if entries != (policy.EntryPoints{}) {
		push["entry_points"] = entries
	}
	body, err = json.Marshal(push, json.Deterministic(true))
	return body, files, err
}

// place puts a data document below the members that its folder names.
func place(data map[string]any, dir string, b []byte) error {
	docs, err := documents(b)
	if err != nil {
		return err
	}
	for _, d := range docs {
		var members map[string]jsontext.Value
		if err := json.Unmarshal(d, &members); err != nil {
			return errors.New("a data document must be an object")
		}
		at := data
		if dir != "." {
			for part := range strings.SplitSeq(dir, "/") {
				next, ok := at[part].(map[string]any)
				if _, taken := at[part]; taken && !ok {
					return fmt.Errorf("the data at %s is given twice", dir)
				}
				if !ok {
					next = map[string]any{}
					at[part] = next
				}
				at = next
			}
		}
		for k, v := range members {
			if _, taken := at[k]; taken {
				return fmt.Errorf("the data at %s is given twice", path.Join(dir, k))
			}
			at[k] = v
		}
	}
	return nil
}
