package audit

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// TestRenderedAsReflectionDoes: a line is, byte for byte, what the JSON library
// makes of the entry, whatever stands in its fields; also in one that is new and
// that nobody has told the renderer of.
func TestRenderedAsReflectionDoes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var c clock
	for i := range 20_000 {
		var e Entry
		fill(r, reflect.ValueOf(&e).Elem(), i%4)
		e.Time = e.Time.UTC()
		want, err := json.Marshal(&e, jsontext.AllowInvalidUTF8(true))
		if err != nil {
			t.Fatal(err)
		}
		const before = "what stands there"
		if got := string(e.render([]byte(before), &c)); got != before+string(want) {
			t.Fatalf("rendered\n%s, and by the library\n%s", got[len(before):], want)
		}
	}
}

// TestTimesOfOneSecond: the text of a second that is kept is that of the second.
func TestTimesOfOneSecond(t *testing.T) {
	var c clock
	at := time.Date(2026, 12, 31, 23, 59, 58, 0, time.UTC)
	for _, after := range []time.Duration{0, 1, 120_000_000, 999_999_999, time.Second, time.Second + 1_000, 0, 10, 2 * time.Second, 2*time.Second - 1, -time.Second, 1 << 62} {
		if got, want := string(c.append([]byte("at "), at.Add(after))), "at "+at.Add(after).Format(time.RFC3339Nano); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
	if got, want := string(c.append(nil, time.Time{})), (time.Time{}).Format(time.RFC3339Nano); got != want {
		t.Errorf("%s, not %s", got, want)
	}
}

// TestEveryByteInAText: wherever in a string a byte stands that JSON has to write
// in another way, it is written so.
func TestEveryByteInAText(t *testing.T) {
	for b := range 256 {
		for size := 1; size <= 17; size++ {
			for at := range size {
				s := []byte("abcdefghijklmnopq")[:size]
				s[at] = byte(b)
				want, _ := jsontext.AppendQuote(nil, s) // the error says that it is no UTF-8
				if got := AppendText(nil, string(s)); string(got) != string(want) {
					t.Fatalf("%q is written as %s, not %s", s, got, want)
				}
			}
		}
	}
}

// fill sets fields to anything: one in eight, half of them, nearly all or all.
func fill(r *rand.Rand, e reflect.Value, most int) {
	for i := range e.NumField() {
		if r.IntN(8) >= []int{1, 4, 7, 8}[most] {
			continue
		}
		switch f := e.Field(i); v := f.Interface().(type) {
		case time.Time:
			zone := time.FixedZone("", (r.IntN(24)-12)*3600)
			f.Set(reflect.ValueOf(time.Unix(r.Int64N(1<<33), r.Int64N(2)*r.Int64N(1e9)).In(zone)))
		case []string:
			all := make([]string, r.IntN(3))
			for i := range all {
				all[i] = anything(r)
			}
			f.Set(reflect.ValueOf(all))
		default:
			switch f.Kind() {
			case reflect.Interface:
				f.Set(reflect.ValueOf(Rendered("of the mirror")))
			case reflect.String:
				f.SetString(anything(r))
			case reflect.Uint64:
				f.SetUint(r.Uint64() >> r.IntN(64))
			case reflect.Int:
				f.SetInt(r.Int64() >> r.IntN(64))
			case reflect.Bool:
				f.SetBool(true)
			default:
				panic(v)
			}
		}
	}
}

func anything(r *rand.Rand) string {
	parts := []string{"token:ann", "service default/cart", `"`, `\`, "\n", "\x00", "\x7f", "\xff", "é", "\u2028", "<&>", "\U0001F980", "\xed\xa0\x80", "/", ""}
	s := ""
	for range r.IntN(4) {
		s += parts[r.IntN(len(parts))]
	}
	return s
}

func BenchmarkRender(b *testing.B) {
	e := Entry{
		Seq: 4711, Time: time.Now().UTC(), Node: "n1", Type: Change, Event: Evaluated, Principal: "token:operator", Action: "update", Record: "instance bench/svc-0/i-1", Revision: 4700,
		DecisionID: "01a206f8-fefb-70ff-b5b3-526bbdbeae57", PolicyRevision: 3, RequestID: "6a1f0d2c7e9b4a53-1", Outcome: Applied,
	}
	var to []byte
	var c clock
	b.ReportAllocs()
	for b.Loop() {
		to, _ = link(e.render(to[:0], &c), 0, zero)
	}
}
