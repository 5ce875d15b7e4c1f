package audit_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/audit"
)

// forge writes a trail anew from the line that holds old on, with new in its
// place and every hash made right, as whoever may write the files can.
func forge(t *testing.T, file, old, new string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	prev, found := "", false
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		var l struct {
			Hash string `json:"hash"`
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, old) {
			line, found = strings.Replace(line, old, new, 1), true
		}
		if found {
			if at := strings.Index(line, `,"prev":"`); prev != "" {
				line = line[:at] + `,"prev":"` + prev + `","hash":""}`
			}
			line = line[:strings.LastIndex(line, `,"hash":"`)]
			sum := sha256.Sum256([]byte(line))
			l.Hash = hex.EncodeToString(sum[:])
			line += `,"hash":"` + l.Hash + `"}` + "\n"
		}
		prev = l.Hash
		out.WriteString(line)
	}
	if !found {
		t.Fatalf("%s is not in the trail", old)
	}
	if err := os.WriteFile(file, []byte(out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestHeadKeptElsewhere: whoever can write all of a node's files can make a trail
// that the chain itself finds no fault with; the head that was kept elsewhere
// tells, and never accuses a trail that is whole.
func TestHeadKeptElsewhere(t *testing.T) {
	for name, c := range map[string]struct {
		tamper func(x *trial)
		says   string // "": nothing is wrong
	}{
		"whole": {func(*trial) {}, ""},
		"rotated": {func(x *trial) {
			if err := os.Rename(x.path, x.path+".1"); err != nil {
				t.Fatal(err)
			}
		}, ""},
		"a change denied": {func(x *trial) { forge(t, x.path, "default/s7", "default/other") }, "is not the one that the cluster knows"},
		"cut": {func(x *trial) {
			b, err := os.ReadFile(x.path)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.SplitAfter(string(b), "\n")
			if err := os.WriteFile(x.path, []byte(strings.Join(lines[:5], "")), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "the audit trail ends with line"},
		"another in its place": {func(x *trial) {
			if err := os.Remove(x.path); err != nil {
				t.Fatal(err)
			}
			again := x.open()
			again.Changed(changes(1, 30))
			x.close(again)
		}, "is not the one that the cluster knows"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTrial(t)
			trail := x.open()
			trail.Changed(changes(1, 10))
			known, err := trail.Anchor()
			if err != nil || known.Seq != 11 || trail.News() != 0 {
				t.Fatalf("%+v, %d lines of news, %v", known, trail.News(), err)
			}
			trail.Changed(changes(11, 12))
			x.close(trail)
			if trail.News() != 2 {
				t.Errorf("%d lines of news", trail.News())
			}
			if err := os.Remove(x.opt.HeadFile); err != nil { // that is theirs, too
				t.Fatal(err)
			}
			c.tamper(x)
			if strings.Contains(c.says, "not the one") {
				x.verify() // the chain alone says nothing
			}
			trail = x.open()
			err = trail.Holds(known)
			differs, found := errors.AsType[*audit.Differs](err)
			if c.says == "" && err != nil || c.says != "" && (!found || !strings.Contains(differs.Why, c.says)) {
				t.Errorf("the node says %v, want %q", err, c.says)
			}
			if found {
				trail.Alarm(audit.Entry{Reason: differs.Why})
			}
			x.close(trail)
			check := audit.Check{Heads: map[string]audit.Head{"n1": known}}
			r, err := check.Verify(x.files()...)
			if c.says == "" && (err != nil || len(r.Notes) == 0 || r.Notes[0] != "line 11 is the one that the cluster knows of node n1") {
				t.Errorf("verify says %v, %v", r, err)
			}
			if c.says != "" && err == nil {
				t.Errorf("verify says %v", r)
			}
		})
	}
}

// TestVerifyAgainstTheCluster: a trail that is too short, and one of which the
// cluster knows nothing, are not taken for whole.
func TestVerifyAgainstTheCluster(t *testing.T) {
	x := newTrial(t)
	trail := x.open()
	trail.Changed(changes(1, 10))
	x.close(trail)
	head := x.verify().Head
	for says, heads := range map[string]map[string]audit.Head{
		"ends with line 11, and the cluster knows its line 12": {"n1": {Seq: 12, Hash: head.Hash}},
		"knows no line of the trail of node n1":                {"n2": head},
		"line 11 of the trail of node n1 is not the one":       {"n1": {Seq: 11, Hash: strings.Repeat("0", 64)}},
	} {
		for _, all := range []bool{false, true} {
			if r, err := (audit.Check{All: all, Heads: heads}).Verify(x.files()...); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("want %q: %+v, %v", says, r, err)
			}
		}
	}
}

// TestAnchoredBeforeTold: what a node tells the cluster is in the file by then:
// a node that is killed at any moment after it is never accused.
func TestAnchoredBeforeTold(t *testing.T) {
	x := newTrial(t)
	x.opt.Size, x.opt.Asked = 64<<10, true
	trail := x.open()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := uint64(1); r < 5000; r += 10 {
			trail.Changed(changes(r, r+9))
			trail.Refused(audit.Entry{Type: audit.Refusal, Principal: "token:eve"})
		}
	}()
	for n, going := 0, true; going; n++ {
		select {
		case <-done:
			going = false
		default:
		}
		known, err := trail.Anchor()
		if err != nil {
			t.Fatal(err)
		}
		killed, there := newTrial(t), x.files()
		for _, f := range there { // as they are at this moment
			b, err := os.ReadFile(f)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it was replaced meanwhile; see below
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(killed.path+strings.TrimPrefix(f, x.path), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(x.files(), there) {
			continue // one was replaced meanwhile
		}
		again := killed.open()
		if err := again.Holds(known); err != nil {
			t.Fatalf("after %d rounds: %v", n, err)
		}
		killed.close(again)
	}
	x.close(trail)
}
