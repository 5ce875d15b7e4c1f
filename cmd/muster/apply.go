package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy/webhook"
)

func (a *app) apply() *cobra.Command {
	var files []string
	var createService, check bool
	var dryRun string
	c := &cobra.Command{
		Use: "apply -f FILE|DIR|-", Short: "Create or change what manifests describe", Args: cobra.NoArgs,
		Long: `Create or change the records that manifests describe, in YAML or JSON, many per
file. A manifest is {"kind","namespace","name","spec"}; kinds are Service,
Version, Instance, Schema, Quota, Webhook, Role and Policy. A policy becomes the active one. Policies
are applied first, then schemas, quotas, webhooks, roles, services, versions and instances. A service or version that
is as its manifest says is left alone; an instance is always renewed. After a
refusal the rest is still tried; the exit code is that of the first refusal.

With --dry-run=server, the cluster decides on each change and tells what it would
store, and stores nothing. Each manifest is judged by what is there now, not by
what those before it would have changed. A policy is tried by muster policy check
and muster policy push --shadow.

With --check, manifests of schemas are tried out: nothing is stored, and the
records that would not meet them are listed; exit code 1 when there are any.`,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			ms, err := a.manifests(files, a.settings.Namespace)
			if err != nil {
				return err
			}
			if dryRun != "none" && dryRun != "server" {
				return usage("--dry-run is none or server, not %q", dryRun)
			}
			how := client.Write{CreateService: createService, DryRun: dryRun == "server"}
			if check {
				return a.checkSchemas(cmd.Context(), c, ms)
			}
			var first error
			items := []jsontext.Value{}
			for _, m := range ms {
				rec, verb, err := change(cmd.Context(), c, m, how)
				if err != nil {
					a.say("%s refused (%s)", m.label(), m.origin)
					a.explain(err)
					if first == nil {
						first = silent(exitCode(err))
					}
					continue
				}
				items = append(items, rec.JSON)
				switch a.output {
				case "json", "yaml":
				case "name":
					fmt.Fprintln(a.out, subject(m, rec))
				default:
					fmt.Fprintln(a.out, subject(m, rec)+" "+verb)
				}
			}
			if a.output == "json" || a.output == "yaml" {
				var v any = map[string]any{"items": items}
				if len(ms) == 1 && len(items) == 1 {
					v = items[0]
				}
				if err := a.show(v, nil); err != nil {
					return err
				}
			}
			return first
		}),
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "file or folder of manifests, or - for standard input; may be repeated")
	c.Flags().BoolVar(&createService, "create-service", false, "make the service of an instance when it is unknown")
	c.Flags().BoolVar(&check, "check", false, "of schemas: store nothing, and list the records that would not meet them")
	c.Flags().StringVar(&dryRun, "dry-run", "none", "server: the cluster decides and tells what it would store, and changes nothing")
	c.Flags().Lookup("dry-run").NoOptDefVal = "server"
	c.MarkFlagsMutuallyExclusive("check", "create-service")
	c.MarkFlagsMutuallyExclusive("check", "dry-run")
	a.outputFlag(c)
	return c
}

// say writes a line for people to standard error.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.err, format+"\n", args...) }

func subject(m *manifest, rec *client.Record) string {
	if m.Kind == kindPolicy {
		return fmt.Sprintf("policy/%d", rec.Revision)
	}
	return m.label()
}

// change brings the cluster to what one manifest says.
func change(ctx context.Context, c *client.Client, m *manifest, how client.Write) (rec *client.Record, verb string, err error) {
	if m.Kind == kindPolicy && how.DryRun {
		return nil, "", fault.New(fault.BadRequest, "a policy is not tried out here; see muster policy check, and muster policy push --shadow")
	}
	if m.Kind == kindPolicy {
		rec, err = c.Push(ctx, m.Spec, true)
		return rec, "active", err
	}
	r := m.ref()
	if r.Kind != client.Instance {
		if rec, same := unchanged(ctx, c, m); same {
			return rec, "unchanged", nil
		}
	}
	how.CreateService = how.CreateService && r.Kind == client.Instance
	rec, err = c.Put(ctx, r, m.Spec, how)
	if err != nil {
		return nil, "", err
	}
	verb = "configured"
	if rec.Created {
		verb = "created"
	}
	if how.DryRun {
		verb += " (server dry run)"
	}
	return rec, verb, nil
}

// unchanged tells whether the record is as the manifest says. Whatever stands
// in the way of knowing means no: the cluster then judges the change itself.
func unchanged(ctx context.Context, c *client.Client, m *manifest) (*client.Record, bool) {
	d, err := compare(ctx, c, m)
	if err != nil || d.record == nil || len(d.lines) > 0 {
		return nil, false
	}
	return d.record, true
}

