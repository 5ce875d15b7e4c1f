package rego

import (
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/policy"
)

// refusedBuiltins are all built-ins of OPA that modules may not call. A new
// OPA brings new ones, which are in neither list: look at what each reaches
// and costs, then put it into builtins.txt or here, and what is not a function
// of its arguments alone into impureBuiltins.
var refusedBuiltins = map[string][]string{
	"reaches the network":      {"http.send", "net.lookup_ip_addr"},
	"named so in the contract": {"net.cidr_contains", "net.cidr_contains_matches", "net.cidr_expand", "net.cidr_intersects", "net.cidr_is_valid", "net.cidr_merge", "net.cidr_overlap"},
	"shows the node":           {"opa.runtime"},
	"cannot be bounded":        {"bits.lsh", "graph.reachable_paths", "rego.parse_module", "strings.render_template"},
	"is muster's own":          {boundedName},
}

var impureBuiltins = []string{
	"crypto.x509.parse_and_verify_certificates", "crypto.x509.parse_and_verify_certificates_with_options",
	"io.jwt.decode_verify", "io.jwt.encode_sign", "io.jwt.encode_sign_raw", "json.match_schema", "json.verify_schema",
	"rand.intn", "time.now_ns", "uuid.rfc4122",
}

func TestEveryBuiltinOfOPAIsAllowedOrRefusedByName(t *testing.T) {
	decided := map[string]int{}
	for name := range strings.FieldsSeq(builtins) {
		decided[name]++
	}
	for _, names := range refusedBuiltins {
		for _, name := range names {
			decided[name]++
		}
	}
	for _, b := range ast.CapabilitiesForThisVersion().Builtins {
		if decided[b.Name] != 1 {
			t.Errorf("%s is decided on %d times; want once, in builtins.txt or in refusedBuiltins", b.Name, decided[b.Name])
		}
		delete(decided, b.Name)
	}
	for name := range decided {
		t.Errorf("%s is no built-in of this OPA", name)
	}
}

func TestModulesMayCallExactlyTheAllowed(t *testing.T) {
	l := newCatalog(nil)
	var callable, impure []string
	for _, b := range l.capabilities.Builtins {
		callable = append(callable, b.Name)
	}
	for name, yes := range l.impure {
		if yes {
			impure = append(impure, name)
		}
	}
	slices.Sort(impure)
	if want := append(strings.Fields(builtins), schemaBuiltin); !slices.Equal(slices.Sorted(slices.Values(callable)), slices.Sorted(slices.Values(want))) {
		t.Errorf("callable: %q", callable)
	}
	if !slices.Equal(impure, impureBuiltins) {
		t.Errorf("impure: %q", impure)
	}
	if l.capabilities.AllowNet == nil || len(l.capabilities.AllowNet) > 0 {
		t.Errorf("hosts of the network: %q", l.capabilities.AllowNet)
	}
}

func TestForbiddenBuiltinsAreRefusedDirectlyAndThroughWith(t *testing.T) {
	e := engine(t)
	for _, names := range refusedBuiltins {
		for _, name := range names {
			b := ast.BuiltinMap[name]
			args := slices.Repeat([]string{"input.x"}, b.Decl.Arity())
			params := make([]string, len(args))
			for i := range params {
				params[i] = string(rune('a' + i))
			}
			list := strings.Join(params, ", ")
			for how, rules := range map[string]string{
				"directly": "allow if " + name + "(" + strings.Join(args, ", ") + ")",
				"as value": "f(" + list + ") := true\nallow if f(" + strings.Join(args, ", ") + ") with f as " + name,
				"replaced": "allow if true with " + name + " as {}",
			} {
				rev := revision(t, "p.rego", head+rules)
				report, err := e.Check(t.Context(), &rev.Content)
				f := refusal(t, err)
				if !strings.Contains(f.Detail, name) || !strings.Contains(f.Detail, "cannot reach the network") {
					t.Errorf("%s, %s: %s", name, how, f.Detail)
				}
				if !slices.ContainsFunc(report.Findings, func(f policy.Finding) bool {
					return f.Rule == "forbidden-builtin" && f.Severity == "error" && f.Row > 0
				}) {
					t.Errorf("%s, %s: findings %+v", name, how, report.Findings)
				}
			}
		}
	}
}
