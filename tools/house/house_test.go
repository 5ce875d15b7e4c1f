// Package house holds the arrows between the rooms: which package may import
// which, where the heavy libraries live, and what a replicated state machine
// must not do. It owns no code of the program.
package house

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/muster-registry/muster/"

// rooms says what each room may import of the others. A room not named here is
// refused until it is. A trailing /… stands for the rooms below as well.
var rooms = map[string][]string{
	"fault":               {},
	"alarm":               {},
	"audit":               {},
	"audit/mirror":        {"audit", "egress"},
	"command":             {"fault"},
	"egress":              {},
	"trace":               {"fault"},
	"pki":                 {},
	"pki/issuer":          {"pki", "policy", "identity", "fault"},
	"registry":            {"fault", "registry/definition"},
	"registry/definition": {"fault"},
	"registry/schema":     {"fault"},
	"policy":              {"fault"},
	"policy/rego":         {"policy", "policy/sign", "fault"},
	"policy/rego/library": {"policy", "registry/definition"},
	"policy/decision":     {"policy", "trace", "fault"},
	"policy/shadow":       {"policy", "fault"},
	"policy/git":          {"policy", "egress", "fault"},
	"policy/breakglass":   {"policy", "setting", "registry", "fault"},
	"policy/webhook":      {"policy", "setting", "registry", "egress", "trace", "fault"},
	"setting":             {"fault"},
	"flow":                {"fault"},
	"quota":               {"registry", "fault"},
	"policy/sign":         {"fault"},
	"snapshot":            {"fault"},
	"snapshot/store":      {},
	"identity":            {"fault"},
	"identity/provider":   {"identity", "fault"},
	"identity/spiffe":     {"identity", "fault"},
	"client":              {"fault", "pki"},
	"client/resolver":     {"client"},
	"fsm":                 {"command", "registry", "policy", "identity", "setting", "snapshot", "fault"},
	"cluster":             {"command", "trace", "fault", "cluster/wire", "cluster/journal"},
	"cluster/journal":     {"fault"},
	"cluster/wire":        {"fault"},
	"admit":               {"command", "policy", "policy/sign", "identity", "registry/…", "setting", "fsm", "trace", "fault"},
	"lease":               {"command", "registry", "fault"},
	"health":              {"command", "registry", "egress", "fault"},
	"api/door":            {"feed", "flow", "registry", "policy", "identity", "setting", "command", "trace", "fault"},
	"api/rest":            {"api/door", "feed", "flow", "pki/…", "registry/…", "policy", "policy/sign", "identity", "setting", "policy/webhook", "policy/breakglass", "quota", "command", "trace", "fault"},
	"api/dns":             {"api/door", "flow", "registry", "policy", "identity", "fault"},
	"api/rpc":             {"api/door", "api/rpc/musterv1", "feed", "registry", "policy", "command", "trace", "fault"},
	"api/rpc/musterv1":    {},
	"api/xds":             {"api/door", "feed", "registry", "policy", "fault"},
	"api/consul":          {"api/door", "feed", "flow", "registry", "policy", "command", "trace", "fault"},
	"api/envoy":           {"api/door", "registry", "policy", "identity", "quota", "fault"},
	"port":                {},
	"api/opa":             {"api/door", "flow", "policy", "policy/rego", "identity", "command", "trace", "fault"},
	"feed":                {"registry", "fault"},
	"dev":                 {"client", "pki", "fault"},
	"node":                {"…"},
	"cmd/muster":          {"audit", "fsm", "node", "identity", "egress", "quota", "policy/webhook", "client", "dev", "pki", "registry", "registry/definition", "policy", "policy/rego/…", "snapshot", "fault"},
	"tools/house":         {},
	"tools/ports":         {},
	"sim":                 {"…"},
	"sim/…":               {"…"},
	"jepsen":              {"…"},
	"jepsen/…":            {"…"},
	"examples/…":          {"…"},
}

