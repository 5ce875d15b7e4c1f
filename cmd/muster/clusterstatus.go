package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

// clusterState is what GET /v1/cluster/status says, as far as it is shown.
type clusterState struct {
	ClusterID    string      `json:"cluster_id"`
	Leader       string      `json:"leader"`
	Term         uint64      `json:"term"`
	FeatureLevel uint32      `json:"feature_level"`
	Nodes        []nodeState `json:"nodes"`
	Alarms       []raised    `json:"alarms"`
	Warnings     []string    `json:"warnings"`
}

type nodeState struct {
	ID            string `json:"id"`
	Address       string `json:"address"`
	Role          string `json:"role"`
	Alive         bool   `json:"alive"`
	Ready         bool   `json:"ready"`
	Applied       uint64 `json:"applied"`
	Commit        uint64 `json:"commit"`
	Term          uint64 `json:"term"`
	LastContactMS int64  `json:"last_contact_ms"`
	StateHash     struct {
		Revision uint64 `json:"revision"`
		Hash     string `json:"hash"`
	} `json:"state_hash"`
	PolicyRevision uint64 `json:"policy_revision"`
	Version        string `json:"version"`
	FeatureLevel   uint32 `json:"feature_level"`
	Engine         string `json:"engine"`
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
			var s clusterState
			if err := json.Unmarshal(v, &s); err != nil {
				return fault.Wrap(fault.Internal, err, "the cluster's status cannot be read")
			}
			if a.output != "name" {
				leader := s.Leader
				if leader == "" {
					leader = "nobody"
				}
				fmt.Fprintf(a.out, "cluster %s, led by %s in term %d, at feature level %d\n\n", s.ClusterID, leader, s.Term, s.FeatureLevel)
			}
			a.tell(s.Alarms)
			for _, w := range clean(s.Warnings) {
				fmt.Fprintln(a.err, "warning: "+w)
			}
			return a.show(nil, func() table { return s.table() })
		}),
	}
	a.outputFlag(c)
	return c
}

// table has one row for each node. Of a node that does not answer, only its
// place in the cluster is known.
func (s *clusterState) table() table {
	t := table{
		head:     []string{"NODE", "ADDRESS", "ROLE", "ALIVE", "READY", "TERM", "APPLIED", "LAG", "CONTACT", "POLICY", "VERSION", "LEVEL", "ALARMS", "REVISION", "STATE", "COMMIT", "ENGINE"},
		wideFrom: 13,
	}
	last := uint64(0)
	for _, n := range s.Nodes {
		last = max(last, n.Commit)
	}
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	for _, n := range s.Nodes {
		var alarms []string
		for _, a := range s.Alarms {
			if a.Node == n.ID {
				alarms = append(alarms, a.Alarm)
			}
		}
		raised := "none"
		if len(alarms) > 0 {
			raised = strings.Join(alarms, ",")
		}
		cells := []string{n.ID, n.Address, n.Role, yes(n.Alive), yes(n.Ready), number(n.Term), number(n.Applied), number(last - min(last, n.Applied)),
			(time.Duration(n.LastContactMS) * time.Millisecond).String(), number(n.PolicyRevision), n.Version, number(uint64(n.FeatureLevel)), raised,
			number(n.StateHash.Revision), n.StateHash.Hash, number(n.Commit), n.Engine}
		if n.LastContactMS < 0 {
			clear(cells[5:])
		}
		t.rows = append(t.rows, cells)
		t.names = append(t.names, "node/"+n.ID)
	}
	return t
}
