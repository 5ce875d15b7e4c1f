package jepsen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	bolt "go.etcd.io/bbolt"

	"github.com/muster-registry/muster/pki"
)

// runbooksEnv asks for the test: it takes minutes.
const runbooksEnv = "MUSTER_RUNBOOKS"

// sceneEnv is a pattern for the names of the scenes to play; all without it.
const sceneEnv = "MUSTER_RUNBOOKS_SCENES"

// page is a manual: the commands of each section, in their order.
type page map[string][]string

func read(t *testing.T, name string) page {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	p := page{}
	for _, section := range strings.Split(string(text), "\n## ") {
		title, body, _ := strings.Cut(section, "\n")
		for line := range strings.Lines(body) {
			if command, is := strings.CutPrefix(line, "    "); is {
				command, _, _ = strings.Cut(command, " #")
				if command = strings.TrimSpace(command); strings.HasPrefix(command, "muster ") || strings.HasPrefix(command, "curl ") {
					p[title] = append(p[title], command)
				}
			}
		}
	}
	return p
}

// opening is the title of docs/operations.md, whose first commands are under it.
const opening = "# Runbooks: what to do about each alarm"

// night is a person at three in the morning, with the manual.
type night struct {
	*test
	manual page
	ran    map[string]bool
	fresh  []*Node // came with empty disks
}

// put is what stands for a word of the manual.
type put map[string]string

var placeholder = regexp.MustCompile(`\b[A-Z]{2,}\b`)

// types types the commands of a section, for one node. fails are those that are
// to be refused here, by their first words, and what they must say.
func (m *night) types(section string, n *Node, words put, fails ...put) {
	m.Helper()
	commands := m.manual[section]
	if len(commands) == 0 {
		m.Fatalf("the manual has no commands in its section %q", section)
	}
	for _, c := range commands {
		if c != accept || section == "audit_differs" { // it comes last, see anew
			m.one(c, n, words, fails...)
		}
	}
}

// accept is what the runbooks say of each node that has come with an empty disk.
const accept = "muster audit accept NODE"

func (m *night) one(command string, n *Node, words put, fails ...put) string {
	m.Helper()
	m.ran[command] = true
	swap := []string{
		"HOST:8300", n.host.Peer + ":8300", "HOST", n.host.Client, "127.0.0.1:9090", n.host.Client + ":9090",
		"/etc/muster/muster.yaml", n.file("muster.yaml"), "node.crt", n.file("node.crt"), "node.key", n.file("node.key"), "ca.crt", m.CA,
	}
	line := command
	for word, is := range words {
		swap = append([]string{word, is}, swap...)
	}
	line = strings.NewReplacer(swap...).Replace(line)
	fields := strings.Fields(line)
	for _, f := range fields {
		if placeholder.MatchString(f) && !strings.Contains(f, "/") {
			m.Fatalf("nothing is said about what stands for %s in %q", f, command)
		}
	}
	ctx, cancel := context.WithTimeout(m.ctx, 2*time.Minute)
	defer cancel()
	var out, said bytes.Buffer
	name := fields[0]
	if name == "muster" {
		name = m.Binary()
	}
	cmd := exec.CommandContext(ctx, name, fields[1:]...)
	if strings.Contains(command, "--config ") { // is for the machine of the node
		cmd = exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.host.space, name}, fields[1:]...)...)
	}
	cmd.Dir = filepath.Dir(m.history.Path)
	addresses := []string{}
	for _, n := range m.Nodes {
		addresses = append(addresses, n.base)
	}
	cmd.Env = []string{"HOME=" + cmd.Dir, "MUSTER_ADDR=" + strings.Join(addresses, ","), "MUSTER_TOKEN=" + m.Token, "MUSTER_CACERT=" + m.CA}
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	m.Logf("$ %s\n%s%s", line, out.String(), said.String())
	wrong := ""
	for _, f := range fails {
		for begins, says := range f {
			if strings.HasPrefix(command, begins) {
				wrong = says
			}
		}
	}
	switch {
	case wrong == "" && err != nil:
		m.Errorf("%s: %v", line, err)
	case wrong != "" && (err == nil || !strings.Contains(said.String()+out.String(), wrong)):
		m.Errorf("%s: %v, and is to be refused with %q", line, err, wrong)
	}
	return out.String() + said.String()
}

