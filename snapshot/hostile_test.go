package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/muster-registry/muster/fault"
)

// forge makes a file with a valid seal around any body: what someone can make
// who knows the format and means no good.
func forge(t testing.TB, body []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var out bytes.Buffer
	dst := &sealWriter{dst: &out, sum: sha256.New()}
	if _, err := dst.Write([]byte(magic)); err != nil {
		t.Fatal(err)
	}
	zw, err := zstd.NewWriter(dst, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := zw.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := dst.seal(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func head(json string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(json))), json...)
}

func finish(body []byte) []byte {
	body = append(body, tagEnd)
	sum := sha256.Sum256(body)
	return append(append(body, sum[:]...), bodyEnd...)
}

func TestForgedFiles(t *testing.T) {
	const v1 = `{"format":1,"created_at":"2026-01-02T03:04:05Z"}`
	open := func(b []byte) []byte { return append(b, tagSection, 0, 1, 's') }
	many := head(v1)
	for i := range MaxSections + 1 {
		empty := sha256.Sum256(nil)
		many = append(many, tagSection, 0, 2, byte(i>>8), byte(i))
		many = append(append(many, make([]byte, 16)...), empty[:]...)
	}
	for name, c := range map[string]struct {
		body []byte
		want string
	}{
		"newer format":           {finish(head(`{"format":2,"sections":"elsewhere"}`)), "newer format 2"},
		"format 0":               {finish(head(`{}`)), "malformed"},
		"header not JSON":        {finish(head(`[`)), "malformed"},
		"header of 4 GiB":        {[]byte{0xff, 0xff, 0xff, 0xff}, "malformed"},
		"no body":                {nil, "malformed"},
		"unknown tag":            {append(head(v1), 9), "malformed"},
		"record before section":  {append(head(v1), tagRecord), "malformed"},
		"section without a name": {append(head(v1), tagSection, 0, 0), "malformed"},
		"key of 64 KiB":          {append(open(head(v1)), tagRecord, 0xff, 0xff, 0, 0, 0, 1), "malformed"},
		"value of 4 GiB":         {append(open(head(v1)), tagRecord, 0, 1, 0xff, 0xff, 0xff, 0xff, 'k'), "malformed"},
		"value that never comes": {append(open(head(v1)), tagRecord, 0, 1, 3, 0xff, 0xff, 0xff, 'k', 'v'), `"s" after 0 records`},
		"keys out of order":      {append(open(head(v1)), tagRecord, 0, 1, 0, 0, 0, 0, 'b', tagRecord, 0, 1, 0, 0, 0, 0, 'a'), `"s" after 1 records`},
		"wrong section sum":      {append(append(open(head(v1)), tagSectionEnd), make([]byte, 48)...), "malformed"},
		"open section at end":    {finish(open(head(v1))), "malformed"},
		"too many sections":      {many, "malformed"},
		"content after the end":  {append(finish(head(v1)), 1), "malformed"},
		"another content sum":    {append(append(append(head(v1), tagEnd), make([]byte, 32)...), bodyEnd...), "malformed"},
	} {
		_, err := Verify(bytes.NewReader(forge(t, c.body)))
		if !fault.Is(err, fault.InvalidSnapshot) || !strings.Contains(fault.From(err).Detail, c.want) {
			t.Errorf("%s: %v, want invalid_snapshot saying %q", name, err, c.want)
		}
	}
	if _, err := Verify(bytes.NewReader(forge(t, finish(head(v1))))); err != nil {
		t.Errorf("the forger makes no valid file, so nothing above counts: %v", err)
	}
}

func TestWindowLimit(t *testing.T) {
	body := finish(append(head(`{"format":1}`), make([]byte, 0)...))
	body = append(body, make([]byte, 20<<20)...)
	_, err := Verify(bytes.NewReader(forge(t, body, zstd.WithWindowSize(16<<20))))
	if !fault.Is(err, fault.InvalidSnapshot) {
		t.Errorf("a frame that asks for a window of 16 MiB: %v", err)
	}
}

// A small file that unpacks to much, or promises to, costs memory only for what
// really came.
func TestMemoryOfABomb(t *testing.T) {
	body := append(head(`{"format":1}`), tagSection, 0, 1, 's')
	body = append(body, tagRecord, 0, 1, 4, 0, 0, 0, 'k')
	body = append(body, make([]byte, MaxValue/2)...) // half of what is promised
	file := forge(t, body)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := Verify(bytes.NewReader(file))
	runtime.ReadMemStats(&after)
	if !fault.Is(err, fault.InvalidSnapshot) {
		t.Fatal(err)
	}
	// All steps of a buffer that doubles, freed ones counted too.
	if got := after.TotalAlloc - before.TotalAlloc; got > 6*MaxValue {
		t.Errorf("a file of %d bytes made Read allocate %d bytes", len(file), got)
	}
	file = forge(t, append(head(`{"format":1}`), tagSection, 0, 1, 's', tagRecord, 0, 1, 4, 0, 0, 0, 'k'))
	runtime.ReadMemStats(&before)
	_, err = Verify(bytes.NewReader(file))
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; err == nil || got > 8<<20 {
		t.Errorf("a promise of 64 MiB with nothing behind it: %d bytes allocated, %v", got, err)
	}
}

const benchRecords, benchSize = 200_000, 500

func benchFile(b *testing.B) []byte {
	var out bytes.Buffer
	out.Grow(128 << 20)
	writeBench(b, &out)
	return out.Bytes()
}

func writeBench(b *testing.B, out *bytes.Buffer) {
	value := bytes.Repeat([]byte(`{"address":"10.20.30.40","port":8443,"tags":["a","b"],"zone":"eu-1"},`), 8)[:benchSize]
	key := []byte("default/service-00000000/i-1")
	w, err := NewWriter(out, Header{ClusterID: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	if err := w.Section("instances"); err != nil {
		b.Fatal(err)
	}
	for i := range benchRecords {
		n := i
		for p := 23; p > 15; p-- {
			key[p] = byte('0' + n%10)
			value[p*7] = byte('a' + (n*31+p)%26)
			value[p*19] = byte('a' + (n*17+p)%26)
			n /= 10
		}
		if err := w.Put(string(key), value); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkWrite(b *testing.B) {
	b.SetBytes(benchRecords * benchSize)
	var out bytes.Buffer
	out.Grow(128 << 20)
	for b.Loop() {
		out.Reset()
		writeBench(b, &out)
	}
	b.ReportMetric(float64(out.Len()), "file-bytes")
}

func BenchmarkVerify(b *testing.B) {
	file := benchFile(b)
	b.SetBytes(benchRecords * benchSize)
	for b.Loop() {
		if _, err := Verify(bytes.NewReader(file)); err != nil {
			b.Fatal(err)
		}
	}
}
