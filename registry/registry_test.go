package registry_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

var noon = time.Date(2030, 1, 2, 12, 0, 0, 5_000, time.UTC)

func at(revision uint64) registry.Stamp {
	return registry.Stamp{Revision: revision, Time: noon.Add(time.Duration(revision) * time.Second), By: "spiffe://td/ci"}
}

const web = `{"address":"10.0.0.1","port":8080}`

// store keeps what a Txn emits as the state machine's file would.
type store map[string]string

func (s store) emit(t interface{ Fatalf(string, ...any) }) registry.Emit {
	return func(bucket, key string, old, new []byte) {
		k := bucket + " " + key
		if have, ok := s[k]; bucket != registry.BucketDocuments && (ok != (old != nil) || have != string(old)) {
			t.Fatalf("%s: emitted as replacing %q, and %q is there", k, old, have)
		}
		if new == nil {
			delete(s, k)
			return
		}
		s[k] = string(new)
	}
}

func (s store) load(t interface{ Fatalf(string, ...any) }) *registry.Snapshot {
	txn := registry.New().Txn(func(bucket, key string, _, _ []byte) { t.Fatalf("loading emits %s %s", bucket, key) })
	for _, bucket := range registry.Buckets {
		for k, v := range s {
			if b, key, _ := strings.Cut(k, " "); b == bucket {
				if err := txn.Load(bucket, key, []byte(v)); err != nil {
					t.Fatalf("%v", err)
				}
			}
		}
	}
	if len(txn.Touched()) != 0 {
		t.Fatalf("loading touches %v", txn.Touched())
	}
	return txn.Commit()
}

