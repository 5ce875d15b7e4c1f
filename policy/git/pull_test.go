package git

import (
	"bytes"
	"compress/zlib"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/muster-registry/muster/policy"
)

func TestASignedCommitBecomesARevision(t *testing.T) {
	s := newScene(t, func(c *Config) { c.Path = "prod" })
	id := s.commit(s.key, map[string]string{
		"prod/authz.rego": good, "prod/authz_test.rego": tests, "prod/teams/data.json": `{"shop":["ann"]}`, "prod/README.md": "no policy",
		"lab/other.rego": "package broken {",
	})
	status := s.pull(Accepted)
	rev, ok := s.cluster.table.Get(1)
	if !ok || rev.State != policy.Staged || rev.Tests.Passed != 1 || len(rev.Modules) != 2 || !strings.Contains(string(rev.Data), "ann") {
		t.Fatalf("%+v", rev)
	}
	if src := rev.Source; src == nil || src.Kind != "git" || src.URL != s.cfg.URL || src.Branch != "main" || src.Path != "prod" || src.Commit != id {
		t.Errorf("source %+v", src)
	}
	var life []string
	for _, step := range rev.Steps {
		life = append(life, step.Step)
	}
	if got := strings.Join(life, " "); got != "fetched verified tested staged" {
		t.Errorf("the revision's history is %q", got)
	}
	if steps(status) != "fetched verified tested staged" || status.Source.Commit != id || status.Revision != 1 || status.History[1].Message != "signed by Ann" {
		t.Errorf("%+v", status)
	}
	// The same commit again is nothing, also for the next leader.
	s.pull(Unchanged)
	s.restart()
	s.pull(Unchanged)
	if s.cluster.table.Len() != 1 || s.cluster.saves != 1 {
		t.Errorf("%d revisions, %d saves", s.cluster.table.Len(), s.cluster.saves)
	}
}

func TestModes(t *testing.T) {
	for mode, want := range map[Mode]policy.State{ModeStage: policy.Staged, ModeShadow: policy.Shadow, ModeActivate: policy.Active} {
		s := newScene(t, func(c *Config) { c.Mode = mode })
		s.commit(s.key, map[string]string{"a.rego": good})
		status := s.pull(Accepted)
		if rev, _ := s.cluster.table.Get(1); rev.State != want {
			t.Errorf("%s: the revision is %s", mode, rev.State)
		}
		if last := status.History[len(status.History)-1]; last.Step != string(want) {
			t.Errorf("%s: the history ends with %s", mode, last.Step)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	stranger := newKey(t, "Eve")
	for name, c := range map[string]struct {
		commit  func(s *scene)
		outcome Outcome
		says    string
	}{
		"unsigned":               {func(s *scene) { s.commit(nil, map[string]string{"a.rego": good}) }, Unverified, "not signed"},
		"a stranger's signature": {func(s *scene) { s.commit(stranger, map[string]string{"a.rego": good}) }, Unverified, "unknown"},
		"failing tests":          {func(s *scene) { s.commit(s.key, map[string]string{"a.rego": good, "a_test.rego": fails}) }, CheckFailed, "test_delete"},
		"no Rego":                {func(s *scene) { s.commit(s.key, map[string]string{"a.rego": "package x {"}) }, CheckFailed, "a.rego"},
		"a built-in that reaches out": {func(s *scene) {
			s.commit(s.key, map[string]string{"a.rego": "package x\n\nallow if http.send({\"url\": \"http://a\", \"method\": \"get\"})\n"})
		}, CheckFailed, "network"},
		"no policies": {func(s *scene) { s.commit(s.key, map[string]string{"README.md": "hello"}) }, BadContent, "module"},
		"a symlink":   {func(s *scene) { s.commit(s.key, map[string]string{"a.rego": good, "b.rego": "-> /etc/passwd"}) }, BadContent, "symbolic link"},
		"LFS": {func(s *scene) {
			s.commit(s.key, map[string]string{"a.rego": good, "data.json": "version https://git-lfs.github.com/spec/v1\n"})
		}, BadContent, "LFS"},
		"dots":           {func(s *scene) { s.craft(s.key, "100644 ..") }, BadContent, "not plain"},
		"a path":         {func(s *scene) { s.craft(s.key, "100644 ../../etc/cron.d/a.rego") }, BadContent, "not plain"},
		"a backslash":    {func(s *scene) { s.craft(s.key, `100644 ..\a.rego`) }, BadContent, "not plain"},
		"a control byte": {func(s *scene) { s.craft(s.key, "100644 a\n.rego") }, BadContent, "not plain"},
		".git":           {func(s *scene) { s.craft(s.key, "100644 .Git") }, BadContent, "not plain"},
		"one name twice": {func(s *scene) { s.craft(s.key, "100644 a.rego", "100644 a.rego") }, BadContent, "a.rego"},
		"a submodule":    {func(s *scene) { s.craft(s.key, "160000 lib") }, BadContent, "submodule"},
		"no branch":      {func(*scene) {}, FetchFailed, "empty"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, nil)
			c.commit(s)
			status := s.pull(c.outcome)
			last := status.History[len(status.History)-1]
			if last.Step != string(c.outcome) || !strings.Contains(last.Message, c.says) {
				t.Errorf("%+v, want it to say %q", last, c.says)
			}
			if c.outcome != FetchFailed && (status.Refused == nil || status.Refused.Commit == "" || last.Commit != status.Refused.Commit) {
				t.Errorf("refused: %+v", status.Refused)
			}
			saves := s.cluster.saves
			s.pull(c.outcome)
			s.source.Pull(t.Context(), true)
			if s.cluster.table.Len() != 0 || s.cluster.saves != saves || status.Source.Commit != "" {
				t.Errorf("%d revisions, %d saves", s.cluster.table.Len(), s.cluster.saves)
			}
		})
	}
}

