package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/muster-registry/muster/client"
)

const (
	debugTail    = 1 << 20  // bytes of the end of a log or a trail
	debugMost    = 64 << 20 // bytes of one answer
	debugPerItem = 20 * time.Second
)

// bundle is a support bundle while it is made. What cannot be had is told in
// its report and stops nothing.
type bundle struct {
	tar    *tar.Writer
	report strings.Builder
	failed int
	say    func(string)
	now    time.Time
}

// add puts one item into the bundle, or the reason why it is not there.
func (b *bundle) add(ctx context.Context, name string, get func(context.Context) ([]byte, error)) error {
	b.say(name)
	limited, cancel := context.WithTimeout(ctx, debugPerItem)
	defer cancel()
	content, err := get(limited)
	if err != nil {
		b.failed++
		fmt.Fprintf(&b.report, "missing  %-34s %v\n", name, err)
	} else {
		fmt.Fprintf(&b.report, "ok       %-34s %d bytes\n", name, len(content))
	}
	if len(content) == 0 {
		return ctx.Err()
	}
	return b.write(name, content)
}

func (b *bundle) write(name string, content []byte) error {
	if err := b.tar.WriteHeader(&tar.Header{Name: "muster-debug/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: b.now}); err != nil {
		return err
	}
	_, err := b.tar.Write(content)
	return err
}

// debugSources say where a bundle's items come from.
type debugSources struct {
	config  string
	metrics []string
	logs    []string
	unit    string
	profile time.Duration
}

func (a *app) debug() *cobra.Command {
	var from debugSources
	c := &cobra.Command{
		Use: "debug [FILE]", Short: "Collect what is needed to look into a problem, without secrets, in one tar.gz", Args: cobra.MaximumNArgs(1),
		Long: "Collect version, the cluster's status and members, the policies' states, and of each node that --metrics names its readiness, metrics\n" +
			"and, where pprof is on, goroutines, heap and CPU profile; with --config, on the node itself, its configuration without secrets and the\n" +
			"ends of its audit trail, of its decision log and of its log. What cannot be had is named in report.txt, and the rest is collected all the same.",
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			now := time.Now().UTC()
			file := "muster-debug-" + now.Format("20060102T150405Z") + ".tar.gz"
			if len(args) > 0 {
				file = args[0]
			}
			failed, err := a.collect(cmd.Context(), file, from, now)
			if err != nil {
				return err
			}
			if failed > 0 {
				fmt.Fprintf(a.err, "%d items could not be had; report.txt in it says why\n", failed)
			}
			fmt.Fprintln(a.out, file)
			return nil
		}),
	}
	f := c.Flags()
	f.StringVar(&from.config, "config", "", "configuration of the node on this machine")
	f.StringSliceVar(&from.metrics, "metrics", nil, "addresses of nodes' metrics ports (default: the one of --config, else http://127.0.0.1:9090)")
	f.StringSliceVar(&from.logs, "log", nil, "log files to take the ends of (default: the journal of --unit)")
	f.StringVar(&from.unit, "unit", "muster", "systemd unit whose journal to take the end of")
	f.DurationVar(&from.profile, "profile", 5*time.Second, "how long to profile the CPU; 0: not at all")
	return c
}

// collect makes the file; a name is only taken by one that is whole.
func (a *app) collect(ctx context.Context, file string, from debugSources, now time.Time) (failed int, err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*") // 0600
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	bar := a.progress(-1, "collecting")
	z := gzip.NewWriter(io.MultiWriter(f, bar))
	b := &bundle{tar: tar.NewWriter(z), now: now, say: func(string) {}}
	err = errors.Join(a.fill(ctx, b, from), b.write("report.txt", []byte(b.report.String())), b.tar.Close(), z.Close(), bar.Close(), f.Sync())
	if err != nil {
		return 0, err
	}
	return b.failed, os.Rename(f.Name(), file)
}

