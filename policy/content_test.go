package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/muster-registry/muster/fault"
)

func TestParseContent(t *testing.T) {
	c, err := ParseContent([]byte(`{"note":"n","data":{"b":[1.0,12345678901234567890],"a":1},"modules":{"b.rego":"package b","a.rego":"package a"},"entry_points":{"write":"data.my.pkg"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"modules":{"a.rego":"package a","b.rego":"package b"},"data":{"a":1,"b":[1.0,12345678901234567890]},"note":"n","entry_points":{"write":"my/pkg"}}`
	if got := string(c.Encode()); got != want {
		t.Errorf("canonical form\n%s\nwant\n%s", got, want)
	}
	if c.EntryPoints.For(Update) != "my/pkg" || c.EntryPoints.For(Watch) != DefaultLookup {
		t.Errorf("%+v", c.EntryPoints)
	}
}

func TestDigestIsOfWhatDecides(t *testing.T) {
	digest := func(body string) string {
		c, err := ParseContent([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return c.Digest()
	}
	base := digest(`{"modules":{"a":"1","b":"2"},"data":{"x":1,"y":2}}`)
	if !strings.HasPrefix(base, "sha256:") || len(base) != 7+64 {
		t.Errorf("%q", base)
	}
	for body, same := range map[string]bool{
		`{"note":"another","data":{"y":2,  "x":1},"modules":{"b":"2","a":"1"}}`:                    true,
		`{"modules":{"a":"1","b":"2"},"data":{"x":1,"y":3}}`:                                       false,
		`{"modules":{"a":"1","b":"3"},"data":{"x":1,"y":2}}`:                                       false,
		`{"modules":{"a":"1","c":"2"},"data":{"x":1,"y":2}}`:                                       false,
		`{"modules":{"a":"1","b":"2"},"data":{"x":1,"y":2},"entry_points":{"lookup":"api/other"}}`: false,
	} {
		if (digest(body) == base) != same {
			t.Errorf("%s: same = %v", body, !same)
		}
	}
}

func TestParseContentRefuses(t *testing.T) {
	for body, want := range map[string]struct {
		code    fault.Code
		pointer string
	}{
		``:                                   {fault.BadRequest, ""},
		`{`:                                  {fault.BadRequest, ""},
		`{"modules":{"a":"x"}} {}`:           {fault.BadRequest, ""},
		`{"modules":{"a":"x","a":"y"}}`:      {fault.BadRequest, ""},
		`{"data":{"k":1,"k":2}}`:             {fault.BadRequest, ""},
		"{\"modules\":{\"a\":\"\xff\"}}":     {fault.BadRequest, ""},
		strings.Repeat(`[`, 10_000):          {fault.BadRequest, ""},
		`{}`:                                 {fault.InvalidField, "/modules"},
		`{"modules":{}}`:                     {fault.InvalidField, "/modules"},
		`{"modules":[]}`:                     {fault.InvalidField, "/modules"},
		`{"modules":{"a":1}}`:                {fault.InvalidField, "/modules/a"},
		`{"modules":{"":"x"}}`:               {fault.InvalidField, "/modules"},
		`{"modules":{"a\nb":"x"}}`:           {fault.InvalidField, "/modules"},
		`{"modules":{"../a.rego":"x"}}`:      {fault.InvalidField, "/modules/..~1a.rego"},
		`{"modules":{"x/../../a.rego":"x"}}`: {fault.InvalidField, "/modules/x~1..~1..~1a.rego"},
		`{"modules":{"./a.rego":"x"}}`:       {fault.InvalidField, "/modules/.~1a.rego"},
		`{"modules":{"/etc/a.rego":"x"}}`:    {fault.InvalidField, "/modules/~1etc~1a.rego"},
		`{"modules":{"a/":"x"}}`:             {fault.InvalidField, "/modules/a~1"},
		`{"modules":{"a//b":"x"}}`:           {fault.InvalidField, "/modules/a~1~1b"},
		`{"modules":{"a\\b.rego":"x"}}`:      {fault.InvalidField, `/modules/a\b.rego`},
		`{"modules":{"a/b":"\u0000"}}`:       {fault.InvalidField, "/modules/a~1b"},
		`{"modules":{"a":"x"},"data":[]}`:    {fault.InvalidField, "/data"},
		`{"modules":{"a":"x"},"Note":"x"}`:   {fault.InvalidField, "/Note"},
		`{"modules":{"a":"x"},"more":true}`:  {fault.InvalidField, "/more"},
		`{"modules":{"a":"x"},"entry_points":{"write":"a b"}}`: {fault.InvalidField, "/entry_points/write"},
	} {
		_, err := ParseContent([]byte(body))
		f := fault.From(err)
		if f == nil || f.Code != want.code || (want.pointer != "" && (len(f.Fields) != 1 || f.Fields[0].Pointer != want.pointer)) {
			t.Errorf("%.60q: %v %+v", body, err, f)
		}
	}
}

func TestDuplicateKeysAreNamed(t *testing.T) {
	_, err := ParseContent([]byte(`{"modules":{"authz.rego":"x","authz.rego":"y"}}`))
	if err == nil || !strings.Contains(err.Error(), "authz.rego") {
		t.Errorf("%v", err)
	}
}

// A bundle's modules do not come through a JSON parser, which would refuse this.
func TestModulesAreUTF8(t *testing.T) {
	c := Content{Modules: map[string]string{"a.rego": "package a\n# \xff"}}
	if err := c.Normalize(); !fault.Is(err, fault.InvalidField) {
		t.Errorf("error = %v, want invalid_field", err)
	}
}

func TestEncodeAndDigestAreBoth(t *testing.T) {
	for _, c := range []Content{
		{Modules: map[string]string{"a.rego": "package a\n", "b.rego": "package b\n\"\\<é"}, Data: []byte(`{"x":1}`)},
		{Modules: map[string]string{"a.rego": "package a\n"}, Note: "a \"note\"\n"},
		{Data: []byte(`{"note":"x"}`), Note: "n", EntryPoints: EntryPoints{Write: "a/b", Lookup: "c"}},
		{Note: "alone"},
		{},
	} {
		encoded, digest := c.EncodeAndDigest()
		if want := c.Encode(); !bytes.Equal(encoded, want) {
			t.Errorf("%s\nwant\n%s", encoded, want)
		}
		without := c
		without.Note = ""
		sum := sha256.Sum256(without.Encode())
		if want := "sha256:" + hex.EncodeToString(sum[:]); digest != want || c.Digest() != want {
			t.Errorf("%s, want %s", digest, want)
		}
	}
}
