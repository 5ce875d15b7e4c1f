package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/policy"
)

func (a *app) policySync() *cobra.Command {
	c := &cobra.Command{
		Use: "sync", Short: "Pull policies from Git now, and tell how it ended", Args: cobra.NoArgs,
		Long: "Have the leader pull policies from the Git source in its configuration, wait for that, and tell how\n" +
			"it ended. Exit code 0: the newest commit is taken; 1: it is not, and the one before stays.",
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			v, err := c.SyncPolicy(cmd.Context())
			if err != nil {
				return err
			}
			s, err := a.showSync(v, false)
			if err == nil && s.Outcome != "accepted" && s.Outcome != "unchanged" {
				return silent(exitError)
			}
			return err
		}),
	}
	status := &cobra.Command{
		Use: "status", Short: "Tell how far the Git source has come, with its history", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			v, err := c.SyncStatus(cmd.Context())
			if err != nil {
				return err
			}
			_, err = a.showSync(v, true)
			return err
		}),
	}
	a.outputFlag(c)
	a.outputFlag(status)
	c.AddCommand(status)
	return c
}

// syncState is how far the Git source has come, as it is printed.
type syncState struct {
	Source   policy.Source `json:"source"`
	Revision uint64        `json:"policy_revision"`
	Outcome  string        `json:"outcome"`
	Refused  *struct {
		Commit  string `json:"commit"`
		Message string `json:"message"`
	} `json:"refused"`
	History []struct {
		At      time.Time `json:"at"`
		Commit  string    `json:"commit"`
		Step    string    `json:"step"`
		Message string    `json:"message"`
	} `json:"history"`
}

func (a *app) showSync(v jsontext.Value, history bool) (*syncState, error) {
	var s syncState
	if err := json.Unmarshal(v, &s); err != nil {
		return nil, fmt.Errorf("the state of the Git source cannot be read: %w", err)
	}
	switch a.output {
	case "json", "yaml":
		return &s, a.raw(v)
	case "name":
		_, err := fmt.Fprintln(a.out, s.Source.Commit)
		return &s, err
	}
	source := s.Source.URL + " " + s.Source.Branch
	if s.Source.Path != "" {
		source += " " + s.Source.Path
	}
	fmt.Fprintf(a.out, "%s: %s\n", source, s.Outcome)
	if s.Source.Commit != "" {
		fmt.Fprintf(a.out, "accepted: %s, policy revision %d\n", abbreviated(s.Source.Commit), s.Revision)
	}
	switch {
	case s.Refused != nil:
		fmt.Fprintf(a.out, "refused:  %s, %s\n", abbreviated(s.Refused.Commit), s.Refused.Message)
	case s.Outcome != "accepted" && s.Outcome != "unchanged" && len(s.History) > 0:
		fmt.Fprintf(a.out, "failed:   %s\n", s.History[len(s.History)-1].Message)
	}
	if !history {
		return &s, nil
	}
	t := table{head: []string{"TIME", "COMMIT", "STEP", "MESSAGE"}, wideFrom: 4}
	for i := len(s.History) - 1; i >= 0; i-- {
		e := s.History[i]
		t.rows = append(t.rows, []string{e.At.Local().Format(time.DateTime), abbreviated(e.Commit), e.Step, e.Message})
		t.names = append(t.names, strconv.Itoa(i))
	}
	return &s, a.show(nil, func() table { return t })
}

// abbreviated is a commit as people write it.
func abbreviated(commit string) string {
	if len(commit) > 12 {
		return commit[:12]
	}
	return commit
}
