package node_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/node"
	"github.com/muster-registry/muster/snapshot"
)

// saved polls until f is content.
func saved(t *testing.T, f func() error) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// get reads a page of a node's metrics port.
func page(url string) (string, error) {
	res, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// with adds to the configuration of each node.
func (tr *trial) with(text string) {
	tr.t.Helper()
	for _, n := range tr.nodes {
		b, err := os.ReadFile(n.config)
		must(tr.t, err)
		must(tr.t, os.WriteFile(n.config, append(b, text...), 0o600))
	}
}

// Scheduled snapshots go to S3-compatible storage, encrypted; the next leader
// goes on with the schedule of the last; what is kept can be loaded.
func TestScheduledSnapshots(t *testing.T) {
	t.Parallel()
	backend := s3mem.New()
	must(t, backend.CreateBucket("backups"))
	storage := httptest.NewServer(gofakes3.New(backend).Server())
	defer storage.Close()
	key, err := age.GenerateX25519Identity()
	must(t, err)

	tr := newTrial(t, 3)
	must(t, os.WriteFile(tr.file("s3.key"), []byte("secret"), 0o600))
	tr.with(fmt.Sprintf("snapshots:\n  interval: 1h\n  recipients: [%s]\n  s3: {endpoint: %q, bucket: backups, prefix: here, access_key: a, secret_key_file: s3.key}\n", key.Recipient(), storage.URL))
	tr.startAll()
	e := newEdge(t, tr)
	stored := func() (names []string) {
		list, err := backend.ListBucket("backups", nil, gofakes3.ListBucketPage{})
		must(t, err)
		for _, c := range list.Contents {
			names = append(names, c.Key)
		}
		return names
	}
	// Every node tells the age of the newest.
	told := func() error {
		for _, n := range tr.nodes {
			text, err := page(n.metrics + "/metrics")
			must(t, err)
			if !strings.Contains(text, "\nmuster_snapshot_age_seconds ") {
				return fmt.Errorf("%s does not tell the age", n.id)
			}
		}
		return nil
	}
	saved(t, func() error {
		if n := stored(); len(n) != 1 {
			return fmt.Errorf("stored are %v", n)
		}
		return told()
	})
	name := stored()[0]
	if !strings.HasPrefix(name, "here/muster-") || !strings.HasSuffix(name, ".snapshot.age") {
		t.Errorf("its name is %s", name)
	}
	o, err := backend.GetObject("backups", name, nil)
	must(t, err)
	defer o.Contents.Close()
	plain, err := snapshot.Decrypt(o.Contents, []snapshot.Identity{key})
	must(t, err)
	if _, err := fsm.Inspect(plain); err != nil {
		t.Error(err)
	}
	// The next leader finds that nothing is due.
	if a := e.send(t, 0, "HTTP/2.0", call{"POST", "/v1/cluster/leader/transfer", strings.NewReader("{}"), nil}); a.status != 204 {
		t.Fatalf("transfer: %d %s", a.status, a.body)
	}
	saved(t, told)
	if n := stored(); len(n) != 1 {
		t.Errorf("the next leader did not go on with the schedule: %v", n)
	}
	for _, n := range tr.nodes {
		left, err := filepath.Glob(tr.file(n.id + "/*.snapshot*"))
		must(t, err)
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestSnapshotSettingsThatCannotBe(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	config, err := os.ReadFile(tr.nodes[0].config)
	must(t, err)
	for text, want := range map[string]string{
		"{interval: 1h}":                                         "snapshots.interval: say where",
		"{interval: 1s, folder: x}":                              "too short",
		"{folder: x, keep: 0}":                                   "snapshots.keep",
		"{folder: x, recipients: [key]}":                         "no public key of age",
		"{folder: x, s3: {endpoint: 'https://h', bucket: b}}":    "keep one of the two",
		"{interval: 1h, s3: {endpoint: 'https://h', bucket: b}}": "secret key",
		"{interval: 1h, s3: {endpoint: 'http://192.0.2.1', bucket: b, access_key: a}}":        "plain HTTP",
		"{interval: 1h, s3: {endpoint: 'https://h/path', bucket: b, access_key: a}}":          "https://host:port",
		"{interval: 1h, s3: {endpoint: 'https://h', bucket: b, access_key: a, secret: open}}": "unknown key",
	} {
		must(t, os.WriteFile(tr.file("bad.yaml"), append(bytes.Clone(config), "snapshots: "+text+"\n"...), 0o600))
		if _, err := node.Load(tr.file("bad.yaml"), func(string) string { return "" }); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
