package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/node"
	"github.com/muster-registry/muster/snapshot"
)

func (a *app) snapshot() *cobra.Command {
	return group("snapshot", "Save, look at and restore the whole cluster's state",
		a.snapshotSave(), a.snapshotInspect(), a.snapshotVerify(), a.snapshotDiff(), a.snapshotRestore())
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
	var recipients []string
	c := &cobra.Command{
		Use: "save FILE", Short: "Save the cluster's state into a file, checked while it is written", Args: cobra.ExactArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			to, err := snapshot.ParseRecipients(recipients)
			if err != nil {
				return usageError{err}
			}
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
			sealed, err := snapshot.Encrypt(f, to)
			if err != nil {
				return err
			}
			bar := a.progress(size, "saving")
			sum, err := snapshot.Verify(io.TeeReader(stream, io.MultiWriter(sealed, bar)))
			if err = errors.Join(err, bar.Close(), sealed.Close()); err != nil {
				return fmt.Errorf("nothing was saved: %w", err)
			}
			if err := errors.Join(f.Sync(), f.Close(), os.Rename(f.Name(), args[0])); err != nil {
				return fmt.Errorf("nothing was saved: %w", err)
			}
			return a.summary(sum, args[0])
		}),
	}
	c.Flags().StringArrayVar(&recipients, "recipient", nil, "encrypt with age for this public key (age1…); may be repeated")
	a.outputFlag(c)
	return c
}

func (a *app) snapshotInspect() *cobra.Command {
	var identity string
	c := &cobra.Command{
		Use: "inspect FILE", Short: "Tell what a snapshot holds", Args: cobra.ExactArgs(1),
		RunE: a.do(func(_ *cobra.Command, args []string) error {
			f, err := a.open(args[0], identity, "reading")
			if err != nil {
				return err
			}
			sum, err := snapshot.Verify(f)
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
			return a.summary(sum, args[0])
		}),
	}
	identityFlag(c, &identity)
	a.outputFlag(c)
	return c
}

// verified is what a dry load of a snapshot gave.
type verified struct {
	File      string `json:"file"`
	ClusterID string `json:"cluster_id"`
	Revision  uint64 `json:"revision"`
	Services  int    `json:"services"`
	Versions  int    `json:"versions"`
	Instances int    `json:"instances"`
	StateHash string `json:"state_hash"`
}

func (a *app) snapshotVerify() *cobra.Command {
	var identity string
	c := &cobra.Command{
		Use: "verify FILE", Short: "Load a whole snapshot as a node would, and give the hash of its state", Args: cobra.ExactArgs(1),
		RunE: a.do(func(_ *cobra.Command, args []string) error {
			f, err := a.open(args[0], identity, "loading")
			if err != nil {
				return err
			}
			p, err := fsm.Inspect(f)
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
			v := verified{File: args[0], ClusterID: p.Header.ClusterID, Revision: p.Header.Revision,
				Services: p.Counts.Services, Versions: p.Counts.Versions, Instances: p.Counts.Instances, StateHash: p.Hash.String()}
			return a.show(v, func() table {
				return table{names: []string{v.File}, rows: [][]string{{fmt.Sprintf("%s is whole and can be restored: revision %d of cluster %s, %d services, %d versions, %d instances, state %s",
					v.File, v.Revision, v.ClusterID, v.Services, v.Versions, v.Instances, v.StateHash)}}}
			})
		}),
	}
	identityFlag(c, &identity)
	a.outputFlag(c)
	return c
}

func identityFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "identity", "", "file with the secret key of age that opens an encrypted snapshot")
}

// file is a snapshot that is being read, with a bar that follows.
type file struct {
	io.Reader
	f   *os.File
	bar io.WriteCloser
}

// Close implements io.Closer.
func (f *file) Close() error { return errors.Join(f.bar.Close(), f.f.Close()) }

// open opens a snapshot, decrypted where it is encrypted.
func (a *app) open(name, identity, what string) (_ *file, err error) {
	var with []snapshot.Identity
	if identity != "" {
		if with, err = snapshot.ReadIdentities(identity); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	size := int64(-1)
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		size = info.Size()
	}
	out := &file{f: f, bar: a.progress(size, what)}
	if out.Reader, err = snapshot.Decrypt(io.TeeReader(f, out.bar), with); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}

func (a *app) snapshotRestore() *cobra.Command {
	var force, dry bool
	var identity string
	var configs []string
	c := &cobra.Command{
		Use: "restore FILE", Short: "Put the whole cluster back to a snapshot", Args: cobra.ExactArgs(1),
		Long: "Put the running cluster back to a snapshot, through its log: all nodes take it, or\n" +
			"none. With --config it goes into the empty data directory of a stopped node instead,\n" +
			"which is then a new cluster of one; nodes with empty data directories join it. Where\n" +
			"the data directories of several nodes can be reached from here, --config for each\n" +
			"makes them the members of that cluster at once.",
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			if len(configs) > 0 {
				return a.restoreOffline(args[0], identity, configs, dry)
			}
			// A file that is not whole need not be sent. The node looks at the content.
			checked, err := a.open(args[0], identity, "reading")
			if err != nil {
				return err
			}
			if err = errors.Join(snapshot.Sealed(checked), checked.Close()); err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			f, err := a.open(args[0], identity, "restoring")
			if err != nil {
				return err
			}
			answer, err := c.RestoreSnapshot(cmd.Context(), f.Reader, force, dry) // which would close a file
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
			return a.showObject(answer)
		}),
	}
	c.Flags().BoolVar(&force, "force", false, "also over data that the cluster holds, or of another cluster")
	c.Flags().BoolVar(&dry, "dry-run", false, "check, and tell what would be restored, without changing anything")
	c.Flags().StringArrayVar(&configs, "config", nil, "configuration of a stopped node without data, to restore into instead; repeat it for more nodes")
	identityFlag(c, &identity)
	a.outputFlag(c)
	return c
}

// restoreOffline restores into the data directories of stopped nodes.
func (a *app) restoreOffline(name, identity string, configs []string, dry bool) error {
	if dry {
		return usage("--dry-run is about a cluster that runs; muster snapshot verify tells what the file holds")
	}
	var cfgs []*node.Config
	for _, config := range configs {
		cfg, err := node.Load(config, a.env)
		if err != nil {
			return err
		}
		cfgs = append(cfgs, cfg)
	}
	f, err := a.open(name, identity, "restoring")
	if err != nil {
		return err
	}
	debug.SetGCPercent(400) // nearly all that is read stays until the end
	p, err := node.RestoreOffline(cfgs, f, slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	next := "Start it, then the other nodes with empty data directories: they join it."
	if len(cfgs) > 1 {
		next = "Start them: they are the members of a new cluster. Other nodes with empty data directories join it."
	}
	var holders []string
	for _, cfg := range cfgs {
		holders = append(holders, cfg.NodeID+" in "+cfg.DataDir)
	}
	a.say("%s: revision %d, with %d services, %d versions, %d instances. %s",
		strings.Join(holders, ", "), p.Header.Revision, p.Counts.Services, p.Counts.Versions, p.Counts.Instances, next)
	return nil
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