// homes says where libraries that shape the code they touch may be imported.
var homes = map[string][]string{
	"github.com/envoyproxy/go-control-plane":   {"api/envoy", "api/xds"},
	"github.com/hashicorp/raft":                {"cluster", "cluster/journal", "fsm", "sim"},
	"github.com/hashicorp/raft-boltdb":         {"cluster"},
	"github.com/hashicorp/memberlist":          {"cluster"},
	"github.com/open-policy-agent/opa":         {"policy/rego", "policy/rego/library", "api/opa"},
	"github.com/go-git/go-git":                 {"policy/git"},
	"go.etcd.io/bbolt":                         {"fsm", "cluster"}, // in cluster: the options of raft-boltdb
	"github.com/DeRuina/timberjack":            {"policy/decision"},
	"github.com/spf13/cobra":                   {"cmd/muster"},
	"github.com/prometheus/client_golang":      {"alarm", "audit", "audit/mirror", "cluster", "feed", "flow", "fsm", "identity/provider", "identity/spiffe", "node", "pki/issuer", "policy/decision", "policy/shadow", "policy/webhook", "policy/breakglass", "quota", "health"},
	"filippo.io/age":                           {"snapshot"},
	"github.com/minio/minio-go":                {"snapshot/store"},
	"github.com/redis/go-redis":                {"quota"},
	"github.com/hashicorp/go-bexpr":            {"api/consul"},
	"go.opentelemetry.io/otel":                 {"trace"},
	"github.com/coreos/go-systemd":             {"node"},
	"go.opentelemetry.io/contrib":              {"trace"},
	"go.opentelemetry.io/proto":                {"audit/mirror"},
	"github.com/spiffe/go-spiffe":              {"identity/spiffe"},
	"github.com/coreos/go-oidc":                {"identity/provider"},
	"github.com/go-jose/go-jose":               {"identity/provider"},
	"golang.org/x/crypto/ssh":                  {"pki/issuer", "policy/git", "policy/sign"},
	"github.com/anishathalye/porcupine":        {"jepsen/…"},
	"github.com/getkin/kin-openapi":            {"api/rest"},
	"github.com/schollz/progressbar":           {"cmd/muster"},
	"github.com/miekg/dns":                     {"api/dns", "node"}, // in node: the names of codes for the metrics
	"github.com/hashicorp/go-immutable-radix/": {"registry", "policy", "identity", "setting"},
	"github.com/ProtonMail/go-crypto":          {"policy/sign"},
	"github.com/hiddeco/sshsig":                {"policy/sign"},
}

// pure rooms are the same on every replica: time, chance and surroundings reach
// them in commands only.
var pure = []string{"fsm", "registry", "registry/definition", "registry/schema", "policy", "policy/sign", "setting"}

var impure = map[string][]string{
	"time": {"Now", "Since", "Until"},
	"os":   {"Getenv", "LookupEnv", "Environ", "ExpandEnv", "Hostname"},
}

var impureImports = []string{"math/rand", "math/rand/v2", "crypto/rand"}

// pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func (p pkg) room() string { return strings.TrimPrefix(p.ImportPath, module) }

// within reports whether a room is among the patterns.
func within(room string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if p == "…" || p == room {
			return true
		}
		base, below := strings.CutSuffix(p, "/…")
		return below && (room == base || strings.HasPrefix(room, base+"/"))
	})
}

// arrows lists the imports of a package that point where they may not.
func arrows(p pkg) (wrong []string) {
	allowed, known := rooms[p.room()]
	for pattern := range rooms {
		if !known && within(p.room(), []string{pattern}) {
			allowed, known = rooms[pattern], true
		}
	}
	if !known {
		wrong = append(wrong, fmt.Sprintf("%s is not a room of the house yet; say in tools/house what it may import", p.room()))
	}
	for _, i := range p.Imports {
		if to, own := strings.CutPrefix(i, module); own {
			if known && !within(to, allowed) {
				wrong = append(wrong, fmt.Sprintf("%s must not import %s", p.room(), to))
			}
			continue
		}
		for library, where := range homes {
			if (i == library || strings.HasPrefix(i, strings.TrimSuffix(library, "/")+"/")) && !within(p.room(), where) {
				wrong = append(wrong, fmt.Sprintf("%s must not import %s; its rooms are %s", p.room(), i, strings.Join(where, ", ")))
			}
		}
	}
	return wrong
}