// alarms are those of the status that a node answers with, as "alarm node".
func (m *night) alarms(n *Node) (all []string, err error) {
	ctx, cancel := context.WithTimeout(m.ctx, 5*time.Second)
	defer cancel()
	a := n.Call(ctx, http.MethodGet, "/v1/cluster/status", nil)
	if a.Outcome != OK {
		return nil, fmt.Errorf("%s", a)
	}
	var s struct {
		Alarms []struct {
			Alarm string `json:"alarm"`
			Node  string `json:"node"`
		} `json:"alarms"`
	}
	if err := json.Unmarshal(a.Body, &s); err != nil {
		return nil, err
	}
	for _, one := range s.Alarms {
		all = append(all, one.Alarm+" "+one.Node)
	}
	return all, nil
}

// until waits, for a minute and a half.
func (m *night) until(what string, holds func() error) {
	m.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(m.ctx, 90*time.Second)
	defer cancel()
	if err := Until(ctx, holds); err != nil {
		m.Fatalf("%s: %v", what, err)
	}
	m.Logf("%s: after %s", what, since(begun))
}

// raised waits for alarms, each as "alarm" or "alarm node".
func (m *night) raised(ask *Node, want ...string) {
	m.Helper()
	m.until(strings.Join(want, ", "), func() error {
		all, err := m.alarms(ask)
		for _, w := range want {
			if err == nil && !slices.ContainsFunc(all, func(a string) bool { return strings.HasPrefix(a+" ", w+" ") }) {
				err = fmt.Errorf("raised are %q", all)
			}
		}
		return err
	})
}

// well waits until nothing is wrong any more: all nodes are ready, vote, take
// part in elections and have no alarm.
func (m *night) well(but ...string) {
	m.Helper()
	m.until("all is well again", func() error {
		for _, n := range m.Nodes {
			s, err := n.Status(m.ctx)
			if err != nil {
				return err
			}
			for _, of := range s.Nodes {
				if !of.Ready || of.Role == "non-voter" || len(s.Nodes) != len(m.Nodes) {
					return fmt.Errorf("%s says: %+v", n.ID, s.Nodes)
				}
			}
			all, err := m.alarms(n)
			all = slices.DeleteFunc(all, func(a string) bool { return slices.Contains(but, strings.Fields(a)[0]) })
			for i, f := range m.fresh {
				if slices.Contains(all, "audit_differs "+f.ID) {
					m.one(accept, f, put{"NODE": f.ID})
					m.fresh = slices.Delete(m.fresh, i, i+1)
					break
				}
			}
			if err != nil || len(all) > 0 {
				return fmt.Errorf("%q, %v", all, err)
			}
		}
		return nil
	})
}

// stop ends a node with SIGTERM, as its service manager does.
func (m *night) stop(n *Node) {
	m.Helper()
	m.must(n.Terminate(30 * time.Second))
}

func (m *night) start(n *Node) {
	m.Helper()
	m.must(n.Start())
}

// anew starts a node with an empty data directory, as the runbooks say: the old
// one is kept, and the next is not touched before this one votes.
func (m *night) anew(n *Node) {
	m.Helper()
	if n.Running() {
		m.stop(n)
	}
	kept := n.file("data-kept")
	m.must(os.RemoveAll(kept))
	if err := os.Rename(n.file("data"), kept); err != nil {
		m.must(n.Wipe()) // it is a disk of its own
	}
	m.start(n)
	m.fresh = append(m.fresh, n)
	m.until(n.ID+" votes", func() error {
		ask := m.Others(n)[0]
		s, err := ask.Status(m.ctx)
		if err != nil {
			return err
		}
		voter := false
		for _, of := range s.Nodes {
			voter = voter || of.ID == n.ID && of.Ready && of.Role != "non-voter"
		}
		all, err := m.alarms(ask)
		if !voter {
			err = fmt.Errorf("not yet: %+v", s.Nodes)
		}
		for _, a := range all {
			if strings.HasPrefix(a, "quorum_at_risk") {
				err = errors.New(a)
			}
		}
		return err
	})
}

