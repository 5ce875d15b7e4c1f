package definition_test

import (
	"testing"

	"github.com/muster-registry/muster/registry/definition"
)

// A policy sees the same definition however it was written.
func TestJSONForm(t *testing.T) {
	for name, c := range map[string]struct{ format, document, want string }{
		"JSON":    {"openapi", `{"openapi":"3.1.0"}`, `{"openapi":"3.1.0"}`},
		"YAML":    {"openapi", "openapi: 3.1.0\nservers: [{url: \"http://a\"}]\n", `{"openapi":"3.1.0","servers":[{"url":"http://a"}]}`},
		"GraphQL": {"graphql", "type Query { a: Int }", `"type Query { a: Int }"`},
		"neither": {"openapi", "\x00", ""},
	} {
		if got := string(definition.JSON(c.format, []byte(c.document))); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
