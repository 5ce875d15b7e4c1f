package setting

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
)

func at(revision uint64, by string) Stamp {
	return Stamp{Revision: revision, Time: time.Unix(int64(revision), 0), By: by}
}

// stored follows a Txn as the state file does.
type stored map[string][]byte

func (s stored) emit(t *testing.T) Emit {
	return func(bucket, key string, old, new []byte) {
		if bucket != Bucket || string(s[key]) != string(old) {
			t.Errorf("%s/%s: emitted %q over %q", bucket, key, old, s[key])
		}
		if new == nil {
			delete(s, key)
		} else {
			s[key] = new
		}
	}
}

func TestPutGetDelete(t *testing.T) {
	disk := stored{}
	x := NewTable().Txn(disk.emit(t))
	r, created, err := x.Put(at(1, "ann"), Webhook, "", "opa", []byte(`{"url":"https://a"}`), 0)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	want := `{"name":"opa","url":"https://a","revision":1,"created_at":"1970-01-01T00:00:01Z","created_by":"ann","updated_at":"1970-01-01T00:00:01Z","updated_by":"ann"}`
	if string(r.JSON) != want {
		t.Errorf("%s\nwant\n%s", r.JSON, want)
	}
	if _, created, err = x.Put(at(2, "bob"), Webhook, "", "opa", []byte(`{"url":"https://b"}`), 1); created || err != nil {
		t.Error(created, err)
	}
	for _, observed := range []uint64{0, 1, 3} {
		if _, _, err := x.Put(at(3, "eve"), Webhook, "", "opa", []byte(`{}`), observed); !errors.Is(err, ErrStale) {
			t.Errorf("observed %d: %v", observed, err)
		}
	}
	table := x.Commit()
	r, _ = table.Get(Webhook, "", "opa")
	if r.CreatedBy != "ann" || r.UpdatedBy != "bob" || r.Revision != 2 || string(r.Spec) != `{"url":"https://b"}` {
		t.Errorf("%+v", r)
	}
	if err := x.Delete(Webhook, "", "opa", 1); !errors.Is(err, ErrStale) {
		t.Error(err)
	}
	if err := x.Delete(Webhook, "", "opa", 2); err != nil || len(disk) != 0 {
		t.Error(err, disk)
	}
	if err := x.Delete(Webhook, "", "opa", 2); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if _, ok := table.Get(Webhook, "", "opa"); !ok {
		t.Error("a committed table changed")
	}
}

func TestBadSettings(t *testing.T) {
	x := NewTable().Txn(nil)
	for _, c := range []struct {
		kind            Kind
		namespace, name string
		spec            string
	}{{"nonsense", "", "a", `{}`}, {Key, "", "", `{}`}, {Key, "", "a/b", `{}`}, {Key, "a/b", "c", `{}`}, {Key, "", "a", `[]`}, {Key, "", "a", `{`}, {Key, "", "a", ``}} {
		if _, _, err := x.Put(at(1, "a"), c.kind, c.namespace, c.name, []byte(c.spec), 0); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if n := x.Commit().records.Len(); n != 0 {
		t.Errorf("%d settings are stored", n)
	}
}

func TestLoadGivesTheSameTable(t *testing.T) {
	disk := stored{}
	x := NewTable().Txn(disk.emit(t))
	for i, name := range []string{"c", "a", "b"} {
		for j, kind := range []Kind{Schema, Key} {
			if _, _, err := x.Put(at(uint64(2*i+j+1), "ann"), kind, "shop", name, []byte(`{"n":1.0}`), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	table := x.Commit()
	y := NewTable().Txn(nil)
	for key, value := range disk {
		if err := y.Load(Bucket, key, value); err != nil {
			t.Fatal(err)
		}
	}
	again := y.Commit()
	for _, kind := range Kinds() {
		a, b := slices.Collect(table.All(kind)), slices.Collect(again.All(kind))
		if len(a) != len(b) {
			t.Fatalf("%s: %d and %d", kind, len(a), len(b))
		}
		for i := range a {
			if string(a[i].JSON) != string(b[i].JSON) || string(a[i].raw) != string(b[i].raw) {
				t.Errorf("%s\n%s", a[i].JSON, b[i].JSON)
			}
		}
	}
	var names []string
	for after, more := "", true; more; more = after != "" {
		var page []*Record
		page, after = again.List(Key, after, 2)
		for _, r := range page {
			names = append(names, r.Name)
		}
	}
	if !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("%v", names)
	}
	for key, value := range map[string]string{"key/shop/z": string(disk["key/shop/a"]), "odd/x/y": `{"kind":"odd"}`, "key//a": `{`} {
		if err := y.Load(Bucket, key, []byte(value)); err == nil {
			t.Errorf("%s is loaded from %s", key, value)
		}
	}
}

// Admission depends on some of the settings, and on nothing else of them than
// which there are and when they were set.
func TestConditions(t *testing.T) {
	revision := uint64(0)
	var x *Txn
	put := func(kind Kind, namespace, name string) func() {
		return func() {
			revision++
			if _, _, err := x.Put(at(revision, "ann"), kind, namespace, name, []byte(`{}`), x.Revision(kind, namespace, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	drop := func(kind Kind, namespace, name string) func() {
		return func() {
			if err := x.Delete(kind, namespace, name, x.Revision(kind, namespace, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	table := NewTable()
	seen := map[string]bool{string(table.Conditions()): true}
	for i, step := range []struct {
		do  func()
		new bool
	}{
		{put(Webhook, "", "opa"), true},
		{put(Webhook, "", "opa"), true},
		{put(Sync, "", "git"), false},
		{put(Role, "", "r"), false},
		{put(Revocation, "", "r"), false},
		{put(Quota, "", "q"), false},
		{put(Schema, "*", "service"), true},
		{put(BreakGlass, "shop", "shop"), true},
		{put(Key, "", "k"), true},
		{put(Requirement, "", "signature"), true},
		{drop(Webhook, "", "opa"), true},
		{put(Webhook, "", "opa"), true},
	} {
		was := table.Conditions()
		x = table.Txn(nil)
		step.do()
		within := string(x.Conditions())
		table = x.Commit()
		got := string(table.Conditions())
		if got != within || (got != string(was)) != step.new || seen[got] == step.new {
			t.Errorf("step %d: from %x to %x, %x within the change", i, was, got, within)
		}
		seen[got] = true
	}
	again := NewTable().Txn(nil)
	for _, kind := range Kinds() {
		for r := range table.All(kind) {
			if err := again.Load(Bucket, path(r.Kind, r.Namespace, r.Name), r.raw); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := again.Commit().Conditions(); string(got) != string(table.Conditions()) {
		t.Error("a table that was loaded has other conditions")
	}
}
