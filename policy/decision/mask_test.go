package decision

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestDefaultMasks(t *testing.T) {
	input := `{"token":"s3cret","headers":{"AUTHORIZATION":"Bearer s3cret","X-Dept":"shop"},"principal":{"claims":{"sub":"ann"}},` +
		`"attributes":{"request":{"http":{"headers":{"authorization":"Bearer s3cret","cookie":"","x-dept":"shop"}}}},"other":{"token":"kept"}}`
	want := `{"token":"***","headers":{"AUTHORIZATION":"***","X-Dept":"shop"},"principal":{"claims":{"sub":"ann"}},` +
		`"attributes":{"request":{"http":{"headers":{"authorization":"***","cookie":"","x-dept":"shop"}}}},"other":{"token":"kept"}}`
	if got := string(Mask([]byte(input))); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestMaskByPointer(t *testing.T) {
	document := `{"a":{"b":[{"c":1,"d":2},{"c":{"x":1}}]},"a/b":{"~":"t"},"n":null}`
	for _, tc := range []struct {
		pointers, masked []string
		want             string
	}{
		{nil, nil, document},
		{[]string{"/input/a/b/*/c"}, []string{"/input/a/b/0/c", "/input/a/b/1/c"}, `{"a":{"b":[{"c":"***","d":2},{"c":"***"}]},"a/b":{"~":"t"},"n":null}`},
		{[]string{"/input/a/b/1"}, []string{"/input/a/b/1"}, `{"a":{"b":[{"c":1,"d":2},"***"]},"a/b":{"~":"t"},"n":null}`},
		{[]string{"/input/A~1B/~0", "/input/n", "/input/absent/x"}, []string{"/input/a~1b/~0"}, `{"a":{"b":[{"c":1,"d":2},{"c":{"x":1}}]},"a/b":{"~":"***"},"n":null}`},
		{[]string{"/input"}, []string{"/input"}, `"***"`},
		{[]string{"/input/*"}, []string{"/input/a", "/input/a~1b"}, `{"a":"***","a/b":"***","n":null}`},
		{[]string{"/result/a"}, nil, document},
	} {
		m, err := NewMasker(tc.pointers)
		if err != nil {
			t.Fatal(err)
		}
		got, masked := m.Mask("input", []byte(document))
		if string(got) != tc.want || !slices.Equal(masked, tc.masked) {
			t.Errorf("%q:\n%s %q\nwant\n%s %q", tc.pointers, got, masked, tc.want, tc.masked)
		}
	}
}

// Who masks a header in one of the places that hold it means both.
func TestAHeaderIsMaskedInBothPlaces(t *testing.T) {
	input := []byte(`{"headers":{"X-Pin":"4711"},"attributes":{"request":{"http":{"headers":{"x-pin":"4711"}}}}}`)
	for _, pointer := range []string{"/input/headers/x-pin", "/input/attributes/request/http/headers/X-PIN"} {
		m, err := NewMasker([]string{pointer})
		if err != nil {
			t.Fatal(err)
		}
		if got, masked := m.Mask("input", input); strings.Contains(string(got), "4711") || len(masked) != 2 {
			t.Errorf("%s: %s %q", pointer, got, masked)
		}
	}
}

// The path of a request has its query, and what is asked there may come with a
// credential in it.
func TestCredentialsInAQueryAreMasked(t *testing.T) {
	input := func(path string) []byte {
		return []byte(`{"attributes":{"request":{"http":{"path":"` + path + `"}}}}`)
	}
	for path, want := range map[string]string{
		"/v1/discovery":                                       "/v1/discovery",
		"/v1/discovery?":                                      "/v1/discovery?",
		"/v1/discovery?tag=a&namespace=b":                     "/v1/discovery?tag=a&namespace=b",
		"/v1/catalog?dc=x&token=SECRET&y=1":                   "/v1/catalog?dc=x&token=***&y=1",
		"/x?Access_Token=SECRET":                              "/x?Access_Token=***",
		"/x?to%6ben=SECRET;password=SE%43RET":                 "/x?to%6ben=***&password=***",
		"/x?%zz=SECRET&a=b":                                   "/x?%zz=***&a=b",
		"/x?next=/y?token=SECRET&token=SECRET&client_secret=": "/x?next=***&token=***&client_secret=",
	} {
		got := string(Mask(input(path)))
		if want := string(input(want)); got != want {
			t.Errorf("%s became %s, want %s", path, got, want)
		}
	}
	if secrets := defaults.Secrets("input", input("/x?token=a%2Fsecret")); !slices.Contains(secrets, "a/secret") || !slices.Contains(secrets, "a%2Fsecret") {
		t.Errorf("secrets = %q", secrets)
	}
}

// A token is an argument of the built-in that verifies it, and a message may
// repeat it: neither leaves the node in an event.
func TestEventsDoNotRepeatWhatIsMasked(t *testing.T) {
	r := &Record{
		ID: "1", EntryPoint: "a/b", Input: []byte(`{"token":"aaaa.bbbb.SECRET","x":1}`),
		Chance: []byte(`{"io.jwt.decode_verify":{"[\"aaaa.bbbb.SECRET\",{}]":[false,{},{}]}}`),
		Result: Result{Reasons: []string{"the token aaaa.bbbb.SECRET is not good"}},
	}
	m, err := NewMasker(DefaultMasks())
	if err != nil {
		t.Fatal(err)
	}
	event := newEvent(r, m).JSON()
	report, err := json.Marshal(NewReport(r, m))
	if err != nil {
		t.Fatal(err)
	}
	for what, b := range map[string][]byte{"event": event, "report": report} {
		if strings.Contains(string(b), "SECRET") || !strings.Contains(string(b), "is not good") || !json.Valid(b) {
			t.Errorf("%s: %s", what, b)
		}
	}
	if !strings.Contains(r.Result.Reasons[0], "SECRET") {
		t.Error("the record itself was changed")
	}
}

func TestPointersThatMaskNothingAreRefused(t *testing.T) {
	for _, p := range []string{"", "token", "/token", "input/token", "/Input/token", "/inputs/x"} {
		if _, err := NewMasker([]string{p}); err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

// What cannot be read must not leave unmasked.
func TestWhatIsNotJSONIsMaskedWhole(t *testing.T) {
	for _, broken := range []string{"", "{", `{"token":`, `{"token":"x"`, "\xff"} {
		if got := string(Mask([]byte(broken))); got != `"***"` {
			t.Errorf("%q: %s", broken, got)
		}
	}
}

// Wherever a secret stands below a masked name, it is gone, and its text is
// among the secrets.
func TestNoSecretIsLeft(t *testing.T) {
	m, err := NewMasker([]string{"/input/*/token", "/input/token"})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		secret := "SECRET" + rapid.StringMatching(`[a-z"\\é]{0,8}`).Draw(t, "secret")
		name := rapid.SampledFrom([]string{"token", "TOKEN", "Token"}).Draw(t, "name")
		document := map[string]any{"k": rapid.String().Draw(t, "other")}
		if rapid.Bool().Draw(t, "deep") {
			document["x"] = map[string]any{name: []any{map[string]any{"y": secret}}}
		} else {
			document[name] = secret
		}
		b, err := json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		got, masked := m.Mask("input", b)
		if strings.Contains(string(got), "SECRET") || len(masked) != 1 || !json.Valid(got) {
			t.Fatalf("%s became %s, masked %q", b, got, masked)
		}
		if !slices.Contains(m.Secrets("input", b), secret) {
			t.Fatalf("%q is not among the secrets of %s", secret, b)
		}
	})
}
