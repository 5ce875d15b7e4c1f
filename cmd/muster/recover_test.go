package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/tools/ports"
)

// TestClusterRecover destroys two of three disks and goes on from the third, as
// docs/sre.md tells.
func TestClusterRecover(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev")
	d := startDev(t, dir, "--port-base", "0")
	s := d.shell()
	s.ok(t, "apply", "-f", write(t, "cart.yaml", manifestText))
	data := func(id string) string { return filepath.Join(d.node(id).Dir, "data") }
	recoverWith := func(in string, args ...string) (out, err string, code int) {
		return shell{in: in}.do(t, append([]string{"cluster", "recover"}, args...)...)
	}
	kill := func(id string) {
		t.Helper()
		if err := syscall.Kill(d.node(id).PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what, want string, args ...string) {
		t.Helper()
		out, err, code := recoverWith("n1\n", args...)
		if code != exitConflict || !strings.Contains(err, want) {
			t.Errorf("%s: exit code %d: %s%s", what, code, out, err)
		}
	}

	config := func(id string) string { return filepath.Join(d.node(id).Dir, "muster.yaml") }
	look, recoverCmd := guide(t, "## Most of the disks are gone", config("n1"))

	refused("while the node runs", "is running on", "--data-dir", data("n1"))
	kill("n1")
	eventually(t, time.Minute, func() error { // the lock goes with the process
		if _, err, _ := recoverWith("", "--data-dir", data("n1"), "--dry-run"); !strings.Contains(err, "node n2 is running") {
			return fmt.Errorf("two of three live: %s", err)
		}
		return nil
	})
	kill("n2")
	kill("n3")
	_ = d.cmd.Wait() // all its nodes have ended
	refused("two of three disks", "majority", "--data-dir", data("n1"), "--data-dir", data("n2"))
	if out, err, code := recoverWith("", "--data-dir", data("n3"), "--dry-run"); code != exitDone {
		t.Errorf("looking: exit code %d: %s%s", code, out, err)
	}
	if out, err, code := recoverWith("", "--data-dir", t.TempDir()); code != exitNotFound {
		t.Errorf("an empty folder: exit code %d: %s%s", code, out, err)
	}
	// Something stands still at a lost node's address.
	l, err := net.Listen("tcp", d.node("n2").Peer)
	if err != nil {
		t.Fatal(err)
	}
	refused("a node that stands still", "standing still", "--data-dir", data("n1"))
	l.Close()
	moved(t, config("n2"), func(peer string) {
		eventually(t, time.Minute, func() error {
			if _, err, code := recoverWith("", "--data-dir", data("n1"), "--peer", peer, "--dry-run"); code != exitConflict || !strings.Contains(err, "node n2 is running at "+peer) {
				return fmt.Errorf("a node that has moved, named: exit code %d: %s", code, err)
			}
			return nil
		})
		refused("a node that has moved, named", "node n2 is running at "+peer, "--data-dir", data("n1"), "--peer", peer)
		refused("a node that has moved, found by gossip", "node n2 lives", "--config", config("n1"))
	})

	began := time.Now()
	for _, id := range []string{"n2", "n3"} {
		if err := os.RemoveAll(data(id)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err, code := (shell{}).do(t, look...); code != exitDone || !strings.Contains(out, "n1") {
		t.Errorf("looking, as the guide says: exit code %d: %s%s", code, out, err)
	}
	if _, err, code := (shell{in: "no\n"}).do(t, recoverCmd...); code != exitError || !strings.Contains(err, "not confirmed") {
		t.Errorf("not confirmed: exit code %d: %s", code, err)
	}
	out, told, code := shell{in: "n1\n"}.do(t, recoverCmd...)
	if code != exitDone {
		t.Fatalf("exit code %d: %s%s", code, out, told)
	}
	contains(t, out, "NODE", "n1", "newest")
	contains(t, told, "n2, n3", "may be lost", "before-recover-")

	_ = os.Remove(filepath.Join(dir, "cluster.json"))
	d = startDev(t, dir)
	s = d.shell()
	contains(t, s.ok(t, "discover", "cart", "-n", "shop", "--consistency", "linearizable"), "10.0.0.1")
	s.in = `{"kind":"Service","namespace":"shop","name":"after","spec":{}}`
	s.ok(t, "apply", "-f", "-")
	eventually(t, time.Minute, func() error {
		var st struct {
			Nodes []struct {
				ID        string `json:"id"`
				Role      string `json:"role"`
				StateHash struct {
					Hash string `json:"hash"`
				} `json:"state_hash"`
			} `json:"nodes"`
		}
		if err := json.Unmarshal([]byte(s.ok(t, "cluster", "status", "-o", "json")), &st); err != nil {
			return err
		}
		for _, n := range st.Nodes {
			if len(st.Nodes) != 3 || n.Role == "non-voter" || n.StateHash.Hash != st.Nodes[0].StateHash.Hash {
				return fmt.Errorf("the cluster is %+v", st)
			}
		}
		return nil
	})
	t.Logf("from two lost disks to three voters in %s", time.Since(began).Round(time.Millisecond))
	if took := time.Since(began); os.Getenv("MUSTER_STRICT") == "1" && took > 2*time.Minute {
		t.Errorf("it took %s", took)
	}
}

// guide gives the two commands that a chapter of docs/sre.md says to type, for
// the configuration of a node.
func guide(t *testing.T, chapter, config string) (look, do []string) {
	t.Helper()
	b, err := os.ReadFile("../../docs/sre.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "\n"+chapter+"\n")
	text, _, _ = strings.Cut(text, "\n## ")
	var lines [][]string
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "muster "); ok && strings.HasPrefix(line, "    ") {
			lines = append(lines, strings.Fields(strings.ReplaceAll(rest, "/etc/muster/muster.yaml", config)))
		}
	}
	if len(lines) != 3 || strings.Join(lines[2], " ") != "audit accept NODE" { // the last one is typed by the runbooks' test
		t.Fatalf("the chapter says to type %v", lines)
	}
	return lines[0], lines[1]
}

// moved runs a node with its peer port at another address while f runs.
func moved(t *testing.T, config string, f func(peer string)) {
	t.Helper()
	peer := ports.Free(t)
	b, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(filepath.Dir(config), "moved.yaml")
	if err := os.WriteFile(file, regexp.MustCompile(`(?m)^  peer: .*$`).ReplaceAll(b, []byte("  peer: "+peer)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "server", "--config", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	f(peer)
}
