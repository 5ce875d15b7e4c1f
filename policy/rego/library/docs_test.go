package library_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/muster-registry/muster/policy/rego/library"
)

// TestDocumentation compares the list of rules in the documentation with what
// the rules say about themselves.
func TestDocumentation(t *testing.T) {
	var b strings.Builder
	b.WriteString("\n| rule | severity | OWASP | NIST | |\n|---|---|---|---|---|\n")
	for _, r := range open(t, library.Options{}).Rules() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", r.ID, r.Severity, r.OWASP, r.NIST, strings.ReplaceAll(r.Description, "|", `\|`))
	}
	name := filepath.Join("..", "..", "..", "docs", "definition-rules.md")
	page, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), "-update -->\n")
	_, after, also := strings.Cut(rest, "<!-- end of rules -->")
	if !ok || !also {
		t.Fatalf("%s does not mark where the rules begin and end", name)
	}
	want := before + "-update -->\n" + b.String() + "\n<!-- end of rules -->" + after
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(page) {
		t.Errorf("%s does not list the rules as they are; run go test ./policy/rego/library -update", name)
	}
}
