package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/audit"
)

func (a *app) audit() *cobra.Command {
	return group("audit", "Check and read a node's audit trail", a.auditVerify(), a.auditTail())
}

func (a *app) auditVerify() *cobra.Command {
	var check audit.Check
	c := &cobra.Command{
		Use: "verify FILE...", Short: "Check that no line of an audit trail was altered, taken out or moved", Args: cobra.MinimumNArgs(1),
		Long: `Check the files of one audit trail, in any order, also compressed ones (.gz). The
first line that was altered, is missing or stands in another place is named, and
the exit code is 1. Lines cut off at the end are not seen by the chain itself:
the node notices them at its next start.`,
		Example: "  muster audit verify /var/log/api-audit.log*",
		RunE: a.do(func(_ *cobra.Command, args []string) error {
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
	c.Flags().BoolVar(&check.All, "all", false, "go on behind the first fault, and print each")
	a.outputFlag(c)
	return c
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
