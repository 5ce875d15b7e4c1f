// Command mutants puts one deliberate bug after the other into the program and
// runs the test that should notice it. The bugs are the patches beside it; each
// says which law of docs/laws.md it breaks, and which test holds the law. The
// working tree is not touched: the changed files go to the compiler as an overlay.
//
//	go run ./sim/mutants [-only name,…] [-markdown]
//
// It ends with status 1 when a bug is not noticed, a patch no longer applies,
// or a test fails without any bug.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Mutant is one deliberate bug.
type Mutant struct {
	Name, Law, What, Test string
	patch                 string   // the file
	files                 []string // that it changes, from the root of the repository
}

var changed = regexp.MustCompile(`(?m)^\+\+\+ b/(.+)$`)

// read reads a patch and its head: lines of "name: text" before the diff.
func read(path string) (*Mutant, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := &Mutant{Name: strings.TrimSuffix(filepath.Base(path), ".patch"), patch: path}
	head, diff, found := strings.Cut(string(b), "\n\n")
	for line := range strings.Lines(head) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch name {
		case "law":
			m.Law = text
		case "what":
			m.What = text
		case "test":
			m.Test = text
		default:
			return nil, fmt.Errorf("%s: %q says neither law nor what nor test", path, line)
		}
	}
	for _, f := range changed.FindAllStringSubmatch(diff, -1) {
		m.files = append(m.files, f[1])
	}
	if !found || m.Law == "" || m.What == "" || m.Test == "" || len(m.files) == 0 {
		return nil, fmt.Errorf("%s: a mutant has law, what and test, an empty line and a diff", path)
	}
	return m, nil
}

// Read reads all patches of a folder, ordered by name.
func Read(folder string) (all []*Mutant, err error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*.patch"))
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	for _, p := range paths {
		m, err := read(p)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// Overlay applies the patch to copies in a folder and writes the file that go's
// -overlay takes.
func (m *Mutant) Overlay(root, folder string) (path string, err error) {
	replace := make([]string, 0, len(m.files))
	for _, f := range m.files {
		b, err := os.ReadFile(filepath.Join(root, f))
		if err != nil {
			return "", err
		}
		to := filepath.Join(folder, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, b, 0o600)); err != nil {
			return "", err
		}
		replace = append(replace, fmt.Sprintf("%q: %q", filepath.Join(root, f), to))
	}
	patch, err := filepath.Abs(m.patch)
	if err != nil {
		return "", err
	}
	apply := exec.Command("git", "apply", "--whitespace=nowarn", patch)
	apply.Dir = folder
	apply.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(folder))
	if out, err := apply.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s does not apply any more: make it anew for the code as it is: %s", m.patch, out)
	}
	path = filepath.Join(folder, "overlay.json")
	return path, os.WriteFile(path, []byte(`{"Replace": {`+strings.Join(replace, ", ")+`}}`), 0o600)
}

// run runs a test, with an overlay where one is named, and tells whether it failed and why.
func run(ctx context.Context, root, test, overlay string) (failed bool, why string, err error) {
	args := []string{"test", "-count=1", "-vet=off", "-trimpath", "-timeout", "10m"} // as build, so that all is compiled once
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	before, after, own := strings.Cut(test, " -args ")
	args = append(args, strings.Fields(before)...)
	if own {
		args = append(append(args, "-args"), strings.Fields(after)...)
	}
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir, c.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	out, err := c.CombinedOutput()
	text := string(out)
	switch {
	case err == nil && strings.Contains(text, "no tests to run"):
		return false, "", fmt.Errorf("%s: there is no such test", test)
	case err == nil:
		return false, "", nil
	case strings.Contains(text, "[build failed]") || strings.Contains(text, "[setup failed]"):
		return false, "", fmt.Errorf("%s does not build: %s", test, text)
	case ctx.Err() != nil:
		return false, "", ctx.Err()
	}
	return true, reason(text), nil
}

var said = regexp.MustCompile(`(?m)^\s+\S+_test\.go:\d+: (.+)$|^(panic: .+)$`)

// reason is the first thing that a failing test said.
func reason(out string) string {
	m := said.FindStringSubmatch(out)
	if m == nil {
		return strings.TrimSpace(out[max(0, len(out)-200):])
	}
	return m[1] + m[2]
}

func main() {
	only := flag.String("only", "", "names of mutants, with commas; all")
	markdown := flag.Bool("markdown", false, "print a table for docs/laws.md")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := all(ctx, *only, *markdown); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func all(ctx context.Context, only string, markdown bool) error {
	root, err := filepath.Abs(".")
	if err != nil {
		return err
	}
	mutants, err := Read(filepath.Join(root, "sim", "mutants"))
	if err != nil {
		return err
	}
	if markdown {
		fmt.Println("| deliberate bug | law | noticed by | after |\n|---|---|---|---|")
	}
	var errs []error
	for _, m := range mutants {
		if only != "" && !slices.Contains(strings.Split(only, ","), m.Name) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		took, why, err := m.judge(ctx, root)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.Name, err))
			why = "NOT NOTICED: " + err.Error()
		}
		if markdown {
			fmt.Printf("| %s | %s | `%s` | %.0f s |\n", m.What, m.Law, strings.ReplaceAll(m.Test, "|", "\\|"), took.Seconds())
		} else {
			fmt.Printf("%-20s law %-6s %4.0fs  %-60s %.160s\n", m.Name, m.Law, took.Seconds(), m.Test, why)
		}
	}
	return errors.Join(errs...)
}

// judge runs the mutant's test with the bug in it.
func (m *Mutant) judge(ctx context.Context, root string) (took time.Duration, why string, err error) {
	folder, err := os.MkdirTemp("", "mutant-")
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	overlay, err := m.Overlay(root, folder)
	if err != nil {
		return 0, "", err
	}
	began := time.Now()
	failed, why, err := run(ctx, root, m.Test, overlay)
	took = time.Since(began)
	if err == nil && !failed {
		err = fmt.Errorf("%s passes with the bug in it", m.Test)
	}
	if err == nil {
		err = sound(ctx, root, m.Test, why)
	}
	return took, why, err
}

var seeded = regexp.MustCompile(`^seed (\d+): `)

// sound demands that what failed with a bug passes without it: of the
// simulation, the schedule that failed.
func sound(ctx context.Context, root, test, why string) error {
	if seed := seeded.FindStringSubmatch(why); seed != nil {
		before, _, _ := strings.Cut(test, " -args ")
		test = before + " -args -seed " + seed[1]
	}
	failed, why, err := run(ctx, root, test, "")
	if err == nil && failed {
		err = fmt.Errorf("%s fails without any bug: %s", test, why)
	}
	return err
}
