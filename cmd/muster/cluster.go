package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

func (a *app) cluster() *cobra.Command {
	return group("cluster", "See how the nodes are, and change who belongs and who leads",
		a.clusterStatus(), a.clusterMembers(), a.clusterTransfer(), a.clusterRemove(), a.clusterReset())
}

func (a *app) clusterStatus() *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Tell how every node is, as one table", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			v, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.output == "json" || a.output == "yaml" {
				return a.raw(v)
			}
			var s struct {
				ClusterID string `json:"cluster_id"`
				Leader    string `json:"leader"`
				Term      uint64 `json:"term"`
				Nodes     []struct {
					ID            string `json:"id"`
					Address       string `json:"address"`
					Role          string `json:"role"`
					Alive         bool   `json:"alive"`
					Ready         bool   `json:"ready"`
					Applied       uint64 `json:"applied"`
					Commit        uint64 `json:"commit"`
					LastContactMS int64  `json:"last_contact_ms"`
					StateHash     struct {
						Revision uint64 `json:"revision"`
						Hash     string `json:"hash"`
					} `json:"state_hash"`
					PolicyRevision uint64 `json:"policy_revision"`
					Version        string `json:"version"`
					Engine         string `json:"engine"`
				} `json:"nodes"`
				Warnings []string `json:"warnings"`
			}
			if err := json.Unmarshal(v, &s); err != nil {
				return fault.Wrap(fault.Internal, err, "the cluster's status cannot be read")
			}
			if a.output != "name" {
				leader := s.Leader
				if leader == "" {
					leader = "nobody"
				}
				fmt.Fprintf(a.out, "cluster %s, led by %s in term %d\n\n", s.ClusterID, leader, s.Term)
			}
			for _, w := range clean(s.Warnings) {
				fmt.Fprintln(a.err, "warning: "+w)
			}
			return a.show(nil, func() table {
				t := table{
					head:     []string{"NODE", "ADDRESS", "ROLE", "ALIVE", "READY", "REVISION", "STATE", "POLICY", "CONTACT", "APPLIED", "COMMIT", "VERSION", "ENGINE"},
					wideFrom: 9,
				}
				for _, n := range s.Nodes {
					hash := n.StateHash.Hash
					if a.output != "wide" && len(hash) > 12 {
						hash = hash[:12]
					}
					cells := []string{n.ID, n.Address, n.Role, yes(n.Alive), yes(n.Ready), strconv.FormatUint(n.StateHash.Revision, 10), hash,
						strconv.FormatUint(n.PolicyRevision, 10), (time.Duration(n.LastContactMS) * time.Millisecond).String(),
						strconv.FormatUint(n.Applied, 10), strconv.FormatUint(n.Commit, 10), n.Version, n.Engine}
					if n.LastContactMS < 0 { // it does not answer: nothing is known
						clear(cells[5:])
					}
					t.rows = append(t.rows, cells)
					t.names = append(t.names, "node/"+n.ID)
				}
				return t
			})
		}),
	}
	a.outputFlag(c)
	return c
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
