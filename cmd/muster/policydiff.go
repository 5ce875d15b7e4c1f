package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aymanbagabas/go-udiff"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

func (a *app) policyDiff() *cobra.Command {
	var replay bool
	var limit int
	var since time.Duration
	c := &cobra.Command{
		Use: "diff REVISION [REVISION] | diff --replay [REVISION]", Short: "Tell how policy revisions differ, by rule, or by what they answer", Args: cobra.MaximumNArgs(2),
		Long: "Tell what changes from the first policy revision to the second, or from the active one to the only one that is\n" +
			"named: which rules, which data, which tests, and the text of the modules.\n\n" +
			"With --replay, have the newest decisions of each node made again by the revision, or by the newest one, and\n" +
			"tell which of them come out otherwise. Nothing is activated.\n\n" +
			"Exit code 0: no difference; 1: there are some; above: it could not be told.",
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			var err error
			switch {
			case replay && len(args) > 1:
				return usage("--replay takes one revision")
			case replay:
				err = a.replayPolicy(cmd.Context(), args, since, limit)
			case len(args) == 0:
				return usage("name the revision to compare with the active one, or two revisions")
			case cmd.Flags().Changed("limit") || cmd.Flags().Changed("since"):
				return usage("--limit and --since choose decisions to replay; say --replay as well")
			default:
				err = a.diffPolicies(cmd.Context(), args)
			}
			if exitCode(err) == exitError {
				if _, told := errors.AsType[silent](err); !told {
					a.explain(err)
					return silent(exitUsage) // 1 means that they differ
				}
			}
			return err
		}),
	}
	c.Flags().BoolVar(&replay, "replay", false, "compare by the decisions that were made lately")
	c.Flags().IntVar(&limit, "limit", 1000, "how many decisions of each node to replay")
	c.Flags().DurationVar(&since, "since", 0, "how far back to go, such as 1h (default as far as they are kept)")
	a.outputFlag(c)
	return c
}

// replayPolicy has decisions made again by a revision: the one named, or the
// newest.
func (a *app) replayPolicy(ctx context.Context, args []string, since time.Duration, limit int) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	var n uint64
	if len(args) > 0 {
		if n, err = revisionNumber(args[0]); err != nil {
			return err
		}
	} else {
		items, err := c.Policies(ctx)
		if err != nil {
			return err
		}
		if len(items) == 0 {
			return fault.New(fault.NotFound, "there is no policy revision; push one first")
		}
		var newest struct {
			Revision uint64 `json:"revision"`
		}
		if err := json.Unmarshal(items[len(items)-1], &newest); err != nil {
			return fmt.Errorf("the list cannot be read: %w", err)
		}
		n = newest.Revision
	}
	v, err := c.ReplayPolicy(ctx, n, since, limit)
	if err != nil {
		return err
	}
	impact, err := a.showImpact(v)
	if err != nil || len(impact.Differences) == 0 {
		return err
	}
	return silent(exitError)
}

func (a *app) diffPolicies(ctx context.Context, args []string) error {
	var numbers [2]uint64 // the second 0: the active one
	for i, s := range args {
		n, err := revisionNumber(s)
		if err != nil {
			return err
		}
		numbers[i] = n
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	v, d, err := diffOf(ctx, c, numbers[0], numbers[1])
	if err == nil && numbers[1] == 0 { // what activating it would change
		v, d, err = diffOf(ctx, c, d.To, d.From)
	}
	if err != nil {
		return err
	}
	if a.output == "json" || a.output == "yaml" {
		err = a.raw(v)
	} else {
		err = a.showDiff(ctx, c, d)
	}
	if err != nil || d.Same {
		return err
	}
	return silent(exitError)
}

func diffOf(ctx context.Context, c *client.Client, from, to uint64) (jsontext.Value, *policy.Diff, error) {
	v, err := c.DiffPolicies(ctx, from, to)
	if err != nil {
		return nil, nil, err
	}
	d := new(policy.Diff)
	if err := json.Unmarshal(v, d); err != nil {
		return nil, nil, fmt.Errorf("the answer cannot be read: %w", err)
	}
	return v, d, nil
}

// showDiff prints what differs, and then the modules as unified text.
func (a *app) showDiff(ctx context.Context, c *client.Client, d *policy.Diff) error {
	if len(d.Modules) == 0 && d.Same {
		if a.output != "name" {
			fmt.Fprintf(a.out, "policy revisions %d and %d decide by the same\n", d.From, d.To)
		}
		return nil
	}
	err := a.show(nil, func() table {
		t := table{}
		row := func(what, name, change string) {
			t.rows = append(t.rows, []string{change, what, name})
			t.names = append(t.names, what+"/"+name)
		}
		for _, e := range d.EntryPoints {
			row("entry point", e.For+": "+e.Before+" -> "+e.After, policy.Changed)
		}
		for _, r := range d.Rules {
			row("rule", r.Package+"."+r.Rule, r.Change)
		}
		for _, r := range d.Tests {
			row("test", r.Package+"."+r.Rule, r.Change)
		}
		for _, p := range d.Data {
			row("data", p.Pointer, p.Change)
		}
		return t
	})
	if err != nil || a.output == "name" || len(d.Modules) == 0 {
		return err
	}
	before, err := modules(ctx, c, d.From)
	if err != nil {
		return err
	}
	after, err := modules(ctx, c, d.To)
	if err != nil {
		return err
	}
	for _, m := range d.Modules {
		title := [2]string{fmt.Sprintf("%d/%s", d.From, m.Name), fmt.Sprintf("%d/%s", d.To, m.Name)}
		switch m.Change {
		case policy.Added:
			title[0] = "/dev/null"
		case policy.Removed:
			title[1] = "/dev/null"
		}
		fmt.Fprintln(a.out)
		for line := range strings.Lines(udiff.Unified(title[0], title[1], before[m.Name], after[m.Name])) {
			fmt.Fprintln(a.out, printableLine(strings.TrimSuffix(line, "\n")))
		}
	}
	return nil
}

// printableLine keeps a module from controlling the terminal.
func printableLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\t' || r >= 0x7f && r < 0xa0 {
			return '�'
		}
		return r
	}, s)
}

func modules(ctx context.Context, c *client.Client, revision uint64) (map[string]string, error) {
	v, err := c.Policy(ctx, revision)
	if err != nil {
		return nil, err
	}
	var p struct {
		Modules map[string]string `json:"modules"`
	}
	if err := json.Unmarshal(v, &p); err != nil {
		return nil, fmt.Errorf("policy revision %d cannot be read: %w", revision, err)
	}
	return p.Modules, nil
}