func TestAFolderThatIsNotThere(t *testing.T) {
	s := newScene(t, func(c *Config) { c.Path = "prod/eu" })
	s.commit(s.key, map[string]string{"prod/a.rego": good})
	if status := s.pull(BadContent); !strings.Contains(status.Refused.Message, "no folder prod/eu") {
		t.Errorf("%+v", status.Refused)
	}
}

func TestSignaturesCanBeWaived(t *testing.T) {
	s := newScene(t, func(c *Config) { c.Unsigned = true })
	s.commit(nil, map[string]string{"a.rego": good})
	if status := s.pull(Accepted); !strings.Contains(status.History[1].Message, "not required") {
		t.Errorf("%+v", status.History)
	}
}

// A key that becomes trusted later makes a refused commit good, once somebody
// asks; one that is no longer trusted does not undo what it signed.
func TestKeysComeAndGo(t *testing.T) {
	s := newScene(t, nil)
	bob := newKey(t, "Bob")
	s.commit(bob, map[string]string{"a.rego": good})
	s.pull(Unverified)
	s.cluster.keys = append(s.cluster.keys, bob)
	s.pull(Unverified)
	if _, o := s.source.Pull(t.Context(), true); o != Accepted {
		t.Fatalf("asked again: %s", o)
	}
	s.cluster.keys = openpgp.EntityList{s.key}
	s.pull(Unchanged)
	s.commit(bob, map[string]string{"a.rego": good, "b.rego": "package b"})
	s.pull(Unverified)
	if s.cluster.table.Len() != 1 {
		t.Errorf("%d revisions", s.cluster.table.Len())
	}
}

func TestARevokedKey(t *testing.T) {
	s := newScene(t, nil)
	s.commit(s.key, map[string]string{"a.rego": good})
	if err := s.key.RevokeKey(packet.KeyCompromised, "lost", nil); err != nil {
		t.Fatal(err)
	}
	other := newKey(t, "Bob")
	s.cluster.keys = openpgp.EntityList{s.key, other}
	s.pull(Unverified)
}

