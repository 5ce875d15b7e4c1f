package jepsen

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	binaryEnv = "MUSTER_BIN"        // a built muster to test; without it one is built
	rootEnv   = "MUSTER_TEST_ROOT"  // "1": what cannot run here is a failure
	keepEnv   = "MUSTER_JEPSEN_DIR" // keep everything there, also of runs that pass
	strictEnv = "MUSTER_STRICT"     // "1": the times that are promised are held to the letter
)

// slack is how much longer than promised things may take. A machine that is
// busy with other work, or stands still for a second, breaks no promise of
// muster's; the figures are in the log either way.
var slack = func() time.Duration {
	if os.Getenv(strictEnv) == "1" {
		return 1
	}
	return 3
}()

// noWorld says why the tests that need namespaces cannot run.
var noWorld error

func TestMain(m *testing.M) {
	flag.Parse()
	if of := strings.Fields(os.Getenv(relayEnv)); len(of) > 0 {
		fmt.Fprintln(os.Stderr, runRelay(of[0], of[1:]))
		os.Exit(1)
	}
	if os.Getenv(clockEnv) != "" {
		fmt.Fprintln(os.Stderr, runClock())
		os.Exit(1)
	}
	code, err := start(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "jepsen:", err)
		code = 1
	}
	os.Exit(code)
}

func start(m *testing.M) (int, error) {
	if Inside() {
		if noWorld = Settle(); noWorld != nil {
			noWorld = fmt.Errorf("this machine does not let a network namespace be furnished: %w", noWorld)
		}
		return m.Run(), nil
	}
	if testing.Short() {
		noWorld = errors.New("-short is set")
		return m.Run(), nil
	}
	// Inside there is no network to fetch a module by, so muster is built here.
	dir, err := os.MkdirTemp("", "muster-jepsen-bin-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	binary := os.Getenv(binaryEnv)
	if binary == "" {
		binary = filepath.Join(dir, "muster")
		build := exec.Command("go", "build", "-o", binary, "./cmd/muster")
		build.Dir = ".."
		if out, err := build.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("go build ./cmd/muster: %w\n%s", err, out)
		}
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return 0, err
	}
	code, err := Enter(binaryEnv + "=" + binary)
	if err != nil {
		noWorld = err
		return m.Run(), nil
	}
	return code, nil
}

// needWorld leaves a test out where it cannot run, and says so.
func needWorld(t *testing.T) {
	t.Helper()
	if noWorld == nil {
		return
	}
	leftOut(t, fmt.Errorf("real processes in network namespaces need root or user namespaces: %w", noWorld))
}

// thorough leaves a test out of the runs of all tests, where cells of the matrix
// stand for it.
func thorough(t *testing.T) {
	t.Helper()
	if os.Getenv(strictEnv) != "1" {
		t.Skipf("LEFT OUT: it takes long; make jepsen (%s=1) runs it", strictEnv)
	}
}

func leftOut(t *testing.T, why error) {
	t.Helper()
	if os.Getenv(rootEnv) == "1" {
		t.Fatalf("%s=1, and yet: %v", rootEnv, why)
	}
	t.Skipf("LEFT OUT: %v", why)
}

// folder makes a folder for one test, which stays when the test fails.
func folder(t *testing.T) string {
	t.Helper()
	keep := os.Getenv(keepEnv)
	if keep != "" {
		if err := os.MkdirAll(keep, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp(keep, "muster-"+t.Name()+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		switch {
		case t.Failed():
			t.Logf("kept: %s (histories are the .jsonl files, node logs the .log files)", dir)
		case keep == "":
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}

// test is one run against one cluster.
type test struct {
	*testing.T
	*Cluster
	history *History
	ctx     context.Context
}

// cluster starts one for a test and a history; both are ended with it.
func cluster(t *testing.T, config map[string]any) *test {
	t.Helper()
	needWorld(t)
	dir := folder(t)
	h, err := NewHistory(filepath.Join(dir, "history.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("history: %s", h.Path)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), slack*2*time.Minute)
	t.Cleanup(cancel)
	x := &test{T: t, history: h, ctx: ctx, Cluster: launch(ctx, t, dir, config)}
	return x
}

func launch(ctx context.Context, t *testing.T, dir string, config map[string]any) *Cluster {
	t.Helper()
	c, err := NewCluster(Settings{Binary: os.Getenv(binaryEnv), Dir: dir, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	begin := time.Now()
	ready, cancel := context.WithTimeout(ctx, slack*30*time.Second)
	defer cancel()
	if err := c.Start(ready); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d nodes ready after %s", len(c.Nodes), since(begin))
	return c
}

// must ends the test on an error.
func (x *test) must(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

// isolate cuts a node off, notes it, and returns the moment from which on no
// packet passes.
func (x *test) isolate(n *Node, links Links) time.Time {
	x.Helper()
	x.must(x.Net.Isolate(n.Number, links))
	return x.history.Mark(n.ID, "isolated")
}

// heal ends the cuts. It demands that packets were lost to them.
func (x *test) heal() time.Time {
	x.Helper()
	lost, err := x.Net.Lost()
	x.must(err)
	x.must(x.Net.Heal())
	if lost == 0 {
		x.Fatal("the network was never cut: no packet was lost")
	}
	return x.history.Mark("", fmt.Sprintf("healed, %d packets lost so far", lost))
}

func (x *test) leader() (*Node, uint64) {
	x.Helper()
	ctx, cancel := context.WithTimeout(x.ctx, slack*10*time.Second)
	defer cancel()
	n, term, err := x.Leader(ctx)
	x.must(err)
	return n, term
}

// converged demands equal hashes on all nodes.
func (x *test) converged() Hash {
	x.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(x.ctx, slack*20*time.Second)
	defer cancel()
	h, err := x.Converge(ctx)
	x.must(err)
	x.Logf("all nodes at revision %d with state hash %.12s… after %s", h.Revision, h.Hash, since(begin))
	return h
}

// some reports the first ten of what may be thousands of the same mistake.
func (x *test) some() func(format string, args ...any) {
	left := 10
	return func(format string, args ...any) {
		x.Helper()
		if left--; left >= 0 {
			x.Errorf(format, args...)
		}
	}
}

func (x *test) atLeast(n, least int, what string) {
	x.Helper()
	x.Logf("%d %s", n, what)
	if n < least {
		x.Errorf("only %d %s; the run shows nothing with fewer than %d", n, what, least)
	}
}

func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }
