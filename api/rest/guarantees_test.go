package rest_test

import (
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
)

// TestWatchGuarantees names what etcd promises of its watches, and holds the
// event streams of the registry to each.
func TestWatchGuarantees(t *testing.T) {
	e := shopEdge(t, rest.Options{})
	const others = "/v1/namespaces/shop/services/till/instances/"
	whole := e.listen(t, ask{caller: "viewer", method: "GET", path: cartWatch})
	var revisions []uint64
	change := func(id string) {
		t.Helper()
		e.call("publisher", "PUT", cart+"/instances/"+id, instance, 201)
		revisions = append(revisions, e.State().Revision)
	}
	for i := range 4 {
		change(fmt.Sprint("i", i))
		e.call("publisher", "PUT", others+fmt.Sprint("i", i)+"?create_service=true", instance, 201)
	}
	var seen []told
	for range revisions {
		seen = append(seen, whole.next())
	}
	behind := func(l *listener, n int) (ids []string) {
		t.Helper()
		for range n {
			ids = append(ids, l.next().data.ID)
		}
		return ids
	}

	t.Run("ordered: by revision", func(t *testing.T) {
		if !slices.IsSortedFunc(seen, func(a, b told) int { return int(a.data.Revision) - int(b.data.Revision) }) {
			t.Errorf("%+v", seen)
		}
	})
	t.Run("unique: each change once", func(t *testing.T) {
		got := map[uint64]int{}
		for _, s := range seen {
			got[s.data.Revision]++
		}
		if len(got) != len(revisions) {
			t.Errorf("%v", got)
		}
	})
	t.Run("reliable: none is missing between two that are told", func(t *testing.T) {
		for i, s := range seen {
			if s.data.Revision != revisions[i] || s.data.ID != fmt.Sprint("i", i) {
				t.Errorf("%+v, want revision %d", s, revisions[i])
			}
		}
	})
	t.Run("resumable: behind any revision that is kept, also one of another service", func(t *testing.T) {
		for after := revisions[0] - 1; after <= revisions[3]; after++ {
			var want []string
			for i, r := range revisions {
				if r > after {
					want = append(want, fmt.Sprint("i", i))
				}
			}
			l := e.listen(t, ask{caller: "viewer", method: "GET", path: cartWatch, header: header("Last-Event-ID", strconv.FormatUint(after, 10))})
			if got := behind(l, len(want)); !slices.Equal(got, want) {
				t.Errorf("behind %d: %q, want %q", after, got, want)
			}
			l.cancel()
		}
	})
	t.Run("atomic: a change comes whole, and only its last event may be resumed behind", func(t *testing.T) {
		e.call("publisher", "DELETE", cart, "", 204)
		var ids []string
		for range 6 { // five instances and the service
			ids = append(ids, whole.next().id)
		}
		if last := strconv.FormatUint(e.State().Revision, 10); !slices.Equal(ids, []string{"", "", "", "", "", last}) {
			t.Errorf("%q, want %s at the end alone", ids, last)
		}
	})
	t.Run("bookmarkable: an event without a change says how far a quiet watch is", func(t *testing.T) {
		for i := range 3 {
			e.call("publisher", "PUT", others+fmt.Sprint("late", i), instance, 201)
		}
		e.feed.Tick()
		at := strconv.FormatUint(e.State().Revision, 10)
		if mark := whole.next(); mark.name != "progress" || mark.id != at {
			t.Errorf("%+v, want the id %s", mark, at)
		}
		e.listen(t, ask{caller: "viewer", method: "GET", path: cartWatch, header: header("Last-Event-ID", at)}).cancel()
	})
	t.Run("and what is not kept any more is said to be", func(t *testing.T) {
		e.feed.Reset(e.State().Revision)
		if end := whole.next(); end.name != "reset" || end.data.Code != fault.Compacted {
			t.Errorf("%+v", end)
		}
	})
}