// A commit whose tree was exchanged under a good signature has another id and
// another text: nothing that was signed.
func TestATreeUnderSomebodyElsesSignature(t *testing.T) {
	s := newScene(t, nil)
	s.commit(s.key, map[string]string{"a.rego": good})
	h := fetched(t, s, 1)
	c, err := readCommit(h.objects, h.head)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.verify(s.cluster.Verify); err != nil {
		t.Fatal(err)
	}
	for _, swap := range [][2]string{{"tree " + c.tree.String(), "tree " + strings.Repeat("a", 40)}, {"a change", "no change"}} {
		forged := &commit{}
		whole := bytes.Replace(c.signed, []byte("\n\n"), append(append([]byte("\ngpgsig "), bytes.ReplaceAll(bytes.TrimSuffix(c.signature, []byte("\n")), []byte("\n"), []byte("\n "))...), "\n\n"...), 1)
		if err := forged.parse(bytes.Replace(whole, []byte(swap[0]), []byte(swap[1]), 1)); err != nil {
			t.Fatal(err)
		}
		if key, err := forged.verify(s.cluster.Verify); err == nil {
			t.Errorf("%s instead of %s passes as signed by %s", swap[1], swap[0], key)
		}
	}
	for _, bad := range []string{"", "tree x\n\n", "parent " + strings.Repeat("a", 40) + "\n\nm", "tree " + strings.Repeat("a", 40) + "\n",
		"tree " + strings.Repeat("a", 40) + "\ntree " + strings.Repeat("b", 40) + "\n\n", "tree " + strings.Repeat("a", 40) + "\ngpgsig x\nauthor a\ngpgsig y\n\n"} {
		if err := new(commit).parse([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a commit", bad)
		}
	}
}

func fetched(t *testing.T, s *scene, depth int) *history {
	t.Helper()
	cfg := s.source.cfg
	r, err := newRemote(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	h, err := r.fetch(t.Context(), depth)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestHistoryGoesForward(t *testing.T) {
	s := newScene(t, nil)
	first := s.commit(s.key, map[string]string{"a.rego": good})
	second := s.commit(s.key, map[string]string{"a.rego": good, "b.rego": "package b"})
	s.pull(Accepted)
	// Back to an older commit, however well it is signed.
	s.move(first)
	if status := s.pull(NotForward); status.Source.Commit != second || status.Refused.Commit != first {
		t.Errorf("%+v", status)
	}
	// And to another line.
	other := s.commit(s.key, map[string]string{"c.rego": "package c"})
	if status := s.pull(NotForward); status.Refused.Commit != other {
		t.Errorf("%+v", status)
	}
	if s.cluster.table.Len() != 1 {
		t.Fatalf("%d revisions", s.cluster.table.Len())
	}
	// On top of the accepted one it goes on.
	s.move(second)
	s.pull(Unchanged)
	s.commit(s.key, map[string]string{"d.rego": "package d"})
	if status := s.pull(Accepted); status.Refused != nil || status.Revision != 2 {
		t.Errorf("%+v", status)
	}
	// Somebody may decide otherwise.
	s.move(other)
	s.cfg.Rewrites = true
	s.restart()
	s.pull(Accepted)
}

// The last accepted commit may lie further back than is fetched at first.
func TestALongWayFromTheLastCommit(t *testing.T) {
	s := newScene(t, nil)
	s.commit(s.key, map[string]string{"a.rego": good})
	s.pull(Accepted)
	for i := range depthFirst + 10 {
		s.commit(nil, map[string]string{"a.rego": good, "note.md": fmt.Sprint(i)})
	}
	s.commit(s.key, map[string]string{"b.rego": "package b"})
	if h := fetched(t, s, depthFirst); !h.cut {
		t.Fatal("the whole history came at once; this shows nothing")
	}
	s.pull(Accepted)
	if s.cluster.table.Len() != 2 {
		t.Errorf("%d revisions", s.cluster.table.Len())
	}
}

// A pull that did not get to its end is ended by the next one, with the
// revision that was made already.
func TestAnotherLeaderGoesOn(t *testing.T) {
	s := newScene(t, func(c *Config) { c.Mode = ModeActivate })
	s.commit(s.key, map[string]string{"a.rego": good})
	h := fetched(t, s, 1)
	c, err := readCommit(h.objects, h.head)
	if err != nil {
		t.Fatal(err)
	}
	p := &pull{Source: s.source}
	p.begin(nil)
	source := p.status.Source
	source.Commit = c.id.String()
	if _, err := p.take(t.Context(), c, h, policy.Origin{Source: &source}); err != nil {
		t.Fatal(err)
	}
	s.restart()
	s.cluster.down = errDown
	s.pull(Failed)
	saves := s.cluster.saves
	s.pull(Failed)
	if s.cluster.saves != saves {
		t.Error("the same failure was saved twice")
	}
	s.cluster.down = nil
	s.pull(Accepted)
	if a := s.cluster.table.Active(); s.cluster.table.Len() != 1 || a == nil || a.Number != 1 {
		t.Errorf("%d revisions, active %v", s.cluster.table.Len(), a)
	}
	// What was rolled back stays so.
	if err := s.cluster.change(func(x *policy.Txn, st policy.Stamp) error {
		rev, err := x.Stage(st, policy.Draft{Content: a(t).Encode(), Report: policy.Report{}.Encode()})
		if err != nil {
			return err
		}
		_, err = x.Activate(st, rev.Number, x.Active(), false)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s.pull(Unchanged)
	if s.cluster.table.Active().Number != 2 {
		t.Error("the commit was activated again")
	}
}

// What a person has taken back stays so, whoever pulls, and however often it is
// asked for; the next commit is another matter, also one with the same files.
func TestARollbackHolds(t *testing.T) {
	s := newScene(t, func(c *Config) { c.Mode = ModeActivate })
	s.commit(s.key, map[string]string{"a.rego": good})
	s.pull(Accepted)
	saved := s.cluster.saved
	s.commit(s.key, map[string]string{"a.rego": good, "b.rego": "package b"})
	s.pull(Accepted)
	if err := s.cluster.change(func(x *policy.Txn, st policy.Stamp) error {
		_, err := x.Activate(st, 1, 2, true)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	holds := func(when string) {
		t.Helper()
		if a := s.cluster.table.Active(); a.Number != 1 || s.cluster.table.Len() != 2 {
			t.Errorf("%s: %d revisions, %d is active", when, s.cluster.table.Len(), a.Number)
		}
	}
	s.pull(Unchanged)
	holds("on the interval")
	if _, outcome := s.source.Pull(t.Context(), true); outcome != Unchanged {
		t.Errorf("asked for: %s", outcome)
	}
	holds("asked for")
	s.restart()
	if _, outcome := s.source.Pull(t.Context(), true); outcome != Unchanged {
		t.Errorf("by the next leader: %s", outcome)
	}
	holds("by the next leader")
	// The leader died before it could write down that it had taken the commit.
	s.cluster.saved = saved
	s.restart()
	s.pull(Accepted)
	holds("after a loss of the status")

	s.commit(s.key, map[string]string{"a.rego": good, "b.rego": "package b"})
	s.pull(Accepted)
	if a := s.cluster.table.Active(); a.Number != 3 {
		t.Errorf("the next commit: %d is active", a.Number)
	}
}

func a(t *testing.T) *policy.Content {
	c := &policy.Content{Modules: map[string]string{"a.rego": good}}
	if err := c.Normalize(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAHugeRepository(t *testing.T) {
	noise := make([]byte, 256<<10)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files  map[string]string
		change func(*Config)
		says   string
	}{
		"as sent":     {map[string]string{"a.rego": good, "noise.bin": string(noise)}, func(c *Config) { c.MaxSize = 64 << 10 }, "more than"},
		"unpacked":    {map[string]string{"a.rego": good, "zeros.bin": strings.Repeat("0", 1<<20)}, func(c *Config) { c.MaxSize = 128 << 10 }, "unpacks to"},
		"together":    {many(40, strings.Repeat("0", 20<<10)), func(c *Config) { c.MaxSize = 128 << 10 }, "unpacks to more than"},
		"many things": {many(40, "x"), func(c *Config) { c.MaxObjects = 20 }, "objects"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, c.change)
			s.commit(s.key, c.files)
			status := s.pull(FetchFailed)
			if last := status.History[len(status.History)-1]; !strings.Contains(last.Message, c.says) || !strings.Contains(last.Message, "max_size") {
				t.Errorf("%+v", last)
			}
		})
	}
}

func many(n int, content string) map[string]string {
	files := map[string]string{"a.rego": good}
	for i := range n {
		files[fmt.Sprintf("%d/%d.bin", i, i)] = fmt.Sprint(i) + content
	}
	return files
}

// A pack says beforehand what its objects unpack to; one that lies is damaged.
func TestAPackThatLies(t *testing.T) {
	cfg := Config{MaxSize: 1 << 20, MaxObjects: 10}
	object := func(kind, size int, content []byte) []byte {
		b := []byte{byte(kind<<4 | size&15 | 0x80)}
		for size >>= 4; size > 0x7f; size >>= 7 {
			b = append(b, byte(size&0x7f|0x80))
		}
		b = append(b, byte(size))
		var z bytes.Buffer
		w := zlib.NewWriter(&z)
		w.Write(content)
		w.Close()
		return append(b, z.Bytes()...)
	}
	pack := func(objects ...[]byte) []byte {
		b := binary.BigEndian.AppendUint32([]byte("PACK\x00\x00\x00\x02"), uint32(len(objects)))
		for _, o := range objects {
			b = append(b, o...)
		}
		return append(b, make([]byte, 20)...)
	}
	for name, p := range map[string][]byte{
		"more than it says":     pack(object(3, 10, make([]byte, 4<<20))),
		"a size beyond numbers": pack([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f")),
		"a delta to gigabytes":  pack(object(7, 12, []byte("\x01\xff\xff\xff\xff\x7f\x01a"))),
		"a delta without sizes": pack(object(7, 1, []byte("\xff"))),
		"ends at once":          []byte("PACK\x00\x00\x00\x02\x00\x00\x00\x05"),
		"no pack":               []byte("<html>"),
		"too many":              pack(make([][]byte, 11)...),
	} {
		if _, err := unpack(p, &cfg); err == nil {
			t.Errorf("%s: is unpacked", name)
		}
	}
}

func TestBadServers(t *testing.T) {
	hold := make(chan struct{})
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/hangs"):
			select {
			case <-hold:
			case <-r.Context().Done():
			}
			panic(http.ErrAbortHandler) // no answer: one to a caller who just gave up may still be read
		case strings.HasPrefix(r.URL.Path, "/redirects"):
			http.Redirect(w, r, "https://127.0.0.1:1/"+r.URL.RawQuery, http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/talks"):
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			fmt.Fprint(w, "001e# service=git-upload-pack\n0000", "0017ERR \x1b[31m\xff gone\r\n")
		case strings.HasPrefix(r.URL.Path, "/floods"):
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			line := "003f" + strings.Repeat("a", 40) + " refs/heads/branch-0000\n"
			fmt.Fprint(w, "001e# service=git-upload-pack\n0000")
			for range 1 << 20 {
				if _, err := fmt.Fprint(w, line); err != nil {
					return
				}
			}
		default:
			http.Error(w, "who are you", http.StatusUnauthorized)
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(hold) })
	base := newScene(t, nil)
	for path, says := range map[string]string{"/hangs": "deadline", "/redirects": "redirect", "/floods": "", "/talks": "", "/closed": "authentication"} {
		cfg := base.cfg
		cfg.URL, cfg.MaxSize, cfg.Timeout = server.URL+path, 1<<20, 30*time.Second
		if path == "/hangs" {
			cfg.Timeout = 200 * time.Millisecond
		}
		cfg.CAFile = certificate(t, server)
		s, err := New(cfg, base.cluster, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		status, o := s.Pull(t.Context(), false)
		last := status.History[len(status.History)-1]
		if o != FetchFailed || !strings.Contains(last.Message, says) || strings.ContainsAny(last.Message, "\x1b\r\n") || !utf8.ValidString(last.Message) {
			t.Errorf("%s: %s %+v", path, o, last)
		}
	}
}

func TestAddressesThatAreNotListed(t *testing.T) {
	s := newScene(t, nil)
	s.commit(s.key, map[string]string{"a.rego": good})
	cfg := s.cfg
	cfg.Egress = nil
	source, err := New(cfg, s.cluster, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	status, o := source.Pull(t.Context(), false)
	if last := status.History[len(status.History)-1]; o != FetchFailed || !strings.Contains(last.Message, "loopback") {
		t.Errorf("%s %+v", o, last)
	}
}

func TestCredentialsAreNeverShown(t *testing.T) {
	s := newScene(t, func(c *Config) { c.TokenFile = filepath.Join(t.TempDir(), "none") })
	s.commit(s.key, map[string]string{"a.rego": good})
	s.pull(FetchFailed) // without its token there is no asking without one
}
