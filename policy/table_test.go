package policy

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/muster-registry/muster/fault"
)

func stamp(n uint64) Stamp {
	return Stamp{Revision: n, Time: time.Unix(int64(1700000000+n), 5).UTC(), By: "ci"}
}

func staged(t testing.TB, x *Txn, n uint64, rule string) *Revision {
	t.Helper()
	c := Content{Modules: map[string]string{"a.rego": rule}, Note: "n"}
	if err := c.Normalize(); err != nil {
		t.Fatal(err)
	}
	r, err := x.Stage(stamp(n), Draft{Content: c.Encode(), Digest: c.Digest(), Report: Report{Tests: Tests{Passed: 2}}.Encode()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOneRevisionIsActive(t *testing.T) {
	x := NewTable().Txn(nil)
	staged(t, x, 10, "package a")
	staged(t, x, 11, "package b")
	if x.Commit().Active() != nil {
		t.Fatal("active without having been activated")
	}
	if _, err := x.Activate(stamp(12), 1, 0, false); err != nil {
		t.Fatal(err)
	}
	first := x.Commit()
	if _, err := x.Activate(stamp(13), 2, 1, false); err != nil {
		t.Fatal(err)
	}
	second := x.Commit()
	if a := first.Active(); a.Number != 1 || a.State != Active {
		t.Errorf("the older table changed: %+v", a)
	}
	a := second.Active()
	if a.Number != 2 || a.Replaces != 1 || a.ActivatedBy != "ci" || a.ChangedAt != 13 || !a.ActivatedAt.Equal(stamp(13).Time) {
		t.Errorf("%+v", a)
	}
	if old, _ := second.Get(1); old.State != Retired || old.ChangedAt != 13 {
		t.Errorf("%+v", old)
	}
	want := `{"revision":2,"digest":"` + a.Digest + `","state":"active","tests":{"passed":2,"failed":0},"findings":[],"steps":[{"step":"staged","at":"2023-11-14T22:13:31.000000005Z","by":"ci"},{"step":"active","at":"2023-11-14T22:13:33.000000005Z","by":"ci"}],"replaces":1,` +
		`"created_at":"2023-11-14T22:13:31.000000005Z","created_by":"ci","activated_at":"2023-11-14T22:13:33.000000005Z","activated_by":"ci",` +
		`"changed_at_revision":13,"modules":{"a.rego":"package b"},"data":{},"note":"n"}`
	if string(a.JSON) != want {
		t.Errorf("record\n%s\nwant\n%s", a.JSON, want)
	}
	if s := a.Summary(); bytes.Contains(s, []byte("modules")) || !bytes.Contains(s, []byte(`"note":"n"`)) {
		t.Errorf("summary %s", s)
	}
}

func TestActivateIsACompareAndSwap(t *testing.T) {
	x := NewTable().Txn(nil)
	staged(t, x, 1, "package a")
	staged(t, x, 2, "package b")
	for _, c := range []struct {
		number, expect uint64
		code           fault.Code
	}{{1, 2, fault.Conflict}, {3, 0, fault.NotFound}, {1, 0, ""}, {2, 0, fault.Conflict}, {1, 1, ""}, {2, 1, ""}, {0, 2, fault.NotFound}} {
		before := x.Active()
		_, err := x.Activate(stamp(9), c.number, c.expect, false)
		if (c.code == "") != (err == nil) || (err != nil && !fault.Is(err, c.code)) {
			t.Errorf("Activate(%d, expecting %d) = %v", c.number, c.expect, err)
		}
		if err != nil && x.Active() != before {
			t.Error("a refused activation changed something")
		}
	}
}

func TestRollbackGoesBackAlongTheLine(t *testing.T) {
	x := NewTable().Txn(nil)
	if _, err := x.Commit().RollbackTarget(); !fault.Is(err, fault.NotFound) {
		t.Errorf("without a policy: %v", err)
	}
	for n := uint64(1); n <= 3; n++ {
		staged(t, x, n, fmt.Sprintf("package a%d", n))
		if _, err := x.Activate(stamp(n), n, n-1, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []uint64{2, 1} {
		target, err := x.Commit().RollbackTarget()
		if err != nil || target.Number != want {
			t.Fatalf("target %v, %v; want %d", target, err, want)
		}
		if _, err := x.Activate(stamp(9), want, want+1, true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := x.Commit().RollbackTarget(); !fault.Is(err, fault.Conflict) {
		t.Errorf("before the first: %v", err)
	}
}

func TestListPages(t *testing.T) {
	x := NewTable().Txn(nil)
	for n := uint64(1); n <= 5; n++ {
		staged(t, x, n, "package a")
	}
	table := x.Commit()
	var got []uint64
	for after, pages := uint64(0), 0; ; pages++ {
		items, next := table.List(after, 2)
		for _, r := range items {
			got = append(got, r.Number)
		}
		if next == 0 {
			break
		}
		after = next
	}
	if !slices.Equal(got, []uint64{1, 2, 3, 4, 5}) {
		t.Errorf("%v", got)
	}
}

// Whatever is done to a table: what was emitted loads to the same table, one
// revision at most is active, numbers rise and are not used twice, and the
// history stays bounded without losing the active revision.
func TestEmittedChangesLoadToTheSameTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := map[string][]byte{}
		emit := func(bucket, key string, old, next []byte) {
			id := bucket + " " + key
			if !bytes.Equal(store[id], old) || (old == nil) != (store[id] == nil) {
				t.Fatalf("%s: old is %s, stored is %s", id, old, store[id])
			}
			if store[id] = next; next == nil {
				delete(store, id)
			}
		}
		table, last := NewTable(), uint64(0)
		for step := uint64(1); step < 400; step++ {
			x := table.Txn(emit)
			if rapid.IntRange(0, 2).Draw(t, "stage") == 0 || table.Len() == 0 {
				c := Content{Modules: map[string]string{"a": fmt.Sprint(step)}, Data: []byte("{}")}
				r, err := x.Stage(stamp(step), Draft{Content: c.Encode(), Digest: c.Digest(), Report: Report{}.Encode()})
				if err != nil || r.Number != last+1 {
					t.Fatalf("%+v, %v", r, err)
				}
				last = r.Number
			} else {
				number := rapid.Uint64Range(1, last+1).Draw(t, "number")
				rollback := rapid.Bool().Draw(t, "rollback")
				if _, err := x.Activate(stamp(step), number, x.Active(), rollback); err != nil && !fault.Is(err, fault.NotFound) {
					t.Fatal(err)
				}
			}
			table = x.Commit()
		}
		check(t, table)
		loaded := NewTable().Txn(nil)
		for id, value := range store {
			var bucket, key string
			fmt.Sscan(id, &bucket, &key)
			if err := loaded.Load(bucket, key, value); err != nil {
				t.Fatal(err)
			}
		}
		again := loaded.Commit()
		want, _ := table.List(0, 1000)
		got, _ := again.List(0, 1000)
		if !reflect.DeepEqual(got, want) || again.active != table.active ||
			again.retired != table.retired || again.staged != table.staged {
			t.Fatalf("loaded %+v\nwant %+v", got, want)
		}
	})
}

func check(t *rapid.T, table *Table) {
	all, next := table.List(0, 1000)
	count := map[State]int{}
	for _, r := range all {
		count[r.State]++
	}
	if next != 0 || len(all) != table.Len() || count[Active] > 1 || (count[Active] == 1) != (table.Active() != nil) ||
		count[Retired] > Kept || count[Staged] > Kept || (table.Active() != nil && table.Active().State != Active) {
		t.Fatalf("%d revisions: %v", table.Len(), count)
	}
}

func TestDamageIsNotLoaded(t *testing.T) {
	for _, c := range [][3]string{
		{"policies", recordKey(1), `{"revision":2}`}, {"policies", recordKey(1), `{`}, {"policy", "active", `7`},
		{"policy", "other", `{}`}, {"else", "x", `{}`},
	} {
		if err := NewTable().Txn(nil).Load(c[0], c[1], []byte(c[2])); err == nil {
			t.Errorf("%v is loaded", c)
		}
	}
}

func TestHistoryIsBounded(t *testing.T) {
	x := NewTable().Txn(nil)
	for n := uint64(1); n <= Kept+50; n++ {
		staged(t, x, n, "package a")
		if _, err := x.Activate(stamp(n), n, n-1, false); err != nil {
			t.Fatal(err)
		}
	}
	table := x.Commit()
	if _, forgotten := table.Get(49); table.Len() != Kept+1 || forgotten || table.Active().Number != Kept+50 {
		t.Errorf("%d revisions are kept", table.Len())
	}
	for n := range uint64(Kept + 50) {
		staged(t, x, n, "package a")
	}
	if table := x.Commit(); table.Len() != 2*Kept+1 || table.Active().Number != Kept+50 {
		t.Errorf("%d revisions are kept", table.Len())
	}
}
