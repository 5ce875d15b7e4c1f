package identity_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

func TestMint(t *testing.T) {
	m, err := identity.Mint("viewer", nil, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Text) != len("muster_")+16+1+43 || !strings.HasPrefix(m.Text, "muster_"+m.ID+"_") || !identity.ValidID(m.ID) {
		t.Errorf("the text %q has not the form muster_ID_SECRET", m.Text)
	}
	if secret := m.Text[24:]; bytes.Contains(m.Spec, []byte(secret)) {
		t.Error("the secret is in what is stored")
	}
	for _, ttl := range []time.Duration{-1, time.Second - 1, identity.MaxTTL + 1} {
		if _, err := identity.Mint("viewer", nil, ttl, now); !fault.Is(err, fault.InvalidField) {
			t.Errorf("ttl %s: %v, want invalid_field", ttl, err)
		}
	}
}

func TestRecordHidesTheHash(t *testing.T) {
	tbl, m := mint(t, identity.NewTable(), "viewer", []string{"shop"}, time.Hour)
	tok, ok := tbl.Get(m.ID)
	if !ok {
		t.Fatal("the token is not there")
	}
	want := fmt.Sprintf(`{"id":%q,"role":"viewer","namespaces":["shop"],"expires_at":"2026-05-04T13:00:00Z","revision":7,"created_at":"2026-05-04T12:00:00Z","updated_at":"2026-05-04T12:00:00Z","created_by":"root"}`, m.ID)
	if d := cmp.Diff(want, string(tok.JSON)); d != "" {
		t.Error(d)
	}
}

func TestRefusedChangesChangeNothing(t *testing.T) {
	tbl, m := mint(t, identity.NewTable(), "viewer", nil, time.Hour)
	emitted := 0
	x := tbl.Txn(func(string, string, []byte, []byte) { emitted++ })
	st := identity.Stamp{Revision: 9, Time: now}
	for name, tc := range map[string]struct {
		err  error
		code fault.Code
	}{
		"id in use":     {put(x, st, m.ID, m.Spec), fault.Conflict},
		"bad id":        {put(x, st, "../0123456789abc", m.Spec), fault.BadRequest},
		"no JSON":       {put(x, st, "0000000000000001", []byte("{")), fault.BadRequest},
		"unknown field": {put(x, st, "0000000000000001", []byte(`{"role":"viewer","god":true}`)), fault.BadRequest},
		"no role":       {put(x, st, "0000000000000001", []byte(`{"hash":"`+identity.Hash("")+`"}`)), fault.InvalidField},
		"no hash":       {put(x, st, "0000000000000001", []byte(`{"role":"viewer"}`)), fault.InvalidField},
		"long hash":     {put(x, st, "0000000000000001", []byte(`{"role":"viewer","hash":"`+identity.Hash("")+`00"}`)), fault.InvalidField},
		"unknown id":    {x.Delete("0000000000000001"), fault.NotFound},
	} {
		if !fault.Is(tc.err, tc.code) {
			t.Errorf("%s: %v, want %s", name, tc.err, tc.code)
		}
	}
	if emitted != 0 || x.Commit().Len() != 1 {
		t.Errorf("%d changes, %d tokens; want 0 and 1", emitted, x.Commit().Len())
	}
}

func put(x *identity.Txn, st identity.Stamp, id string, spec []byte) error {
	_, err := x.Put(st, id, spec)
	return err
}

// What was emitted, loaded again, is the same table; and a list in pages is
// the whole list.
func TestStoredStateLoadsAgain(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		stored := map[string][]byte{}
		tbl := identity.NewTable()
		emit := func(bucket, key string, old, new []byte) {
			if bucket != identity.Bucket || !bytes.Equal(old, stored[key]) {
				rt.Fatalf("emitted %s/%s with an old value that is not the stored one", bucket, key)
			}
			if delete(stored, key); new != nil {
				stored[key] = new
			}
		}
		for i := range rapid.IntRange(0, 30).Draw(rt, "changes") {
			x := tbl.Txn(emit)
			if ids := slices.Sorted(maps.Keys(stored)); len(ids) > 0 && rapid.Bool().Draw(rt, "delete") {
				if err := x.Delete(rapid.SampledFrom(ids).Draw(rt, "id")); err != nil {
					rt.Fatal(err)
				}
			} else {
				id := fmt.Sprintf("%016x", rapid.Uint64().Draw(rt, "id"))
				spec := fmt.Appendf(nil, `{"role":"viewer","namespaces":["n%d"],"expires_at":"2027-01-01T00:00:00Z","hash":%q}`, i, identity.Hash(id))
				if _, err := x.Put(identity.Stamp{Revision: uint64(i), Time: now, By: "r\"oot"}, id, spec); err != nil && !fault.Is(err, fault.Conflict) {
					rt.Fatal(err)
				}
			}
			tbl = x.Commit()
		}
		x := identity.NewTable().Txn(nil)
		for key, value := range stored {
			if err := x.Load(identity.Bucket, key, value); err != nil {
				rt.Fatal(err)
			}
		}
		again := x.Commit()
		all, _ := tbl.List("", 1000)
		var paged []*identity.Token
		limit := rapid.IntRange(1, 5).Draw(rt, "limit")
		for after := ""; ; {
			page, next := again.List(after, limit)
			if len(page) > limit {
				rt.Fatalf("a page of %d holds %d", limit, len(page))
			}
			paged = append(paged, page...)
			if next == "" {
				break
			}
			after = next
		}
		if len(all) != len(paged) || len(all) != len(stored) {
			rt.Fatalf("%d tokens, %d in pages, %d stored", len(all), len(paged), len(stored))
		}
		for i := range all {
			if !bytes.Equal(all[i].JSON, paged[i].JSON) {
				rt.Fatalf("%s became %s", all[i].JSON, paged[i].JSON)
			}
		}
	})
}

func TestLoadRefusesWhatIsDamaged(t *testing.T) {
	var key string
	var value []byte
	m, err := identity.Mint("viewer", nil, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	x := identity.NewTable().Txn(func(_, k string, _, v []byte) { key, value = k, v })
	if _, err := x.Put(identity.Stamp{Revision: 1, Time: now}, m.ID, m.Spec); err != nil {
		t.Fatal(err)
	}
	y := identity.NewTable().Txn(nil)
	if y.Load("services", key, value) == nil || y.Load(identity.Bucket, "0000000000000000", value) == nil || y.Load(identity.Bucket, key, value[:len(value)-1]) == nil {
		t.Error("a foreign bucket, another key or half a record was loaded")
	}
	if err := y.Load(identity.Bucket, key, value); err != nil {
		t.Error(err)
	}
}
