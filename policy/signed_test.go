package policy

import (
	"errors"
	"testing"
)

func stageSigned(t testing.TB, x *Txn, at, number uint64) error {
	t.Helper()
	c := Content{Modules: map[string]string{"a.rego": "package a"}}
	if err := c.Normalize(); err != nil {
		t.Fatal(err)
	}
	o := Origin{Signature: &Signature{Key: "ci", Kind: "opa", Number: number}}
	_, err := x.Stage(stamp(at), Draft{Content: c.Encode(), Digest: c.Digest(), Report: Report{}.Encode(), Origin: o.Encode()})
	return err
}

// The highest signed number only goes up, also when the revision that had it
// is forgotten, and it loads as it was stored.
func TestSignedNumbersOnlyGoUp(t *testing.T) {
	stored := map[string][]byte{}
	x := NewTable().Txn(func(bucket, key string, old, next []byte) {
		id := bucket + "/" + key
		if string(stored[id]) != string(old) {
			t.Errorf("%s: old is %q, stored is %q", id, old, stored[id])
		}
		stored[id] = next
	})
	for _, c := range []struct {
		number uint64
		ok     bool
	}{{0, true}, {3, true}, {0, true}, {3, false}, {2, false}, {7, true}, {4, false}, {1 << 63, true}, {8, false}} {
		before := x.Commit()
		err := stageSigned(t, x, 1, c.number)
		if (err == nil) != c.ok || (err != nil && !errors.Is(err, ErrOvertaken)) {
			t.Errorf("number %d: %v", c.number, err)
		}
		if err != nil && (x.Commit().Len() != before.Len() || x.Signed() != before.Signed()) {
			t.Errorf("number %d was refused and changed something", c.number)
		}
	}
	for n := range uint64(Kept + 10) {
		staged(t, x, n, "package b")
	}
	table := x.Commit()
	if _, there := table.BySigned(7); there || table.Signed() != 1<<63 {
		t.Errorf("revision there: %v, highest %d", there, table.Signed())
	}
	loaded := NewTable().Txn(nil)
	if err := loaded.Load(BucketActive, KeySigned, stored[BucketActive+"/"+KeySigned]); err != nil || loaded.Commit().Signed() != 1<<63 {
		t.Errorf("loaded %d, %v", loaded.Commit().Signed(), err)
	}
	if err := loaded.Load(BucketActive, KeySigned, []byte(`[`)); err == nil {
		t.Error("damage is loaded")
	}
	loaded.KeepSigned(5)
	if loaded.Signed() != 1<<63 {
		t.Error("the number went down")
	}
}

func TestRevisionOfASignedNumber(t *testing.T) {
	x := NewTable().Txn(nil)
	staged(t, x, 1, "package a")
	for n := uint64(5); n < 8; n++ {
		if err := stageSigned(t, x, n, n); err != nil {
			t.Fatal(err)
		}
	}
	if r, ok := x.Commit().BySigned(6); !ok || r.Number != 3 || r.Signature.Key != "ci" {
		t.Errorf("%+v, %v", r, ok)
	}
	if r, ok := x.Commit().BySigned(4); ok {
		t.Errorf("%+v", r)
	}
}
