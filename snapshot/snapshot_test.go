package snapshot_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/snapshot"
)

type record struct {
	key   string
	value []byte
}

type section struct {
	bucket  string
	records []record
}

// kept is a Visitor that puts everything aside.
type kept struct {
	header   snapshot.Header
	sections map[string][]record
}

func (k *kept) Header(h snapshot.Header) error { k.header = h; return nil }

func (k *kept) Record(bucket, key string, value []byte) error {
	if k.sections == nil {
		k.sections = map[string][]record{}
	}
	k.sections[bucket] = append(k.sections[bucket], record{key, bytes.Clone(value)})
	return nil
}

var testHeader = snapshot.Header{
	ClusterID: "3f0c9a52", Revision: 1290, AppliedIndex: 1345, Term: 7, PolicyRevision: 3,
	CreatedAt: time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC), MusterVersion: "0.1.0",
}

var testSections = []section{
	{"services", []record{{"default/cart", []byte(`{"name":"cart"}`)}, {"default/payments", []byte(`{"name":"payments"}`)}}},
	{"instances", []record{{"default/cart/i-1", []byte(`{"address":"10.0.0.1"}`)}}},
	{"tokens", nil},
	{"documents", []record{{"default/cart/1.0.0@12", []byte{0, 0xff, 0}}, {"default/cart/1.0.1@13", nil}}},
}

func encode(t testing.TB, h snapshot.Header, sections []section) ([]byte, *snapshot.Summary) {
	t.Helper()
	var out bytes.Buffer
	w, err := snapshot.NewWriter(&out, h)
	check(t, err)
	for _, s := range sections {
		check(t, w.Section(s.bucket))
		for _, r := range s.records {
			check(t, w.Put(r.key, r.value))
		}
	}
	check(t, w.Close())
	return out.Bytes(), w.Summary()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused fails unless file is refused as invalid_snapshot, and returns the sentence.
func refused(t testing.TB, file []byte, what string) string {
	t.Helper()
	sum, err := snapshot.Verify(bytes.NewReader(file))
	if sum != nil || !fault.Is(err, fault.InvalidSnapshot) {
		t.Fatalf("%s: got summary %v, error %v; want invalid_snapshot", what, sum, err)
	}
	// What is said to be known and is not, too.
	if sum, err := snapshot.ReadKnown(bytes.NewReader(file), nothing{}); sum != nil || !fault.Is(err, fault.InvalidSnapshot) {
		t.Fatalf("%s: as a known file: got summary %v, error %v; want invalid_snapshot", what, sum, err)
	}
	return fault.From(err).Detail
}

type nothing struct{}

func (nothing) Header(snapshot.Header) error        { return nil }
func (nothing) Record(string, string, []byte) error { return nil }

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := snapshot.Header{
			ClusterID: rapid.String().Draw(rt, "cluster"), Revision: rapid.Uint64().Draw(rt, "revision"),
			AppliedIndex: rapid.Uint64().Draw(rt, "applied"), Term: rapid.Uint64().Draw(rt, "term"),
			PolicyRevision: rapid.Uint64().Draw(rt, "policy"), MusterVersion: "0.1.0",
			CreatedAt: time.Unix(rapid.Int64Range(0, 4e9).Draw(rt, "s"), rapid.Int64Range(0, 1e9-1).Draw(rt, "ns")).UTC(),
		}
		var sections []section
		key := rapid.Map(rapid.SliceOfN(rapid.Byte(), 1, 40), func(b []byte) string { return string(b) })
		for _, name := range rapid.SliceOfNDistinct(rapid.StringN(1, 20, 60), 0, 5, rapid.ID[string]).Draw(rt, "buckets") {
			s := section{bucket: name}
			keys := rapid.SliceOfNDistinct(key, 0, 20, rapid.ID[string]).Draw(rt, "keys")
			slices.Sort(keys)
			for _, k := range keys {
				s.records = append(s.records, record{k, rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(rt, "value")})
			}
			sections = append(sections, s)
		}
		file, wrote := encode(t, h, sections)

		var got kept
		read, err := snapshot.Read(iotest.HalfReader(bytes.NewReader(file)), &got)
		if err != nil {
			rt.Fatal(err)
		}
		h.Format = snapshot.Format
		if got.header != h || read.Header != h {
			rt.Fatalf("header %+v became %+v", h, got.header)
		}
		if a, b := asJSON(t, wrote), asJSON(t, read); a != b || read.Size != int64(len(file)) {
			rt.Fatalf("the writer said %s, the reader says %s of %d bytes", a, b, len(file))
		}
		for i, s := range sections {
			if read.Sections[i].Bucket != s.bucket || read.Sections[i].Records != uint64(len(s.records)) {
				rt.Fatalf("section %+v became %+v", s, read.Sections[i])
			}
			same := slices.EqualFunc(s.records, got.sections[s.bucket], func(a, b record) bool {
				return a.key == b.key && bytes.Equal(a.value, b.value)
			})
			if !same {
				rt.Fatalf("section %q: %v became %v", s.bucket, s.records, got.sections[s.bucket])
			}
		}
	})
}

