package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/policy"
)

func (a *app) policyBuiltin() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "builtin", Short: "Print the policy that says what the built-in roles may do", Args: cobra.NoArgs,
		Long: "Print the Rego of the package muster.roles, which is asked of every call before any\npolicy of yours. With --to it is written to a folder, with its tests, for muster policy\ntest and muster policy eval. No cluster is needed.",
		RunE: a.do(func(*cobra.Command, []string) error {
			modules := policy.Builtin()
			for _, name := range slices.Sorted(maps.Keys(modules)) {
				if dir == "" {
					if name == "roles.rego" {
						fmt.Fprint(a.out, modules[name])
					}
					continue
				}
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(modules[name]), 0o644); err != nil {
					return err
				}
				a.say("wrote %s", filepath.Join(dir, name))
			}
			return nil
		}),
	}
	c.Flags().StringVar(&dir, "to", "", "folder to write the modules to")
	return c
}
