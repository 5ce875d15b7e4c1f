package node_test

import (
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/node"
)

// TestFilesAreClosedToOthers: what a node writes, it writes for itself alone,
// whatever the umask is.
func TestFilesAreClosedToOthers(t *testing.T) {
	t.Parallel()
	before := syscall.Umask(0)
	defer syscall.Umask(before)
	tr := newTrial(t, 1)
	tr.configure(t, "raft: {snapshot_threshold: 8, snapshot_interval: 1s, trailing_logs: 4}\npolicy: {decision_log: {file: n1/decisions.log}}\n")
	tr.startAll()
	c := tr.client(tr.token, 0)
	if _, err := c.Push(t.Context(), []byte(`{"modules":{"w.rego":"package api.registry.authz\n\nimport rego.v1\n\ndefault allow := true\n"}}`), true); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := c.Put(t.Context(), cart, []byte(`{"protocol":"rest"}`), client.Write{}); err != nil {
			t.Fatal(err)
		}
	}
	look := func() (files int, snapshot bool) {
		must(t, filepath.WalkDir(tr.file("n1"), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // gone in between
			}
			info, err := d.Info()
			if err != nil {
				return nil
			}
			files++
			snapshot = snapshot || strings.HasSuffix(path, "meta.json")
			want := fs.FileMode(0o600)
			if d.IsDir() {
				want = 0o700
			}
			if strings.Contains(path, "/raft/snapshots/") {
				return nil // Raft's own modes, which muster server narrows; the folder is closed
			}
			if mode := info.Mode().Perm(); mode&^want != 0 {
				t.Errorf("%s has mode %04o, not %04o", path, mode, want)
			}
			return nil
		}))
		return files, snapshot
	}
	for deadline := time.Now().Add(time.Minute); ; <-time.After(50 * time.Millisecond) {
		files, snapshot := look()
		if t.Failed() {
			return
		}
		if snapshot && files > 8 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("there are %d files, a Raft snapshot among them: %v", files, snapshot)
		}
	}
}

// TestSecretFilesOfOthers: a key that others may write is not used, one that
// they may read is warned of.
func TestSecretFilesOfOthers(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	must(t, os.Chmod(tr.file("gossip.key"), 0o620))
	cfg, err := node.Load(tr.nodes[0].config, func(string) string { return "" })
	must(t, err)
	if err := node.Run(t.Context(), cfg, "test", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "gossip_key_file: ") || !strings.Contains(err.Error(), "0620") {
		t.Errorf("a gossip key that a group may write: %v", err)
	}
	must(t, os.Chmod(tr.file("gossip.key"), 0o600))
	must(t, os.Chmod(tr.file("ca.crt"), 0o646))
	if err := node.Run(t.Context(), cfg, "test", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "tls.ca: ") {
		t.Errorf("an authority that everybody may change: %v", err)
	}
	must(t, os.Chmod(tr.file("ca.crt"), 0o644))
	must(t, os.Chmod(tr.file("n1.key"), 0o644))
	tr.startAll()
	tr.awaitLog(t, 0, "level=WARN", "setting=tls.key")
}

// TestTheServiceManagerIsTold: sd_notify(3), as systemd listens to it.
func TestTheServiceManagerIsTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(t, err)
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "3000000")
	tr := newTrial(t, 1)
	await := func(what string) {
		t.Helper()
		must(t, l.SetReadDeadline(time.Now().Add(time.Minute)))
		for b := make([]byte, 4096); ; {
			n, err := l.Read(b)
			if err != nil {
				t.Fatalf("%s was not told: %v", what, err)
			}
			if strings.HasPrefix(string(b[:n]), what) {
				return
			}
		}
	}
	tr.start(0)
	await("READY=1")
	await("WATCHDOG=1")
	tr.awaitReady(0)
	must(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	await("RELOADING=1\nMONOTONIC_USEC=")
	await("READY=1")
	tr.stop(0)
	await("STOPPING=1")
}

// TestEveryListenerThatIsNotNeededCanBeOff.
func TestEveryListenerThatIsNotNeededCanBeOff(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	b, err := os.ReadFile(tr.nodes[0].config)
	must(t, err)
	text := strings.NewReplacer("metrics: \""+strings.TrimPrefix(tr.nodes[0].metrics, "http://")+"\"", `metrics: "off"`,
		"policy: \""+strings.TrimPrefix(tr.nodes[0].policy, "https://")+"\"", `policy: "off"`).Replace(string(b))
	if strings.Count(text, `"off"`) != 2 {
		t.Fatalf("not both are off in:\n%s", text)
	}
	must(t, os.WriteFile(tr.nodes[0].config, []byte(text), 0o600))
	tr.startAll()
	for _, address := range []string{strings.TrimPrefix(tr.nodes[0].metrics, "http://"), strings.TrimPrefix(tr.nodes[0].policy, "https://")} {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			t.Errorf("%s is open", address)
		}
	}
}