func asJSON(t testing.TB, s *snapshot.Summary) string {
	t.Helper()
	b, err := json.Marshal(s)
	check(t, err)
	return string(b)
}

// Large values cross every buffer inside, and come back whole.
func TestLargeValues(t *testing.T) {
	pattern := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i*i>>3) ^ byte(i>>11)
		}
		return b
	}
	var s section
	for i, n := range []int{64<<10 - 1, 64 << 10, 64<<10 + 1, 3 << 20, snapshot.MaxValue} {
		s.records = append(s.records, record{fmt.Sprint("k", i), pattern(n)})
	}
	s.bucket = "documents"
	file, _ := encode(t, testHeader, []section{s})
	var got kept
	_, err := snapshot.Read(bytes.NewReader(file), &got)
	check(t, err)
	for i, r := range s.records {
		if !bytes.Equal(got.sections["documents"][i].value, r.value) {
			t.Errorf("a value of %d bytes came back changed", len(r.value))
		}
	}
}

func TestTruncatedAnywhere(t *testing.T) {
	file, _ := encode(t, testHeader, testSections)
	for n := range len(file) {
		refused(t, file[:n], fmt.Sprintf("the first %d of %d bytes", n, len(file)))
	}
	if s := refused(t, file[:len(file)/2], "half of it"); !strings.Contains(s, "truncated") {
		t.Errorf("half a file: %q does not say truncated", s)
	}
	refused(t, append(bytes.Clone(file), 0), "one byte more")
	refused(t, append(bytes.Clone(file), file...), "two in a row")
	refused(t, append(bytes.Clone(file), file[len(file)-40:]...), "the seal twice")
}

func TestEveryFlippedBit(t *testing.T) {
	file, _ := encode(t, testHeader, testSections)
	for i := range file {
		for bit := range 8 {
			file[i] ^= 1 << bit
			refused(t, file, fmt.Sprintf("bit %d of byte %d of %d flipped", bit, i, len(file)))
			file[i] ^= 1 << bit
		}
	}
	if _, err := snapshot.Verify(bytes.NewReader(file)); err != nil {
		t.Fatalf("the file with nothing flipped: %v", err)
	}
}

// A damaged file of several blocks is refused wherever the damage is, and the
// sentence names a section.
func TestDamageNamesTheSection(t *testing.T) {
	s := section{bucket: "instances"}
	for i := range 20000 {
		s.records = append(s.records, record{fmt.Sprintf("k%08d", i), fmt.Appendf(nil, "%x", uint64(i)*0x9e3779b97f4a7c15)})
	}
	file, _ := encode(t, testHeader, []section{s})
	file[len(file)/2] ^= 0x10
	if msg := refused(t, file, "damage in the middle"); !strings.Contains(msg, "damaged") || !strings.Contains(msg, `"instances"`) {
		t.Errorf("the sentence does not say where the damage is: %q", msg)
	}
}

func TestNotASnapshot(t *testing.T) {
	for name, c := range map[string]struct{ file, want string }{
		"empty":        {"", "empty"},
		"short":        {"MUST", "truncated"},
		"another file": {"PK\x03\x04 and so on, for more than forty bytes of content", "not a muster snapshot"},
		"tiny":         {"x", "not a muster snapshot"},
		"newer layout": {"MUSTERS2" + strings.Repeat("?", 100), "newer format 2"},
		"magic only":   {"MUSTERS1", "truncated"},
	} {
		if got := refused(t, []byte(c.file), name); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q does not say %q", name, got, c.want)
		}
	}
}

var errStop = errors.New("stop here")

type stopping struct{ header, record error }

func (s stopping) Header(snapshot.Header) error        { return s.header }
func (s stopping) Record(string, string, []byte) error { return s.record }

