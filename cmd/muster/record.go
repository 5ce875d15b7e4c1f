package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

// row is what tables show of a record of any kind.
type row struct {
	Namespace     string           `json:"namespace"`
	Name          string           `json:"name"`
	Service       string           `json:"service"`
	Protocol      string           `json:"protocol"`
	Owner         string           `json:"owner"`
	Description   string           `json:"description"`
	Tags          []string         `json:"tags"`
	Version       string           `json:"version"`
	Format        string           `json:"format"`
	Lifecycle     string           `json:"lifecycle"`
	Digest        string           `json:"digest"`
	Routes        []jsontext.Value `json:"routes"`
	Findings      []jsontext.Value `json:"findings"`
	ID            string           `json:"id"`
	Address       string           `json:"address"`
	Port          int              `json:"port"`
	Zone          string           `json:"zone"`
	Weight        int              `json:"weight"`
	Status        string           `json:"status"`
	TTL           string           `json:"ttl"`
	Metadata      jsontext.Value   `json:"metadata"`
	Payload       jsontext.Value   `json:"payload"`
	URL           string           `json:"webhook_url"`
	Events        []string         `json:"events"`
	Timeout       string           `json:"timeout"`
	FailurePolicy string           `json:"failure_policy"`
	Role          string           `json:"role"`
	Namespaces    []string         `json:"namespaces"`
	Match         jsontext.Value   `json:"match"`
	Revision      uint64           `json:"revision"`

	NamespacesClaim string `json:"namespaces_claim"`

	UpdatedAt time.Time `json:"updated_at"`
}

// recordTable lays out records of one kind.
func recordTable(kind client.Kind, items []jsontext.Value) (table, error) {
	t := table{}
	for _, item := range items {
		var r row
		if err := json.Unmarshal(item, &r); err != nil {
			return t, err
		}
		rev, at := strconv.FormatUint(r.Revision, 10), r.UpdatedAt.Local().Format(time.DateTime)
		switch kind {
		case client.Service:
			t.rows = append(t.rows, []string{r.Namespace, r.Name, r.Protocol, r.Owner, rev, at, strings.Join(r.Tags, ","), r.Description})
			t.names = append(t.names, "service/"+r.Name)
		case client.Version:
			t.rows = append(t.rows, []string{r.Service, r.Version, r.Format, r.Lifecycle, strconv.Itoa(len(r.Routes)), strconv.Itoa(len(r.Findings)), rev, at, r.Digest})
			t.names = append(t.names, "version/"+r.Service+"/"+r.Version)
		case client.Instance:
			t.rows = append(t.rows, []string{r.Service, r.ID, r.Address, strconv.Itoa(r.Port), r.Version, r.Zone, r.Status, rev, at, strconv.Itoa(r.Weight), r.TTL, strings.Join(r.Tags, ","), r.Namespace})
			t.names = append(t.names, "instance/"+r.Service+"/"+r.ID)
		case client.Schema:
			t.rows = append(t.rows, []string{r.Namespace, r.Name, has(r.Metadata), has(r.Payload), rev, at})
			t.names = append(t.names, "schema/"+r.Name)
		case client.Webhook:
			t.rows = append(t.rows, []string{r.Name, r.URL, strings.Join(r.Events, ","), r.FailurePolicy, r.Timeout, rev, at})
			t.names = append(t.names, "webhook/"+r.Name)
		case client.Role:
			t.rows = append(t.rows, []string{r.Name, r.Role, inNamespaces(r.Namespaces, r.NamespacesClaim), string(r.Match), rev, at})
			t.names = append(t.names, "role/"+r.Name)
		}
	}
	switch kind {
	case client.Service:
		t.head, t.wideFrom = []string{"NAMESPACE", "NAME", "PROTOCOL", "OWNER", "REVISION", "UPDATED", "TAGS", "DESCRIPTION"}, 6
	case client.Version:
		t.head, t.wideFrom = []string{"SERVICE", "VERSION", "FORMAT", "LIFECYCLE", "ROUTES", "FINDINGS", "REVISION", "UPDATED", "DIGEST"}, 8
	case client.Instance:
		t.head, t.wideFrom = []string{"SERVICE", "ID", "ADDRESS", "PORT", "VERSION", "ZONE", "STATUS", "REVISION", "UPDATED", "WEIGHT", "TTL", "TAGS", "NAMESPACE"}, 9
	case client.Schema:
		t.head, t.wideFrom = []string{"NAMESPACE", "KIND", "METADATA", "PAYLOAD", "REVISION", "UPDATED"}, 6
	case client.Webhook:
		t.head, t.wideFrom = []string{"NAME", "URL", "EVENTS", "FAILURE", "TIMEOUT", "REVISION", "UPDATED"}, 7
	case client.Role:
		t.head, t.wideFrom = []string{"NAME", "ROLE", "NAMESPACES", "MATCH", "REVISION", "UPDATED"}, 6
	}
	return t, nil
}

