package audit_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/audit"
)

// trial is a trail in a folder of its own.
type trial struct {
	t    *testing.T
	opt  audit.Options
	path string
}

func newTrial(t *testing.T) *trial {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	return &trial{t: t, path: path, opt: audit.Options{Path: path, Node: "n1", HeadFile: filepath.Join(dir, "head"), Logger: slog.New(slog.DiscardHandler)}}
}

func (x *trial) open() *audit.Trail {
	x.t.Helper()
	t, err := audit.Open(x.opt, audit.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		x.t.Fatal(err)
	}
	return t
}

func (x *trial) close(t *audit.Trail) {
	x.t.Helper()
	if err := t.Close(); err != nil {
		x.t.Fatal(err)
	}
}

// changes tells of those of revisions from to to.
func changes(from, to uint64) []audit.Entry {
	var all []audit.Entry
	for r := from; r <= to; r++ {
		e := audit.Entry{Time: time.Unix(int64(r), 0), Type: audit.Change, Principal: "token:ann", Action: "register", Record: fmt.Sprintf("service default/s%d", r), Revision: r, Outcome: audit.Applied}
		if r == 1 {
			e.ClusterID = "c1"
		}
		all = append(all, e)
	}
	return all
}

// files are those of the trail.
func (x *trial) files() []string {
	x.t.Helper()
	f, err := filepath.Glob(x.path + "*")
	if err != nil {
		x.t.Fatal(err)
	}
	return f
}

func (x *trial) verify() *audit.Report {
	x.t.Helper()
	r, err := audit.Verify(x.files()...)
	if err != nil {
		x.t.Fatal(err)
	}
	return r
}

// revisions lists those of the changes in the trail, in their order.
func (x *trial) revisions() (all []uint64) {
	x.t.Helper()
	for _, f := range x.files() {
		b, err := os.ReadFile(f)
		if err != nil {
			x.t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			var e audit.Entry
			if err := json.Unmarshal(bytes.TrimSpace(line), &e); err != nil {
				continue // not finished
			}
			if e.Type == audit.Change {
				all = append(all, e.Revision)
			}
		}
	}
	return all
}

func wantRange(t *testing.T, got []uint64, to uint64) {
	t.Helper()
	if len(got) != int(to) {
		t.Fatalf("%d changes are in the trail, not %d", len(got), to)
	}
	counts := map[uint64]int{}
	for _, r := range got {
		counts[r]++
	}
	for r := uint64(1); r <= to; r++ {
		if counts[r] != 1 {
			t.Errorf("the change of revision %d stands there %d times", r, counts[r])
		}
	}
}

// TestWhatIsToldAgainStandsOnce: after a crash the log tells changes again, from
// whatever point the state file had reached.
func TestWhatIsToldAgainStandsOnce(t *testing.T) {
	x := newTrial(t)
	trail := x.open()
	trail.Changed(changes(1, 50))
	trail.Sync()
	x.opt.ClusterID = "c1"
	for state := uint64(0); state <= 50; state += 10 {
		x.close(trail)
		x.opt.Revision = state
		trail = x.open()
		trail.Changed(changes(state+1, 50+state/10))
	}
	x.close(trail)
	wantRange(t, x.revisions(), 55)
	if r := x.verify(); r.Head.Revision != 55 || len(r.Notes) != 0 {
		t.Errorf("%+v", r)
	}
}

