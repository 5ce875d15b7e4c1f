package rego

import (
	"strings"
	"testing"

	"github.com/muster-registry/muster/policy"
)

func adminCall() *policy.Input {
	return &policy.Input{
		Action: policy.Register, Protocol: "https", Method: "POST", Scheme: "https",
		Headers: map[string]string{"Authorization": jwt(map[string]any{"roles": []string{"dev", "api_admin"}})},
		Resource: policy.Resource{
			Kind: "version", Namespace: "default", Name: "cart",
			Metadata: []byte(`{"security_level":"restricted"}`), Payload: []byte(`{"openapi":"3.1.0"}`),
		},
	}
}

func TestPrintedRegistryPolicyLoadsAndWorks(t *testing.T) {
	e := engine(t)
	rev := revision(t, "authz.rego", read(t, "testdata", "printed-registry.rego"))
	if _, err := e.Check(t.Context(), &rev.Content); err != nil {
		t.Fatalf("the policy as printed is refused: %v", err)
	}
	if d := e.Decide(t.Context(), rev, adminCall()); !d.Allow || d.PolicyRevision != 7 || len(d.ID) != 36 {
		t.Fatalf("an api_admin's POST of a restricted resource: %+v", d)
	}
	for name, spoil := range map[string]func(*policy.Input){
		"another method":    func(in *policy.Input) { in.Method = "PUT" },
		"not restricted":    func(in *policy.Input) { in.Resource.Metadata = []byte(`{"security_level":"open"}`) },
		"another role":      func(in *policy.Input) { in.Headers["Authorization"] = jwt(map[string]any{"roles": []string{"dev"}}) },
		"no token":          func(in *policy.Input) { in.Headers = nil },
		"not a token":       func(in *policy.Input) { in.Headers["Authorization"] = "Bearer x" },
		"not a definition":  func(in *policy.Input) { in.Resource.Payload = []byte(`{"swag":1}`) },
		"nothing to decide": func(in *policy.Input) { *in = policy.Input{} },
	} {
		in := adminCall()
		spoil(in)
		if d := e.Decide(t.Context(), rev, in); d.Allow || len(d.Reasons) == 0 {
			t.Errorf("%s: %+v, want a refusal with a reason", name, d)
		}
	}
}

func TestPrintedLookupPolicyIsRefusedWithTheReason(t *testing.T) {
	e := engine(t)
	rev := revision(t, "authz.rego", read(t, "testdata", "printed-lookup.rego"))
	_, err := e.Check(t.Context(), &rev.Content)
	f := refusal(t, err)
	for _, want := range []string{"undefined ref: payload.exp", "[header, payload, signature]", "no verdict", "seconds", "nanoseconds", "io.jwt.decode_verify"} {
		if !strings.Contains(f.Detail, want) {
			t.Errorf("the error does not mention %q: %s", want, f.Detail)
		}
	}
	if p := f.Places[0]; p.File != "authz.rego" || p.Row != 14 {
		t.Errorf("the error points at %s:%d, want authz.rego:14", p.File, p.Row)
	}
	if d := e.Decide(t.Context(), rev, adminCall()); d.Allow || len(d.Reasons) == 0 {
		t.Errorf("a revision that does not compile allows: %+v", d)
	}
}

func TestCurlyQuotesAreExplained(t *testing.T) {
	e := engine(t)
	curly := strings.NewReplacer(`"POST"`, "“POST”").Replace(read(t, "testdata", "printed-registry.rego"))
	rev := revision(t, "authz.rego", curly)
	_, err := e.Check(t.Context(), &rev.Content)
	f := refusal(t, err)
	for _, p := range f.Places {
		if strings.Contains(p.Message, "plain quotes") && p.Row == 8 {
			return
		}
	}
	t.Errorf("no place says to use plain quotes: %+v", f.Places)
}

func TestCurlyQuotesInsideATextAreNoMistake(t *testing.T) {
	rev := revision(t, "authz.rego", "package api.registry.authz\n# “quoted”\nallow := \"“yes”\" == \"“yes”\"\n")
	if _, err := engine(t).Check(t.Context(), &rev.Content); err != nil {
		t.Error(err)
	}
}
