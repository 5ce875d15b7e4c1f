package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/dev"
	"github.com/muster-registry/muster/node"
)

func (a *app) dev() *cobra.Command {
	o := dev.Options{Say: a.err}
	var only string
	c := &cobra.Command{
		Use: "dev", Short: "Run a development cluster on this machine", Args: cobra.NoArgs,
		Long: `Run a development cluster on 127.0.0.1: makes a CA and certificates, starts the
nodes as processes of their own, and when all are ready writes cluster.json and
env into its folder and prints where they are. SIGINT or SIGTERM stops all.
Started again on the same folder, it resumes the cluster with its data.

Node i uses each default port plus 10·(i-1); --port-base moves all of them. A
killed node leaves the others running; --only starts it again, in the foreground.`,
		RunE: a.do(func(cmd *cobra.Command, _ []string) (err error) {
			if cmd.Flags().Changed("nodes") && o.Nodes == 0 {
				return usage("--nodes must be at least 1")
			}
			if !cmd.Flags().Changed("port-base") {
				o.PortBase = dev.Recorded
			}
			if o.Executable, err = os.Executable(); err != nil {
				return err
			}
			if only != "" {
				return dev.Only(cmd.Context(), o, only, a.serve)
			}
			return dev.Run(cmd.Context(), o, func(c *dev.Cluster) {
				a.announce(c, o.Dir)
			})
		}),
	}
	c.Flags().IntVar(&o.Nodes, "nodes", 0, "how many nodes (default 3, or as many as the folder has)")
	c.Flags().StringVar(&o.Dir, "dir", dev.DefaultDir, "folder of the cluster")
	c.Flags().IntVar(&o.PortBase, "port-base", 0, "control port of the first node; 0 takes free ports (default 8443, or as the folder has it)")
	c.Flags().StringVar(&only, "only", "", "start just this node of the folder's cluster, such as n2")
	return c
}

// serve runs one node of a development cluster in this process.
func (a *app) serve(ctx context.Context, config string, w io.Writer) error {
	cfg, err := node.Load(config, func(string) string { return "" })
	if err != nil {
		return err
	}
	return node.Run(ctx, cfg, version, newLogger(cfg.Log, w))
}

func (a *app) announce(c *dev.Cluster, dir string) {
	for _, n := range c.Nodes {
		fmt.Fprintf(a.out, "# %s  process %d  control %s  metrics %s/metrics\n", n.ID, n.PID, n.Control, n.Metrics)
	}
	fmt.Fprintf(a.out, "# All nodes are ready. In another shell: . %s/env\n%s", dir, c.Exports())
	a.say("Ctrl-C stops all nodes; their data stays in %s", dir)
}