// TestKilledAnywhere cuts the file at each byte of its end, as a crash can: it
// is gone on with, and what was cut off is told again.
func TestKilledAnywhere(t *testing.T) {
	x := newTrial(t)
	trail := x.open()
	trail.Changed(changes(1, 5))
	x.close(trail)
	whole, err := os.ReadFile(x.path)
	if err != nil {
		t.Fatal(err)
	}
	// The head is saved after the trail is on disk, so a crash leaves one that
	// is older than what it leaves of the trail: here, none.
	third := bytes.Index(whole, []byte(`{"seq":4`))
	for cut := third; cut <= len(whole); cut += 7 {
		y := newTrial(t)
		if err := os.WriteFile(y.path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		y.opt.ClusterID, y.opt.Revision = "c1", 1
		trail := y.open()
		trail.Changed(changes(2, 6))
		y.close(trail)
		wantRange(t, y.revisions(), 6)
		y.verify()
	}
}

// TestTampering: whatever is done to a line, the check names it.
func TestTampering(t *testing.T) {
	x := newTrial(t)
	trail := x.open()
	trail.Changed(changes(1, 6))
	trail.Refused(audit.Entry{Time: time.Unix(9, 0), Type: audit.Refusal, Principal: "anonymous", Code: "unauthenticated", Status: 401})
	x.close(trail)
	b, err := os.ReadFile(x.path)
	if err != nil {
		t.Fatal(err)
	}
	whole := strings.SplitAfter(string(b), "\n")[:8]
	relinked := func(line string) string { // a line that is right in itself
		y := newTrial(t)
		y.opt.Node = "n2"
		trail := y.open()
		trail.Changed(changes(1, 3))
		y.close(trail)
		b, err := os.ReadFile(y.path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.SplitAfter(string(b), "\n")[3]
	}
	for name, c := range map[string]struct {
		change func(l []string) []string
		says   string
	}{
		"untouched":         {func(l []string) []string { return l }, ""},
		"a name":            {func(l []string) []string { l[3] = strings.Replace(l[3], "ann", "bob", 1); return l }, ":4: it was altered"},
		"the last":          {func(l []string) []string { l[7] = strings.Replace(l[7], "401", "200", 1); return l }, ":8: it was altered"},
		"a hash":            {func(l []string) []string { l[3] = strings.Replace(l[3], `"hash":"`, `"hash":"0`, 1); return l }, ":4: it was altered"},
		"taken out":         {func(l []string) []string { return append(l[:3:3], l[4:]...) }, ":4: line 4 of the trail is missing"},
		"several taken out": {func(l []string) []string { return append(l[:2:2], l[5:]...) }, ":3: lines 3 to 5 of the trail are missing"},
		"exchanged":         {func(l []string) []string { l[3], l[4] = l[4], l[3]; return l }, ":4: line 4 of the trail is missing"},
		"twice":             {func(l []string) []string { return append(l[:4:4], l[3:]...) }, ":5: it is line 4 of the trail and follows line 4"},
		"of another trail":  {func(l []string) []string { l[3] = relinked(l[3]); return l }, ":4: the line before it, 3 of the trail, was replaced"},
		"added":             {func(l []string) []string { return append(l[:4:4], append([]string{"{}\n"}, l[4:]...)...) }, ":5: it does not end with its hash"},
		"not JSON":          {func(l []string) []string { l[3] = "cut" + l[3]; return l }, ":4: it is not a line of a trail"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "audit.log")
			if err := os.WriteFile(file, []byte(strings.Join(c.change(append([]string{}, whole...)), "")), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := audit.Verify(file)
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

// TestCutWhileTheNodeWasDown: what is missing at the end is noticed at the next
// start, and the check says so from then on.
func TestCutWhileTheNodeWasDown(t *testing.T) {
	for name, harm := range map[string]func(path string, b []byte) error{
		"the end cut off": func(path string, b []byte) error {
			return os.WriteFile(path, b[:bytes.Index(b, []byte(`{"seq":5`))], 0o600)
		},
		"emptied": func(path string, _ []byte) error { return os.Truncate(path, 0) },
		"removed": func(path string, _ []byte) error { return os.Remove(path) },
	} {
		t.Run(name, func(t *testing.T) {
			x := newTrial(t)
			trail := x.open()
			trail.Changed(changes(1, 9))
			x.close(trail)
			b, err := os.ReadFile(x.path)
			if err != nil {
				t.Fatal(err)
			}
			if err := harm(x.path, b); err != nil {
				t.Fatal(err)
			}
			x.opt.ClusterID, x.opt.Revision = "c1", 9
			trail = x.open()
			trail.Changed(changes(10, 12))
			x.close(trail)
			if _, err := audit.Verify(x.files()...); err == nil || !strings.Contains(err.Error(), "miss") {
				t.Errorf("the check says %v", err)
			}
		})
	}
}

// TestRotation: the chain goes on over files that were replaced by size, moved
// away by logrotate, or compressed, and the oldest go.
func TestRotation(t *testing.T) {
	x := newTrial(t)
	x.opt.Size, x.opt.Keep = 4096, 0
	trail := x.open()
	for r := uint64(1); r <= 200; r += 10 {
		trail.Changed(changes(r, r+9))
		trail.Sync()
	}
	if n := len(x.files()); n < 5 {
		t.Errorf("%d files", n)
	}
	if err := os.Rename(x.path, x.path+"-20261123"); err != nil {
		t.Fatal(err)
	}
	trail.Changed(changes(201, 205)) // into the file that was moved
	trail.Sync()
	if err := trail.Reopen(); err != nil {
		t.Fatal(err)
	}
	trail.Changed(changes(206, 210))
	x.close(trail)
	// Moved away while the node was down, before anything was written again.
	if err := os.Rename(x.path, x.path+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(x.opt.HeadFile); err != nil {
		t.Fatal(err)
	}
	x.opt.ClusterID, x.opt.Revision = "c1", 210
	trail = x.open()
	trail.Changed(changes(211, 220))
	x.close(trail)
	wantRange(t, x.revisions(), 220)
	x.verify()
	for _, f := range x.files() {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, info.Mode(), err)
		}
	}
	first := x.files()[1]
	compress(t, first)
	if r := x.verify(); r.First != 1 {
		t.Errorf("with a compressed file: %+v", r)
	}

	x.opt.Keep = 3
	trail = x.open()
	for r := uint64(221); r <= 320; r += 10 {
		trail.Changed(changes(r, r+9))
		trail.Sync()
	}
	x.close(trail)
	old, err := filepath.Glob(x.path + ".0*[0-9]")
	if err != nil || len(old) != 3 {
		t.Errorf("%d replaced files stay, not 3: %v", len(old), err)
	}
}

func compress(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".gz", out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

// TestGapsAreSaid: a state that came whole from another node, and a trail that
// begins later than the state.
func TestGapsAreSaid(t *testing.T) {
	x := newTrial(t)
	x.opt.ClusterID, x.opt.Revision = "c1", 7
	trail := x.open()
	trail.Changed(changes(8, 10))
	trail.Replaced("c1", 20)
	trail.Changed(changes(15, 22)) // those up to 20 are told to be missing already
	x.close(trail)
	if got := fmt.Sprint(x.revisions()); got != "[8 9 10 21 22]" {
		t.Errorf("changes %s", got)
	}
	notes := strings.Join(x.verify().Notes, "\n")
	for _, want := range []string{"revisions 1 to 7: they were made before this trail began", "revisions 11 to 20: the node took over"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes do not say %q:\n%s", want, notes)
		}
	}
	// The node gets a new data folder and joins another cluster.
	x.opt.ClusterID, x.opt.Revision = "", 0
	if err := os.Remove(x.opt.HeadFile); err != nil {
		t.Fatal(err)
	}
	trail = x.open()
	other := changes(1, 2)
	other[0].ClusterID = "c2"
	trail.Changed(other)
	x.close(trail)
	if got := fmt.Sprint(x.revisions()); got != "[8 9 10 21 22 1 2]" {
		t.Errorf("changes of two clusters: %s", got)
	}
	x.verify()
}

// TestRefusalsAreThereWhenToldOf: by many at once, with whatever they bring.
func TestRefusalsAreThereWhenToldOf(t *testing.T) {
	x := newTrial(t)
	trail := x.open()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 50 {
				id := fmt.Sprintf("r-%d-%d", i, j)
				trail.Refused(audit.Entry{Time: time.Now(), Type: audit.Refusal, Record: "GET /\xff\"\n", RequestID: id, DecisionID: "d"})
				b, err := os.ReadFile(x.path)
				if err != nil || strings.Count(string(b), `"request_id":"`+id+`"`) != 1 {
					t.Errorf("%s is not there, or twice: %v", id, err)
				}
			}
		})
	}
	all.Wait()
	x.close(trail)
	b, err := os.ReadFile(x.path)
	if err != nil || strings.Count(string(b), `"event":"policy_evaluation"`) != 400 {
		t.Errorf("not every refusal by policy says policy_evaluation: %v", err)
	}
	x.verify()
}

// TestForeignFileIsLeftAlone: the path of something else is a mistake.
func TestForeignFileIsLeftAlone(t *testing.T) {
	x := newTrial(t)
	const text = "root:x:0:0\nno end"
	if err := os.WriteFile(x.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Open(x.opt, audit.NewMetrics(prometheus.NewRegistry())); err == nil || !strings.Contains(err.Error(), "not an audit trail") {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(x.path); err != nil || string(b) != text {
		t.Errorf("the file is %q now, %v", b, err)
	}
}

func BenchmarkChange(b *testing.B) {
	dir := b.TempDir()
	trail, err := audit.Open(audit.Options{Path: filepath.Join(dir, "audit.log"), Node: "n1", Logger: slog.New(slog.DiscardHandler)}, audit.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		b.Fatal(err)
	}
	e := changes(2, 2)[0]
	e.DecisionID, e.RequestID = "01a206f8-fefb-70ff-b5b3-526bbdbeae57", "6a1f0d2c7e9b4a53-1"
	r := uint64(0)
	for b.Loop() {
		r++
		e.Revision = r
		trail.Changed([]audit.Entry{e})
	}
	trail.Sync()
	if err := trail.Close(); err != nil {
		b.Fatal(err)
	}
}
