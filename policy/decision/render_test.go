package decision

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	v2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/policy"
)

func anyRecord() *rapid.Generator[*Record] {
	return rapid.Custom(func(t *rapid.T) *Record {
		text := func(name string) string {
			return rapid.OneOf(rapid.Just(""), rapid.String(), rapid.StringMatching(`[a-z"\\<\n]{1,9}`)).Draw(t, name)
		}
		value := func(name string) jsontext.Value {
			return rapid.SampledFrom([]jsontext.Value{nil, jsontext.Value(`true`), jsontext.Value(`{"a":["é",1.50,null]}`), jsontext.Value(`{"token":"SECRET"}`)}).Draw(t, name)
		}
		r := &Record{
			ID: text("id"), Time: time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC(), Node: text("node"),
			PolicyRevision: rapid.Uint64().Draw(t, "policy"), PolicyDigest: text("digest"), Revision: rapid.Uint64Range(0, 1<<62).Draw(t, "revision"), Engine: text("engine"), EntryPoint: text("entry"),
			Named: rapid.Bool().Draw(t, "named"), Document: rapid.Bool().Draw(t, "document"), Input: value("input"), InputBytes: rapid.IntRange(0, 9).Draw(t, "bytes"),
			TookNS: rapid.Int64().Draw(t, "took"), RequestedBy: text("by"), Principal: text("who"), RequestID: text("request"), Trace: Trace{text("trace"), text("span")},
			Chance: value("chance"), Query: text("query"),
			Result: Result{
				Allow: rapid.Bool().Draw(t, "allow"), Reasons: rapid.SliceOfN(rapid.String(), 0, 3).Draw(t, "reasons"), Filtered: value("filtered"), Missed: rapid.Bool().Draw(t, "missed"),
				Default: rapid.Bool().Draw(t, "default"), BreakGlass: rapid.Bool().Draw(t, "glass"), Cause: policy.Cause(text("cause")), Value: value("value"), ValueBytes: rapid.IntRange(0, 9).Draw(t, "value bytes"),
			},
		}
		for range rapid.IntRange(0, 10).Draw(t, "labels") {
			if r.Labels == nil {
				r.Labels = map[string]string{}
			}
			r.Labels[rapid.String().Draw(t, "label")] = text("value")
		}
		return r
	})
}

// What is written by hand is what the JSON library would write, and is read
// back as what it was.
func TestRecordsAreWrittenAsTheLibraryDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := anyRecord().Draw(t, "record")
		got := r.append(nil)
		want, err := v2.Marshal(r, v2.Deterministic(true))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s\nwant\n%s", got, want)
		}
		again, err := decode(got)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Result.Reasons) == 0 {
			r.Result.Reasons = nil
		}
		if !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v\nwant\n%+v", again, r)
		}
	})
}

// Every event is one line of JSON without what is masked, also when the memory
// of the one before is used again.
func TestEveryEventIsOneMaskedLine(t *testing.T) {
	m, err := NewMasker(append(DefaultMasks(), "/result/a/1"))
	if err != nil {
		t.Fatal(err)
	}
	e := new(Event)
	rapid.Check(t, func(t *rapid.T) {
		r := anyRecord().Draw(t, "record")
		got := e.of(r, m).JSON()
		if fresh := newEvent(r, m).JSON(); !bytes.Equal(got, fresh) {
			t.Fatalf("%s\nalone it is\n%s", got, fresh)
		}
		var v struct {
			ID     string `json:"decision_id"`
			Input  json.RawMessage
			Masked []string
			Result json.RawMessage
			Time   time.Time `json:"timestamp"`
			Labels map[string]string
		}
		if err := json.Unmarshal(got, &v); err != nil || bytes.ContainsAny(got, "\r\n") {
			t.Fatalf("%s: %v", got, err)
		}
		if v.ID != r.ID || !v.Time.Equal(r.Time) || len(v.Labels) != len(r.Labels) {
			t.Fatalf("%s", got)
		}
		if secret := bytes.Contains(r.Input, []byte("SECRET")); secret && (bytes.Contains(v.Input, []byte("SECRET")) || len(v.Masked) == 0) {
			t.Fatalf("%s", got)
		}
	})
}

// An input that came on several lines leaves on one.
func TestAPrettyInputLeavesOnOneLine(t *testing.T) {
	r := &Record{Input: []byte("{\n  \"token\": \"SECRET\",\r\n  \"a\": [ 1,\n 2 ]\n}\n")}
	got := newEvent(r, defaults).JSON()
	if bytes.ContainsAny(got, "\r\n") || !bytes.Contains(got, []byte(`"input":{"token":"***","a":[1,2]}`)) {
		t.Errorf("%s", got)
	}
}

// An input that nobody could read because the node was busy must not make the
// records around it unreadable.
func TestAnInputThatIsNoJSONIsNotKept(t *testing.T) {
	l, _ := newLog(t, Options{})
	d := decided(false)
	d.Missed = true
	l.Decided(active, &policy.Question{Raw: []byte(`{"a":`)}, d, 0)
	next := decided(false)
	l.Decided(active, ask(policy.Update), next, 0)
	for _, id := range []string{d.ID, next.ID} {
		if _, err := l.Get(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if r, err := l.Get(t.Context(), d.ID); err != nil || r.Input != nil || r.InputBytes != 5 {
		t.Errorf("%+v %v", r, err)
	}
}
