package main

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
)

// TestMain lets the test binary be muster: the development cluster starts its
// nodes as processes of the program it belongs to.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "server" || os.Args[1] == "dev" || os.Args[1] == "watch") {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := run(ctx, &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv}, os.Args[1:])
		stop()
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// shell is a place to type commands: its environment and standard input.
type shell struct {
	env map[string]string
	in  string
}

// do runs one command line.
func (s shell) do(t *testing.T, args ...string) (out, err string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	a := &app{in: strings.NewReader(s.in), out: &o, err: &e, env: func(k string) string { return s.env[k] }}
	code = run(t.Context(), a, args)
	return o.String(), e.String(), code
}

// ok runs a command that must succeed.
func (s shell) ok(t *testing.T, args ...string) string {
	t.Helper()
	out, err, code := s.do(t, args...)
	if code != exitDone {
		t.Fatalf("muster %s: exit code %d: %s", strings.Join(args, " "), code, err)
	}
	return out
}

func TestCommandLinesThatMakeNoSense(t *testing.T) {
	for _, args := range []string{
		"nonsense", "get", "get services --nonsense", "get planets", "get instances a b", "watch a b", "watch a -A", "watch -o xml", "discover", "discover a b",
		"describe service", "delete", "delete service", "apply", "apply x", "diff", "policy", "policy nonsense", "policy activate",
		"policy activate one", "policy check", "policy diff", "policy diff 1 --limit 3", "policy diff --replay 1 2", "policy shadow", "policy shadow x", "policy key", "policy key add", "policy key add ci", "policy key add ci --file main.go", "policy key revoke ci",
		"policy push a.json b.json --signature c", "policy push a.tar.gz b.rego", "policy push a.tar.gz --note x", "policy push testdata/policy --signature c", "policy eval", "snapshot", "snapshot save", "cluster", "cluster remove", "server", "tls issue",
		"tls issue --node n1 --role viewer", "tls verify localhost", "tls verify localhost:1", "token create", "token revoke", "dev extra", "dev --nodes 0",
		"get services -o xml", "discover a --consistency strong", "discover a --status sick", "health extra", "version extra",
	} {
		out, err, code := shell{}.do(t, strings.Fields(args)...)
		if code != exitUsage || out != "" || !strings.HasPrefix(err, "error: ") {
			t.Errorf("muster %s: exit code %d, out %q, error %q", args, code, out, err)
		}
	}
}

func TestUsageNamesTheCommand(t *testing.T) {
	for args, want := range map[string][]string{
		"discover":                 {"usage: muster discover SERVICE", "help: muster discover --help"},
		"get services --nonsense":  {"usage: muster get KIND [NAME]", "help: muster get --help"},
		"get versions cart 1.0.0":  {"write versions SERVICE/NAME", "help: muster get --help"},
		"describe service cart x":  {"write service NAME", "help: muster describe --help"},
		"nonsense":                 {"help: muster --help"},
		"cluster nonsense":         {"help: muster cluster --help"},
		"policy shadow":            {"usage: muster policy shadow REVISION", "help: muster policy shadow --help"},
		"policy break-glass":       {"usage: muster policy break-glass NAMESPACE", "help: muster policy break-glass --help"},
		"policy break-glass shop":  {"--ttl", "help: muster policy break-glass --help"},
		"token create --nonsense":  {"help: muster token create --help"},
		"policy activate one":      {"usage: muster policy activate REVISION"},
		"snapshot restore --force": {"usage: muster snapshot restore FILE"},
	} {
		_, err, code := shell{}.do(t, strings.Fields(args)...)
		if code != exitUsage {
			t.Errorf("muster %s: exit code %d", args, code)
		}
		contains(t, err, want...)
	}
}

func TestHelpAndCompletion(t *testing.T) {
	for args, want := range map[string]string{
		"--help": "Records and look-ups:", "get --help": "muster get instances payments", "version": "muster dev", "version -o json": `"version": "dev"`,
		"completion bash": "bash completion", "__complete get services -o ": "wide",
	} {
		line := strings.Split(args, " ")
		if out := (shell{}).ok(t, line...); !strings.Contains(out, want) {
			t.Errorf("muster %s: %q is not in %q", args, want, out)
		}
	}
}
