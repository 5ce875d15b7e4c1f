package rego

import (
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// A proxy gets the answer that the package shapes along with the verdict,
// which stays what it is for everybody else; and a replay gives the same.
func TestDecideResponse(t *testing.T) {
	e := New(Options{})
	t.Cleanup(e.Close)
	rev := &policy.Revision{Number: 3, Content: policy.Content{Modules: map[string]string{
		"authz.rego": `package api.security.authz
import rego.v1
default allow := false
allow if input.user == "ann"
deny contains "not on Sundays" if input.day == "sunday"
headers := {"x-user": input.user}
http_status := 418 if not allow
body := sprintf("no, %s", [input.user]) if not allow
dynamic_metadata := {"n": 1}
`,
		"plugin.rego": `package envoy.authz
import rego.v1
default allow := {"allowed": false, "http_status": 301}
allow := {"allowed": true, "headers": {"x": "y"}, "other": 1} if input.user == "ann"
result["allowed"] := input.user == "ann"
result["body"] := "b"
`,
		"bad.rego": `package bad
import rego.v1
allow := true
headers := {"a": "1"} if input.user
headers := {"a": "2"} if input.user
`,
	}}}
	rev.Digest = rev.Content.Digest()
	for name, c := range map[string]struct {
		entry, input string
		allow        bool
		result       string
	}{
		"allowed":                 {"api/security/authz", `{"user":"ann"}`, true, `{"dynamic_metadata":{"n":1},"headers":{"x-user":"ann"}}`},
		"not allowed":             {"api.security.authz", `{"user":"bob"}`, false, `{"body":"no, bob","dynamic_metadata":{"n":1},"headers":{"x-user":"bob"},"http_status":418}`},
		"denied":                  {"api/security/authz", `{"user":"ann","day":"sunday"}`, false, `{"dynamic_metadata":{"n":1},"headers":{"x-user":"ann"}}`},
		"nothing given":           {"api/security/authz", `{}`, false, `{"dynamic_metadata":{"n":1},"http_status":418}`},
		"allow is an object":      {"envoy/authz", `{"user":"ann"}`, true, `{"headers":{"x":"y"}}`},
		"and says no":             {"envoy/authz", `{"user":"bob"}`, false, `{"http_status":301}`},
		"a rule":                  {"envoy/authz/allow", `{"user":"ann"}`, true, `{"headers":{"x":"y"}}`},
		"a rule of several parts": {"envoy/authz/result", `{"user":"ann"}`, true, `{"body":"b"}`},
		"the same says no":        {"envoy/authz/result", `{"user":"bob"}`, false, `{"body":"b"}`},
		"two answers":             {"bad", `{"user":"ann"}`, false, ``},
		"nothing there":           {"none/such", `{}`, false, ``},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := e.DecideResponse(t.Context(), rev, c.entry, []byte(c.input))
			if err != nil {
				t.Fatal(err)
			}
			got := jsontext.Value(d.Result)
			if len(got) > 0 {
				if err := got.Canonicalize(); err != nil {
					t.Fatal(err)
				}
			}
			if d.Allow != c.allow || string(got) != c.result || d.Allow == (len(d.Reasons) > 0) {
				t.Errorf("%+v with %s", d, got)
			}
			again, err := e.Replay(t.Context(), rev, &policy.Past{EntryPoint: d.EntryPoint, Input: []byte(c.input), Response: true, Time: d.Time})
			if err != nil || again.Allow != d.Allow || string(again.Result) != string(d.Result) {
				t.Errorf("again: %+v %v", again, err)
			}
		})
	}
	// Without a proxy the same entry point has a verdict and nothing else, and an object for allow is none.
	if d, err := e.DecideRaw(t.Context(), rev, "api/security/authz", []byte(`{"user":"ann"}`)); err != nil || !d.Allow || d.Result != nil {
		t.Errorf("%+v %v", d, err)
	}
	if d, err := e.DecideRaw(t.Context(), rev, "envoy/authz", []byte(`{"user":"ann"}`)); err != nil || d.Allow {
		t.Errorf("%+v %v", d, err)
	}
	if _, err := e.DecideResponse(t.Context(), rev, "", []byte(`{}`)); !fault.Is(err, fault.BadRequest) {
		t.Errorf("no entry point: %v", err)
	}
	if d, err := e.DecideResponse(t.Context(), nil, "api/security/authz", []byte(`{"principal":{"roles":["operator"]}}`)); err != nil || d.Allow {
		t.Errorf("without a policy: %+v %v", d, err)
	}
}