func (a *app) fill(ctx context.Context, b *bundle, from debugSources) error {
	item := func(name string, get func(context.Context) ([]byte, error)) error { return b.add(ctx, name, get) }
	errs := []error{item("version.json", func(context.Context) ([]byte, error) {
		return json.Marshal(map[string]string{"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH, "time": b.now.Format(time.RFC3339)})
	})}
	for name, ask := range map[string]func(*client.Client, context.Context) (jsontext.Value, error){
		"cluster/status.json": (*client.Client).Status, "cluster/members.json": (*client.Client).Members,
		"cluster/policies.json": func(c *client.Client, ctx context.Context) (jsontext.Value, error) {
			all, err := c.Policies(ctx)
			if err != nil {
				return nil, err
			}
			return json.Marshal(all)
		},
	} {
		errs = append(errs, item(name, func(ctx context.Context) ([]byte, error) {
			c, err := a.dial()
			if err != nil {
				return nil, err
			}
			defer c.Close()
			return ask(c, ctx)
		}))
	}
	var local localNode
	if from.config != "" {
		errs = append(errs, item("node/config.yaml", func(context.Context) (out []byte, err error) {
			out, local, err = readLocal(from.config)
			return out, err
		}))
	}
	if len(from.metrics) == 0 {
		from.metrics = []string{"http://127.0.0.1:9090"}
		if local.metrics != "" {
			from.metrics[0] = "http://" + local.metrics
		}
	}
	for i, base := range from.metrics {
		dir := fmt.Sprintf("metrics-%d/", i+1)
		pages := []struct{ name, path string }{
			{"readyz.txt", "/readyz?verbose"}, {"livez.txt", "/livez"}, {"metrics.txt", "/metrics"},
			{"goroutines.txt", "/debug/pprof/goroutine?debug=2"}, {"heap.pprof", "/debug/pprof/heap"}, {"mutex.pprof", "/debug/pprof/mutex"},
		}
		if from.profile > 0 {
			pages = append(pages, struct{ name, path string }{"cpu.pprof", fmt.Sprintf("/debug/pprof/profile?seconds=%d", max(1, int(min(from.profile, debugPerItem/2).Seconds())))})
		}
		for _, p := range pages {
			errs = append(errs, item(dir+p.name, func(ctx context.Context) ([]byte, error) { return fetch(ctx, base, p.path) }))
		}
	}
	for name, file := range map[string]string{"node/audit-head.json": local.head, "node/audit.log": local.audit, "node/decisions.log": local.decisions} {
		if file != "" {
			errs = append(errs, item(name, func(context.Context) ([]byte, error) { return tail(file) }))
		}
	}
	for i, file := range from.logs {
		errs = append(errs, item(fmt.Sprintf("logs/%d-%s", i+1, filepath.Base(file)), func(context.Context) ([]byte, error) { return tail(file) }))
	}
	if len(from.logs) == 0 {
		errs = append(errs, item("logs/journal.txt", func(ctx context.Context) ([]byte, error) { return journal(ctx, from.unit) }))
	}
	return errors.Join(errs...)
}

func fetch(ctx context.Context, base, path string) ([]byte, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, errors.New("--metrics is not an address such as http://127.0.0.1:9090")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, debugMost))
	switch {
	case err != nil:
		return nil, err
	case strings.HasPrefix(path, "/debug/") && res.StatusCode != http.StatusOK:
		return nil, errors.New("profiles are off on this node; pprof: true turns them on")
	}
	return b, nil // a node that is not ready says so in the body
}

// tail gives the end of a file, from the beginning of a line on.
func tail(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, info.Size()-debugTail)
	b, err := io.ReadAll(io.NewSectionReader(f, from, debugTail))
	if i := bytes.IndexByte(b, '\n'); from > 0 && i >= 0 {
		b = b[i+1:]
	}
	return b, err
}

func journal(ctx context.Context, unit string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "-n", "5000", "-o", "short-iso", "-u", unit).Output()
	if err == nil && bytes.HasPrefix(out, []byte("-- No entries --")) {
		err = errors.New("it has no entries")
	}
	if err != nil {
		return nil, fmt.Errorf("the journal of the unit %s cannot be read (%w); a node logs to its standard error: name the file it goes to with --log", unit, err)
	}
	return out[max(0, len(out)-debugTail):], nil
}

// localNode is where the node on this machine keeps what a bundle holds.
type localNode struct{ metrics, audit, head, decisions string }

// readLocal reads a configuration without its secrets. It need not be one that
// a node starts with.
func readLocal(file string) (masked []byte, n localNode, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, n, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, n, errors.New("the configuration is no YAML, and is left out since it cannot be masked")
	}
	var c struct {
		DataDir string `yaml:"data_dir"`
		Listen  struct {
			Metrics string `yaml:"metrics"`
		} `yaml:"listen"`
		Audit struct {
			Path string `yaml:"path"`
		} `yaml:"audit"`
		Policy struct {
			DecisionLog struct {
				File string `yaml:"file"`
			} `yaml:"decision_log"`
		} `yaml:"policy"`
	}
	_ = doc.Decode(&c) // what does not fit is left out
	at := func(path string) string {
		if path == "" || path == "off" || filepath.IsAbs(path) {
			return strings.TrimPrefix(path, "off")
		}
		return filepath.Join(filepath.Dir(file), path)
	}
	data := at(c.DataDir)
	n = localNode{metrics: strings.TrimPrefix(c.Listen.Metrics, "off"), audit: at(c.Audit.Path), decisions: at(c.Policy.DecisionLog.File), head: filepath.Join(data, "audit", "head")}
	if c.Audit.Path == "" {
		n.audit = filepath.Join(data, "audit", "audit.log")
	}
	mask(&doc)
	masked, err = yaml.Marshal(&doc)
	return masked, n, err
}

var (
	secretName = regexp.MustCompile(`(?i)(secret|password|token|key|credential|authorization|cookie|headers?)$`)
	userinfo   = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/@\s]*@`)
)

// mask hides what is or may be a secret in a document: values under names that
// say so, credentials in URLs, and comments.
func mask(n *yaml.Node) {
	n.HeadComment, n.LineComment, n.FootComment = "", "", ""
	if n.Kind == yaml.ScalarNode {
		n.Value = userinfo.ReplaceAllString(n.Value, "${1}(hidden)@")
		if strings.Contains(n.Value, "-----BEGIN") || strings.Contains(n.Value, "eyJ") {
			n.Value = "(hidden)"
		}
	}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 1 && secretName.MatchString(n.Content[i-1].Value) && !isPath(n.Content[i-1].Value) {
			n.Content[i] = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: "(hidden)"}
			continue
		}
		mask(child)
	}
}

// isPath knows the settings that are named for a secret and name a file.
func isPath(name string) bool { return name == "key" || name == "control_key" }
