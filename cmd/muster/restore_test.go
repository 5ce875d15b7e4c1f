package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/dev"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/snapshot"
)

// bulky writes a snapshot that does not compress: many steps of a restore. It
// gives the hash of its state.
func bulky(t *testing.T, file string, seed uint64) string {
	t.Helper()
	var out bytes.Buffer
	w, err := snapshot.NewWriter(&out, snapshot.Header{ClusterID: "another", Revision: 1 << 20})
	if err == nil {
		err = w.Section("services")
	}
	r := rand.New(rand.NewPCG(seed, 26))
	for i := 0; i < 16 && err == nil; i++ {
		noise := make([]byte, 192<<10)
		for j := range noise {
			noise[j] = byte(r.Uint32())
		}
		err = w.Put(fmt.Sprintf("shop/s%02d", i), fmt.Appendf(nil, `{"namespace":"shop","name":"s%02d","protocol":"rest","owner":"","description":"%s","tags":[],"metadata":{},`+
			`"revision":%d,"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z","created_by":"x"}`, i, base64.StdEncoding.EncodeToString(noise), i+1))
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = os.WriteFile(file, out.Bytes(), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := fsm.Inspect(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return p.Hash.String()
}

// raw asks a node without the client's patience.
type raw struct {
	http  *http.Client
	token string
}

func (d *devCluster) raw(t *testing.T) *raw {
	t.Helper()
	pem, err := os.ReadFile(d.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	return &raw{&http.Client{Transport: transport, Timeout: 2 * time.Minute}, d.OperatorToken}
}

func (r *raw) open(t *testing.T, method, url, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	req.Header.Set("Content-Type", "application/json")
	return r.http.Do(req)
}

func (r *raw) do(t *testing.T, method, url, body string) (status int, answer string) {
	res, err := r.open(t, method, url, body)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

// told follows something at a node in the background and gives what it said last.
func (r *raw) told(t *testing.T, url string) <-chan string {
	t.Helper()
	res, err := r.open(t, "GET", url, "")
	if err != nil {
		t.Fatal(err)
	}
	last := make(chan string, 1)
	go func() {
		defer res.Body.Close()
		text := ""
		for in := bufio.NewScanner(res.Body); in.Scan(); {
			text += in.Text() + "\n"
		}
		last <- text
	}()
	return last
}

// hashes are the state hashes of those nodes that say one.
func (d *devCluster) hashes(t *testing.T, s shell) (all map[string]string, leader string, err error) {
	out, text, code := s.do(t, "cluster", "status", "-o", "json")
	if code != exitDone {
		return nil, "", fmt.Errorf("status: %s", text)
	}
	var st struct {
		Leader string `json:"leader"`
		Nodes  []struct {
			ID        string `json:"id"`
			Alive     bool   `json:"alive"`
			StateHash struct {
				Hash string `json:"hash"`
			} `json:"state_hash"`
		} `json:"nodes"`
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return nil, "", err
	}
	all = map[string]string{}
	for _, n := range st.Nodes {
		if n.Alive && n.StateHash.Hash != "" {
			all[n.ID] = n.StateHash.Hash
		}
	}
	return all, st.Leader, nil
}

// agreed waits until so many nodes have the same state, that one where it is known.
func (d *devCluster) agreed(t *testing.T, s shell, nodes int, wanted string) (hash string) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		all, _, err := d.hashes(t, s)
		if err != nil {
			return err
		}
		for _, h := range all {
			hash = h
		}
		for _, h := range all {
			if len(all) != nodes || h != hash || wanted != "" && h != wanted {
				return fmt.Errorf("the states are %v, of %d nodes there should be %q", all, nodes, wanted)
			}
		}
		return nil
	})
	return hash
}

// cutOff begins a restore through one node, and calls cut when another refuses
// changes because of it. It gives how the restore's command has ended. One that
// is over before that was seen is done again.
func (d *devCluster) cutOff(t *testing.T, r *raw, file string, through, other dev.Node, cut func()) <-chan int {
	t.Helper()
	s := d.shell()
	s.env["MUSTER_ADDR"] = through.Control
	ended := make(chan int, 1)
	begin := func() {
		go func() {
			_, _, code := s.do(t, "snapshot", "restore", file, "--force")
			ended <- code
		}()
	}
	begin()
	for tries := 1; ; {
		select {
		case code := <-ended:
			if tries++; code != exitDone || tries > 20 {
				t.Fatalf("the restore ended with %d before it was seen to refuse a change", code)
			}
			begin()
		default:
		}
		status, answer := r.do(t, "PUT", other.Control+"/v1/namespaces/shop/services/meanwhile", "{}")
		if status == http.StatusServiceUnavailable && strings.Contains(answer, `"not_ready"`) && strings.Contains(answer, "restore is in progress") {
			cut()
			return ended
		}
	}
}

// TestRestoreThroughDeaths restores while the leader dies, and while all nodes
// die: it is the same on all nodes or on none, who watches is told, and a file
// with a wrong bit does nothing at all.
func TestRestoreThroughDeaths(t *testing.T) {
	dir := t.TempDir()
	d := startDev(t, filepath.Join(dir, "dev"), "--port-base", "0")
	s, r := d.shell(), d.raw(t)
	s.ok(t, "apply", "-f", write(t, "cart.yaml", manifestText))
	first, second := filepath.Join(dir, "first.snapshot"), filepath.Join(dir, "second.snapshot")
	want1, want2 := bulky(t, first, 1), bulky(t, second, 2)
	saved := filepath.Join(dir, "saved.snapshot")
	s.ok(t, "snapshot", "save", saved)
	d.refuseDamaged(t, s, saved)

	_, leader, err := d.hashes(t, s)
	if err != nil {
		t.Fatal(err)
	}
	var followers []dev.Node
	for _, n := range d.Nodes {
		if n.ID != leader {
			followers = append(followers, n)
		}
	}
	at := followers[1].Control
	events := r.told(t, at+"/v1/watch?namespace=shop")
	discovery := make(chan string, 2)
	go func() {
		_, answer := r.do(t, "GET", at+"/v1/discovery/shop/cart?index=1000000000&wait=100s", "")
		discovery <- answer
	}()
	ended := d.cutOff(t, r, first, followers[0], followers[1], func() {
		if err := syscall.Kill(d.node(leader).PID, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	if code := <-ended; code != exitDone {
		t.Errorf("the restore through a node that lives ended with %d when the leader died", code)
	}
	if text := <-events; !strings.Contains(text, "event: reset") {
		t.Errorf("the event stream ended with %.2000s", text)
	}
	<-discovery
	live := shell{env: map[string]string{"MUSTER_ADDR": followers[0].Control + "," + at, "MUSTER_CACERT": d.CA, "MUSTER_TOKEN": d.OperatorToken}}
	d.agreed(t, live, 2, want1)
	only := exec.Command(os.Args[0], "dev", "--dir", d.dir, "--only", leader)
	if err := only.Start(); err != nil {
		t.Fatal(err)
	}
	d.agreed(t, live, 3, want1)
	_ = only.Process.Signal(syscall.SIGTERM)
	_ = only.Wait()

	const record = "/v1/namespaces/shop/services/s00"
	_, old := r.do(t, "GET", at+record, "")
	ended = d.cutOff(t, r, second, followers[0], followers[1], func() {
		for _, n := range followers {
			if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	})
	if code := <-ended; code == exitDone {
		t.Error("the restore through a node that was killed has succeeded")
	}
	_ = d.cmd.Wait() // all its nodes have ended
	_ = os.Remove(filepath.Join(d.dir, "cluster.json"))
	d = startDev(t, d.dir)
	s = d.shell()
	had := d.agreed(t, s, 3, "")
	if _, now := r.do(t, "GET", d.Nodes[0].Control+record, ""); (had == want2) == (now == old) {
		t.Errorf("the state is %s, that of the snapshot is %s, and a record is the one before: %t", had, want2, now == old)
	}
	// What was begun is given up, and the same file restores.
	eventually(t, 2*time.Minute, func() error {
		if _, text, code := s.do(t, "snapshot", "restore", second, "--force"); code != exitDone {
			return fmt.Errorf("exit code %d: %s", code, text)
		}
		return nil
	})
	d.agreed(t, s, 3, want2)
	t.Logf("after all had died in the midst, every node had the state %s", map[bool]string{true: "after", false: "before"}[had == want2])
	contains(t, s.ok(t, "apply", "-f", write(t, "cart.yaml", manifestText)), "created")
}

// refuseDamaged turns bits of a snapshot, and gives it to the commands.
func (d *devCluster) refuseDamaged(t *testing.T, s shell, file string) {
	t.Helper()
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, _, err := d.hashes(t, s)
	if err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(t.TempDir(), "damaged.snapshot")
	for range 5 {
		bit := rand.IntN(len(whole) * 8)
		flipped := bytes.Clone(whole)
		flipped[bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(damaged, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"snapshot", "verify", damaged}, {"snapshot", "inspect", damaged}, {"snapshot", "restore", damaged, "--force"}, {"snapshot", "restore", damaged, "--dry-run"}} {
			if out, text, code := s.do(t, args...); code != exitError || !strings.Contains(text, "the snapshot") && !strings.Contains(text, "not a muster snapshot") {
				t.Errorf("bit %d, muster %s: exit code %d: %s%s", bit, args[1], code, out, text)
			}
		}
	}
	after, _, err := d.hashes(t, s)
	if err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("refused snapshots have changed the state from %v to %v, %v", before, after, err)
	}
}
