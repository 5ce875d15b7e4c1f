package main

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/quota"
)

// quotasName is the name of the one quotas document.
const quotasName = "quotas"

var quotas = client.Ref{Kind: client.Quota, Name: quotasName}

func (a *app) quota() *cobra.Command {
	return group("quota", "Limit how often services may be called", a.quotaApply(), a.quotaGet())
}

func (a *app) quotaApply() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "apply -f FILE", Short: "Set the rate limits of all services, in place of those before", Args: cobra.NoArgs,
		Long: "Set the rate limits of all services from a file with quota_management, in YAML or\n" +
			"JSON. It takes the place of the limits before: what it does not name is lifted.",
		Example: "  muster quota apply -f quotas.yaml\n  muster quota get -o yaml",
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			if file == "" {
				return usage("name the file with the quotas, or -, with -f")
			}
			var b []byte
			var err error
			if file == "-" {
				b, err = io.ReadAll(a.in)
			} else {
				b, err = os.ReadFile(file)
			}
			if err != nil {
				return err
			}
			docs, err := documents(b)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if len(docs) != 1 {
				return fmt.Errorf("%s: holds %d documents; there is one quotas document", file, len(docs))
			}
			body := docs[0]
			var m manifest
			if json.Unmarshal(body, &m) == nil && m.Kind == "Quota" {
				body = m.Spec
			}
			rec, err := c.Put(cmd.Context(), quotas, body, client.Write{})
			if err != nil {
				return err
			}
			return a.showQuotas(rec.JSON)
		}),
	}
	c.Flags().StringVarP(&file, "filename", "f", "", "file with the quotas, or - for standard input")
	a.outputFlag(c)
	return c
}

func (a *app) quotaGet() *cobra.Command {
	var how readFlags
	c := &cobra.Command{
		Use: "get", Short: "Print the rate limits", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			read, err := how.read()
			if err != nil {
				return err
			}
			rec, err := c.Get(cmd.Context(), quotas, read)
			if err != nil {
				return err
			}
			return a.showQuotas(rec.JSON)
		}),
	}
	how.add(c)
	a.outputFlag(c)
	return c
}

func (a *app) showQuotas(record jsontext.Value) error {
	if a.output == "json" || a.output == "yaml" {
		return a.raw(record)
	}
	var d quota.Document
	if err := json.Unmarshal(record, &d); err != nil {
		return err
	}
	t := table{head: []string{"LIMIT", "OF", "REQUESTS/S", "BURST", "BACKEND"}}
	add := func(kind, of string, r quota.Rate) {
		t.rows = append(t.rows, []string{kind, of, strconv.FormatFloat(r.RequestsPerSecond, 'g', -1, 64), strconv.FormatInt(r.BurstCapacity, 10), d.Management.Backend})
		t.names = append(t.names, kind+"/"+of)
	}
	if d.Management != nil {
		if r := d.Management.Defaults; r != nil {
			add("default", "each service", *r)
		}
		for _, o := range d.Management.Overrides {
			switch {
			case o.Principal != "":
				add("principal", o.Principal, o.Rate)
			case o.ServiceID == "":
				add("namespace", o.Namespace, o.Rate)
			case o.Namespace == "":
				add("service", quota.DefaultNamespace+"/"+o.ServiceID, o.Rate)
			default:
				add("service", o.Namespace+"/"+o.ServiceID, o.Rate)
			}
		}
	}
	return a.show(nil, func() table { return t })
}
