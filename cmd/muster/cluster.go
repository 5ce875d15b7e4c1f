package main

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

func (a *app) cluster() *cobra.Command {
	return group("cluster", "See how the nodes are, and change who belongs and who leads",
		a.clusterStatus(), a.clusterMembers(), a.clusterTransfer(), a.clusterRemove(), a.clusterRecover(), a.clusterReset())
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (a *app) clusterMembers() *cobra.Command {
	c := &cobra.Command{
		Use: "members", Short: "List the members", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			v, err := c.Members(cmd.Context())
			if err != nil {
				return err
			}
			if a.output == "json" || a.output == "yaml" {
				return a.raw(v)
			}
			var s struct {
				Items []struct {
					ID      string `json:"id"`
					Address string `json:"address"`
					Role    string `json:"role"`
					Alive   bool   `json:"alive"`
				} `json:"items"`
			}
			if err := json.Unmarshal(v, &s); err != nil {
				return fault.Wrap(fault.Internal, err, "the list of members cannot be read")
			}
			return a.show(nil, func() table {
				t := table{head: []string{"NODE", "ADDRESS", "ROLE", "ALIVE"}}
				for _, m := range s.Items {
					t.rows = append(t.rows, []string{m.ID, m.Address, m.Role, yes(m.Alive)})
					t.names = append(t.names, "node/"+m.ID)
				}
				return t
			})
		}),
	}
	a.outputFlag(c)
	return c
}

func (a *app) clusterTransfer() *cobra.Command {
	return &cobra.Command{
		Use: "transfer-leader [NODE]", Short: "Hand the leadership to a node, or to the one furthest along", Args: cobra.MaximumNArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			to, done := "", "the leadership was handed over"
			if len(args) > 0 {
				to, done = args[0], "the leadership was handed to "+args[0]
			}
			if err := c.TransferLeader(cmd.Context(), to); err != nil {
				return err
			}
			a.say("%s", done)
			return nil
		}),
	}
}

func (a *app) clusterRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove NODE", Short: "Take a node out of the cluster for good", Args: cobra.ExactArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.RemoveMember(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.say("%s is no longer a member", args[0])
			return nil
		}),
	}
}

// health is what containers and scripts ask.
func (a *app) health() *cobra.Command {
	return &cobra.Command{
		Use: "health", Short: "Ask whether a node is ready: exit code 0, else 6", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			if err := c.Ready(cmd.Context()); err != nil {
				return err
			}
			fmt.Fprintln(a.out, "ready")
			return nil
		}),
	}
}
