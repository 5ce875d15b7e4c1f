package git

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http/cgi"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	gogit "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"

	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
)

const (
	good  = "package api.registry.authz\n\ndefault allow := false\n\nallow if input.action == \"register\"\n"
	tests = "package api.registry.authz_test\n\nimport data.api.registry.authz\n\ntest_register if authz.allow with input as {\"action\": \"register\"}\n"
	fails = "package api.registry.authz_test\n\nimport data.api.registry.authz\n\ntest_delete if authz.allow with input as {\"action\": \"delete\"}\n"
)

var loopback = &egress.Dialer{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}

// repository is a real one in a folder, with a branch main that is empty.
type repository struct {
	*testing.T
	git *gogit.Repository
}

func newRepository(t *testing.T, dir string) *repository {
	t.Helper()
	g, err := gogit.PlainInit(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	return &repository{t, g}
}

func newKey(t *testing.T, name string) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity(name, "", name+"@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// commit makes the files the whole content of a new commit on main. A content
// that begins with an arrow is a symbolic link.
func (r *repository) commit(key *openpgp.Entity, files map[string]string) string {
	r.Helper()
	return r.record(key, r.folder(files))
}

func (r *repository) folder(files map[string]string) plumbing.Hash {
	r.Helper()
	var tree object.Tree
	below := map[string]map[string]string{}
	for name, content := range files {
		if dir, rest, ok := strings.Cut(name, "/"); ok {
			if below[dir] == nil {
				below[dir] = map[string]string{}
			}
			below[dir][rest] = content
			continue
		}
		mode := filemode.Regular
		if to, link := strings.CutPrefix(content, "-> "); link {
			mode, content = filemode.Symlink, to
		}
		tree.Entries = append(tree.Entries, object.TreeEntry{Name: name, Mode: mode, Hash: r.object(plumbing.BlobObject, []byte(content))})
	}
	for dir, files := range below {
		tree.Entries = append(tree.Entries, object.TreeEntry{Name: dir, Mode: filemode.Dir, Hash: r.folder(files)})
	}
	sort.Sort(object.TreeEntrySorter(tree.Entries))
	o := new(plumbing.MemoryObject)
	if err := tree.Encode(o); err != nil {
		r.Fatal(err)
	}
	return r.store(o)
}

// craft commits a tree of raw entries, which no client of Git would make.
func (r *repository) craft(key *openpgp.Entity, entries ...string) {
	r.Helper()
	blob := r.object(plumbing.BlobObject, []byte(good))
	var tree bytes.Buffer
	for _, e := range entries {
		tree.WriteString(e + "\x00")
		tree.Write(blob[:])
	}
	r.record(key, r.object(plumbing.TreeObject, tree.Bytes()))
}

// record commits a tree on top of main, signed unless the key is nil.
func (r *repository) record(key *openpgp.Entity, tree plumbing.Hash) string {
	r.Helper()
	who := object.Signature{Name: "Ann", Email: "ann@example.org", When: time.Now()}
	c := &object.Commit{Author: who, Committer: who, Message: "a change\n\nof policies\n", TreeHash: tree}
	if head, err := r.git.Reference(main, true); err == nil {
		c.ParentHashes = []plumbing.Hash{head.Hash()}
	}
	if key != nil {
		o := new(plumbing.MemoryObject)
		if err := c.EncodeWithoutSignature(o); err != nil {
			r.Fatal(err)
		}
		from, err := o.Reader()
		if err != nil {
			r.Fatal(err)
		}
		var armored strings.Builder
		if err := openpgp.ArmoredDetachSign(&armored, key, from, nil); err != nil {
			r.Fatal(err)
		}
		c.PGPSignature = armored.String() + "\n"
	}
	o := new(plumbing.MemoryObject)
	if err := c.Encode(o); err != nil {
		r.Fatal(err)
	}
	id := r.store(o).String()
	r.move(id)
	return id
}

// move puts the branch elsewhere, as a forced push does.
func (r *repository) move(to string) {
	r.Helper()
	if err := r.git.Storer.SetReference(plumbing.NewHashReference(main, plumbing.NewHash(to))); err != nil {
		r.Fatal(err)
	}
}

const main = plumbing.ReferenceName("refs/heads/main")

func (r *repository) object(kind plumbing.ObjectType, content []byte) plumbing.Hash {
	r.Helper()
	o := new(plumbing.MemoryObject)
	o.SetType(kind)
	if _, err := o.Write(content); err != nil {
		r.Fatal(err)
	}
	return r.store(o)
}

func (r *repository) store(o plumbing.EncodedObject) plumbing.Hash {
	r.Helper()
	id, err := r.git.Storer.SetEncodedObject(o)
	if err != nil {
		r.Fatal(err)
	}
	return id
}

// serve offers the folder's repositories over https by git's own server, and
// gives the configuration that reaches the one named policies.
func serve(t *testing.T, dir string) (Config, *httptest.Server) {
	t.Helper()
	where, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatalf("git is needed to serve a repository: %v", err)
	}
	server := httptest.NewTLSServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(where)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"},
		// What git says of a client that went away is of no interest.
		Stderr: io.Discard,
	})
	t.Cleanup(server.Close)
	return Config{URL: server.URL + "/policies", CAFile: certificate(t, server), Egress: loopback, Timeout: 2 * time.Minute}, server
}

