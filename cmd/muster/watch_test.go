package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// output is what a process has written so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// begin starts a command that goes on, and gives what it writes.
func (s shell) begin(t *testing.T, cmd *exec.Cmd) (out, err *output) {
	t.Helper()
	out, err = &output{}, &output{}
	cmd.Stdout, cmd.Stderr = out, err
	cmd.Env = append(os.Environ(), "NO_COLOR=1", "TERM=xterm")
	for k, v := range s.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return out, err
}

func (s shell) until(t *testing.T, o *output, wanted ...string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		for _, w := range wanted {
			if text := o.String(); !strings.Contains(text, w) {
				return fmt.Errorf("%q is not in:\n%s", w, text)
			}
		}
		return nil
	})
}

// TestWatch follows a service in scripts and on a terminal, while the node that
// tells it dies.
func TestWatch(t *testing.T) {
	d := startDev(t, filepath.Join(t.TempDir(), "dev"), "--port-base", "0")
	s := d.shell()
	s.ok(t, "apply", "-f", write(t, "cart.yaml", manifestText))
	instance := func(id, zone string, weight int) string {
		return write(t, id+".yaml", fmt.Sprintf("kind: Instance\nnamespace: shop\nname: %s\nspec: {service: cart, address: 10.0.0.9, port: 80, ttl: 10m, zone: %s, weight: %d}\n", id, zone, weight))
	}
	s.ok(t, "apply", "-f", instance("i2", "z2", 3))

	// Tables.
	contains(t, s.ok(t, "get", "instances", "-n", "shop", "-o", "wide"), "NAMESPACE", "i1", "i2", "z2", "10.0.0.9")
	contains(t, s.ok(t, "get", "instances", "-A", "-o", "name"), "instance/cart/i1\ninstance/cart/i2\n")
	contains(t, s.ok(t, "discover", "cart", "-n", "shop", "-o", "wide"), "WEIGHT", "i1", "i2", "z2")
	out, note, code := s.do(t, "discover", "cart", "-n", "shop", "--zone", "z2", "-o", "name")
	if code != exitDone || out != "instance/cart/i2\ninstance/cart/i1\n" || note != "1 instance in zone z2, which are enough\n" {
		t.Errorf("%d %q %q", code, out, note)
	}
	env := map[string]string{"MUSTER_ZONE": "z9"}
	for k, v := range s.env {
		env[k] = v
	}
	if _, note, _ := (shell{env: env}).do(t, "discover", "cart", "-n", "shop"); note != "0 instances in zone z9, too few: use the others as well\n" {
		t.Errorf("%q", note)
	}
	var body struct {
		Revision uint64 `json:"revision"`
	}
	if err := json.Unmarshal([]byte(s.ok(t, "discover", "cart", "-n", "shop", "-o", "json")), &body); err != nil {
		t.Fatal(err)
	}

	// A script is told of each change once, in order, whoever dies.
	watch := exec.Command(os.Args[0], "watch", "cart", "-n", "shop", "-o", "json", "--after", fmt.Sprint(body.Revision))
	lines, notes := s.begin(t, watch)
	text, _ := s.begin(t, exec.Command(os.Args[0], "watch", "cart", "-n", "shop", "--after", fmt.Sprint(body.Revision)))
	var terminal *output
	keys, typed := io.Pipe()
	t.Cleanup(func() { _ = typed.Close() })
	live := exec.Command("script", "-qfec", "stty rows 30 cols 120; exec "+os.Args[0]+" watch cart -n shop", "/dev/null")
	if _, err := exec.LookPath("script"); err == nil {
		live.Stdin = keys
		terminal, _ = s.begin(t, live)
		s.until(t, terminal, "shop/cart: 2 of 2 instances passing", "CHANGE")
	} else {
		t.Log("LEFT OUT: a terminal, since script is not installed")
	}
	s.ok(t, "apply", "-f", instance("i3", "z2", 1))
	s.until(t, lines, `"id":"i3"`)
	// What comes and goes while a terminal's watch is broken off is never drawn, rightly; so it is waited for.
	drawn := func(want ...string) {
		if terminal != nil {
			s.until(t, terminal, want...)
		}
	}
	drawn("i3", "new")
	if err := syscall.Kill(d.node("n1").PID, syscall.SIGKILL); err != nil { // the first address, which tells all three
		t.Fatal(err)
	}
	s.ok(t, "apply", "-f", instance("i2", "z2", 7))
	s.ok(t, "apply", "-f", instance("i4", "z1", 1))
	drawn("weight was 3", "i4")
	s.ok(t, "delete", "instance", "cart/i3", "-n", "shop")
	s.until(t, lines, `"type":"delete"`)
	s.until(t, notes, "the watch broke off and goes on")
	s.until(t, text, "put\tshop\tinstance/cart/i4\tpassing\t10.0.0.9:80\n", "delete\tshop\tinstance/cart/i3\n")
	type event struct {
		Type     string `json:"type"`
		ID       string `json:"id"`
		Revision uint64 `json:"revision"`
	}
	var got []string
	last := body.Revision
	for line := range strings.Lines(lines.String()) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if e.Revision <= last {
			t.Errorf("revision %d after %d", e.Revision, last)
		}
		last = e.Revision
		got = append(got, e.Type+" "+e.ID)
	}
	if !slices.Equal(got, []string{"put i3", "put i2", "put i4", "delete i3"}) {
		t.Errorf("%q", got)
	}
	if terminal != nil {
		s.until(t, terminal, "gone", "shop/cart: 3 of 3 instances passing")
		if _, err := typed.Write([]byte{3}); err != nil { // Ctrl-C
			t.Error(err)
		}
		_ = typed.Close() // Wait waits for the end of what is typed
		ended(t, live)
		if text := terminal.String(); !strings.Contains(text, "\x1b[J") || strings.Contains(text, "\x1b[1m") {
			t.Errorf("a terminal is drawn over, and NO_COLOR is honoured: %q", text)
		}
	}
	if err := watch.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	ended(t, watch)

	// Mistakes.
	if _, err, code := s.do(t, "watch", "cart", "-n", "shop", "--token", "nonsense"); code != exitDenied || !strings.Contains(err, "unauthenticated") {
		t.Errorf("%d %s", code, err)
	}
	if _, _, code := (shell{env: map[string]string{"MUSTER_ADDR": "https://127.0.0.1:1", "MUSTER_CACERT": d.CA}}).do(t, "watch", "--timeout", "200ms"); code != exitUnavailable {
		t.Errorf("exit code %d", code)
	}
}

// ended waits for a command that was interrupted, which is no error.
func ended(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	end := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer end.Stop()
	if err := cmd.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		t.Errorf("%s ended with %v", cmd.Args[1:], err)
	}
}
