package rego

import (
	"strings"
	"testing"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

func TestDecideRawAsksTheEntryPointOfTheAction(t *testing.T) {
	e := engine(t)
	rev := revision(t, "w.rego", head+`allow if input.x == "write"`, "l.rego", "package api.security.authz\nallow if input.x == \"look\"",
		"o.rego", "package other.place\nallow if input.x == \"other\"")
	for _, c := range []struct {
		entry, input string
		allow        bool
	}{
		{"", `{"action":"register","x":"write"}`, true},
		{"", `{"action":"lookup","x":"write"}`, false},
		{"", `{"action":"lookup","x":"look"}`, true},
		{"", `{"action":"watch","x":"look"}`, true},
		{"", `{"x":"write"}`, true},
		{"", `{"action":7,"x":"write"}`, true},
		{"", `[]`, false},
		{"", `null`, false},
		{"other/place", `{"action":"lookup","x":"other"}`, true},
		{"other.place", `{"x":"other"}`, true},
		{"data.other.place", `{"x":"other"}`, true},
		{"other/place", `{"x":"write"}`, false},
		{"no/such", `{"x":"write"}`, false},
		{"other/place/allow", `{"x":"other"}`, false},
	} {
		d, err := e.DecideRaw(t.Context(), rev, c.entry, []byte(c.input))
		if err != nil || d.Allow != c.allow || d.Allow == (len(d.Reasons) > 0) || d.PolicyRevision != 7 || d.ID == "" || d.Default {
			t.Errorf("%q %s: %+v, %v", c.entry, c.input, d, err)
		}
		if c.entry == "other/place/allow" && d.Reasons[0] != "the entry point data.other.place.allow cannot be asked: it is a rule; name the package that it is in" {
			t.Errorf("%q", d.Reasons)
		}
	}
}

// Row 8 of the bad input.
func TestDecideRawRefusesWhatItCannotAsk(t *testing.T) {
	e := engine(t)
	rev := revision(t, "w.rego", head+"allow := true")
	for _, entry := range []string{`x"]; allow = true #`, "a/../b", "a//b", "/a", "a/", "a b", "a[b]", `a"`, "1a", "a/1", "a\x00", "é", ".", "..", "a..b", strings.Repeat("a", 1000)} {
		if d, err := e.DecideRaw(t.Context(), rev, entry, []byte(`{}`)); !fault.Is(err, fault.BadRequest) || d.Allow || d.ID != "" {
			t.Errorf("%q: %+v, %v", entry, d, err)
		}
	}
	for _, input := range []string{``, `{`, `{"a":1,"a":2}`, `{} {}`, "\"\xff\"", strings.Repeat("[", 10_000)} {
		if d, err := e.DecideRaw(t.Context(), rev, "", []byte(input)); !fault.Is(err, fault.BadRequest) || d.Allow {
			t.Errorf("%.20q: %+v, %v", input, d, err)
		}
	}
}

func TestDecideRawWithoutAPolicyAsksTheRoles(t *testing.T) {
	e := engine(t)
	lookupsOnly := revision(t, "l.rego", "package api.security.authz\nallow := false")
	for _, c := range []struct {
		input string
		allow bool
	}{
		{`{"action":"register","principal":{"roles":["publisher"]},"resource":{"kind":"service","namespace":"a"}}`, true},
		{`{"action":"register","principal":{"roles":["publisher"],"namespaces":["b"]},"resource":{"kind":"service","namespace":"a"}}`, false},
		{`{"action":"register","principal":{"roles":["publisher"],"namespaces":"b"},"resource":{"kind":"service","namespace":"a"}}`, false},
		{`{"action":"register","principal":{"roles":["viewer"]},"resource":{"kind":"service","namespace":"a"}}`, false},
		{`{"action":"register"}`, false},
		{`{}`, false},
		{`[]`, false},
	} {
		for _, rev := range []*policy.Revision{nil, lookupsOnly} {
			d, err := e.DecideRaw(t.Context(), rev, "", []byte(c.input))
			if err != nil || d.Allow != c.allow || !d.Default || d.Allow == (len(d.Reasons) > 0) {
				t.Errorf("%s: %+v, %v", c.input, d, err)
			}
		}
	}
	if d, err := e.DecideRaw(t.Context(), nil, "any/thing", []byte(`{}`)); err != nil || d.Allow || len(d.Reasons) != 1 {
		t.Errorf("a named entry point without a policy: %+v, %v", d, err)
	}
}
