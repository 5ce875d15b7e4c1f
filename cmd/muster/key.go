package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/policy"
)

func (a *app) policyKey() *cobra.Command {
	return group("key", "Say which keys may sign policies",
		a.keyAdd(), a.keyList(), a.keyRevoke(), a.keyDelete(), a.keyRequire())
}

func (a *app) keyAdd() *cobra.Command {
	var file, until string
	k := client.PolicyKey{}
	c := &cobra.Command{
		Use: "add NAME --file FILE", Short: "Trust a public key, or give a trusted one its prolonged form",
		Long: "Trust a public key: one that gpg --armor --export wrote, the PEM public key of what\n" +
			"opa build signs with (or its shared secret), or the line of an SSH public key.\n" +
			"Signatures of opa build name their key: call it as --verification-key-id does.",
		Args: cobra.ExactArgs(1),
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return usage("name the file with the public key, with --file")
			}
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if !utf8.Valid(b) {
				return fmt.Errorf("%s is not text; export the key with gpg --armor --export", file)
			}
			k.Name, k.Material = args[0], string(b)
			if k.Kind == "" {
				if k.Kind = kindOf(k.Material); k.Kind == "" {
					return usage("%s does not show what kind of key it is; say so with --kind", file)
				}
			}
			if k.Kind == "opa" && k.Algorithm == "" {
				k.Algorithm = "RS256"
			}
			if k.NotAfter, err = moment(until); err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			rec, err := c.TrustKey(cmd.Context(), k)
			return a.showKey(rec, err)
		}),
	}
	c.Flags().StringVar(&file, "file", "", "file with the public key")
	c.Flags().StringVar(&k.Kind, "kind", "", "openpgp, opa or ssh; found out where it is not given")
	c.Flags().StringVar(&k.Algorithm, "algorithm", "", "of a key of the kind opa, by which it signs (default RS256)")
	c.Flags().StringVar(&k.Scope, "scope", "", "of a key of the kind opa, which its signatures must have")
	c.Flags().StringVar(&until, "not-after", "", "day or time from which on its signatures are refused, such as 2027-01-31")
	a.outputFlag(c)
	return c
}

// kindOf tells the kind of a key from how it begins.
func kindOf(material string) string {
	material = strings.TrimSpace(material)
	switch {
	case strings.HasPrefix(material, "-----BEGIN PGP "):
		return "openpgp"
	case strings.HasPrefix(material, "-----BEGIN "):
		return "opa"
	case slices.ContainsFunc([]string{"ssh-", "ecdsa-", "sk-"}, func(p string) bool { return strings.HasPrefix(material, p) }):
		return "ssh"
	}
	return ""
}

// moment reads a day, which begins in UTC, or a time; "" is none.
func moment(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage("%q is not a day like 2027-01-31 or a time like 2027-01-31T12:00:00Z", s)
}

// showKey prints a key after a change.
func (a *app) showKey(rec *client.Record, err error) error {
	if err != nil {
		return err
	}
	if a.output == "json" || a.output == "yaml" {
		return a.raw(rec.JSON)
	}
	t, err := keyTable([]jsontext.Value{rec.JSON})
	if err != nil {
		return err
	}
	return a.show(nil, func() table { return t })
}

func keyTable(items []jsontext.Value) (table, error) {
	t := table{head: []string{"NAME", "KIND", "NOT AFTER", "REVOKED", "FINGERPRINT", "ALGORITHM", "SCOPE", "UPDATED BY"}, wideFrom: 5}
	for _, item := range items {
		var k struct {
			Name, Kind, Algorithm, Scope, Fingerprint string
			NotAfter                                  time.Time `json:"not_after"`
			RevokedAt                                 time.Time `json:"revoked_at"`
			RevokedReason                             string    `json:"revoked_reason"`
			UpdatedBy                                 string    `json:"updated_by"`
		}
		if err := json.Unmarshal(item, &k, json.MatchCaseInsensitiveNames(true)); err != nil {
			return t, err
		}
		until, revoked := "", ""
		if !k.NotAfter.IsZero() {
			until = k.NotAfter.Local().Format(time.DateTime)
		}
		if !k.RevokedAt.IsZero() {
			revoked = k.RevokedAt.Local().Format(time.DateTime) + " " + k.RevokedReason
		}
		t.rows = append(t.rows, []string{k.Name, k.Kind, until, revoked, k.Fingerprint, k.Algorithm, k.Scope, k.UpdatedBy})
		t.names = append(t.names, "key/"+k.Name)
	}
	return t, nil
}

