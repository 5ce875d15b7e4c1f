package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/client"
)

func (a *app) audit() *cobra.Command {
	return group("audit", "Check and read a node's audit trail", a.auditVerify(), a.auditTail(), a.auditHeads(), a.auditAccept())
}

func (a *app) auditVerify() *cobra.Command {
	var check audit.Check
	var cluster bool
	c := &cobra.Command{
		Use: "verify FILE...", Short: "Check that no line of an audit trail was altered, taken out or moved", Args: cobra.MinimumNArgs(1),
		Long: `Check the files of one audit trail, in any order, also compressed ones (.gz). The
first line that was altered, is missing or stands in another place is named, and
the exit code is 1. Lines cut off at the end, and a trail written anew from some
line on, are not seen by the chain itself: --cluster asks the cluster for the
line that it knows of the node, and looks whether the files hold it.`,
		Example: "  muster audit verify /var/log/api-audit.log*\n  muster audit verify --cluster /var/log/api-audit.log*",
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			if cluster {
				var err error
				if check.Heads, err = a.heads(cmd.Context()); err != nil {
					return err
				}
			}
			r, err := check.Verify(args...)
			if err != nil {
				for _, f := range r.Faults {
					if _, err := fmt.Fprintln(a.out, f); err != nil {
						return err
					}
				}
				return err
			}
			return a.show(r, func() table {
				t := table{names: args[:1], rows: [][]string{
					{"lines", fmt.Sprintf("%d, from %d to %d", r.Lines, r.First, r.Head.Seq)},
					{"changes", fmt.Sprintf("to revision %d of cluster %s", r.Head.Revision, r.Head.ClusterID)},
					{"head", r.Head.Hash},
				}}
				for _, n := range r.Notes {
					t.rows = append(t.rows, []string{"note", n})
				}
				return t
			})
		}),
	}
	c.Flags().BoolVar(&cluster, "cluster", false, "compare with the line that the cluster knows of the node")
	c.Flags().BoolVar(&check.All, "all", false, "go on behind the first fault, and print each")
	a.outputFlag(c)
	return c
}

// heads asks the cluster what it knows of the trails.
func (a *app) heads(ctx context.Context) (map[string]audit.Head, error) {
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	list, err := c.AuditHeads(ctx)
	if err != nil {
		return nil, err
	}
	heads := map[string]audit.Head{}
	for _, h := range list {
		heads[h.Node] = audit.Head{Seq: h.Seq, Hash: h.Hash}
	}
	return heads, nil
}

func (a *app) auditHeads() *cobra.Command {
	c := &cobra.Command{
		Use: "heads", Short: "List which line of each node's audit trail the cluster knows", Args: cobra.NoArgs,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.AuditHeads(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(map[string]any{"items": list}, func() table {
				t := table{head: []string{"NODE", "LINE", "AT", "HASH"}}
				for _, h := range list {
					t.rows = append(t.rows, []string{h.Node, strconv.FormatUint(h.Seq, 10), h.At.Local().Format(time.DateTime), h.Hash})
					t.names = append(t.names, h.Node)
				}
				return t
			})
		}),
	}
	a.outputFlag(c)
	return c
}

func (a *app) auditAccept() *cobra.Command {
	return &cobra.Command{
		Use: "accept NODE", Short: "Accept the audit trail of a node as it is from here on", Args: cobra.ExactArgs(1),
		Long: `Forget the line that the cluster knows of a node's audit trail. A node whose trail
was replaced or cut raises an alarm until this is done: after its folder was
emptied on purpose, or after somebody has looked into it. The call stands in the
audit trail of every node.`,
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.ForgetAuditHead(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.say("the audit trail of %s is accepted as it is", args[0])
			return nil
		}),
	}
}

func (a *app) auditTail() *cobra.Command {
	var follow bool
	var n int
	c := &cobra.Command{
		Use: "tail FILE", Short: "Print the last lines of an audit trail, and with -f those that come", Args: cobra.ExactArgs(1),
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			if n < 0 {
				return usage("--lines must not be negative")
			}
			return a.tail(cmd.Context(), args[0], n, follow)
		}),
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted, also in the files that replace this one")
	c.Flags().IntVarP(&n, "lines", "l", 10, "how many lines")
	return c
}

// lookEvery is how often a followed file is looked at.
const lookEvery = 200 * time.Millisecond

func (a *app) tail(ctx context.Context, name string, n int, follow bool) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := back(f, n); err != nil {
		return err
	}
	for {
		if _, err := io.Copy(a.out, f); err != nil {
			return err
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookEvery):
		}
		next, err := replaced(f, name)
		if err != nil {
			return err
		}
		if next == nil {
			continue
		}
		_, err = io.Copy(a.out, f) // what was written before it was moved away
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		f = next
	}
}

// replaced opens the file that has taken the name of f, if one has.
func replaced(f *os.File, name string) (*os.File, error) {
	next, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // it is being moved
	}
	if err != nil {
		return nil, err
	}
	was, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, next.Close())
	}
	is, err := next.Stat()
	if err != nil || os.SameFile(was, is) {
		return nil, errors.Join(err, next.Close())
	}
	return next, nil
}

// back moves to the beginning of the last n lines.
func back(f *os.File, n int) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for at := end; at > 0; {
		size := min(at, int64(len(block)))
		at -= size
		b := block[:size]
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
		for i := len(b); ; {
			if i = bytes.LastIndexByte(b[:i], '\n'); i < 0 {
				break
			}
			// The end of the last line begins no other.
			if at+int64(i)+1 == end {
				continue
			}
			if n--; n <= 0 {
				_, err := f.Seek(at+int64(i)+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
