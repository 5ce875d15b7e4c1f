package node_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// covered says which test shows what becomes of each row of bad input at each
// edge that can receive it, as folder.Function. A new edge adds its name to the
// rows that reach it; TestEveryRowIsCovered holds the names to what there is.
var covered = map[int]map[string]string{
	1:  {"rest": "node.tooLarge", "opa": "node.badInput", "peer": "cluster.TestHostileFrames"},
	2:  {"rest": "node.bodies", "opa": "node.badInput"},
	3:  {"rest": "node.bodies", "opa": "node.badInput"},
	4:  {"rest": "node.bodies"}, // OPA takes any input and ignores other members
	5:  {"rest": "node.bodies", "opa": "node.badInput"},
	6:  {"rest": "node.names"},
	7:  {"rest": "node.paths", "opa": "node.badInput"},
	8:  {"opa": "node.badInput"},
	9:  {"rest": "node.definitions"},
	10: {"rest": "node.gzip", "opa": "node.badInput"},
	11: {"rest": "node.bundles"},
	12: {"rest": "node.TestSignedPolicies"},
	13: {"rest": "node.outOfReach", "opa": "node.badInput"},
	14: {"rest": "node.expensive"},
	15: {"rest": "node.noPlainYes"},
	16: {"all": "provider.TestBadTokens"},
	17: {"all": "provider.TestBadTokens"},
	18: {"peer": "cluster.TestStrangersAtThePeerPort"},
	19: {"peer": "cluster.TestJoinRefused", "gossip": "node.TestStrangersAreNotTakenIn"},
	20: {"peer": "cluster.TestHostileFrames"},
	21: {"rest": "node.oldRevision"},
	22: {"rest": "node.farFuture"},
	23: {"rest": "node.loop", "peer": "cluster.TestForwardingLoop"},
	24: {"rest": "node.snapshots"},
	25: {"webhooks": "webhook.TestAddressesThatMustNotBeReached", "webhooks, when saved": "webhook.TestAddressesThatAreNotPublicAreRefused",
		"git": "git.TestAddressesThatAreNotListed", "all": "egress.TestOnlyPublicAddressesAreDialled"},
	26: {"rest": "node.definitions"},
	27: {"rest": "node.definitions"},
	29: {"rest": "node.TestSlowConnections", "http/2": "node.TestHostileStreams", "bodies": "rest.TestABodyThatDoesNotCome"},
	30: {"rest": "node.definitions", "parser": "definition.TestLargeDocuments"},
}

// open are the rows that no edge there is can receive yet, and why.
var open = map[int]string{
	28: "there is no DNS edge",
}

func TestEveryRowIsCovered(t *testing.T) {
	there := map[string]bool{}
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, b, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok {
				there[strings.TrimSuffix(f.Name.Name, "_test")+"."+fn.Name.Name] = true
			}
		}
		return nil
	})
	must(t, err)
	for row := 1; row <= 30; row++ {
		if len(covered[row]) == 0 && open[row] == "" {
			t.Errorf("row %d has no test", row)
		}
		for edge, name := range covered[row] {
			if !there[name] {
				t.Errorf("row %d, %s: there is no test %s", row, edge, name)
			}
		}
	}
}
