package git

import (
	"bytes"
	"strings"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
)

// Whatever stands in a commit: what is believed to be its tree and parents is
// what was signed, byte for byte.
func FuzzCommit(f *testing.F) {
	id := strings.Repeat("a", 40)
	f.Add([]byte("tree " + id + "\nparent " + id + "\nauthor a\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n iQ\n -----END PGP SIGNATURE-----\n\nmessage\n"))
	f.Add([]byte("tree " + id + "\ngpgsig x\n tree " + strings.Repeat("b", 40) + "\n\ntree " + id))
	f.Add([]byte("tree " + id + "\nmergetag object\n tree " + id + "\n gpgsig y\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := new(commit)
		if c.parse(b) != nil {
			return
		}
		unsigned := new(commit)
		if err := unsigned.parse(c.signed); err != nil || unsigned.tree != c.tree || len(unsigned.parents) != len(c.parents) || unsigned.signature != nil {
			t.Fatalf("%q without its signature is %+v, %v", b, unsigned, err)
		}
		if c.signature == nil && !bytes.Equal(c.signed, b) || !bytes.Contains(c.signed, []byte("tree "+c.tree.String())) {
			t.Fatalf("%q: signed is %q", b, c.signed)
		}
	})
}

// Whatever a server sends for a pack: an answer, within limits.
func FuzzPack(f *testing.F) {
	f.Add([]byte("PACK\x00\x00\x00\x02\x00\x00\x00\x01\x33x\x9cKL\x06\x00\x02M\x01'"))
	f.Add([]byte("PACK\x00\x00\x00\x02\x00\x00\x00\x00\x02\x9d\x08\x82;\xd8\xa8\xea\xb5\x10\xadj\xc7\\\x82<\xfd>\xd3\x1e"))
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg := Config{MaxSize: 1 << 16, MaxObjects: 100}
		objects, err := unpack(b, &cfg)
		if err != nil {
			return
		}
		all, err := objects.IterEncodedObjects(plumbing.AnyObject)
		if err != nil {
			t.Fatal(err)
		}
		total := int64(0)
		if err := all.ForEach(func(o plumbing.EncodedObject) error { total += o.Size(); return nil }); err != nil || total > 4*cfg.MaxSize {
			t.Fatalf("%d bytes, %v", total, err)
		}
	})
}
