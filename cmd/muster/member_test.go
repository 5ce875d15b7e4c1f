package main

import (
	"bytes"
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
)

// member is one node of a cluster whose files muster dev made, started by hand.
type member struct {
	id, config string
	cmd        *exec.Cmd
	out        *bytes.Buffer
}

func (m *member) start(t *testing.T) {
	t.Helper()
	m.out = &bytes.Buffer{}
	m.cmd = exec.Command(os.Args[0], "server", "--config", m.config)
	m.cmd.Stdout, m.cmd.Stderr, m.cmd.WaitDelay = m.out, m.out, time.Second
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (m *member) stop(sig os.Signal) {
	if m.cmd != nil && m.cmd.ProcessState == nil {
		_ = m.cmd.Process.Signal(sig)
		_ = m.cmd.Wait()
	}
}

// edit changes the node's configuration.
func (m *member) edit(t *testing.T, change func(string) string) {
	t.Helper()
	b, err := os.ReadFile(m.config)
	if err == nil {
		err = os.WriteFile(m.config, []byte(change(string(b))), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// unused finds ports that nobody listens on, below those of outgoing connections
// and above those that the tests of package node take.
func unused(t *testing.T) func() string {
	next := 32_700 - os.Getpid()%2_000
	return func() string {
		for {
			next--
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", next))
			if err == nil {
				_ = l.Close()
				return fmt.Sprint(next)
			}
			if next < 30_000 {
				t.Fatal("no port is free")
			}
		}
	}
}

// status is what the cluster says, as JSON.
func (s shell) status(t *testing.T) (st clusterState) {
	t.Helper()
	out, stderr, code := s.do(t, "cluster", "status", "-o", "json")
	if code != exitDone || json.Unmarshal([]byte(out), &st) != nil {
		t.Logf("status: %s", stderr)
	}
	return st
}

func (s shell) settled(t *testing.T, wanted ...string) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		got := ""
		for _, n := range s.status(t).Nodes {
			role := strings.Replace(n.Role, "leader", "voter", 1)
			got += fmt.Sprintf("%s %s ready=%t; ", n.ID, role, n.Ready)
		}
		if want := strings.Join(wanted, " voter ready=true; ") + " voter ready=true; "; got != want {
			return fmt.Errorf("the cluster is %s want %s", got, want)
		}
		return nil
	})
}

// TestMembers goes through what docs/operators.md says about members, on real
// processes: all addresses of all nodes change at once, the leadership is handed
// over, a node is removed, one whose disk is lost is replaced under its name,
// and its old disk does not come back.
func TestMembers(t *testing.T) {
	d := startDev(t, filepath.Join(t.TempDir(), "dev"), "--port-base", "0")
	sh := d.shell()
	sh.ok(t, "apply", "-f", write(t, "all.yaml", manifestText))
	before := sh.status(t)
	d.stop(t)

	free, moved := unused(t), map[string]string{}
	move := func(s string) string {
		return regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllStringFunc(s, func(a string) string {
			if moved[a] == "" {
				moved[a] = "127.0.0.1:" + free()
			}
			return moved[a]
		})
	}
	nodes := map[string]*member{}
	for _, n := range d.Nodes {
		m := &member{id: n.ID, config: filepath.Join(n.Dir, "muster.yaml")}
		nodes[n.ID] = m
		m.edit(t, func(s string) string {
			return move(strings.Replace(s, "\ncluster:\n", "\ncluster:\n  stabilization_time: 1s\n", 1))
		})
		m.start(t)
		t.Cleanup(func() { m.stop(syscall.SIGKILL) })
	}
	sh.env["MUSTER_ADDR"] = move(strings.ReplaceAll(sh.env["MUSTER_ADDR"], "https://", ""))
	sh.env["MUSTER_ADDR"] = "https://" + strings.ReplaceAll(sh.env["MUSTER_ADDR"], ",", ",https://")
	sh.settled(t, "n1", "n2", "n3")
	var after clusterState
	eventually(t, time.Minute, func() error {
		after = sh.status(t)
		for i, n := range after.Nodes {
			if was := before.Nodes[i].Address; n.Address != moved[was] {
				return fmt.Errorf("%s was at %s and is listed at %s", n.ID, was, n.Address)
			}
		}
		return nil
	})
	if after.ClusterID != before.ClusterID || after.FeatureLevel == 0 {
		t.Errorf("cluster %s at level %d, it was %s", after.ClusterID, after.FeatureLevel, before.ClusterID)
	}
	contains(t, sh.ok(t, "get", "service", "cart", "-n", "shop"), "cart")
	contains(t, sh.ok(t, "cluster", "status"), "feature level", "TERM", "LAG", "LEVEL", "ALARMS")

	if _, msg, code := sh.do(t, "cluster", "transfer-leader", "n9"); code != exitNotFound {
		t.Errorf("exit code %d: %s", code, msg)
	}
	sh.ok(t, "cluster", "transfer-leader", "n2")
	nodes["n3"].stop(syscall.SIGKILL)
	if _, msg, code := sh.do(t, "cluster", "remove", "n1"); code != exitConflict || !strings.Contains(msg, "lose its quorum") {
		t.Errorf("exit code %d: %s", code, msg)
	}
	data := filepath.Join(filepath.Dir(nodes["n3"].config), "data")
	old := nodes["n3"]
	if err := os.Rename(data, data+".old"); err != nil {
		t.Fatal(err)
	}
	peer := ""
	old.edit(t, func(s string) string {
		peer = regexp.MustCompile(`peer: "?(127\.0\.0\.1:\d+)`).FindStringSubmatch(s)[1]
		s = strings.ReplaceAll(s, peer, "127.0.0.1:"+free())
		return strings.Replace(s, "bootstrap_expect: 3", "bootstrap_expect: 0", 1)
	})
	old.start(t)
	sh.settled(t, "n1", "n2", "n3")
	for _, n := range sh.status(t).Nodes {
		if n.Address == peer {
			t.Errorf("%s is still listed at %s", n.ID, peer)
		}
	}
	old.stop(syscall.SIGTERM)
	if err := os.Rename(data, data+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(data+".old", data); err != nil {
		t.Fatal(err)
	}
	term := sh.status(t).Term
	old.start(t)
	eventually(t, time.Minute, func() error {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(old.config), "data", "raft", "disk"))
		if err != nil || !strings.Contains(old.said(t), "was replaced") {
			return fmt.Errorf("the old disk %s %v says nothing", b, err)
		}
		return nil
	})
	if now := sh.status(t).Term; now != term && os.Getenv("MUSTER_STRICT") == "1" { // a busy machine has elections of its own
		t.Errorf("the old disk took the term from %d to %d", term, now)
	}
	old.stop(syscall.SIGKILL)
	sh.ok(t, "cluster", "remove", "n3")
	sh.settled(t, "n1", "n2")
	contains(t, sh.ok(t, "cluster", "members"), "n1", "n2")
}

// said asks the node itself why it is not ready.
func (m *member) said(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(m.config)
	if err != nil {
		t.Fatal(err)
	}
	at := regexp.MustCompile(`control: "?(127\.0\.0\.1:\d+)`).FindStringSubmatch(string(b))[1]
	_, out, _ := (shell{env: map[string]string{"MUSTER_ADDR": "https://" + at, "MUSTER_CACERT": filepath.Join(filepath.Dir(filepath.Dir(m.config)), "ca.crt")}}).do(t, "health")
	return out
}