func (a *app) diff() *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use: "diff -f FILE|DIR|-", Short: "Tell what apply would change", Args: cobra.NoArgs,
		Long: "Tell what apply would change: - is what the cluster has, + what the manifest says.\nExit code 0: nothing; 1: something; above: it could not be told.",
		RunE: a.do(func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err == nil {
				var ms []*manifest
				if ms, err = a.manifests(files, a.settings.Namespace); err == nil {
					err = a.differences(cmd.Context(), c, ms)
				}
			}
			if exitCode(err) == exitError {
				if _, told := errors.AsType[silent](err); !told {
					a.explain(err)
					return silent(exitUsage) // 1 means that something differs
				}
			}
			return err
		}),
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "file or folder of manifests, or - for standard input; may be repeated")
	return c
}

func (a *app) differences(ctx context.Context, c *client.Client, ms []*manifest) error {
	differs := false
	for _, m := range ms {
		d, err := compare(ctx, c, m)
		if err != nil {
			return fmt.Errorf("%s: %w", m.origin, err)
		}
		if len(d.lines) == 0 {
			continue
		}
		differs = true
		fmt.Fprintln(a.out, d.title)
		for _, l := range clean(d.lines) {
			fmt.Fprintln(a.out, "  "+l)
		}
	}
	if differs {
		return silent(exitError)
	}
	return nil
}

// difference is how a record and its manifest differ; record is nil when the
// cluster has none.
type difference struct {
	title  string
	record *client.Record
	lines  []string
}

func compare(ctx context.Context, c *client.Client, m *manifest) (*difference, error) {
	if m.Kind == kindPolicy {
		return comparePolicy(ctx, c, m)
	}
	r := m.ref()
	d := &difference{title: r.Namespace + "/" + r.String()}
	want, document, err := canonical(r, m.Spec)
	if err != nil {
		return nil, err
	}
	var have jsontext.Value
	if d.record, err = c.Get(ctx, r, client.Read{}); err == nil {
		have = d.record.JSON
	} else if exitCode(err) != exitNotFound {
		return nil, err
	}
	if d.lines, err = diffLines(have, want); err != nil {
		return nil, err
	}
	if r.Kind == client.Webhook && d.record != nil && bytes.Contains(want, []byte(`"`+webhook.Hidden+`"`)) {
		d.lines = append(d.lines, "~ secrets: the cluster never shows them, so they may differ")
	}
	if document == nil || d.record == nil || len(d.lines) > 0 {
		return d, nil
	}
	stored, _, err := c.Definition(ctx, r)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(stored, document) {
		d.lines = append(d.lines, fmt.Sprintf("~ document: %d bytes become %d, with the same routes", len(stored), len(document)))
	}
	return d, nil
}

// comparePolicy compares with the active revision.
func comparePolicy(ctx context.Context, c *client.Client, m *manifest) (*difference, error) {
	d := &difference{title: "policy"}
	items, err := c.Policies(ctx)
	if err != nil {
		return nil, err
	}
	have := jsontext.Value("{}")
	for _, item := range items {
		var p struct {
			Revision uint64 `json:"revision"`
			State    string `json:"state"`
		}
		if err := json.Unmarshal(item, &p); err != nil {
			return nil, err
		}
		if p.State != "active" {
			continue
		}
		if have, err = c.Policy(ctx, p.Revision); err != nil {
			return nil, err
		}
		d.title = fmt.Sprintf("policy/%d", p.Revision)
	}
	d.lines, err = diffLines(have, m.Spec)
	return d, err
}

// diffLines lists the members of want that have holds otherwise or not at all.
// Members that only have holds are the cluster's own.
func diffLines(have, want jsontext.Value) ([]string, error) {
	var h, w map[string]jsontext.Value
	if err := json.Unmarshal(want, &w); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the spec is not an object")
	}
	if len(have) > 0 {
		if err := json.Unmarshal(have, &h); err != nil {
			return nil, err
		}
	}
	var lines []string
	for _, k := range sorted(w) {
		was, is := compact(h[k]), compact(w[k])
		if was == is {
			continue
		}
		if was != "" {
			lines = append(lines, "- "+k+": "+short(was))
		}
		if is != "" {
			lines = append(lines, "+ "+k+": "+short(is))
		}
	}
	return lines, nil
}

// compact makes values comparable as text; what is null is not there.
func compact(v jsontext.Value) string {
	if len(v) == 0 || v.Kind() == 'n' {
		return ""
	}
	v = v.Clone()
	if v.Canonicalize() != nil {
		return string(v)
	}
	return string(v)
}

func short(s string) string {
	const limit = 400
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "") + fmt.Sprintf("… (%d bytes)", len(s))
	}
	return s
}
