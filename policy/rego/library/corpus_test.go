package library_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/policy/rego/library"
	"github.com/muster-registry/muster/registry/definition"
)

var update = flag.Bool("update", false, "write testdata/corpus.json anew")

// corpus is the folder of published definitions: MUSTER_CORPUS, or
// shared/corpus in a parent of this folder.
func corpus(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("MUSTER_CORPUS"); dir != "" {
		return dir
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "shared", "corpus")); err == nil {
			return filepath.Join(dir, "shared", "corpus")
		}
	}
	t.Skip("the corpus of published definitions is not here: set MUSTER_CORPUS to its folder")
	return ""
}

// TestCorpus compares what the rules find in published definitions with what
// was looked at and found right: how often each rule finds something.
func TestCorpus(t *testing.T) {
	dir := corpus(t)
	l := open(t, library.Options{})
	got := map[string]map[string]int{}
	for _, format := range []string{"openapi", "swagger2", "asyncapi"} {
		files, err := filepath.Glob(filepath.Join(dir, format, "*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no definitions of %s: %v", format, err)
		}
		for _, f := range files {
			document, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			r := l.Review(t.Context(), nil, strings.Replace(format, "swagger2", "openapi", 1), document, nil)
			counts := map[string]int{"high": r.Counts["high"], "medium": r.Counts["medium"], "low": r.Counts["low"], "info": r.Counts["info"]}
			for _, finding := range r.Findings {
				counts["rule "+finding.Rule]++
				if finding.Rule == definition.NotChecked {
					t.Errorf("%s: %s", f, finding.Message)
				}
			}
			got[format+"/"+filepath.Base(f)] = counts
		}
	}
	const golden = "testdata/corpus.json"
	if *update {
		b, err := json.MarshalIndent(got, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]int{}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-looked at +found now; where that is right, run with -update\n%s", diff)
	}
}
