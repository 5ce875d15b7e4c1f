package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/snapshot"
)

func (a *app) snapshot() *cobra.Command {
	return group("snapshot", "Save, look at and restore the whole cluster's state",
		a.snapshotSave(), a.snapshotInspect(), a.snapshotVerify(), a.snapshotRestore())
}

// progress is a bar on a terminal and nothing elsewhere. total is -1 when it
// is not known.
func (a *app) progress(total int64, what string) io.WriteCloser {
	f, ok := a.err.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return discard{io.Discard}
	}
	return progressbar.NewOptions64(total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(),
		progressbar.OptionEnableColorCodes(a.env("NO_COLOR") == ""))
}

type discard struct{ io.Writer }

func (discard) Close() error { return nil }

func (a *app) snapshotSave() *cobra.Command {
	c := &cobra.Command{
		Use: "save FILE", Short: "Save the cluster's state into a file, checked while it is written", Args: cobra.ExactArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			stream, size, err := c.SaveSnapshot(cmd.Context())
			if err != nil {
				return err
			}
			defer stream.Close()
			// A name is only taken by a file that is whole.
			f, err := os.CreateTemp(filepath.Dir(args[0]), "."+filepath.Base(args[0])+".*")
			if err != nil {
				return err
			}
			defer os.Remove(f.Name())
			defer f.Close()
			bar := a.progress(size, "saving")
			sum, err := snapshot.Verify(io.TeeReader(stream, io.MultiWriter(f, bar)))
			if err = errors.Join(err, bar.Close()); err != nil {
				return fmt.Errorf("nothing was saved: %w", err)
			}
			if err := errors.Join(f.Sync(), f.Close(), os.Rename(f.Name(), args[0])); err != nil {
				return fmt.Errorf("nothing was saved: %w", err)
			}
			return a.summary(sum, args[0])
		}),
	}
	a.outputFlag(c)
	return c
}

func (a *app) snapshotInspect() *cobra.Command {
	c := &cobra.Command{
		Use: "inspect FILE", Short: "Tell what a snapshot holds", Args: cobra.ExactArgs(1),
		RunE: a.do(func(_ *cobra.Command, args []string) error {
			sum, err := a.read(args[0])
			if err != nil {
				return err
			}
			return a.summary(sum, args[0])
		}),
	}
	a.outputFlag(c)
	return c
}

func (a *app) snapshotVerify() *cobra.Command {
	return &cobra.Command{
		Use: "verify FILE", Short: "Read a snapshot whole and check every part of it", Args: cobra.ExactArgs(1),
		RunE: a.do(func(_ *cobra.Command, args []string) error {
			if _, err := a.read(args[0]); err != nil {
				return err
			}
			fmt.Fprintln(a.out, args[0]+" is whole")
			return nil
		}),
	}
}

func (a *app) read(file string) (*snapshot.Summary, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := int64(-1)
	if info, err := f.Stat(); err == nil {
		size = info.Size()
	}
	bar := a.progress(size, "reading")
	sum, err := snapshot.Verify(io.TeeReader(f, bar))
	return sum, errors.Join(err, bar.Close())
}

func (a *app) snapshotRestore() *cobra.Command {
	var force, dry bool
	c := &cobra.Command{
		Use: "restore FILE", Short: "Put the whole cluster back to a snapshot", Args: cobra.ExactArgs(1),
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			if _, err := a.read(args[0]); err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			size := int64(-1)
			if info, err := f.Stat(); err == nil {
				size = info.Size()
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			bar := a.progress(size, "restoring")
			answer, err := c.RestoreSnapshot(cmd.Context(), io.TeeReader(f, bar), force, dry)
			if err = errors.Join(err, bar.Close()); err != nil {
				return err
			}
			return a.showObject(answer)
		}),
	}
	c.Flags().BoolVar(&force, "force", false, "also over data that the cluster holds, or of another cluster")
	c.Flags().BoolVar(&dry, "dry-run", false, "check, and tell what would be restored, without changing anything")
	a.outputFlag(c)
	return c
}

// summary prints what a snapshot holds.
func (a *app) summary(s *snapshot.Summary, file string) error {
	return a.show(s, func() table {
		h := s.Header
		t := table{names: []string{file}, rows: [][]string{
			{"file", file},
			{"size", fmt.Sprintf("%d bytes", s.Size)},
			{"format", fmt.Sprint(h.Format)},
			{"cluster", h.ClusterID},
			{"taken", h.CreatedAt.Local().Format(time.DateTime) + " by muster " + h.MusterVersion},
			{"revision", fmt.Sprint(h.Revision)},
			{"policy revision", fmt.Sprint(h.PolicyRevision)},
			{"applied", fmt.Sprintf("index %d, term %d", h.AppliedIndex, h.Term)},
			{"sha256", s.SHA256.String()},
		}}
		for _, x := range s.Sections {
			t.rows = append(t.rows, []string{x.Bucket, fmt.Sprintf("%d records, %d bytes, sha256 %s", x.Records, x.Bytes, x.SHA256)})
		}
		return t
	})
}

// showObject prints a flat object as lines of name and value.
func (a *app) showObject(v jsontext.Value) error {
	if a.output == "json" || a.output == "yaml" {
		return a.raw(v)
	}
	var m map[string]jsontext.Value
	if err := json.Unmarshal(v, &m); err != nil {
		return err
	}
	return a.show(nil, func() table {
		t := table{}
		for _, k := range sorted(m) {
			text := string(m[k])
			if b, err := jsontext.AppendUnquote(nil, m[k]); err == nil {
				text = string(b)
			}
			t.rows = append(t.rows, []string{k, text})
		}
		return t
	})
}
