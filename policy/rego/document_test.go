package rego

import (
	"bytes"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/policy"
)

// What leaves the node as the input document is what rules see in it.
func TestTheDocumentIsWhatRulesSee(t *testing.T) {
	same := func(t rapid.TB, in *policy.Input) {
		t.Helper()
		b, err := in.Document()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ast.ValueFromReader(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		if want := document.build(in).Value; got.Compare(want) != 0 {
			t.Fatalf("%s\nrules see %v", b, want)
		}
	}
	same(t, &policy.Input{})
	rapid.Check(t, func(t *rapid.T) { same(t, someInput(t)) })
}

func TestADocumentOfWhatIsNotJSONIsAnError(t *testing.T) {
	if b, err := (&policy.Input{Resource: policy.Resource{Payload: []byte(`{"a":`)}}).Document(); err == nil {
		t.Errorf("%s", b)
	}
}
