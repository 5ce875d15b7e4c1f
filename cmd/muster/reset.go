package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/node"
)

func (a *app) clusterReset() *cobra.Command {
	var config string
	var ttl time.Duration
	var all bool
	c := &cobra.Command{
		Use: "reset-operator --config FILE", Short: "Make a new operator token without a credential, on a node's own disk", Args: cobra.NoArgs,
		Long: "Make a new operator token when the old one is lost or known to others. Run it on the\n" +
			"machine of one node, as the node's user; the node may be stopped or running. It\n" +
			"leaves a file in data_dir that holds no secret. The node carries it out as soon as\n" +
			"it runs and the cluster has a leader: the new token is then good on every node, and\n" +
			"the operator token of the node's configuration is refused on every node, for good.\n" +
			"The new token is printed this once.",
		RunE: a.do(func(*cobra.Command, []string) error {
			if config == "" {
				return usage("name the node's configuration file with --config")
			}
			cfg, err := node.Load(config, a.env)
			if err != nil {
				return err
			}
			token, err := node.ResetOperator(cfg, ttl, all, time.Now())
			if err != nil {
				return err
			}
			a.say("the token is good once %s runs and the cluster has a leader; put another one, or none, into the operator_token_file of every node", cfg.NodeID)
			fmt.Fprintln(a.out, token)
			return nil
		}),
	}
	c.Flags().StringVar(&config, "config", "", "the node's configuration, in YAML")
	c.Flags().DurationVar(&ttl, "ttl", 0, "how long the new token is good, such as 24h; 90 days where none is given")
	c.Flags().BoolVar(&all, "all-tokens", false, "end every stored token with the role operator as well")
	return c
}