// dump says everything a snapshot answers.
func dump(s *registry.Snapshot) string {
	var b strings.Builder
	fmt.Fprintln(&b, s.Counts())
	all, _ := s.Services("", "", 0)
	for _, svc := range all {
		e, _ := s.Discover(svc.Namespace, svc.Name)
		fmt.Fprintf(&b, "%s\n%s %d\n", svc.JSON, e.Answer(registry.Query{}), e.Passing())
		fmt.Fprintf(&b, "%s\n", e.Answer(registry.Query{AnyStatus: true, Zone: "b"}))
		versions, _ := s.Versions(svc.Namespace, svc.Name, "", 0)
		for _, v := range versions {
			fmt.Fprintf(&b, "%s %v\n", v.JSON, v.VersionSpec)
		}
		instances, _ := s.Instances(svc.Namespace, svc.Name, "", 0)
		for _, i := range instances {
			fmt.Fprintf(&b, "%s %v %v %v\n", i.JSON, i.InstanceSpec, i.Status, i.Meta)
		}
	}
	return b.String()
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func instance(t testing.TB, body string) []byte {
	t.Helper()
	return must[[]byte](t)(registry.CanonicalInstance("default", "cart", "c1", []byte(body)))
}

func TestRecords(t *testing.T) {
	s := store{}
	txn := registry.New().Txn(s.emit(t))
	spec := must[[]byte](t)(registry.CanonicalService("default", "cart", []byte(
		`{"name":"cart","owner":"shop","tags":["b","a"],"metadata":{"z":1.0,"a":{"y":12345678901234567890,"b":[]}}}`)))
	svc, created, err := txn.PutService(at(1), "default", "cart", spec, 0)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	want := `{"namespace":"default","name":"cart","protocol":"rest","owner":"shop","description":"","tags":["b","a"],` +
		`"metadata":{"a":{"b":[],"y":12345678901234567890},"z":1.0},"revision":1,"created_at":"2030-01-02T12:00:01.000005Z",` +
		`"updated_at":"2030-01-02T12:00:01.000005Z","created_by":"spiffe://td/ci"}`
	if diff := cmp.Diff(want, string(svc.JSON)); diff != "" {
		t.Error(diff)
	}
	spec, document, err := registry.CanonicalVersion("default", "cart", "1.0.0", []byte(
		`{"format":"openapi","document": {"openapi": "3.0.3", "info":{"title":"t","version":"1"},"paths":{"/a":{"get":{"responses":{}}}}} }`))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := txn.PutVersion(at(2), "default", "cart", "1.0.0", spec, document, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := txn.PutInstance(at(3), "default", "cart", "c1", instance(t,
		`{"address":"10.0.0.1","port":80,"version":"1.0.0","zone":"a","weight":0,"tags":["x"],"metadata":{"k\"":"v","a":""},"ttl":"90s","checks":[{"type":"http","target":"http://10.0.0.1/up"}]}`), 0, false); err != nil {
		t.Fatal(err)
	}
	last, err := txn.SetStatus(at(4), "default", "cart", "c1", registry.Warning, registry.ByCaller, 3)
	if err != nil {
		t.Fatal(err)
	}
	want = `{"namespace":"default","service":"cart","id":"c1","address":"10.0.0.1","port":80,"version":"1.0.0","zone":"a","weight":0,` +
		`"status":"warning","tags":["x"],"metadata":{"a":"","k\"":"v"},"ttl":"1m30s","deregister_after":"1h",` +
		`"checks":[{"id":"http","name":"http","type":"http","target":"http://10.0.0.1/up","interval":"10s","timeout":"2s",` +
		`"failures_before_critical":3,"successes_before_passing":1}],"status_by":"caller",` +
		`"check_states":[{"id":"http","status":"passing","output":"","revision":3,"changed_at":"2030-01-02T12:00:03.000005Z"}],` +
		`"revision":4,"created_at":"2030-01-02T12:00:03.000005Z","updated_at":"2030-01-02T12:00:04.000005Z","created_by":"spiffe://td/ci"}`
	if diff := cmp.Diff(want, string(last.JSON)); diff != "" {
		t.Error(diff)
	}
	keys := slices.Sorted(maps.Keys(s))
	wantKeys := []string{"documents default/cart/1.0.0@2", "entries default/cart", "instances default/cart/c1", "services default/cart", "versions default/cart/1.0.0"}
	if diff := cmp.Diff(wantKeys, keys); diff != "" {
		t.Error(diff)
	}
	if got := s[wantKeys[0]]; got != `{"openapi": "3.0.3", "info":{"title":"t","version":"1"},"paths":{"/a":{"get":{"responses":{}}}}}` {
		t.Errorf("the document is stored as %s", got)
	}
	for _, v := range s {
		if !json.Valid([]byte(v)) {
			t.Errorf("not JSON: %s", v)
		}
	}
	// What a GET returned can be put back.
	snap := txn.Commit()
	rec, _ := snap.Instance("default", "cart", "c1")
	again := must[[]byte](t)(registry.CanonicalInstance("default", "cart", "c1", rec.JSON))
	if string(again) != string(instance(t, `{"address":"10.0.0.1","port":80,"version":"1.0.0","zone":"a","weight":0,"tags":["x"],"metadata":{"k\"":"v","a":""},"ttl":"90s","checks":[{"type":"http","target":"http://10.0.0.1/up"}]}`)) {
		t.Errorf("put back, the spec is %s", again)
	}
	if _, err := registry.CanonicalService("default", "cart", svc.JSON); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(dump(snap), dump(s.load(t))); diff != "" {
		t.Error(diff)
	}
}

func TestStatus(t *testing.T) {
	type step struct {
		do     string // put, lease changes, or a status set by the caller
		status string // afterwards
		by     string
	}
	tests := map[string][]step{
		"a lease expires and comes back":       {{"put", "passing", ""}, {"expired", "critical", "lease"}, {"back", "passing", ""}},
		"an expired lease expires once":        {{"put", "passing", ""}, {"expired", "critical", "lease"}, {"expired", "", ""}},
		"a heartbeat ends what a caller said":  {{"put", "passing", ""}, {"warning", "warning", "caller"}, {"back", "passing", ""}, {"critical", "critical", "caller"}, {"back", "passing", ""}},
		"a heartbeat changes nothing else":     {{"put", "passing", ""}, {"back", "", ""}, {"passing", "passing", "caller"}, {"back", "", ""}},
		"a warning expires":                    {{"put", "passing", ""}, {"warning", "warning", "caller"}, {"expired", "critical", "lease"}},
		"maintenance outlives leases and puts": {{"put", "passing", ""}, {"maintenance", "maintenance", "caller"}, {"expired", "", ""}, {"back", "", ""}, {"put", "maintenance", "caller"}, {"passing", "passing", "caller"}},
		"a put ends what a lease said":         {{"put", "passing", ""}, {"expired", "critical", "lease"}, {"put", "passing", ""}},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			txn := registry.New().Txn(nil)
			revision, observed := uint64(0), uint64(0)
			for n, st := range steps {
				revision++
				changed := true
				var err error
				switch st.do {
				case "put":
					_, _, err = txn.PutInstance(at(revision), "default", "cart", "c1", instance(t, web), observed, true)
				case "expired":
					changed = txn.Lease(at(revision), "default", "cart", "c1", registry.Expired, observed)
				case "back":
					changed = txn.Lease(at(revision), "default", "cart", "c1", registry.Back, observed)
				default:
					_, err = txn.SetStatus(at(revision), "default", "cart", "c1", st.do, registry.ByCaller, observed)
				}
				if err != nil {
					t.Fatal(err)
				}
				i, _ := txn.Commit().Instance("default", "cart", "c1")
				if changed != (st.status != "") {
					t.Fatalf("step %d: changed %v", n, changed)
				}
				if changed && (i.Status != st.status || i.StatusBy != st.by || i.Revision != revision) {
					t.Fatalf("step %d: %s by %q at %d", n, i.Status, i.StatusBy, i.Revision)
				}
				observed = i.Revision
			}
		})
	}
}

