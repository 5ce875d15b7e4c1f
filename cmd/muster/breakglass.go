package main

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
)

func (a *app) policyBreakGlass() *cobra.Command {
	var ttl time.Duration
	var reason string
	c := &cobra.Command{
		Use: "break-glass NAMESPACE --ttl 30m --reason WHY", Short: "Lift the policy's refusals in one namespace for a time, in an emergency",
		Long: "Lift the refusals of the policy and of webhooks in one namespace, for at most 24\n" +
			"hours. It takes a credential with the role break-glass, and ends by itself. Roles\n" +
			"hold all the same, and each use is in the log of the node with the reason.",
		Example: "  muster policy break-glass payments --ttl 30m --reason \"INC-1207: the policy blocks the fix\"\n  muster policy break-glass list\n  muster policy break-glass end payments",
		Args:    cobra.ExactArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if ttl <= 0 {
				return usage("say for how long, with --ttl; 24h at most")
			}
			if reason == "" {
				return usage("say why, with --reason")
			}
			rec, err := c.OpenBreakGlass(cmd.Context(), args[0], ttl, reason)
			if err != nil {
				return err
			}
			return a.showOpenings(rec.JSON, []jsontext.Value{rec.JSON})
		}),
	}
	c.Flags().DurationVar(&ttl, "ttl", 0, "for how long, such as 30m")
	c.Flags().StringVar(&reason, "reason", "", "why, for whoever reads the log")
	a.outputFlag(c)
	c.AddCommand(a.breakGlassList(), a.breakGlassEnd())
	return c
}

func (a *app) breakGlassList() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List the namespaces in which refusals are lifted", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			items, err := c.BreakGlass(cmd.Context())
			if err != nil {
				return err
			}
			return a.showOpenings(map[string]any{"items": items}, items)
		}),
	}
	a.outputFlag(c)
	return c
}

func (a *app) breakGlassEnd() *cobra.Command {
	return &cobra.Command{
		Use: "end NAMESPACE", Short: "Have refusals count again in a namespace", Args: cobra.ExactArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.EndBreakGlass(cmd.Context(), args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.out, "break-glass/%s ended\n", args[0])
			return err
		}),
	}
}

func (a *app) showOpenings(v any, items []jsontext.Value) error {
	t := table{head: []string{"NAMESPACE", "UNTIL", "OPENED BY", "REASON"}}
	for _, item := range items {
		var o struct {
			Namespace string    `json:"namespace"`
			Until     time.Time `json:"until"`
			UpdatedBy string    `json:"updated_by"`
			Reason    string    `json:"reason"`
		}
		if err := json.Unmarshal(item, &o); err != nil {
			return err
		}
		t.rows = append(t.rows, []string{o.Namespace, o.Until.Local().Format(time.DateTime), o.UpdatedBy, o.Reason})
		t.names = append(t.names, "break-glass/"+o.Namespace)
	}
	if raw, ok := v.(jsontext.Value); ok && (a.output == "json" || a.output == "yaml") {
		return a.raw(raw)
	}
	return a.show(v, func() table { return t })
}
