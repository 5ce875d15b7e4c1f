package decision

import (
	"crypto/aes"
	"crypto/cipher"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// FuzzSegment: of a file that was not written by this node no record is read,
// and its headers buy no more memory than the file is long.
func FuzzSegment(f *testing.F) {
	key := func() cipher.AEAD {
		b, err := aes.NewCipher(make([]byte, 32))
		if err != nil {
			f.Fatal(err)
		}
		a, err := cipher.NewGCM(b)
		if err != nil {
			f.Fatal(err)
		}
		return a
	}()
	unzip, err := zstd.NewReader(nil)
	if err != nil {
		f.Fatal(err)
	}
	s, file, err := newSegment(filepath.Join(f.TempDir(), "s"), 1, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	_ = file.Close()
	sealed := append(append([]byte{}, s.head[:]...), s.seal(nil, key, block{records: 1, first: 1, last: 2}, []byte("no zstd"))...)
	f.Add(sealed)
	f.Add(sealed[:len(sealed)-1])
	f.Add([]byte(magic))
	f.Add(append(append([]byte{}, s.head[:]...), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		name := filepath.Join(t.TempDir(), "segment")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openSegment(name, 1)
		if err != nil {
			return
		}
		for _, block := range s.blocks {
			if block.at+int64(block.sealed) > int64(len(b)) {
				t.Fatalf("block %+v of a file of %d bytes", block, len(b))
			}
			if plain, err := s.read(key, unzip, block); err == nil {
				t.Fatalf("a made-up block was read as %q", plain)
			}
		}
	})
}

// FuzzRecord: a record, a spill file and a traceparent of unknown origin.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"decision_id":"a","time":"2026-01-01T00:00:00Z","input":{"a":1}}`))
	f.Add([]byte(`00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decode(b); err == nil && r == nil {
			t.Fatal("neither a record nor an error")
		}
		_ = ParseTrace(string(b))
		name := filepath.Join(t.TempDir(), "spill")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		sp, err := openSpill(name)
		if err != nil {
			return
		}
		for range 1000 {
			events, next, err := sp.read(1 << 10)
			if err != nil || len(events) == 0 || sp.done(next) != nil {
				break
			}
		}
		_ = sp.close()
	})
}
