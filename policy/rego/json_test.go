package rego

import (
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

func TestJSONReadsAsOPAReadsIt(t *testing.T) {
	for _, text := range []string{
		`null`, `true`, `false`, `""`, `"a\u0000\n\"ü😀"`, `0`, `-1.50`, `1e400`, `1e-0400`, `12345678901234567890.1`,
		`[]`, `{}`, `[1,[2,{"a":null}],"x"]`, `{"a":{"b":[{}]},"":1,"0":"0","method":"GET"}`, " [ 1 , 2 ] ",
	} {
		want, err := ast.ValueFromReader(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		got, err := fromJSON([]byte(text))
		if err != nil || got.Compare(want) != 0 || got.Hash() != want.Hash() || got.String() != want.String() {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{``, `{`, `[1`, `{"a"}`, `{"a":1,"a":2}`, `1 2`, `nul`, "\"\xff\"", `{1:2}`, `[1,]`, `1e1000`, `-1E-100000000`, strings.Repeat("1", 5000), strings.Repeat("[", 100_000)} {
		if v, err := fromJSON([]byte(text)); err == nil {
			t.Errorf("%.20q is accepted as %v", text, v)
		}
	}
}