func TestRefusedChangesChangeNothing(t *testing.T) {
	s := store{}
	txn := registry.New().Txn(s.emit(t))
	if _, _, err := txn.PutInstance(at(1), "default", "cart", "c1", instance(t, web), 0, true); err != nil {
		t.Fatal(err)
	}
	base := txn.Commit()
	before, kept := dump(base), maps.Clone(s)
	spec := must[[]byte](t)(registry.CanonicalService("default", "cart", []byte(`{}`)))
	txn = base.Txn(s.emit(t))
	stale := func(name string, err error) {
		t.Helper()
		if err != registry.ErrStale {
			t.Errorf("%s: got %v, want ErrStale", name, err)
		}
	}
	coded := func(name string, err error, code fault.Code) {
		t.Helper()
		if !fault.Is(err, code) {
			t.Errorf("%s: got %v, want %s", name, err, code)
		}
	}
	put := func(ns, svc, id string, spec []byte, observed uint64, create bool) error {
		_, _, err := txn.PutInstance(at(9), ns, svc, id, spec, observed, create)
		return err
	}
	service := func(name string, spec []byte, observed uint64) error {
		_, _, err := txn.PutService(at(9), "default", name, spec, observed)
		return err
	}
	version := func(svc string, spec []byte, observed uint64) error {
		_, _, err := txn.PutVersion(at(9), "default", svc, "v1", spec, []byte("{}"), observed)
		return err
	}
	status := func(id, status string, observed uint64) error {
		_, err := txn.SetStatus(at(9), "default", "cart", id, status, registry.ByCaller, observed)
		return err
	}
	stale("a service that exists", service("cart", spec, 0))
	stale("a service of another revision", service("cart", spec, 7))
	stale("a service that is gone", service("till", spec, 1))
	stale("an instance that exists", put("default", "cart", "c1", instance(t, web), 0, false))
	stale("an instance that is gone", put("default", "till", "c1", instance(t, web), 1, true))
	stale("a version that is gone", version("cart", []byte(`{}`), 1))
	stale("a status", status("c1", registry.Warning, 5))
	stale("deleting a service", txn.Delete(at(9), registry.KindService, "default", "cart", "", 2))
	stale("deleting an instance", txn.Delete(at(9), registry.KindInstance, "default", "cart", "c1", 2))
	stale("deleting a version", txn.Delete(at(9), registry.KindVersion, "default", "cart", "v1", 2))
	coded("an unknown service", put("default", "till", "c1", instance(t, web), 0, false), fault.ServiceNotFound)
	coded("a version of an unknown service", version("till", []byte(`{}`), 0), fault.ServiceNotFound)
	coded("an unknown status", status("c1", "fine", 1), fault.InvalidField)
	coded("the status of an unknown instance", status("c2", registry.Warning, 0), fault.InstanceNotFound)
	coded("deleting an unknown service", txn.Delete(at(9), registry.KindService, "default", "till", "", 0), fault.ServiceNotFound)
	coded("deleting an unknown instance", txn.Delete(at(9), registry.KindInstance, "default", "till", "c1", 0), fault.InstanceNotFound)
	coded("deleting an unknown version", txn.Delete(at(9), registry.KindVersion, "default", "cart", "v1", 0), fault.VersionNotFound)
	coded("deleting an unknown kind", txn.Delete(at(9), "token", "default", "cart", "", 0), fault.BadRequest)
	coded("a broken spec", put("default", "till", "c1", []byte(`{"address":1}`), 0, true), fault.BadRequest)
	coded("no spec", service("till", nil, 0), fault.BadRequest)
	coded("a version's broken spec", version("cart", []byte(`{"size":"x"}`), 0), fault.BadRequest)
	coded("a name that is no key", put("default", "a/b", "c1", instance(t, web), 0, true), fault.InvalidField)
	for _, c := range []registry.LeaseChange{registry.Expired, registry.Back, registry.Deregister, 0} {
		if txn.Lease(at(9), "default", "cart", "c1", c, 2) || txn.Lease(at(9), "default", "cart", "c2", c, 0) {
			t.Errorf("lease change %d on another revision was applied", c)
		}
	}
	if after := dump(txn.Commit()); after != before || !maps.Equal(s, kept) || len(txn.Touched()) != 0 {
		t.Errorf("refused changes left\n%s%v", after, txn.Touched())
	}
}

