package main

import (
	"bytes"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// Whoever pulls reads which commit was refused, and why.
func TestARefusedCommitIsNamed(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: &out, err: &out}
	state := `{"source":{"kind":"git","url":"https://git.example/p","branch":"main","path":"prod","commit":"9a91ccac9dab58d28011ffa7b8ce6a3ebd67aa0e"},"policy_revision":40,` +
		`"refused":{"commit":"f1b63465cbd51f9e0b2a","outcome":"bad_signature","message":"the commit is not believed: it is not signed"},"outcome":"bad_signature","history":[]}`
	if _, err := a.showSync(jsontext.Value(state), false); err != nil {
		t.Fatal(err)
	}
	contains(t, out.String(), "https://git.example/p main prod: bad_signature\n", "accepted: 9a91ccac9dab, policy revision 40\n",
		"refused:  f1b63465cbd5, the commit is not believed: it is not signed\n")
}
