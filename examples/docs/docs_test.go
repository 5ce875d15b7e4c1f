// Package docs runs the commands that the documentation shows, as a reader
// would: in order, on a cluster of three real processes.
package docs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// marker begins a part of a page whose commands are run, up to the next
// heading of the same page that is not marked.
const marker = "<!-- these commands are run by a test -->"

// command is one line of a page that a reader would type.
type command struct {
	place string // file:line
	text  string
	exit  int // as the line's comment says: # exit 3
}

var exits = regexp.MustCompile(`# exit (\d+)`)

// commands reads the indented lines of the marked parts of a page.
func commands(t *testing.T, page string) (out []command) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", page))
	if err != nil {
		t.Fatal(err)
	}
	on, open := false, false
	for n, line := range strings.Split(string(b), "\n") {
		switch {
		case open:
			text := strings.TrimPrefix(line, "    ")
			out[len(out)-1].text += "\n" + text
			open = text != "EOF"
		case line == marker:
			on = true
		case strings.HasPrefix(line, "#"):
			on = false
		case on && strings.HasPrefix(line, "    "):
			c := command{place: fmt.Sprintf("%s:%d", page, n+1), text: strings.TrimSpace(line)}
			if m := exits.FindStringSubmatch(line); m != nil {
				c.exit, _ = strconv.Atoi(m[1])
			}
			open = strings.HasSuffix(line, "<<'EOF'") // the lines up to EOF belong to it
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s shows no command that could be run", page)
	}
	return out
}

// reader is somebody who follows a page at the root of a checkout.
type reader struct {
	root, binary, dir string
	control, metrics  string // of the first node
	dns               string // its port
	decision          string // the last id of a decision that was printed
}

// start begins a cluster for a reader; it ends with the test.
func start(t *testing.T) *reader {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{root: root, dir: t.TempDir(), binary: os.Getenv("MUSTER_BIN")}
	if r.binary == "" {
		r.binary = filepath.Join(t.TempDir(), "muster")
		build := exec.Command("go", "build", "-o", r.binary, "./cmd/muster")
		build.Dir = root
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	var log bytes.Buffer
	dev := exec.Command(r.binary, "dev", "--dir", r.dir, "--port-base", "0")
	dev.Stdout, dev.Stderr = &log, &log
	if err := dev.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- dev.Wait() }()
	t.Cleanup(func() {
		_ = dev.Process.Signal(syscall.SIGTERM)
		hangs := time.AfterFunc(2*time.Minute, func() { _ = dev.Process.Signal(syscall.SIGQUIT) }) // it shows where
		defer hangs.Stop()
		<-ended
		if t.Failed() {
			t.Logf("muster dev said:\n%s", log.String())
		}
	})
	var cluster struct {
		Nodes []struct {
			Control string `json:"control"`
			Metrics string `json:"metrics"`
			DNS     string `json:"dns"`
		} `json:"nodes"`
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(2 * time.Minute); len(cluster.Nodes) == 0; {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("muster dev ended: %v\n%s", err, log.String())
		case <-deadline:
			t.Fatalf("the cluster did not start:\n%s", log.String())
		case <-tick.C:
			if b, err := os.ReadFile(filepath.Join(r.dir, "cluster.json")); err == nil {
				_ = json.Unmarshal(b, &cluster) // it may be half written still
			}
		}
	}
	r.control, r.metrics = cluster.Nodes[0].Control, cluster.Nodes[0].Metrics
	_, r.dns, _ = strings.Cut(cluster.Nodes[0].DNS, ":")
	return r
}

var (
	decisionID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)
	// what the reader has done already, or does in another window
	before = regexp.MustCompile(`^(make \w+|bin/muster dev\b.*|\. \.muster/dev/env)$`)
)