func (a *app) keyList() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List the keys that may sign policies, and those that no longer may", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			items, err := c.PolicyKeys(cmd.Context())
			if err != nil {
				return err
			}
			t, err := keyTable(items)
			if err != nil {
				return err
			}
			return a.show(map[string]any{"items": items}, func() table { return t })
		}),
	}
	a.outputFlag(c)
	return c
}

func (a *app) keyRevoke() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "revoke NAME --reason WHY", Short: "Refuse all signatures by a key from now on, for good", Args: cobra.ExactArgs(1),
		Long: "Refuse all signatures by a key from now on, for good. What was accepted under them\nbefore stays: see which revisions those are with muster policy list -o wide.",
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return usage("say why, with --reason")
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			rec, err := c.RevokeKey(cmd.Context(), strings.TrimPrefix(args[0], "key/"), reason)
			return a.showKey(rec, err)
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for those who read it later")
	a.outputFlag(c)
	return c
}

func (a *app) keyDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Short: "Forget a key that is not needed any more", Args: cobra.ExactArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			name := strings.TrimPrefix(args[0], "key/")
			if err := c.DeleteKey(cmd.Context(), name); err != nil {
				return err
			}
			a.say("the key %s is forgotten", name)
			return nil
		}),
	}
}

func (a *app) keyRequire() *cobra.Command {
	var off bool
	c := &cobra.Command{
		Use: "require", Short: "Take only policies that are signed by a trusted key", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			if err := c.RequireSignature(cmd.Context(), !off); err != nil {
				return err
			}
			if off {
				a.say("policies need no signature any more")
			} else {
				a.say("only signed policies are taken from now on")
			}
			return nil
		}),
	}
	c.Flags().BoolVar(&off, "off", false, "take unsigned policies again")
	return c
}

// asIs reads the one file whose exact bytes are pushed: a bundle, or what a
// signature is over.
func asIs(names []string, note, signature string) (p client.Policy, ok bool, err error) {
	if signature == "" && !slices.ContainsFunc(names, isBundle) {
		return p, false, nil
	}
	if len(names) > 1 {
		return p, true, usage("name one file: a bundle, or the JSON of a push; it is sent byte for byte")
	}
	if note != "" {
		return p, true, usage("what is sent byte for byte brings its own note; leave out --note")
	}
	if info, err := os.Stat(names[0]); err == nil && info.IsDir() {
		return p, true, usage("%s is a folder, and a signature is over one file: name the bundle (.tar.gz) or the JSON that was signed", names[0])
	}
	if p.Body, err = os.ReadFile(names[0]); err != nil {
		return p, true, err
	}
	p.Bundle = bytes.HasPrefix(p.Body, []byte{0x1f, 0x8b})
	if signature != "" {
		p.Signature, err = os.ReadFile(signature)
	}
	return p, true, err
}

// signer tells by which key a revision was signed, under which number, and
// where it comes from.
func signer(s *policy.Signature, from *policy.Source) (by, number, source string) {
	if s != nil {
		by = s.Key + " (" + s.Kind + ")"
		if s.Number > 0 {
			number = fmt.Sprint(s.Number)
		}
	}
	if from != nil {
		source = from.Kind + " " + from.URL + " " + from.Commit
	}
	return by, number, source
}