// TestRunbooks breaks a cluster of real processes in one way after the other,
// and mends it by the commands of docs/operations.md and docs/sre.md alone.
func TestRunbooks(t *testing.T) {
	if os.Getenv(runbooksEnv) != "1" {
		t.Skipf("LEFT OUT: it takes minutes; make runbooks (%s=1) runs it", runbooksEnv)
	}
	needWorld(t)
	dir := folder(t)
	m := &night{manual: read(t, "operations.md"), ran: map[string]bool{}}
	for title, commands := range read(t, "sre.md") {
		m.manual[title] = commands
	}
	h, err := NewHistory(filepath.Join(dir, "history.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	t.Cleanup(cancel)
	m.test = &test{T: t, history: h, ctx: ctx}
	m.Cluster, err = NewCluster(Settings{Binary: os.Getenv(binaryEnv), Dir: dir, Config: map[string]any{
		"snapshots": map[string]any{"interval": "1m", "folder": filepath.Join(dir, "backups")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	n1, n2, n3 := m.Nodes[0], m.Nodes[1], m.Nodes[2]
	m.must(os.MkdirAll(n2.file("data"), 0o700))
	m.must(syscall.Mount("tmpfs", n2.file("data"), "tmpfs", 0, "size=160m,mode=0700"))
	unmount := func() { _ = syscall.Unmount(n2.file("data"), syscall.MNT_DETACH) }
	t.Cleanup(unmount)
	m.must(m.Start(ctx))
	m.do(n1, http.MethodPut, "/v1/namespaces/default/services/cart", `{"owner":"shop"}`)
	m.do(n1, http.MethodPut, "/v1/namespaces/default/services/heavy", `{}`)
	m.well()

	only := regexp.MustCompile(os.Getenv(sceneEnv))
	scene := func(name string, play func()) {
		if !only.MatchString(name) {
			return
		}
		begun := time.Now()
		m.Logf("=== %s", name)
		play()
		m.Logf("=== %s took %s", name, since(begun))
	}

	scene("two of three processes are gone", func() {
		n2.Kill()
		n3.Kill()
		m.raised(n1, "quorum_lost n1")
		for _, c := range m.manual["quorum_lost"] { // two disks of three are there, so there is nothing to recover
			if strings.HasPrefix(c, "muster cluster recover") {
				m.stop(n1)
			}
			m.one(c, n1, nil)
		}
		for _, n := range m.Nodes {
			m.start(n)
		}
		m.well()
	})

	scene("a machine is gone for good, and a new one comes", func() {
		leader, _ := m.leader()
		gone := m.Others(leader)[0]
		gone.Kill()
		m.raised(leader, "member_away", "quorum_at_risk")
		m.types("member_away", gone, nil, put{"muster health": "refused"})
		m.types("quorum_at_risk", gone, put{"NODE": gone.ID})
		m.anew(gone)
		m.well()
	})

	scene("a disk is full", func() {
		m.do(n1, http.MethodPost, "/v1/tokens", `{"role":"viewer"}`)
		ballast := n2.file("data/ballast")
		if err := glut(ballast); err != nil {
			t.Fatal(err)
		}
		m.raised(n1, "disk_full n2")
		m.types("disk_full", n2, put{"NAME": "heavy", "ID": "0000000000000000"})
		m.must(os.Remove(ballast))
		m.well()
		unmount() // so much for a disk of its own
	})

	scene("a disk is lost", func() {
		m.anew(n2)
		m.well()
	})

	scene("a byte of the state is another", func() {
		m.stop(n3)
		m.spoil(n3, "shop", "shoq")
		m.start(n3)
		m.do(n1, http.MethodPut, "/v1/namespaces/default/services/seen", `{}`)
		m.raised(n1, "state_differs n3")
		m.types("state_differs", n3, nil)
		m.anew(n3)
		m.well()
	})

	scene("three nodes have three states", func() {
		for _, n := range m.Nodes {
			m.stop(n)
		}
		m.spoil(n2, "shop", "shoq")
		m.spoil(n3, "shop", "shor")
		for _, n := range m.Nodes {
			m.start(n)
		}
		m.must(m.AwaitReady(ctx))
		m.do(n1, http.MethodPut, "/v1/namespaces/default/services/again", `{}`)
		m.raised(n1, "state_split")
		m.one("muster snapshot save n2.snapshot --addr https://HOST:8443", n2, nil)
		m.types("state_split", n1, put{"NODE": "n1"}, put{"muster snapshot diff": "cart"})
		m.anew(n2)
		m.anew(n3)
		m.well()
	})

	scene("a certificate ends soon", func() {
		old, err := pki.Read(m.CA, filepath.Join(dir, "ca.key"))
		m.must(err)
		pair, err := old.Issue(domain, pki.Request{Node: n2.ID, Hosts: []string{n2.host.Client, n2.host.Peer}, Validity: time.Hour}, time.Now().Add(-50*time.Minute))
		m.must(err)
		m.must(pair.Write(filepath.Join(dir, "old.crt"), filepath.Join(dir, "old.key")))
		m.replace(n2, filepath.Join(dir, "old.*"))
		m.raised(n1, "certificate_expiring n2")
		m.types("certificate_expiring", n2, put{"NODE": n2.ID, "NEW": filepath.Join(dir, "new")})
		m.replace(n2, filepath.Join(dir, "new.*"))
		m.well()
	})

	scene("the clock of a node is wrong", func() {
		if why := Tamperable(); why != nil {
			m.Logf("LEFT OUT: %v", why)
			return
		}
		leader, _ := m.leader()
		n := m.Others(leader)[0]
		m.must(n.SetClock(-time.Minute))
		m.raised(leader, "clock_jumped "+n.ID, "clocks_apart "+leader.ID)
		m.types("clock_jumped", n, nil)
		m.types("clocks_apart", n, nil)
		m.must(n.SetClock(0))
		m.well("clock_jumped") // is told for five minutes
	})

	scene("backups have no place", func() {
		leader, _ := m.leader()
		backups := filepath.Join(dir, "backups")
		m.must(os.Rename(backups, backups+".away"))
		m.must(os.WriteFile(backups, nil, 0o600))
		m.until("it is noticed", func() error {
			all, err := m.alarms(leader)
			if err == nil && !slices.ContainsFunc(all, func(a string) bool { return strings.HasPrefix(a, "snapshot_overdue") }) {
				err = fmt.Errorf("%q", all)
			}
			return err
		})
		m.types("snapshot_overdue", leader, put{"FILE": filepath.Join(dir, "by-hand.snapshot")})
		m.must(os.Remove(backups))
		m.well("clock_jumped")
	})

	scene("back to a snapshot", func() {
		file := put{"FILE": filepath.Join(dir, "by-hand.snapshot")}
		m.do(n1, http.MethodPut, "/v1/namespaces/default/services/cart", `{"owner":"mistake"}`)
		for _, c := range m.manual["Back to a snapshot"] {
			switch {
			case strings.Contains(c, "--config"): // for where there is no cluster
			case strings.HasPrefix(c, "muster snapshot diff"):
				m.one(c, n1, file, put{c: "cart"})
			default:
				m.one(c, n1, file)
			}
		}
		if got := m.get(n2, "/v1/namespaces/default/services/cart"); !bytes.Contains(got, []byte(`"shop"`)) {
			t.Errorf("after the restore: %s", got)
		}
		m.well("clock_jumped")
	})

	scene("an audit trail was altered", func() {
		for i := range 10 {
			m.do(n1, http.MethodPut, fmt.Sprintf("/v1/namespaces/default/services/recorded-%d", i), `{}`)
		}
		m.get(n3, "/v1/namespaces/default/services/recorded-9")
		m.stop(n3) // tells the cluster where its trail ends
		trail := n3.file("data/audit/audit.log")
		b, err := os.ReadFile(trail)
		m.must(err)
		lines := bytes.SplitAfter(bytes.TrimSpace(b), []byte("\n"))
		m.must(os.WriteFile(trail, bytes.Join(lines[:len(lines)/2], nil), 0o600))
		m.must(os.Remove(n3.file("data/audit/head")))
		m.start(n3)
		m.raised(n1, "audit_differs n3")
		m.types("audit_differs", n3, put{"FILE": trail, "NODE": "n3"}, put{"muster audit verify": "missed the changes"})
		m.well("clock_jumped")
	})

	scene("what has no trouble here is typed all the same", func() {
		for _, section := range []string{opening, "policy_unavailable", "checks_not_run", "redis_away", "disk_failed", "disk_stalled", "disk_nearly_full", "follower_behind"} {
			m.types(section, n1, nil, put{"muster policy rollback": "no policy"}, put{"muster quota get": "no quotas"})
		}
	})

	scene("two of three disks are lost", func() {
		kept := time.Now().Truncate(time.Second)
		m.do(n1, http.MethodPut, "/v1/namespaces/default/services/kept", `{}`)
		m.get(n1, "/v1/namespaces/default/services/kept")
		m.isolate(n1, PeerLinks)
		m.accepts(n2, "lost") // n1 never hears of it
		lost := time.Now()
		for _, n := range []*Node{n2, n3} {
			n.Kill()
			m.must(n.Wipe())
		}
		m.raised(n1, "quorum_lost n1")
		m.stop(n1)
		m.heal() // not before: the kernel goes on sending for processes that were killed
		for _, c := range []string{"muster cluster recover --config /etc/muster/muster.yaml --dry-run", "muster cluster recover --config /etc/muster/muster.yaml"} {
			if strings.HasSuffix(c, "run") {
				m.one(c, n1, nil)
				continue
			}
			told := loss.FindStringSubmatch(m.one(c+" --yes", n1, nil))
			if told == nil {
				t.Fatalf("it does not say what may be lost")
			}
			at, err := time.ParseInLocation(time.DateTime, told[1], time.Local)
			if err != nil || at.Before(kept) || at.After(lost) || told[2] != n2.ID+", "+n3.ID {
				t.Errorf("it says %q (%v); on its disk is what was there at %s, and not what came until %s", told[0], err, kept.Format(time.DateTime), lost.Format(time.DateTime))
			}
			m.Logf("stated: %s", told[0])
		}
		m.start(n1)
		m.accepts(n1, "recovered")
		for _, n := range []*Node{n2, n3} {
			m.start(n)
			m.fresh = append(m.fresh, n)
		}
		m.well("clock_jumped")
		m.Logf("two of three disks lost to a whole cluster: %s", since(lost))
		m.get(n3, "/v1/namespaces/default/services/kept")
		if a := n3.Call(ctx, http.MethodGet, "/v1/namespaces/default/services/lost?consistency=linearizable", nil); a.Status != http.StatusNotFound {
			t.Errorf("what was on the lost disks alone: %s", a)
		}
	})

	for section, commands := range m.manual {
		for _, c := range commands {
			if os.Getenv(sceneEnv) != "" {
				continue
			}
			if _, own := read(t, "operations.md")[section]; own && !m.ran[c] {
				t.Errorf("%s: %q was not typed", section, c)
			}
		}
	}
}

// loss is what the command says that may be lost: what came after when, and is on
// which disks alone.
var loss = regexp.MustCompile(`What may be lost: changes that were acknowledged after its last entry, of ([-0-9]+ [:0-9]+), and are on the lost disks alone \((.*)\)\.`)

// accepts waits until a node takes a change again: the record of a service.
func (m *night) accepts(n *Node, service string) {
	m.Helper()
	m.until(n.ID+" takes "+service, func() error {
		a := n.Call(m.ctx, http.MethodPut, "/v1/namespaces/default/services/"+service, []byte(`{}`))
		if a.Outcome != OK {
			return fmt.Errorf("%s", a)
		}
		return nil
	})
}

// replace puts a certificate and its key in the place of a node's.
func (m *night) replace(n *Node, pattern string) {
	m.Helper()
	made, err := filepath.Glob(pattern)
	m.must(err)
	for _, f := range made {
		b, err := os.ReadFile(f)
		m.must(err)
		m.must(os.WriteFile(n.file("node"+filepath.Ext(f)), b, 0o600))
	}
	if len(made) != 2 {
		m.Fatalf("%v is not a certificate and its key", made)
	}
}

// glut writes a file until there is no room.
func glut(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for size := 1 << 20; size > 0; {
		if _, err = f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return errors.Join(errors.New("the disk took everything"), err, f.Close())
	}
	return f.Close()
}

// spoil makes a byte in a stopped node's state another than was written there,
// as memory does that is broken: with the sums made over it.
func (m *night) spoil(n *Node, owner, other string) {
	m.Helper()
	db, err := bolt.Open(n.file("data/state/state.db"), 0o600, nil)
	m.must(err)
	m.must(db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("services"))
		var key, spoilt []byte
		_ = b.ForEach(func(k, record []byte) error {
			if fresh := bytes.Replace(record, []byte(`"`+owner+`"`), []byte(`"`+other+`"`), 1); !bytes.Equal(record, fresh) {
				key, spoilt = bytes.Clone(k), fresh
			}
			return nil
		})
		if key == nil {
			return errors.New("there is no such owner")
		}
		return errors.Join(tx.Bucket([]byte("meta")).Delete([]byte("check")), b.Put(key, spoilt))
	}))
	m.must(db.Close())
}
