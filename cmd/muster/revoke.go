package main

import (
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
)

func (a *app) revoke() *cobra.Command {
	var r client.Revocation
	var until string
	var wait time.Duration
	c := &cobra.Command{
		Use: "revoke KIND VALUE --reason WHY", Short: "Refuse a credential from now on, on every node",
		Long: "Refuse a credential from now on, on every node, for calls under way too. KIND is\n" +
			"token (an id, or sha256: and the hash of any bearer token's text), jti, subject,\n" +
			"serial (of a certificate, in hex), spiffe, or key (hex SHA-256 of a public key in\n" +
			"DER form). Every node that can be reached refuses the credential when it returns.\n" +
			"A node that is cut off may accept it until it has been without its leader for\n" +
			"isolation.max_staleness: it is named then, with the time. --wait 1m waits for that.\n\n" +
			"muster revoke list shows what is revoked, muster revoke undo NAME takes it back.",
		Args: cobra.ExactArgs(2),
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(r.Reason) == "" {
				return usage("say why, with --reason")
			}
			var err error
			if r.ExpiresAt, err = moment(until); err != nil {
				return err
			}
			r.Kind, r.Value = args[0], args[1]
			c, err := a.dial()
			if err != nil {
				return err
			}
			done, raw, err := c.Revoke(cmd.Context(), r, wait)
			if err != nil {
				return err
			}
			a.pending(&done.Outstanding)
			if a.output == "json" || a.output == "yaml" {
				return a.raw(raw)
			}
			t, err := revocationTable([]jsontext.Value{raw})
			if err != nil {
				return err
			}
			return a.show(nil, func() table { return t })
		}),
	}
	c.Flags().StringVar(&r.Reason, "reason", "", "why, for those who read it later")
	c.Flags().StringVar(&until, "expires-at", "", "day or time at which the credential ends by itself, so that the revocation may be forgotten")
	waitFlag(c, &wait)
	a.outputFlag(c)
	c.AddCommand(a.revokeList(), a.revokeUndo())
	return c
}

func waitFlag(c *cobra.Command, wait *time.Duration) {
	c.Flags().DurationVar(wait, "wait", 3*time.Second, "how long to wait for nodes that are cut off, until they accept nothing any more")
}

// pending warns of nodes that may not know of a revocation yet.
func (a *app) pending(o *client.Outstanding) {
	if len(o.Pending) == 0 {
		return
	}
	end := "as long as they are cut off"
	if !o.InForceAt.IsZero() {
		end = "until " + o.InForceAt.Local().Format(time.TimeOnly) + " at the latest"
	}
	a.say("warning: not reached: %s; if they run, they may accept the credential %s", strings.Join(o.Pending, ", "), end)
}

func revocationTable(items []jsontext.Value) (table, error) {
	t := table{head: []string{"NAME", "KIND", "VALUE", "REASON", "BY", "AT", "EXPIRES"}, wideFrom: 5}
	for _, item := range items {
		var r client.Revocation
		if err := json.Unmarshal(item, &r); err != nil {
			return t, err
		}
		end := "never"
		if !r.ExpiresAt.IsZero() {
			end = r.ExpiresAt.Local().Format(time.DateTime)
		}
		t.rows = append(t.rows, []string{r.Name, r.Kind, r.Value, r.Reason, r.CreatedBy, r.CreatedAt.Local().Format(time.DateTime), end})
		t.names = append(t.names, "revocation/"+r.Name)
	}
	return t, nil
}

func (a *app) revokeList() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List what is revoked", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			items, err := c.Revocations(cmd.Context())
			if err != nil {
				return err
			}
			t, err := revocationTable(items)
			if err != nil {
				return err
			}
			return a.show(map[string]any{"items": items}, func() table { return t })
		}),
	}
	a.outputFlag(c)
	return c
}

func (a *app) revokeUndo() *cobra.Command {
	return &cobra.Command{
		Use: "undo NAME", Short: "Accept a credential again", Args: cobra.ExactArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			name := strings.TrimPrefix(args[0], "revocation/")
			if err := c.Unrevoke(cmd.Context(), name); err != nil {
				return err
			}
			a.say("the revocation %s is taken back", name)
			return nil
		}),
	}
}