// inNamespaces says where a rule gives its role.
func inNamespaces(names []string, claim string) string {
	if claim != "" {
		names = append(names, "claim "+claim)
	}
	if len(names) == 0 {
		return "all"
	}
	return strings.Join(names, ",")
}

func has(v jsontext.Value) string {
	if len(v) == 0 {
		return "no"
	}
	return "yes"
}

// target reads KIND [NAME], KIND/NAME; of versions and instances NAME is
// SERVICE or SERVICE/NAME. one is false where a list is meant.
func target(args []string, namespace string) (r client.Ref, one bool, err error) {
	kind, rest, _ := strings.Cut(args[0], "/")
	if rest != "" {
		args = append([]string{kind, rest}, args[1:]...)
	}
	switch kind {
	case "service", "services", "svc":
		r.Kind = client.Service
	case "version", "versions", "ver":
		r.Kind = client.Version
	case "instance", "instances", "inst":
		r.Kind = client.Instance
	case "schema", "schemas":
		r.Kind = client.Schema
	case "webhook", "webhooks":
		r.Kind = client.Webhook
	case "role", "roles":
		r.Kind = client.Role
	default:
		return r, false, usage("%q is not a kind; the kinds are services, versions, instances, schemas, webhooks, roles", kind)
	}
	alone := r.Kind == client.Service || r.Kind == client.Schema || r.Kind == client.Webhook || r.Kind == client.Role
	r.Namespace = namespace
	switch {
	case len(args) > 2:
		if alone {
			return r, false, usage("too many arguments; write %s NAME", kind)
		}
		return r, false, usage("too many arguments; write %s SERVICE/NAME", kind)
	case alone && len(args) == 2:
		r.Name = args[1]
		return r, true, nil
	case alone:
		return r, false, nil
	case len(args) < 2: // of all services
		return r, false, nil
	}
	r.Service, r.Name, one = strings.Cut(args[1], "/")
	return r, one, nil
}

// readFlags are the flags that say how fresh a read must be.
type readFlags struct {
	consistency  string
	minRevision  uint64
	maxStaleness time.Duration
}

func (f *readFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.consistency, "consistency", "local", "local, or linearizable: sees every change acknowledged anywhere")
	c.Flags().Uint64Var(&f.minRevision, "min-revision", 0, "wait until the node has this revision")
	c.Flags().DurationVar(&f.maxStaleness, "max-staleness", 0, "refuse an answer that is older")
}

func (f *readFlags) read() (client.Read, error) {
	if f.consistency != "local" && f.consistency != "linearizable" {
		return client.Read{}, usage("--consistency is local or linearizable")
	}
	return client.Read{Linearizable: f.consistency == "linearizable", MinRevision: f.minRevision, MaxStaleness: f.maxStaleness}, nil
}

func (a *app) get() *cobra.Command {
	var how readFlags
	var all bool
	c := &cobra.Command{
		Use: "get KIND [NAME]", Short: "Print services, versions, instances, schemas or webhooks",
		Example: "  muster get services\n  muster get service payments -o yaml\n  muster get instances payments -o wide\n  muster get instances -A\n  muster get version payments/1.0.0\n  muster get schemas",
		Args:    cobra.MinimumNArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			read, err := how.read()
			if err != nil {
				return err
			}
			r, one, err := target(args, a.settings.Namespace)
			if err != nil {
				return err
			}
			if one {
				rec, err := c.Get(cmd.Context(), r, read)
				if err != nil {
					return err
				}
				return a.showRecords(r.Kind, rec.JSON, []jsontext.Value{rec.JSON})
			}
			if all && r.Service == "" {
				r.Namespace = ""
			}
			items, err := list(cmd.Context(), c, r, read)
			if err != nil {
				return err
			}
			return a.showRecords(r.Kind, map[string]any{"items": items}, items)
		}),
	}
	how.add(c)
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "records of all namespaces")
	a.outputFlag(c)
	return c
}

