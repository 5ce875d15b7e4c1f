package registry

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// A spec is read as the JSON library reads it, whether it is as an edge made
// it, almost so, or not at all.
func TestAnInstanceIsReadAsTheLibraryDoes(t *testing.T) {
	text := rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[a-z0-9.é]{1,9}`), rapid.String())
	lasts := rapid.SampledFrom([]Duration{defaultTTL, defaultDeregister, 1, 90_000_000_000, 0, 1<<63 - 1})
	known := 0
	rapid.Check(t, func(t *rapid.T) {
		s := InstanceSpec{
			Address: text.Draw(t, "address"), Port: rapid.IntRange(0, 1<<33).Draw(t, "port"), Version: text.Draw(t, "version"), Zone: text.Draw(t, "zone"), Weight: rapid.IntRange(-1, 70_000).Draw(t, "weight"),
			Tags: rapid.SliceOfN(text, 0, 3).Draw(t, "tags"), Metadata: rapid.MapOfN(text, text, 0, 3).Draw(t, "metadata"), TTL: lasts.Draw(t, "ttl"), DeregisterAfter: lasts.Draw(t, "deregister"),
		}
		if rapid.IntRange(0, 4).Draw(t, "check") == 0 {
			s.Checks = []Check{{Type: "tcp", Name: text.Draw(t, "name"), Target: "a:1"}}
		}
		spec := s.appendSpec(nil)
		switch n := len(spec); rapid.IntRange(0, 3).Draw(t, "damage") {
		case 0:
			spec[rapid.IntRange(0, n-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "by"))
		case 1:
			at := rapid.IntRange(0, n).Draw(t, "at")
			spec = append(spec[:at:at], append([]byte(rapid.SampledFrom([]string{" ", "0", ",", "\"", "\\"}).Draw(t, "more")), spec[at:]...)...)
		case 2:
			spec = spec[:rapid.IntRange(0, n).Draw(t, "end")]
		}
		got, want := InstanceSpec{}, InstanceSpec{}
		err, wantErr := readInstance(spec, &got), readSpec(spec, &want)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%s: %v, and the library says %v", spec, err, wantErr)
		}
		got.trim()
		want.trim()
		if err == nil && !reflect.DeepEqual(got, want) {
			t.Fatalf("%s: %+v, and the library reads %+v", spec, got, want)
		}
		r := ordered{rest: spec}
		if r.instance(new(InstanceSpec)) {
			known++
		}
	})
	if known == 0 {
		t.Error("no spec was as expected")
	}
}
