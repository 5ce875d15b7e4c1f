package node_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// covered says which test shows what becomes of each row of bad input at each
// edge that can receive it, as folder.Function. A new edge adds its name to the
// rows that reach it; TestEveryRowIsCovered holds the names to what there is.
var covered = map[int]map[string]string{
	1:  {"rest": "node.tooLarge", "opa": "node.badInput", "consul": "node.TestConsulMistakes", "rpc": "node.TestRPCAnswersAsREST", "sent in whole": "node.wholeBodies", "peer": "cluster.TestHostileFrames"},
	2:  {"rest": "node.bodies", "opa": "node.badInput", "consul": "node.TestConsulMistakes", "rpc": "node.TestRPCAnswersAsREST"},
	3:  {"rest": "node.bodies", "opa": "node.badInput", "consul": "node.TestConsulMistakes", "rpc": "node.TestRPCAnswersAsREST"},
	4:  {"rest": "node.bodies", "consul": "node.TestConsulMistakes"}, // OPA takes any input and ignores other members; protobuf keeps unknown fields for newer versions
	5:  {"rest": "node.bodies", "opa": "node.badInput", "consul": "node.TestConsulMistakes", "rpc": "node.TestRPCAnswersAsREST"},
	6:  {"rest": "node.names", "consul": "node.TestConsulMistakes", "rpc": "node.TestRPCAnswersAsREST"},
	7:  {"rest": "node.paths", "opa": "node.badInput", "consul": "node.TestConsulMistakes"}, // gRPC has fixed paths
	8:  {"opa": "node.badInput"},
	9:  {"rest": "node.definitions", "opa": "node.badInput"}, // OPA takes no aliases, with the status that OPA has for what it cannot read
	10: {"rest": "node.gzip", "opa": "node.badInput", "consul": "node.TestConsulMistakes", "rpc": "node.TestRPCAnswersAsREST"},
	11: {"rest": "node.bundles"},
	12: {"rest": "node.TestSignedPolicies"},
	13: {"rest": "node.outOfReach", "opa": "node.badInput"},
	14: {"rest": "node.expensive"},
	15: {"rest": "node.noPlainYes"},
	16: {"all": "provider.TestBadTokens", "each port": "node.TestBadTokens"},
	17: {"all": "provider.TestBadTokens", "each port": "node.TestBadTokens"},
	18: {"peer": "cluster.TestStrangersAtThePeerPort", "running": "node.TestMistakesOfOthers"},
	19: {"peer": "cluster.TestJoinRefused", "gossip": "node.TestStrangersAreNotTakenIn"},
	20: {"peer": "cluster.TestHostileFrames"},
	21: {"rest": "node.oldRevision", "rpc": "node.TestRPCAnswersAsREST"},
	22: {"rest": "node.farFuture", "rpc": "node.TestRPCAnswersAsREST"},
	23: {"rest": "node.loop", "peer": "cluster.TestForwardingLoop"},
	24: {"rest": "node.snapshots"},
	25: {"webhooks": "webhook.TestAddressesThatMustNotBeReached", "webhooks, when saved": "webhook.TestAddressesThatAreNotPublicAreRefused",
		"git": "git.TestAddressesThatAreNotListed", "health checks": "health.TestProbesKeepToPublicAddresses", "health checks, by redirect": "node.TestMistakesOfOthers",
		"all": "egress.TestOnlyPublicAddressesAreDialled", "by DNS": "egress.TestNamesAreJudgedByWhatTheyResolveTo"},
	26: {"rest": "node.definitions"},
	27: {"rest": "node.definitions"},
	28: {"dns": "node.TestHostileQuestions", "flood": "dns.TestFloodsAreNotReflected"},
	29: {"rest": "node.TestSlowConnections", "http/2": "node.TestHostileStreams", "bodies": "rest.TestABodyThatDoesNotCome"},
	30: {"rest": "node.definitions", "parser": "definition.TestLargeDocuments"},
}

// mistakes says which tests show what becomes of the published mistakes of
// others. Each names the mistake, in itself or in its comment.
var mistakes = map[string][]string{
	"CVE-2018-19653": {"node.TestMistakesOfOthers"},
	"CVE-2021-37219": {"node.TestMistakesOfOthers"},
	"CVE-2021-38553": {"node.TestMistakesOfOthers"},
	"CVE-2022-29153": {"node.TestMistakesOfOthers"},
	"CVE-2023-3518":  {"node.TestMistakesOfOthers"},
	"CVE-2024-28180": {"node.TestBadTokens", "provider.TestBadTokens"},
	"CVE-2026-26205": {"node.TestMistakesOfOthers"},
}

// testSources gives the functions of all test files, as folder.Function, with
// their comments.
func testSources(t *testing.T) map[string]string {
	t.Helper()
	there := map[string]string{}
	root := os.DirFS("..")
	must(t, fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, path, b, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok {
				from := fn.Pos()
				if fn.Doc != nil {
					from = fn.Doc.Pos()
				}
				there[strings.TrimSuffix(f.Name.Name, "_test")+"."+fn.Name.Name] = string(b[files.Position(from).Offset:files.Position(fn.End()).Offset])
			}
		}
		return nil
	}))
	return there
}

// TestEveryRowIsCovered: each row of bad input and each published mistake has its
// tests, which are there, and docs/security.md names them.
func TestEveryRowIsCovered(t *testing.T) {
	there := testSources(t)
	b, err := os.ReadFile("../docs/security.md")
	must(t, err)
	told := map[string]string{} // by what stands first in a row of the page
	for line := range strings.Lines(string(b)) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); len(cells) == 4 && strings.HasPrefix(line, "| ") {
			told[strings.TrimPrefix(cells[0], "| ")] = strings.TrimSuffix(cells[3], " |")
		}
	}
	says := func(what string, names []string) {
		t.Helper()
		slices.Sort(names)
		names = slices.Compact(names)
		if want := "`" + strings.Join(names, "`, `") + "`"; told[what] != want {
			t.Errorf("docs/security.md says of %s %q, not %q", what, told[what], want)
		}
		for _, name := range names {
			if there[name] == "" {
				t.Errorf("%s: there is no test %s", what, name)
			}
		}
	}
	for row := 1; row <= 30; row++ {
		if len(covered[row]) == 0 {
			t.Errorf("row %d has no test", row)
		}
		says(strconv.Itoa(row), slices.Collect(maps.Values(covered[row])))
	}
	for cve, names := range mistakes {
		says(cve, names)
		for _, name := range names {
			if !strings.Contains(there[name], cve) {
				t.Errorf("%s does not name %s", name, cve)
			}
		}
	}
}