// impurities lists what a file of a pure room does that depends on the replica.
func impurities(fset *token.FileSet, f *ast.File) (wrong []string) {
	names := map[string]string{} // local name of an import to its path
	for _, i := range f.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			continue
		}
		if slices.Contains(impureImports, p) {
			wrong = append(wrong, fmt.Sprintf("%s: %s is not the same on every replica", fset.Position(i.Pos()), p))
		}
		name := path.Base(p)
		if i.Name != nil {
			name = i.Name.Name
		}
		names[name] = p
	}
	ast.Inspect(f, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := s.X.(*ast.Ident); ok && slices.Contains(impure[names[x.Name]], s.Sel.Name) {
			wrong = append(wrong, fmt.Sprintf("%s: %s.%s is not the same on every replica; let it arrive in the command", fset.Position(s.Pos()), x.Name, s.Sel.Name))
		}
		return true
	})
	return wrong
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Dir,GoFiles,Imports", "./...")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestTheHouseStandsAsDrawn(t *testing.T) {
	all := list(t)
	if len(all) < 10 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	for _, p := range all {
		for _, w := range arrows(p) {
			t.Error(w)
		}
		if !slices.Contains(pure, p.room()) {
			continue
		}
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range impurities(fset, f) {
				t.Error(w)
			}
		}
	}
}

// dialers are the rooms that open connections, and to what. Where users of the
// cluster say where to, the room must go through egress.
var dialers = map[string]string{
	"egress": "", "audit/mirror": "the configuration", "policy/webhook": "users", "policy/git": "users",
	"health":  "users",
	"cluster": "other nodes", "client": "nodes", "pki": "what the command line names", "cmd/muster": "what the command line names",
	"identity/provider": "the configuration", "identity/spiffe": "the configuration", "pki/issuer": "the configuration", "policy/decision": "the configuration", "snapshot/store": "the configuration",
}

// TestWhoeverDialsSaysWhereTo: no room connects anywhere unnoticed, past the
// rules about addresses that are not public.
func TestWhoeverDialsSaysWhereTo(t *testing.T) {
	dials := regexp.MustCompile(`\b(net\.Dial|net\.Dialer|tls\.Dial|http\.DefaultClient|http\.DefaultTransport|http\.Transport|http\.(Get|Post|Head|PostForm))\b`)
	for _, p := range list(t) {
		room := p.room()
		if within(room, []string{"jepsen/…", "examples/…", "tools/…"}) {
			continue
		}
		to, known := dialers[room]
		if to == "users" && !slices.Contains(p.Imports, module+"egress") {
			t.Errorf("%s connects to where users say and does not import egress", room)
		}
		for _, name := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if found := dials.Find(b); found != nil && !known {
				t.Errorf("%s/%s uses %s: say in dialers where it connects to", room, name, found)
			}
		}
	}
}