// certificate is a file with the server's own.
func certificate(t *testing.T, server *httptest.Server) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// cluster is a cluster of this process: the replicated tables, the engine, and
// a list of trusted keys.
type cluster struct {
	engine *rego.Engine
	table  *policy.Table
	saved  []byte
	saves  int
	keys   openpgp.EntityList
	down   error // what staging and later steps fail with
}

func newCluster(t *testing.T, keys ...*openpgp.Entity) *cluster {
	e := rego.New(rego.Options{Limit: 10 * time.Second})
	t.Cleanup(e.Close)
	return &cluster{engine: e, table: policy.NewTable(), keys: keys}
}

func (c *cluster) Status(context.Context) (*Status, error) {
	if c.saved == nil {
		return nil, nil
	}
	return Decode(c.saved)
}

func (c *cluster) Save(_ context.Context, s *Status) error {
	c.saved = s.Encode()
	c.saves++
	return nil
}

func (c *cluster) Verify(signed, armored []byte) (string, error) {
	e, err := openpgp.CheckArmoredDetachedSignature(c.keys, bytes.NewReader(signed), bytes.NewReader(armored), nil)
	if err != nil {
		return "", err
	}
	return e.PrimaryIdentity().UserId.Name, nil
}

func (c *cluster) Parse(bundle []byte) (*policy.Content, error) {
	push, err := rego.ReadBundle(bundle, 16<<20)
	if err != nil {
		return nil, err
	}
	return &push.Content, nil
}

func (c *cluster) Find(s policy.Source) (*policy.Revision, bool) { return c.table.FromSource(s) }

func (c *cluster) change(step func(x *policy.Txn, st policy.Stamp) error) error {
	if c.down != nil {
		return c.down
	}
	x := c.table.Txn(nil)
	err := step(x, policy.Stamp{Revision: uint64(c.table.Len() + 1), Time: time.Now(), By: "git"})
	c.table = x.Commit()
	return err
}

func (c *cluster) Stage(ctx context.Context, content *policy.Content, o policy.Origin) (rev *policy.Revision, err error) {
	report, err := c.engine.Check(ctx, content)
	if err != nil {
		return nil, err
	}
	err = c.change(func(x *policy.Txn, st policy.Stamp) error {
		rev, err = x.Stage(st, policy.Draft{Content: content.Encode(), Report: report.Encode(), Origin: o.Encode(), Digest: content.Digest()})
		return err
	})
	return rev, err
}

func (c *cluster) Shadow(_ context.Context, number uint64) error {
	return c.change(func(x *policy.Txn, st policy.Stamp) error { _, err := x.Shadow(st, number, 1); return err })
}

func (c *cluster) Activate(_ context.Context, number uint64) error {
	return c.change(func(x *policy.Txn, st policy.Stamp) error {
		_, err := x.Activate(st, number, x.Active(), false)
		return err
	})
}

// scene is a served repository, a key that is trusted, and a cluster that pulls.
type scene struct {
	*repository
	key     *openpgp.Entity
	cluster *cluster
	cfg     Config
	source  *Source
}

func newScene(t *testing.T, change func(*Config)) *scene {
	t.Helper()
	dir := t.TempDir()
	s := &scene{repository: newRepository(t, filepath.Join(dir, "policies")), key: newKey(t, "Ann")}
	s.cluster = newCluster(t, s.key)
	s.cfg, _ = serve(t, dir)
	if change != nil {
		change(&s.cfg)
	}
	s.restart()
	return s
}

// restart is a new leader: it knows what the cluster has replicated.
func (s *scene) restart() {
	s.Helper()
	var err error
	if s.source, err = New(s.cfg, s.cluster, slog.New(slog.DiscardHandler), nil); err != nil {
		s.Fatal(err)
	}
}

func (s *scene) pull(want Outcome) *Status {
	s.Helper()
	status, got := s.source.Pull(s.Context(), false)
	if got != want {
		last := Event{}
		if n := len(status.History); n > 0 {
			last = status.History[n-1]
		}
		s.Fatalf("the pull ended as %s, want %s; last: %+v", got, want, last)
	}
	return status
}

func steps(s *Status) string {
	var all []string
	for _, e := range s.History {
		all = append(all, e.Step)
	}
	return strings.Join(all, " ")
}

var errDown = errors.New("no quorum")