func TestErrorsOfOthersPassThrough(t *testing.T) {
	file, _ := encode(t, testHeader, testSections)
	for _, v := range []stopping{{header: errStop}, {record: errStop}} {
		if _, err := snapshot.Read(bytes.NewReader(file), v); err != errStop {
			t.Errorf("the visitor's error became %v", err)
		}
	}
	for n := range len(file) {
		broken := io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(errStop))
		if _, err := snapshot.Verify(broken); !errors.Is(err, errStop) || fault.Is(err, fault.InvalidSnapshot) {
			t.Fatalf("a source that fails after %d bytes: %v", n, err)
		}
	}
	cut := io.MultiReader(bytes.NewReader(file[:len(file)/2]), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, err := snapshot.Verify(cut); !fault.Is(err, fault.InvalidSnapshot) {
		t.Errorf("a source cut off by its sender: %v", err)
	}
}

func TestWriterRefuses(t *testing.T) {
	open := func(w *snapshot.Writer) error { return w.Section("services") }
	put := func(key string, value []byte) func(*snapshot.Writer) error {
		return func(w *snapshot.Writer) error { return w.Put(key, value) }
	}
	for name, steps := range map[string][]func(*snapshot.Writer) error{
		"a record outside a section": {put("a", nil)},
		"a section twice":            {open, open},
		"a section without a name":   {func(w *snapshot.Writer) error { return w.Section("") }},
		"a long section name":        {func(w *snapshot.Writer) error { return w.Section(strings.Repeat("s", snapshot.MaxBucket+1)) }},
		"an empty key":               {open, put("", nil)},
		"a long key":                 {open, put(strings.Repeat("k", snapshot.MaxKey+1), nil)},
		"a large value":              {open, put("k", make([]byte, snapshot.MaxValue+1))},
		"a key twice":                {open, put("k", nil), put("k", nil)},
		"keys out of order":          {open, put("l", nil), put("k", nil)},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			w, err := snapshot.NewWriter(&out, testHeader)
			check(t, err)
			for i, step := range steps {
				err = step(w)
				if last := i == len(steps)-1; (err != nil) != last {
					t.Fatalf("step %d: %v", i, err)
				}
			}
			if err := w.Close(); err == nil || w.Summary() != nil {
				t.Fatalf("a Writer that refused closed as if whole: %v", err)
			}
			refused(t, out.Bytes(), "what it left")
		})
	}
}

func TestWriterReportsAFullDisk(t *testing.T) {
	whole, _ := encode(t, testHeader, testSections)
	for room := range len(whole) {
		w, err := snapshot.NewWriter(&full{room}, testHeader)
		for _, s := range testSections {
			if err == nil {
				err = w.Section(s.bucket)
			}
			for _, r := range s.records {
				if err == nil {
					err = w.Put(r.key, r.value)
				}
			}
		}
		if err == nil {
			err = w.Close()
		}
		if !errors.Is(err, errStop) {
			t.Fatalf("a disk with room for %d of %d bytes: %v", room, len(whole), err)
		}
	}
}

type full struct{ room int }

func (f *full) Write(p []byte) (int, error) {
	if len(p) > f.room {
		return f.room, errStop
	}
	f.room -= len(p)
	return len(p), nil
}

// The first format's file, written once and never again, stays readable.
func TestGoldenV1(t *testing.T) {
	f, err := os.Open("testdata/v1.snapshot")
	check(t, err)
	defer f.Close()
	var got kept
	sum, err := snapshot.Read(f, &got)
	check(t, err)
	h := testHeader
	h.Format = 1
	if got.header != h {
		t.Errorf("header %+v, want %+v", got.header, h)
	}
	const content = "de320a6822732e9459d4dad960e2013552c2456263f7f8f472597e1effe74aba"
	if sum.SHA256.String() != content || len(sum.Sections) != len(testSections) {
		t.Errorf("summary %s", asJSON(t, sum))
	}
	for _, s := range testSections {
		if fmt.Sprint(got.sections[s.bucket]) != fmt.Sprint(s.records) {
			t.Errorf("section %q is %v, want %v", s.bucket, got.sections[s.bucket], s.records)
		}
	}
}

func FuzzRead(f *testing.F) {
	file, _ := encode(f, testHeader, testSections)
	f.Add(file)
	f.Add(file[:len(file)/2])
	f.Add([]byte("MUSTERS1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got kept
		sum, err := snapshot.Read(bytes.NewReader(data), &got)
		if err != nil {
			if !fault.Is(err, fault.InvalidSnapshot) {
				t.Fatalf("not invalid_snapshot: %v", err)
			}
			return
		}
		// What is accepted means what it says: written again, it reads the same.
		var sections []section
		for _, s := range sum.Sections {
			sections = append(sections, section{s.Bucket, got.sections[s.Bucket]})
		}
		_, again := encode(t, got.header, sections)
		for i := range again.Sections {
			if again.Sections[i] != sum.Sections[i] {
				t.Fatalf("%+v became %+v", sum.Sections[i], again.Sections[i])
			}
		}
	})
}
