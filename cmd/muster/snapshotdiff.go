package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/fsm"
)

func (a *app) snapshotDiff() *cobra.Command {
	var identity string
	c := &cobra.Command{
		Use: "diff FILE [FILE]", Short: "Tell what lies between two snapshots, or between one and the cluster: exit code 1 where they differ", Args: cobra.RangeArgs(1, 2),
		Long: "Tell which records the second snapshot has added (+), removed (-) or changed (~)\n" +
			"over the first. Without a second file it is the cluster as it is now. Exit code 0\n" +
			"where nothing differs, 1 where something does.",
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			from, err := a.open(args[0], identity, "reading")
			if err != nil {
				return err
			}
			defer from.Close()
			to, err := a.other(cmd, args[1:], identity)
			if err != nil {
				return err
			}
			defer to.Close()
			d, err := fsm.Diff(from, to)
			if err != nil {
				return err
			}
			if err := a.showDifference(d); err != nil || len(d.Changes) == 0 {
				return err
			}
			return silent(exitError)
		}),
	}
	identityFlag(c, &identity)
	a.outputFlag(c)
	return c
}

// other opens the second side of a comparison.
func (a *app) other(cmd *cobra.Command, files []string, identity string) (io.ReadCloser, error) {
	if len(files) > 0 {
		return a.open(files[0], identity, "reading")
	}
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	stream, _, err := c.SaveSnapshot(cmd.Context())
	return stream, err
}

func (a *app) showDifference(d *fsm.Difference) error {
	signs := map[string]string{fsm.Added: "+", fsm.Removed: "-", fsm.Changed: "~"}
	if a.output != "json" && a.output != "yaml" && a.output != "name" {
		for _, kind := range sorted(d.Kinds) {
			k := d.Kinds[kind]
			a.say("%s: %d added, %d removed, %d changed", kind, k.Added, k.Removed, k.Changed)
		}
		if len(d.Changes) == 0 {
			a.say("no record differs between revision %d and revision %d", d.From.Revision, d.To.Revision)
		}
	}
	return a.show(d, func() table {
		t := table{}
		for _, c := range d.Changes {
			t.rows = append(t.rows, []string{signs[c.Change] + " " + c.Kind, c.Name})
			t.names = append(t.names, fmt.Sprintf("%s/%s", c.Kind, c.Name))
		}
		return t
	})
}
