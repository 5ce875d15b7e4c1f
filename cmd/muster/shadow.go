package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/policy"
)

func (a *app) policyShadow() *cobra.Command {
	var share float64
	c := &cobra.Command{
		Use: "shadow REVISION", Short: "Evaluate a policy revision beside the active one, without effect", Args: cobra.ExactArgs(1),
		Long: "Evaluate a policy revision beside the active one. Its answers have no effect; how they differ from those\n" +
			"that are given is told by: muster policy shadow report",
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			n, err := revisionNumber(args[0])
			if err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			return a.showPolicy(c.Shadow(cmd.Context(), n, share))
		}),
	}
	c.Flags().Float64Var(&share, "share", 1, "of the decisions, above 0 and at most 1")
	a.outputFlag(c)
	c.AddCommand(a.shadowReport(), a.shadowStop())
	return c
}

func (a *app) shadowStop() *cobra.Command {
	c := &cobra.Command{
		Use: "stop", Short: "End the shadow; its revision is staged again", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return a.showPolicy(c.StopShadow(cmd.Context()))
		}),
	}
	a.outputFlag(c)
	return c
}

func (a *app) shadowReport() *cobra.Command {
	c := &cobra.Command{
		Use: "report", Short: "Tell how often the shadow decided differently, with examples", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			v, err := c.ShadowReport(cmd.Context())
			if err != nil {
				return err
			}
			_, err = a.showImpact(v)
			return err
		}),
	}
	a.outputFlag(c)
	return c
}

// showImpact prints how a revision decides differently, and gives what it read.
func (a *app) showImpact(v jsontext.Value) (*policy.Impact, error) {
	var i policy.Impact
	if err := json.Unmarshal(v, &i); err != nil {
		return nil, fmt.Errorf("the report cannot be read: %w", err)
	}
	if a.output == "json" || a.output == "yaml" {
		return &i, a.raw(v)
	}
	if a.output != "name" {
		compared := "policy revision " + strconv.FormatUint(i.Active, 10)
		if i.Active == 0 {
			compared = "no policy"
		}
		since := ""
		if !i.Since.IsZero() {
			since = " since " + i.Since.Local().Format(time.DateTime)
		}
		fmt.Fprintf(a.out, "policy revision %d beside %s%s: %s evaluated, %d dropped, %s\n", i.Revision, compared, since,
			count(int(i.Evaluated), "decision"), i.Dropped, count(different(&i), "difference"))
		for _, n := range i.Nodes {
			if n.Problem != "" {
				fmt.Fprintf(a.out, "without node %s: %s\n", n.Node, strings.Join(clean([]string{n.Problem}), ""))
			}
		}
		if len(i.Differences) == 0 {
			return &i, nil
		}
		fmt.Fprintln(a.out)
	}
	return &i, a.show(nil, func() table {
		t := table{head: []string{"COUNT", "KIND", "ENTRY POINT", "REASON", "EXAMPLE"}}
		for _, d := range i.Differences {
			example := ""
			if len(d.Examples) > 0 {
				example = d.Examples[0].DecisionID
			}
			t.rows = append(t.rows, []string{strconv.FormatUint(d.Count, 10), string(d.Kind), d.EntryPoint, d.Reason, example})
			for _, e := range d.Examples {
				t.names = append(t.names, "decision/"+e.DecisionID)
			}
		}
		return t
	})
}

func different(i *policy.Impact) (n int) {
	for _, d := range i.Differences {
		n += int(d.Count)
	}
	return n
}