// list reads all records of a kind; versions and instances of all services where
// none is named.
func list(ctx context.Context, c *client.Client, r client.Ref, how client.Read) ([]jsontext.Value, error) {
	if r.Service != "" || r.Kind != client.Version && r.Kind != client.Instance {
		return c.List(ctx, r.Kind, r.Namespace, r.Service, how)
	}
	services, err := c.List(ctx, client.Service, r.Namespace, "", how)
	if err != nil {
		return nil, err
	}
	all := []jsontext.Value{}
	for _, s := range services {
		var of row
		if err := json.Unmarshal(s, &of); err != nil {
			return nil, err
		}
		items, err := c.List(ctx, r.Kind, of.Namespace, of.Name, how)
		if fault.Is(err, fault.ServiceNotFound) {
			continue // it has gone meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, items...)
	}
	return all, nil
}

func (a *app) showRecords(kind client.Kind, v any, items []jsontext.Value) error {
	t, err := recordTable(kind, items)
	if err != nil {
		return err
	}
	if raw, ok := v.(jsontext.Value); ok && (a.output == "json" || a.output == "yaml") {
		return a.raw(raw)
	}
	return a.show(v, func() table { return t })
}

func (a *app) describe() *cobra.Command {
	return &cobra.Command{
		Use: "describe KIND NAME", Short: "Print all there is about one record", Args: cobra.MinimumNArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			r, one, err := target(args, a.settings.Namespace)
			if err != nil {
				return err
			}
			if !one {
				return usage("name the record: muster describe %s NAME", args[0])
			}
			rec, err := c.Get(cmd.Context(), r, client.Read{})
			if err != nil {
				return err
			}
			text, err := toYAML(rec.JSON)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s\n\n%s", r, text)
			if r.Kind == client.Instance {
				return a.describeChecks(rec.JSON)
			}
			if r.Kind != client.Service {
				return nil
			}
			for _, kind := range []client.Kind{client.Version, client.Instance} {
				items, err := c.List(cmd.Context(), kind, r.Namespace, r.Name, client.Read{})
				if err != nil {
					return err
				}
				fmt.Fprintf(a.out, "\n%s\n", count(len(items), string(kind)))
				if len(items) == 0 {
					continue
				}
				if err := a.showRecords(kind, nil, items); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

// count is a number of things, in words.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}

func (a *app) deletes() *cobra.Command {
	var files []string
	var at uint64
	c := &cobra.Command{
		Use: "delete KIND NAME | -f FILE", Short: "Delete records; a service with all that it holds",
		Args: cobra.ArbitraryArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			var refs []client.Ref
			switch {
			case len(files) > 0 && len(args) == 0:
				ms, err := a.manifests(files, a.settings.Namespace)
				if err != nil {
					return err
				}
				for i := len(ms) - 1; i >= 0; i-- { // what was needed first goes last
					if ms[i].Kind == kindPolicy {
						return fmt.Errorf("%s: policy revisions are not deleted; go back with muster policy rollback", ms[i].origin)
					}
					refs = append(refs, ms[i].ref())
				}
			case len(args) > 0 && len(files) == 0:
				r, one, err := target(args, a.settings.Namespace)
				if err != nil {
					return err
				}
				if !one {
					return usage("name what to delete: muster delete %s NAME", args[0])
				}
				refs = append(refs, r)
			default:
				return usage("say what to delete: a kind and a name, or -f")
			}
			for _, r := range refs {
				if err := c.Delete(cmd.Context(), r, client.Write{IfRevision: at}); err != nil {
					return err
				}
				fmt.Fprintln(a.out, r.String()+" deleted")
			}
			return nil
		}),
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "file or folder of manifests, or - for standard input")
	c.Flags().Uint64Var(&at, "if-revision", 0, "only if the record has this revision")
	return c
}
