package main

import (
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
)

func (a *app) token() *cobra.Command {
	return group("token", "Make, list and end bearer tokens", a.tokenCreate(), a.tokenList(), a.tokenRevoke())
}

func (a *app) tokenCreate() *cobra.Command {
	var role string
	var namespaces []string
	var ttl time.Duration
	c := &cobra.Command{
		Use: "create --role ROLE", Short: "Make a token; its text is shown this once", Args: cobra.NoArgs,
		RunE: a.do(func(cmd *cobra.Command, _ []string) error {
			if role == "" {
				return usage("say which role the token has, with --role")
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			v, err := c.CreateToken(cmd.Context(), role, namespaces, ttl)
			if err != nil {
				return err
			}
			return a.showTokens(v, []jsontext.Value{v}, true)
		}),
	}
	c.Flags().StringVar(&role, "role", "", "viewer, publisher, operator, policy-admin, break-glass")
	c.Flags().StringArrayVarP(&namespaces, "namespace", "n", nil, "namespace the token is limited to; may be repeated; all where none is given")
	c.Flags().DurationVar(&ttl, "ttl", 0, "how long the token is good, such as 24h; 90 days where none is given")
	a.outputFlag(c)
	return c
}

func (a *app) showTokens(v any, items []jsontext.Value, withText bool) error {
	if raw, ok := v.(jsontext.Value); ok && (a.output == "json" || a.output == "yaml") {
		return a.raw(raw)
	}
	t := table{head: []string{"ID", "ROLE", "NAMESPACES", "EXPIRES"}}
	if withText {
		t.head = append(t.head, "TOKEN")
	}
	for _, item := range items {
		var k client.Token
		if err := json.Unmarshal(item, &k); err != nil {
			return err
		}
		expires, in := "never", "all"
		if !k.ExpiresAt.IsZero() {
			expires = k.ExpiresAt.Local().Format(time.DateTime)
		}
		if len(k.Namespaces) > 0 {
			in = strings.Join(k.Namespaces, ",")
		}
		row := []string{k.ID, k.Role, in, expires}
		if withText {
			row = append(row, k.Text)
		}
		t.rows = append(t.rows, row)
		t.names = append(t.names, "token/"+k.ID)
	}
	return a.show(v, func() table { return t })
}

func (a *app) tokenList() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List the tokens, without their texts", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			items, err := c.Tokens(cmd.Context())
			if err != nil {
				return err
			}
			return a.showTokens(map[string]any{"items": items}, items, false)
		}),
	}
	a.outputFlag(c)
	return c
}

func (a *app) tokenRevoke() *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use: "revoke ID", Short: "End a token", Args: cobra.ExactArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			id := strings.TrimPrefix(args[0], "token/")
			if parts := strings.SplitN(id, "_", 3); len(parts) == 3 && parts[0] == "muster" {
				id = parts[1] // the text was given: it goes no further
			}
			o, err := c.RevokeToken(cmd.Context(), id, wait)
			if err != nil {
				return err
			}
			a.say("the token %s is revoked", id)
			a.pending(o)
			return nil
		}),
	}
	waitFlag(c, &wait)
	return c
}