// follow types the commands, one after the other, in one shell each.
func (r *reader) follow(t *testing.T, all []command) {
	for _, c := range all {
		if before.MatchString(c.text) {
			continue
		}
		text := strings.ReplaceAll(c.text, "https://127.0.0.1:8443", r.control)
		text = strings.ReplaceAll(text, "-p 8600", "-p "+r.dns)
		if strings.Contains(text, "DECISION_ID") {
			if r.decision == "" {
				t.Fatalf("%s: no decision id was printed before", c.place)
			}
			text = strings.ReplaceAll(text, "DECISION_ID", r.decision)
		}
		out, exit := r.shell(t, text)
		t.Logf("%s: %s\n%s", c.place, text, out)
		if exit != c.exit {
			t.Fatalf("%s: %s\nended with %d, and the page says %d:\n%s", c.place, text, exit, c.exit, out)
		}
		if ids := decisionID.FindAllString(out, -1); len(ids) > 0 {
			r.decision = ids[len(ids)-1]
		}
	}
}

func (r *reader) shell(t *testing.T, text string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	script := "muster() { " + r.binary + ` "$@"; }` + "\n. " + filepath.Join(r.dir, "env") + "\n" + strings.ReplaceAll(text, "bin/muster", r.binary)
	sh := exec.CommandContext(ctx, "bash", "-c", script)
	sh.Dir = r.root
	out, err := sh.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out), 0
}

func TestReadme(t *testing.T) {
	start(t).follow(t, commands(t, "README.md"))
}

// TestServices follows a team that registers a service and finds it.
func TestServices(t *testing.T) {
	r := start(t)
	r.follow(t, commands(t, "docs/services.md"))
	out, _ := r.shell(t, "dig @127.0.0.1 -p "+r.dns+" payments.shop.svc.muster A +short")
	if !strings.Contains(out, "127.0.0.1") && !strings.Contains(out, "10.") {
		t.Errorf("dig finds nothing: %s", out)
	}
}

// TestSecurity follows a security engineer, who has a folder with a policy and
// an input document, in a cluster that has a policy already.
func TestSecurity(t *testing.T) {
	r := start(t)
	t.Run("metrics", func(t *testing.T) { r.findMetrics(t) })
	first, err := filepath.Abs("../policies/registry.rego")
	if err != nil {
		t.Fatal(err)
	}
	r.root = t.TempDir()
	if err := os.CopyFS(filepath.Join(r.root, "policies"), os.DirFS("../guide/policy")); err != nil {
		t.Fatal(err)
	}
	input := `{"action": "register", "resource": {"kind": "service", "metadata": {}}}`
	if err := os.WriteFile(filepath.Join(r.root, "input.json"), []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	r.follow(t, []command{{place: "before", text: "muster policy push --activate " + first}})
	r.follow(t, commands(t, "docs/security.md"))
}

var (
	metricRow  = regexp.MustCompile("(?m)^\\| (`(?:muster|opa)_[^|]*) \\|")
	metricName = regexp.MustCompile("`([a-z_]+)`")
	// what is there only once it is set up or used, as its row says
	later = regexp.MustCompile("^muster_(git|webhook|break_glass|trace|identity_provider|identity_authentications|snapshots?|audit_mirror)_")
)

// findMetrics looks for each metric that docs/sre.md says to watch.
func (r *reader) findMetrics(t *testing.T) {
	page, err := os.ReadFile("../../docs/sre.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := metricRow.FindAllStringSubmatch(string(page), -1)
	if len(rows) < 20 {
		t.Fatalf("docs/sre.md has %d rows about metrics", len(rows))
	}
	served, exit := r.shell(t, "curl -fsS "+r.metrics+"/metrics")
	if exit != 0 {
		t.Fatal(served)
	}
	for _, row := range rows {
		for _, m := range metricName.FindAllStringSubmatch(row[1], -1) {
			if !later.MatchString(m[1]) && !strings.Contains(served, "\n# TYPE "+m[1]+" ") {
				t.Errorf("%s is not there", m[1])
			}
		}
	}
}
