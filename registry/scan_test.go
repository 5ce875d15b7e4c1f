package registry

import (
	"reflect"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"
)

// drawn is an instance's record as seal writes it.
func drawn(t *rapid.T) []byte {
	text := rapid.OneOf(rapid.StringMatching(`[a-z0-9.:-]{0,12}`), rapid.String())
	at := func() time.Time {
		return time.Unix(rapid.Int64Range(0, 253402300799).Draw(t, "seconds"), rapid.SampledFrom([]int64{0, 1, 5e8, 999999999}).Draw(t, "nanoseconds")).UTC()
	}
	i := &Instance{Namespace: "default", Service: "cart", ID: rapid.StringMatching(`[a-z0-9]{1,8}`).Draw(t, "id"),
		InstanceSpec: InstanceSpec{
			Address: text.Draw(t, "address"), Port: rapid.IntRange(-1, 70000).Draw(t, "port"), Version: text.Draw(t, "version"),
			Zone: text.Draw(t, "zone"), Weight: rapid.IntRange(0, 65535).Draw(t, "weight"),
			Tags:     rapid.SliceOfN(text, 0, 3).Draw(t, "tags"),
			Metadata: rapid.MapOfN(text, text, 0, 3).Draw(t, "metadata"),
			TTL:      Duration(rapid.Int64Range(0, 1e14).Draw(t, "ttl")), DeregisterAfter: Duration(rapid.SampledFrom([]int64{0, 36e11, 864e11}).Draw(t, "deregister")),
		},
		Status: rapid.SampledFrom([]string{Passing, Critical, Maintenance}).Draw(t, "status"), StatusBy: rapid.SampledFrom([]string{"", ByLease, ByChecks}).Draw(t, "by"),
		OwnStatus: rapid.SampledFrom([]string{"", Warning}).Draw(t, "own"),
		Meta:      Meta{Revision: rapid.Uint64().Draw(t, "revision"), CreatedAt: at(), CreatedBy: text.Draw(t, "creator")},
	}
	i.UpdatedAt = i.CreatedAt
	if rapid.Bool().Draw(t, "updated") {
		i.UpdatedAt = at()
	}
	if rapid.IntRange(0, 9).Draw(t, "checked") == 0 {
		i.Checks = []Check{{ID: "a", Name: "a", Type: CheckTTL}}
		i.begin(nil)
	}
	i.seal()
	return i.JSON
}

// What the scanner takes of a record is what the JSON decoder reads in it, also
// where the record was changed; and it takes those that are written plainly.
func TestScannerReadsWhatTheDecoderReads(t *testing.T) {
	taken := 0
	rapid.Check(t, func(t *rapid.T) {
		b := drawn(t)
		for range rapid.IntRange(0, 2).Draw(t, "changes") {
			at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
			with := rapid.OneOf(rapid.SampledFrom([]byte(`0",{}[]\: -+e.Zn`)), rapid.Byte()).Draw(t, "with")
			switch rapid.IntRange(0, 2).Draw(t, "how") {
			case 0:
				b[at] = with
			case 1:
				b = append(b[:at], b[at+1:]...)
			default:
				b = append(b[:at], append([]byte{with}, b[at:]...)...)
			}
		}
		var fast Instance
		if s := (scanner{rest: b, words: newWords()}); !s.instance(&fast) {
			return
		}
		taken++
		var slow Instance
		if err := json.Unmarshal(b, &slow); err != nil {
			t.Fatalf("%s\nis taken, and is %v", b, err)
		}
		slow.trim()
		if !reflect.DeepEqual(fast, slow) {
			t.Fatalf("%s\nis read as\n%+v\nand is\n%+v", b, fast, slow)
		}
	})
	if taken == 0 {
		t.Error("it has taken none")
	}
	i := &Instance{Namespace: "default", Service: "cart", ID: "a", Status: Passing,
		InstanceSpec: InstanceSpec{Address: "10.0.0.1", Port: 80, Weight: 1, Tags: []string{"ü"}, Metadata: map[string]string{"k": "v"}, TTL: Duration(24 * time.Hour)}}
	i.seal()
	if s := (scanner{rest: i.JSON, words: newWords()}); !s.instance(new(Instance)) {
		t.Errorf("%s is not in the form", i.JSON)
	}
}