func TestDiscovery(t *testing.T) {
	txn := registry.New().Txn(nil)
	revision := uint64(0)
	for n, body := range []string{
		`{"address":"10.0.0.1","port":1,"zone":"a","version":"v1","tags":["x","y"]}`,
		`{"address":"10.0.0.2","port":2,"zone":"b","version":"v2","tags":["x"],"weight":7}`,
		`{"address":"10.0.0.3","port":3,"zone":"a","version":"v2","metadata":{"k":"v"}}`,
		`{"address":"10.0.0.4","port":4,"zone":"b","version":"v1","tags":["y"]}`,
	} {
		revision++
		if _, _, err := txn.PutInstance(at(revision), "default", "cart", fmt.Sprintf("c%d", 4-n), instance(t, body), 0, true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := txn.SetStatus(at(5), "default", "cart", "c3", registry.Critical, registry.ByCaller, 2); err != nil {
		t.Fatal(err)
	}
	e, _ := txn.Commit().Discover("default", "cart")
	tests := []struct {
		name string
		q    registry.Query
		want string
	}{
		{"passing ones, in order", registry.Query{}, "c1 c2 c4"},
		{"any status", registry.Query{AnyStatus: true}, "c1 c2 c3 c4"},
		{"a version", registry.Query{AnyStatus: true, Version: "v2"}, "c2 c3"},
		{"a tag", registry.Query{Tags: []string{"y"}}, "c1 c4"},
		{"all of the tags", registry.Query{Tags: []string{"y", "x"}}, "c4"},
		{"a zone first", registry.Query{AnyStatus: true, Zone: "a"}, "c2 c4 c1 c3"},
		{"a zone that is not there", registry.Query{Zone: "c"}, "c1 c2 c4"},
		{"nothing", registry.Query{Version: "v3"}, ""},
	}
	for _, tt := range tests {
		var answer struct {
			Namespace, Service string
			Revision           uint64
			Instances          []map[string]any
		}
		if err := json.Unmarshal(e.Answer(tt.q), &answer); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, i := range answer.Instances {
			ids = append(ids, i["id"].(string))
		}
		if got := strings.Join(ids, " "); got != tt.want || answer.Revision != 5 || answer.Instances == nil || answer.Service != "cart" || answer.Namespace != "default" {
			t.Errorf("%s: %s at %d", tt.name, got, answer.Revision)
		}
	}
	want := `{"namespace":"default","service":"cart","revision":5,"instances":[` +
		`{"id":"c3","address":"10.0.0.2","port":2,"version":"v2","zone":"b","weight":7,"status":"critical","tags":["x"],"metadata":{}},` +
		`{"id":"c2","address":"10.0.0.3","port":3,"version":"v2","zone":"a","weight":1,"status":"passing","tags":[],"metadata":{"k":"v"}}],` +
		`"locality":{"zone":"b","instances":1,"spill_over":true}}`
	if diff := cmp.Diff(want, string(e.Answer(registry.Query{AnyStatus: true, Version: "v2", Zone: "b"}))); diff != "" {
		t.Error(diff)
	}
	if e.Passing() != 3 || len(e.Instances()) != 4 {
		t.Errorf("%d of %d pass", e.Passing(), len(e.Instances()))
	}
	if a, b := e.Answer(registry.Query{}), e.Answer(registry.Query{}); &a[0] != &b[0] {
		t.Error("the usual answer is encoded again")
	}
	if _, ok := txn.Commit().Discover("default", "till"); ok {
		t.Error("an unknown service is found")
	}
}

// What waits for a service must be woken by its own changes only.
func TestEntryRevision(t *testing.T) {
	s := store{}
	snap := registry.New()
	cart := registry.Key{Namespace: "default", Service: "cart"}
	spec := must[[]byte](t)(registry.CanonicalService("default", "cart", []byte(`{}`)))
	steps := []struct {
		name    string
		do      func(*registry.Txn, registry.Stamp) error
		answers bool // what discovery says is changed by it
		touched bool // who watches the service is woken
	}{
		{"create the service", func(x *registry.Txn, st registry.Stamp) error {
			_, _, err := x.PutService(st, "default", "cart", spec, 0)
			return err
		}, true, true},
		{"update the service", func(x *registry.Txn, st registry.Stamp) error {
			_, _, err := x.PutService(st, "default", "cart", spec, 1)
			return err
		}, false, true},
		{"add a version", func(x *registry.Txn, st registry.Stamp) error {
			_, _, err := x.PutVersion(st, "default", "cart", "v1", []byte(`{}`), []byte("{}"), 0)
			return err
		}, false, true},
		{"add an instance", func(x *registry.Txn, st registry.Stamp) error {
			_, _, err := x.PutInstance(st, "default", "cart", "c1", instance(t, web), 0, false)
			return err
		}, true, true},
		{"change its status", func(x *registry.Txn, st registry.Stamp) error {
			x.Lease(st, "default", "cart", "c1", registry.Expired, 4)
			return nil
		}, true, true},
		{"change another service", func(x *registry.Txn, st registry.Stamp) error {
			_, _, err := x.PutInstance(st, "default", "till", "c1", instance(t, web), 0, true)
			return err
		}, false, false},
		{"remove the instance", func(x *registry.Txn, st registry.Stamp) error {
			return x.Delete(st, registry.KindInstance, "default", "cart", "c1", 5)
		}, true, true},
		{"remove the version", func(x *registry.Txn, st registry.Stamp) error {
			return x.Delete(st, registry.KindVersion, "default", "cart", "v1", 3)
		}, false, true},
	}
	want := uint64(0)
	for n, step := range steps {
		st := at(uint64(n + 1))
		txn := snap.Txn(s.emit(t))
		if err := step.do(txn, st); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		snap = txn.Commit()
		if step.answers {
			want = st.Revision
		}
		if got := slices.Contains(txn.Touched(), cart); got != step.touched {
			t.Errorf("%s: touched %v", step.name, got)
		}
		for when, s := range map[string]*registry.Snapshot{"at once": snap, "after a reload": s.load(t)} {
			if e, _ := s.Discover("default", "cart"); e.Revision() != want {
				t.Errorf("%s, %s: revision %d, want %d", step.name, when, e.Revision(), want)
			}
		}
	}
}

func TestPages(t *testing.T) {
	txn := registry.New().Txn(nil)
	spec := must[[]byte](t)(registry.CanonicalService("a", "x", []byte(`{}`)))
	var want []string
	for _, k := range []string{"a/x", "a/x-1", "a/y", "a-b/a", "a-b/x", "b/x"} {
		ns, name, _ := strings.Cut(k, "/")
		if _, _, err := txn.PutService(at(1), ns, name, spec, 0); err != nil {
			t.Fatal(err)
		}
		want = append(want, k)
	}
	for n := range 5 {
		id := fmt.Sprintf("i%d", n)
		if _, _, err := txn.PutInstance(at(2), "a", "x", id, instance(t, web), 0, false); err != nil {
			t.Fatal(err)
		}
		if _, _, err := txn.PutVersion(at(2), "a", "x", id, []byte(`{}`), []byte("{}"), 0); err != nil {
			t.Fatal(err)
		}
	}
	snap := txn.Commit()
	walk := func(limit int, page func(after string, limit int) (names []string, next string)) (all []string) {
		for after := ""; ; {
			names, next := page(after, limit)
			if limit > 0 && len(names) > limit {
				t.Errorf("a page of %d holds %d", limit, len(names))
			}
			all = append(all, names...)
			if after = next; next == "" {
				return all
			}
		}
	}
	for limit := range 8 {
		for ns, want := range map[string][]string{"": want, "a": want[:3], "a-b": want[3:5], "b": want[5:], "c": nil} {
			got := walk(limit, func(after string, limit int) (names []string, next string) {
				items, next := snap.Services(ns, after, limit)
				entries, same := snap.Entries(ns, after, limit)
				for i, s := range items {
					if entries[i].Namespace() != s.Namespace || entries[i].Service() != s.Name || same != next {
						t.Errorf("entries differ from services at %s/%s", s.Namespace, s.Name)
					}
					names = append(names, s.Namespace+"/"+s.Name)
				}
				return names, next
			})
			if !slices.Equal(got, want) {
				t.Errorf("namespace %q by %d: %v, want %v", ns, limit, got, want)
			}
		}
		five := []string{"i0", "i1", "i2", "i3", "i4"}
		if got := walk(limit, func(after string, limit int) (names []string, next string) {
			items, next := snap.Instances("a", "x", after, limit)
			for _, i := range items {
				names = append(names, i.ID)
			}
			return names, next
		}); !slices.Equal(got, five) {
			t.Errorf("instances by %d: %v", limit, got)
		}
		if got := walk(limit, func(after string, limit int) (names []string, next string) {
			items, next := snap.Versions("a", "x", after, limit)
			for _, v := range items {
				names = append(names, v.Version)
			}
			return names, next
		}); !slices.Equal(got, five) {
			t.Errorf("versions by %d: %v", limit, got)
		}
	}
	// A cursor that is no longer there, or never was, still has a place.
	if items, _ := snap.Services("", "a/x-0", 1); items[0].Name != "x-1" {
		t.Errorf("after a/x-0 comes %s", items[0].Name)
	}
	if items, next := snap.Services("a", "b/x", 0); len(items) != 0 || next != "" {
		t.Error("a cursor leads out of its namespace")
	}
	if items, _ := snap.Services("b", "a/x", 0); len(items) != 1 {
		t.Error("a cursor before the namespace hides it")
	}
	var ids []string
	snap.EachInstance(func(i *registry.Instance) bool { ids = append(ids, i.ID); return len(ids) < 3 })
	if !slices.Equal(ids, []string{"i0", "i1", "i2"}) {
		t.Errorf("each: %v", ids)
	}
}

func TestLoadRefusesDamage(t *testing.T) {
	s := store{}
	txn := registry.New().Txn(s.emit(t))
	if _, _, err := txn.PutInstance(at(1), "default", "cart", "c1", instance(t, web), 0, true); err != nil {
		t.Fatal(err)
	}
	good := s["instances default/cart/c1"]
	for name, l := range map[string][3]string{
		"another key":             {registry.BucketInstances, "default/cart/c2", good},
		"a record without a home": {registry.BucketInstances, "default/till/c1", good},
		"half a record":           {registry.BucketInstances, "default/cart/c1", good[:20]},
		"a revision of text":      {registry.BucketEntries, "default/cart", "x"},
		"an unknown bucket":       {"tokens", "default/cart", "{}"},
		"a service twice":         {registry.BucketServices, "default/cart", s["services default/cart"]},
		"a version's other key":   {registry.BucketVersions, "default/cart/v1", `{"namespace":"default","service":"cart","version":"v2"}`},
	} {
		x := registry.New().Txn(nil)
		if err := x.Load(registry.BucketServices, "default/cart", []byte(s["services default/cart"])); err != nil {
			t.Fatal(err)
		}
		if err := x.Load(l[0], l[1], []byte(l[2])); err == nil {
			t.Errorf("%s is loaded", name)
		}
	}
}

// Any changes, in any batches, give the same records, the same bytes in the
// same order, and answers that a reload gives too; and a snapshot taken on
// the way stays what it was.
func TestBatches(t *testing.T) {
	service := must[[]byte](t)(registry.CanonicalService("default", "cart", []byte(`{"owner":"o"}`)))
	var specs [][]byte
	for _, body := range []string{web, `{"address":"h","port":1,"zone":"b","tags":["x"],"metadata":{"b":"1","a":"2"},"version":"v1"}`} {
		specs = append(specs, instance(t, body))
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"a", "b"})
		type op struct {
			kind             int
			ns, svc, id      string
			spec, by         int
			stale, createSvc bool
		}
		ops := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) op {
			return op{rapid.IntRange(0, 11).Draw(t, "kind"), name.Draw(t, "ns"), "s", name.Draw(t, "id"),
				rapid.IntRange(0, 1).Draw(t, "spec"), rapid.IntRange(0, 3).Draw(t, "by"), rapid.IntRange(0, 9).Draw(t, "stale") == 0, rapid.Bool().Draw(t, "create")}
		}), 1, 80).Draw(t, "ops")
		cuts := rapid.SliceOfN(rapid.Bool(), len(ops), len(ops)).Draw(t, "cuts")

		run := func(commit func(n int) bool) (string, store, []string, map[int]string, map[int]*registry.Snapshot) {
			s, log := store{}, []string{}
			keep := s.emit(t)
			emit := func(bucket, key string, old, new []byte) {
				log = append(log, fmt.Sprintf("%s %s %s %s", bucket, key, old, new))
				keep(bucket, key, old, new)
			}
			was, snaps := map[int]string{}, map[int]*registry.Snapshot{}
			snap := registry.New()
			txn := snap.Txn(emit)
			// Revisions observed, as the leader would know them.
			seen := map[string]uint64{}
			for n, o := range ops {
				st := at(uint64(n + 1))
				key := o.ns + o.svc
				switch {
				case o.kind <= 4 || o.kind == 10 || o.kind == 11:
					key += "/i" + o.id
				case o.kind <= 6 || o.kind == 9:
					key += "/v" + o.id
				}
				observed := seen[key]
				if o.stale {
					observed += 1
				}
				var err error
				gone := false
				switch o.kind {
				case 0, 1, 2:
					_, _, err = txn.PutInstance(st, o.ns, o.svc, o.id, specs[o.spec], observed, o.createSvc)
					if err == nil && seen[o.ns+o.svc] == 0 {
						seen[o.ns+o.svc] = st.Revision
					}
				case 3:
					_, err = txn.SetStatus(st, o.ns, o.svc, o.id, []string{"passing", "warning", "critical", "maintenance"}[o.by], registry.ByCaller, observed)
				case 4:
					err, gone = txn.Delete(st, registry.KindInstance, o.ns, o.svc, o.id, observed), true
				case 5, 9:
					_, _, err = txn.PutVersion(st, o.ns, o.svc, o.id, []byte(`{"format":"openapi","routes":[{"method":"GET","path":"/a"}]}`), []byte("{}"), observed)
				case 6:
					err, gone = txn.Delete(st, registry.KindVersion, o.ns, o.svc, o.id, observed), true
				case 7:
					_, _, err = txn.PutService(st, o.ns, o.svc, service, observed)
				case 8:
					if err = txn.Delete(st, registry.KindService, o.ns, o.svc, "", observed); err == nil {
						gone = true
						maps.DeleteFunc(seen, func(k string, _ uint64) bool { return strings.HasPrefix(k, key+"/") })
					}
				default:
					if !txn.Lease(st, o.ns, o.svc, o.id, registry.LeaseChange(o.by), observed) {
						err = registry.ErrStale
					}
					gone = registry.LeaseChange(o.by) == registry.Deregister
				}
				switch {
				case err == nil && gone:
					delete(seen, key)
				case err == nil:
					seen[key] = st.Revision
				}
				if commit(n) {
					snap = txn.Commit()
					was[n], snaps[n] = dump(snap), snap
					if o.by > 1 { // go on with the same Txn, or a new one
						txn = snap.Txn(emit)
					}
				}
			}
			return dump(txn.Commit()), s, log, was, snaps
		}
		one, s1, log1, _, _ := run(func(int) bool { return false })
		many, s2, log2, was, snaps := run(func(n int) bool { return cuts[n] })
		if one != many {
			t.Fatalf("batches differ:\n%s", cmp.Diff(one, many))
		}
		if !slices.Equal(log1, log2) || !maps.Equal(s1, s2) {
			t.Fatalf("what is emitted differs:\n%s", cmp.Diff(log1, log2))
		}
		for n, snap := range snaps {
			if dump(snap) != was[n] {
				t.Fatalf("the snapshot after change %d was changed later", n)
			}
		}
		if again := dump(s1.load(t)); again != one {
			t.Fatalf("a reload differs:\n%s", cmp.Diff(one, again))
		}
	})
}
