package node_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	gogit "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"

	"github.com/muster-registry/muster/policy/git"
)

// origin is a repository on a Git server of its own.
type origin struct {
	t    *testing.T
	repo *gogit.Repository
	url  string
	head plumbing.Hash
}

func newOrigin(t *testing.T, caFile string) *origin {
	t.Helper()
	dir := t.TempDir()
	repo, err := gogit.PlainInit(filepath.Join(dir, "policies"), true)
	must(t, err)
	where, err := exec.Command("git", "--exec-path").Output()
	must(t, err)
	server := httptest.NewTLSServer(&cgi.Handler{
		Path:   filepath.Join(strings.TrimSpace(string(where)), "git-http-backend"),
		Env:    []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"},
		Stderr: io.Discard,
	})
	t.Cleanup(server.Close)
	must(t, os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	return &origin{t: t, repo: repo, url: server.URL + "/policies"}
}

func (o *origin) store(v interface {
	Encode(plumbing.EncodedObject) error
}) plumbing.Hash {
	o.t.Helper()
	m := new(plumbing.MemoryObject)
	must(o.t, v.Encode(m))
	id, err := o.repo.Storer.SetEncodedObject(m)
	must(o.t, err)
	return id
}

// commit puts one module on top of main.
func (o *origin) commit(key *openpgp.Entity, module string) string {
	o.t.Helper()
	blob := new(plumbing.MemoryObject)
	blob.SetType(plumbing.BlobObject)
	_, err := blob.Write([]byte(module))
	must(o.t, err)
	id, err := o.repo.Storer.SetEncodedObject(blob)
	must(o.t, err)
	who := object.Signature{Name: "Ann", Email: "ann@example.org", When: time.Now()}
	c := &object.Commit{Author: who, Committer: who, Message: "rules\n",
		TreeHash: o.store(&object.Tree{Entries: []object.TreeEntry{{Name: "authz.rego", Mode: filemode.Regular, Hash: id}}})}
	if !o.head.IsZero() {
		c.ParentHashes = []plumbing.Hash{o.head}
	}
	m := new(plumbing.MemoryObject)
	must(o.t, c.EncodeWithoutSignature(m))
	r, err := m.Reader()
	must(o.t, err)
	var signature strings.Builder
	must(o.t, openpgp.ArmoredDetachSign(&signature, key, r, nil))
	c.PGPSignature = signature.String() + "\n"
	o.head = o.store(c)
	must(o.t, o.repo.Storer.SetReference(plumbing.NewHashReference("refs/heads/main", o.head)))
	return o.head.String()
}

func newSigner(t *testing.T) (*openpgp.Entity, string) {
	t.Helper()
	e, err := openpgp.NewEntity("Ann", "", "ann@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	must(t, err)
	var public bytes.Buffer
	w, err := armor.Encode(&public, openpgp.PublicKeyType, nil)
	must(t, err)
	must(t, e.Serialize(w))
	must(t, w.Close())
	return e, public.String()
}

func allowing(n int) string {
	return fmt.Sprintf("package api.registry.authz\n\ndefault allow := false\n\nallow if %d > 0\n", n)
}

// A policy goes from a signed commit into force on every node, whoever leads.
func TestPoliciesFromGit(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	o := newOrigin(t, tr.file("git-ca.crt"))
	must(t, os.WriteFile(tr.file("webhook.secret"), []byte("the webhook's secret\n"), 0o600))
	for _, n := range tr.nodes {
		f, err := os.OpenFile(n.config, os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = fmt.Fprintf(f, "policy:\n  git: {url: %q, ca_file: git-ca.crt, mode: activate, interval: 1h, webhook_secret_file: webhook.secret, allow: [127.0.0.1]}\n", o.url)
		must(t, err)
		must(t, f.Close())
	}
	signer, public := newSigner(t)
	first := o.commit(signer, allowing(1))
	tr.startAll()
	e := newEdge(t, tr)

	// Nobody vouches for the key yet.
	var s git.Status
	e.sync(t, 0, git.Unverified, &s)
	if s.Refused == nil || s.Refused.Commit != first || s.Source.Commit != "" {
		t.Fatalf("%+v", s)
	}
	key, err := json.Marshal(map[string]string{"kind": "openpgp", "material": public})
	must(t, err)
	e.mustDo(t, "PUT", "/v1/policy/keys/ann", string(key))
	// That alone has the leader look again.
	e.active(t, 0, first)
	e.mustDo(t, "PUT", "/v1/namespaces/default/services/cart", `{}`)
	a := e.mustDo(t, "GET", "/v1/policy/revisions/1", "")
	var rev struct {
		State  string
		Source struct{ Kind, URL, Branch, Commit string }
		Signed struct{ Key, Kind string } `json:"signature"`
		Steps  []struct{ Step string }
		By     string `json:"created_by"`
	}
	must(t, json.Unmarshal(a.body, &rev))
	if rev.State != "active" || rev.Source.Kind != "git" || rev.Source.URL != o.url || rev.Source.Commit != first || rev.Signed.Key != "ann" || rev.Signed.Kind != "openpgp" {
		t.Errorf("%+v", rev)
	}
	var steps []string
	for _, step := range rev.Steps {
		steps = append(steps, step.Step)
	}
	if got := strings.Join(steps, " "); got != "fetched verified tested staged active" {
		t.Errorf("its history is %s", got)
	}

	// A signed webhook at any node has the leader pull; one that is not does nothing.
	second := o.commit(signer, allowing(2))
	leader := e.leader(t)
	follower := (leader + 1) % len(tr.nodes)
	e.hook(t, follower, "another secret").want(t, 401, "unauthenticated")
	until(t, "the webhook is taken", func() error {
		if a := e.hook(t, follower, "the webhook's secret"); a.status != 202 {
			return fmt.Errorf("%d %s", a.status, a.body)
		}
		return nil
	})
	for i := range tr.nodes {
		e.active(t, i, second)
	}

	until(t, "the pulls are counted", func() error {
		var figures string
		for i := range tr.nodes { // whichever of them led
			some, err := metricsOf(tr, i)
			if err != nil {
				return err
			}
			figures += some
		}
		for _, want := range []string{`muster_git_syncs_total\{outcome="accepted"\} [1-9]`, `muster_git_syncs_total\{outcome="bad_signature"\} [1-9]`, `muster_git_last_success_timestamp_seconds [1-9]`} {
			if !regexp.MustCompile(want).MatchString(figures) {
				return fmt.Errorf("%s is not among the metrics", want)
			}
		}
		return nil
	})

	// The next leader goes on from there: it stages nothing twice.
	tr.stop(leader)
	third := o.commit(signer, allowing(3))
	// Its first pull may have come before the commit; the one that is asked for does not.
	e.sync(t, follower, git.Unchanged, &s)
	e.active(t, follower, third)
	a = e.send(t, follower, "HTTP/1.1", call{method: "GET", path: "/v1/policy/revisions"})
	if n := bytes.Count(a.body, []byte(`"changed_at_revision"`)); n != 3 {
		t.Errorf("%d revisions were made of 3 commits: %s", n, a.body)
	}
	if s.Source.Commit != third || s.Refused != nil {
		t.Errorf("%+v", s)
	}
}

// sync pulls through a node until a pull ends as wanted.
func (e *edge) sync(t *testing.T, node int, want git.Outcome, s *git.Status) {
	t.Helper()
	until(t, "the pull ends as "+string(want), func() error {
		a := e.send(t, node, "HTTP/1.1", call{method: "POST", path: "/v1/policy/sync"})
		*s = git.Status{}
		if err := json.Unmarshal(a.body, s); a.status != 200 || err != nil || s.Outcome != want {
			return fmt.Errorf("%d %s", a.status, a.body)
		}
		return nil
	})
}

// active waits until a node decides by what a commit holds.
func (e *edge) active(t *testing.T, node int, commit string) {
	t.Helper()
	until(t, "the commit is in force", func() error {
		a := e.send(t, node, "HTTP/1.1", call{method: "GET", path: "/v1/policy/sync"})
		b := e.send(t, node, "HTTP/1.1", call{method: "GET", path: "/v1/policy/revisions"})
		for line := range bytes.SplitSeq(b.body, []byte(`{"revision":`)) {
			if bytes.Contains(line, []byte(`"state":"active"`)) && bytes.Contains(line, []byte(commit)) && bytes.Contains(a.body, []byte(`"commit":"`+commit)) {
				return nil
			}
		}
		return fmt.Errorf("%s %s", a.body, b.body)
	})
}

// hook calls as a Git host does, without any credential.
func (e *edge) hook(t *testing.T, node int, secret string) *answer {
	t.Helper()
	body := `{"ref":"refs/heads/main"}`
	sum := hmac.New(sha256.New, []byte(secret))
	sum.Write([]byte(body))
	return e.send(t, node, "HTTP/1.1", call{method: "POST", path: "/v1/policy/sync", body: strings.NewReader(body),
		header: []string{"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(sum.Sum(nil)), "Authorization", ""}})
}

// metricsOf reads the metrics of a node.
func metricsOf(tr *trial, node int) (string, error) {
	cfg, err := os.ReadFile(tr.nodes[node].config)
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(cfg), `metrics: "`)
	address, _, _ := strings.Cut(rest, `"`)
	res, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}
