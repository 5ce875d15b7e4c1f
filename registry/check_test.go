package registry_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/registry"
)

const twoChecks = `{"address":"10.0.0.1","port":80,"checks":[{"type":"ttl","id":"a"},{"type":"tcp","id":"b","target":"10.0.0.1:80"}]}`

// The status of an instance is the worst of its own and its checks', whatever
// comes in which order, and the record tells both.
func TestAnInstanceIsAsItsWorstCheck(t *testing.T) {
	rank := map[string]int{registry.Passing: 1, registry.Warning: 2, registry.Critical: 3}
	rapid.Check(t, func(rt *rapid.T) {
		s := store{}
		txn := registry.New().Txn(s.emit(rt))
		if _, _, err := txn.PutInstance(at(1), "default", "cart", "c1", instance(t, twoChecks), 0, true); err != nil {
			rt.Fatal(err)
		}
		own, by := registry.Passing, ""
		checks := map[string]string{"a": registry.Passing, "b": registry.Passing}
		status := rapid.SampledFrom([]string{registry.Passing, registry.Warning, registry.Critical})
		for rev := uint64(2); rev < uint64(rapid.IntRange(3, 12).Draw(rt, "steps")); rev++ {
			in, _ := txn.Commit().Instance("default", "cart", "c1")
			switch rapid.IntRange(0, 4).Draw(rt, "what") {
			case 0, 1:
				id, to := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "check"), status.Draw(rt, "to")
				if got := txn.SetCheck(at(rev), "default", "cart", "c1", registry.CheckResult{Check: id, Status: to}); got != (checks[id] != to) {
					rt.Fatalf("check %s from %s to %s: changed %v", id, checks[id], to, got)
				}
				checks[id] = to
			case 2:
				own, by = status.Draw(rt, "own"), registry.ByCaller
				if _, err := txn.SetStatus(at(rev), "default", "cart", "c1", own, by, in.Revision); err != nil {
					rt.Fatal(err)
				}
			case 3:
				if txn.Lease(at(rev), "default", "cart", "c1", registry.Expired, in.Revision) {
					own, by = registry.Critical, registry.ByLease
				}
			case 4:
				if txn.Lease(at(rev), "default", "cart", "c1", registry.Back, in.Revision) {
					own, by = registry.Passing, ""
				}
			}
			in, _ = txn.Commit().Instance("default", "cart", "c1")
			want := own
			for _, c := range checks {
				if rank[c] > rank[want] {
					want = c
				}
			}
			if in.Status != want {
				rt.Fatalf("own %s, checks %v: the instance is %s", own, checks, in.Status)
			}
			gotOwn, gotBy := in.Own()
			if gotOwn != own || gotBy != by && own != registry.Passing {
				rt.Fatalf("own is %s by %q, not %s by %q", gotOwn, gotBy, own, by)
			}
			if e, _ := txn.Commit().Discover("default", "cart"); e.Passing() == 1 != (want == registry.Passing) {
				rt.Fatalf("%s, and %d pass", want, e.Passing())
			}
		}
		if diff := cmp.Diff(dump(txn.Commit()), dump(s.load(rt))); diff != "" {
			rt.Fatal(diff)
		}
	})
}

// Maintenance hides what the checks say, and ends with a status of the caller.
func TestMaintenanceOutlivesChecks(t *testing.T) {
	txn := registry.New().Txn(nil)
	rec, _, err := txn.PutInstance(at(1), "default", "cart", "c1", instance(t, twoChecks), 0, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = txn.SetStatus(at(2), "default", "cart", "c1", registry.Maintenance, registry.ByCaller, rec.Revision); err != nil {
		t.Fatal(err)
	}
	txn.SetCheck(at(3), "default", "cart", "c1", registry.CheckResult{Check: "b", Status: registry.Critical, Output: "refused"})
	rec, _ = txn.Commit().Instance("default", "cart", "c1")
	if rec.Status != registry.Maintenance {
		t.Errorf("in maintenance and %s", rec.Status)
	}
	if rec, err = txn.SetStatus(at(4), "default", "cart", "c1", registry.Passing, registry.ByCaller, rec.Revision); err != nil {
		t.Fatal(err)
	}
	if rec.Status != registry.Critical || rec.StatusBy != registry.ByChecks {
		t.Errorf("out of maintenance %s by %s", rec.Status, rec.StatusBy)
	}
}

// Registering again keeps what is known of a check, and forgets it when the
// check asks something else; a result for what was is dropped.
func TestRegisteringAgainKeepsStates(t *testing.T) {
	txn := registry.New().Txn(nil)
	put := func(rev uint64, body string, observed uint64) *registry.Instance {
		t.Helper()
		rec, _, err := txn.PutInstance(at(rev), "default", "cart", "c1", instance(t, body), observed, true)
		if err != nil {
			t.Fatal(err)
		}
		return rec
	}
	put(1, twoChecks, 0)
	if !txn.SetCheck(at(2), "default", "cart", "c1", registry.CheckResult{Check: "b", Status: registry.Critical, Output: "refused", Observed: 1}) {
		t.Fatal("the result was dropped")
	}
	rec := put(3, twoChecks, 2)
	if _, s := rec.Check("b"); rec.Status != registry.Critical || s.Output != "refused" || s.Revision != 2 {
		t.Errorf("registered again: %s, %+v", rec.Status, s)
	}
	rec = put(4, strings.Replace(twoChecks, "10.0.0.1:80", "10.0.0.1:81", 1), 3)
	if _, s := rec.Check("b"); rec.Status != registry.Passing || s.Output != "" || s.Revision != 4 {
		t.Errorf("with another target: %s, %+v", rec.Status, s)
	}
	if txn.SetCheck(at(5), "default", "cart", "c1", registry.CheckResult{Check: "b", Status: registry.Critical, Observed: 2}) {
		t.Error("a result for the target before counts")
	}
	for _, r := range []registry.CheckResult{{Check: "c", Status: registry.Critical}, {Check: "a", Status: "fine"}} {
		if txn.SetCheck(at(5), "default", "cart", "c1", r) {
			t.Errorf("%+v was taken", r)
		}
	}
	if rec = put(5, strings.Replace(twoChecks, `"id":"a"`, `"id":"a2","initial_status":"critical"`, 1), 4); rec.Status != registry.Critical {
		t.Errorf("a check that begins critical leaves the instance %s", rec.Status)
	}
}

func TestOutputsAreBounded(t *testing.T) {
	s := store{}
	txn := registry.New().Txn(s.emit(t))
	if _, _, err := txn.PutInstance(at(1), "default", "cart", "c1", instance(t, twoChecks), 0, true); err != nil {
		t.Fatal(err)
	}
	txn.SetCheck(at(2), "default", "cart", "c1", registry.CheckResult{Check: "a", Status: registry.Warning, Output: "\xff\x00" + strings.Repeat("é", 5000)})
	rec, _ := txn.Commit().Instance("default", "cart", "c1")
	_, state := rec.Check("a")
	if n := len(state.Output); n > registry.MaxOutput || n < registry.MaxOutput-8 || !utf8.ValidString(state.Output) || strings.ContainsRune(state.Output, 0) {
		t.Errorf("%d bytes: %.40q", n, state.Output)
	}
	if !state.ChangedAt.Equal(at(2).Time.Round(0)) || time.Since(state.ChangedAt) > 100*365*24*time.Hour {
		t.Errorf("changed at %s", state.ChangedAt)
	}
	if diff := cmp.Diff(dump(txn.Commit()), dump(s.load(t))); diff != "" {
		t.Error(diff)
	}
}
