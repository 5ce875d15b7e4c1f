package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
)

const (
	groupRecords = "records"
	groupCluster = "cluster"
)

// root builds the whole tree of commands.
func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:           "muster",
		Short:         "A self-contained API registry cluster: services, definitions, instances and policy in one log",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	c.SetIn(a.in)
	c.SetOut(a.out)
	c.SetErr(a.err)
	c.CompletionOptions.HiddenDefaultCmd = false
	a.settings.flags(c.PersistentFlags())
	c.AddGroup(&cobra.Group{ID: groupRecords, Title: "Records and look-ups:"}, &cobra.Group{ID: groupCluster, Title: "Cluster:"})
	for _, s := range []*cobra.Command{a.apply(), a.get(), a.describe(), a.deletes(), a.diff(), a.discover(), a.watch(), a.definition(), a.policy(), a.quota()} {
		s.GroupID = groupRecords
		c.AddCommand(s)
	}
	for _, s := range []*cobra.Command{a.server(), a.dev(), a.cluster(), a.snapshot(), a.audit(), a.token(), a.revoke(), a.tls(), a.health()} {
		s.GroupID = groupCluster
		c.AddCommand(s)
	}
	c.AddCommand(a.versions(), a.debug())
	return c
}

// do makes a command's function, after which errors are no longer about usage.
func (a *app) do(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		return f(cmd, args)
	}
}

// ask is do for a command that needs a cluster, whatever its arguments are.
func (a *app) ask(f func(cmd *cobra.Command, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return a.do(func(cmd *cobra.Command, args []string) error {
		c, err := a.dial()
		if err != nil {
			return err
		}
		return f(cmd, c, args)
	})
}

// group makes a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return usage("say what to do: %s", names(subs)) },
	}
	c.AddCommand(subs...)
	return c
}

func names(subs []*cobra.Command) (s string) {
	for i, sub := range subs {
		if i > 0 {
			s += ", "
		}
		s += sub.Name()
	}
	return s
}

func (a *app) versions() *cobra.Command {
	c := &cobra.Command{
		Use: "version", Short: "Print the version of this program", Args: cobra.NoArgs,
		RunE: a.do(func(*cobra.Command, []string) error {
			v := map[string]string{"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			if b, ok := debug.ReadBuildInfo(); ok {
				for _, s := range b.Settings {
					if s.Key == "vcs.revision" {
						v["commit"] = s.Value
					}
				}
			}
			return a.show(v, func() table {
				return table{rows: [][]string{{"muster " + version + " (" + v["go"] + ", " + v["platform"] + ")"}}}
			})
		}),
	}
	a.outputFlag(c)
	return c
}
