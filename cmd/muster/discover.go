package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
)

func (a *app) discover() *cobra.Command {
	var how readFlags
	var f client.Filter
	var status string
	c := &cobra.Command{
		Use: "discover SERVICE", Short: "Find the instances of a service", Args: cobra.ExactArgs(1),
		RunE: a.do(func(cmd *cobra.Command, args []string) (err error) {
			if f.Read, err = how.read(); err != nil {
				return err
			}
			if status != "passing" && status != "any" {
				return usage("--status is passing or any")
			}
			f.AnyStatus = status == "any"
			f.Zone = cmp.Or(f.Zone, a.env("MUSTER_ZONE"))
			c, err := a.dial()
			if err != nil {
				return err
			}
			d, err := c.Discover(cmd.Context(), a.settings.Namespace, args[0], f)
			if err != nil {
				return err
			}
			if a.output == "json" || a.output == "yaml" {
				return a.raw(d.JSON)
			}
			if l := d.Locality; l != nil {
				enough := "which are enough"
				if l.SpillOver {
					enough = "too few: use the others as well"
				}
				fmt.Fprintf(a.err, "%s in zone %s, %s\n", count(l.Instances, "instance"), clean([]string{l.Zone})[0], enough)
			}
			return a.show(nil, func() table {
				t := table{head: []string{"ID", "ADDRESS", "PORT", "VERSION", "ZONE", "STATUS", "WEIGHT", "TAGS", "METADATA"}, wideFrom: 6}
				for _, i := range d.Instances {
					t.rows = append(t.rows, []string{i.ID, i.Address, strconv.Itoa(i.Port), i.Version, i.Zone, i.Status,
						strconv.Itoa(i.Weight), strings.Join(i.Tags, ","), pairs(i.Metadata)})
					t.names = append(t.names, "instance/"+d.Service+"/"+i.ID)
				}
				return t
			})
		}),
	}
	how.add(c)
	c.Flags().StringVar(&status, "status", "passing", "passing, or any")
	c.Flags().StringVar(&f.Version, "version", "", "only instances of this version")
	c.Flags().StringArrayVar(&f.Tags, "tag", nil, "only instances with this tag; repeat for more, all must be there")
	c.Flags().StringVar(&f.Zone, "zone", "", "instances of this zone first, and whether they are enough (MUSTER_ZONE)")
	a.outputFlag(c)
	return c
}

func pairs(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}