// TestBrokenHousesAreNoticed plants what the rules are there to refuse.
func TestBrokenHousesAreNoticed(t *testing.T) {
	for _, c := range []struct {
		room, imports string
		ok            bool
	}{
		{"registry", module + "fault", true},
		{"registry", module + "node", false},
		{"fault", module + "command", false},
		{"cluster", module + "fsm", false},
		{"cluster", "github.com/hashicorp/raft", true},
		{"api/rest", "github.com/hashicorp/raft", false},
		{"policy", "github.com/open-policy-agent/opa/v1/ast", false},
		{"policy/rego", "github.com/open-policy-agent/opa/v1/ast", true},
		{"cmd/muster", "go.etcd.io/bbolt", false},
		{"cluster", "github.com/hashicorp/raft-boltdb/v2", true},
		{"fsm", "github.com/hashicorp/raft-boltdb/v2", false},
		{"client", module + "cmd/muster", false},
		{"common", "strings", false},
	} {
		got := arrows(pkg{ImportPath: module + c.room, Imports: []string{c.imports}})
		if (len(got) == 0) != c.ok {
			t.Errorf("%s importing %s: %q", c.room, c.imports, got)
		}
	}
	for src, count := range map[string]int{
		`import "time"; var x = time.Now()`:               1,
		`import clock "time"; var x = clock.Now()`:        1,
		`import "time"; var x = time.Second`:              0,
		`import "os"; var x = os.Getenv("X")`:             1,
		`import _ "math/rand/v2"`:                         1,
		`var time struct{ Now func() }; var x = time.Now`: 0,
	} {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "x.go", "package x; "+src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if got := impurities(fset, f); len(got) != count {
			t.Errorf("%s: %q", src, got)
		}
	}
}

// TestTheHouseStaysFlat counts the floors: how many rooms lie below one another.
func TestTheHouseStaysFlat(t *testing.T) {
	to := map[string][]string{}
	for _, p := range list(t) {
		for _, i := range p.Imports {
			if r, own := strings.CutPrefix(i, module); own {
				to[p.room()] = append(to[p.room()], r)
			}
		}
	}
	var floor func(room string) int
	floor = func(room string) (f int) {
		for _, r := range to[room] {
			f = max(f, floor(r)+1)
		}
		return f
	}
	for room := range to {
		if f := floor(room); f > 7 {
			t.Errorf("%s is on floor %d: the house is getting too tall", room, f)
		}
	}
}

// TestEveryLawNamesItsTests reads docs/laws.md: the tests it names are there.
func TestEveryLawNamesItsTests(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "laws.md"))
	if err != nil {
		t.Fatal(err)
	}
	cell := regexp.MustCompile("\\| `([a-z/]+)`: ((?:`Test[A-Za-z0-9]+`(?:, )?)+) \\|")
	named := 0
	for _, row := range cell.FindAllStringSubmatch(string(b), -1) {
		there := tests(t, row[1])
		for _, name := range strings.Split(strings.ReplaceAll(row[2], "`", ""), ", ") {
			if named++; !there[name] {
				t.Errorf("docs/laws.md names %s in %s, which is not there", name, row[1])
			}
		}
	}
	if all := strings.Count(string(b), "`Test"); named != all {
		t.Errorf("docs/laws.md names %d tests, %d of them in a row of the form `folder`: `Test…`, `Test…`", all, named)
	}
}

// TestTheThreatModelNamesItsTests reads the table in docs/security.md: each
// line names tests, and they are there.
func TestTheThreatModelNamesItsTests(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(b), "| who | what they try | what stops them | shown by |\n|---|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	cell := regexp.MustCompile("^`([a-z/]+)`: ((?:`(?:Test|Fuzz)[A-Za-z0-9]+`(?:, )?)+)$")
	rows := 0
	for row := range strings.Lines(table) {
		rows++
		cells := strings.Split(strings.TrimSuffix(strings.TrimSpace(row), " |"), " | ")
		shown := cell.FindStringSubmatch(cells[len(cells)-1])
		if len(cells) != 4 || shown == nil {
			t.Errorf("this line names no tests of one folder in the form `folder`: `Test…`, `Fuzz…`: %s", row)
			continue
		}
		there := tests(t, shown[1])
		for _, name := range strings.Split(strings.ReplaceAll(shown[2], "`", ""), ", ") {
			if !there[name] {
				t.Errorf("docs/security.md names %s in %s, which is not there", name, shown[1])
			}
		}
	}
	if !found || rows < 20 {
		t.Errorf("the table of threats has %d lines", rows)
	}
}

// tests lists the tests in a folder.
func tests(t *testing.T, folder string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				found[fn.Name.Name] = true
			}
		}
	}
	return found
}
