package admit_test

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego/library"
	"github.com/muster-registry/muster/registry"
)

// reviewed is a leader whose gate judges definitions.
func reviewed(t *testing.T, limit time.Duration) *leader {
	t.Helper()
	l := newLeader(t)
	rules, err := library.New(library.Options{Limit: limit, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l.gate.Definitions(rules)
	return l
}

func (l *leader) stored(service, version string) *registry.Version {
	l.t.Helper()
	v, ok := l.machine.View().Registry.Version("default", service, version)
	if !ok {
		l.t.Fatalf("there is no version %s of %s", version, service)
	}
	return v
}

func found(v *registry.Version) (rules []string) {
	for _, f := range v.Findings {
		rules = append(rules, f.Rule)
	}
	slices.Sort(rules)
	return slices.Compact(rules)
}

func published(op *command.Command) *command.Command {
	p := op.GetPut()
	p.Spec = []byte(strings.Replace(string(p.Spec), `"lifecycle":"draft"`, `"lifecycle":"published"`, 1))
	return op
}

// What is found in a definition is part of its record, with what the registry
// knows about the service.
func TestFindingsBecomePartOfTheRecord(t *testing.T) {
	l := reviewed(t, time.Minute)
	l.do(l.service("cart", `{}`))
	l.do(published(l.version("cart", "1.0.0", openAPI)))
	got := found(l.stored("cart", "1.0.0"))
	for _, rule := range []string{"owner-set", "rate-limit-responses-429", "read-restricted"} {
		if !slices.Contains(got, rule) {
			t.Errorf("%s is not among %v", rule, got)
		}
	}
	l.do(l.service("cart", `{"owner":"team-a"}`))
	l.do(published(l.version("cart", "2.0.0", openAPI)))
	got = found(l.stored("cart", "2.0.0"))
	if slices.Contains(got, "owner-set") || !slices.Contains(got, "unique-routes") {
		t.Errorf("with an owner, beside another published version: %v", got)
	}
	for _, f := range l.stored("cart", "2.0.0").Findings {
		if f.Rule == "unique-routes" && (f.Path != "/paths/~1cart/get" || !strings.Contains(f.Message, "1.0.0")) {
			t.Errorf("%+v", f)
		}
	}
	// The same again finds the same: the version is not compared with itself.
	before := l.stored("cart", "1.0.0").Revision
	l.do(published(l.version("cart", "1.0.0", openAPI)))
	if v := l.stored("cart", "1.0.0"); v.Revision == before || !slices.Contains(found(v), "unique-routes") {
		t.Errorf("put again: revision %d, %v", v.Revision, found(v))
	}
}

// levels is the example policy that asks for a level.
func levels(t *testing.T) *command.Command {
	t.Helper()
	dir := filepath.Join("..", "examples", "policies", "definition-level")
	c := policy.Content{Modules: map[string]string{}}
	for _, name := range []string{"registry.rego", "data.json"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "data.json" {
			c.Data = b
			continue
		}
		c.Modules[name] = string(b)
	}
	return &command.Command{Op: &command.Command_PolicyStage{PolicyStage: &command.PolicyStage{Content: c.Encode()}}}
}

const secure = `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"security":[{"s":[]}],
	"paths":{"/cart":{"get":{"responses":{"200":{"description":"ok"},"429":{"description":"too much"}}}},
		"/health":{"get":{"security":[],"responses":{"429":{"description":"too much"}}}}},
	"components":{"securitySchemes":{"s":{"type":"http","scheme":"SCHEME"}}}}`

// A policy can ask for a level: what is found refuses, and the reason says
// what to mend.
func TestPolicyAsksForALevel(t *testing.T) {
	l := reviewed(t, time.Minute)
	l.do(levels(t))
	l.do(activate(1))
	l.do(l.service("cart", `{"owner":"a","metadata":{"security_level":"internal"}}`))
	l.do(l.service("open", `{"owner":"a"}`))
	basic := strings.Replace(secure, "SCHEME", "basic", 1)
	f := l.refused(t, fault.PolicyDenied, l.version("cart", "1.0.0", basic))
	if len(f.Reasons) != 2 || !strings.HasPrefix(f.Reasons[0], "no-http-basic (high) at /components/securitySchemes/s: ") {
		t.Errorf("reasons %q", f.Reasons)
	}
	l.do(l.version("open", "1.0.0", basic))
	l.do(l.version("cart", "1.0.0", strings.Replace(secure, "SCHEME", "bearer", 1)))
	v := l.stored("cart", "1.0.0")
	for _, f := range v.Findings {
		// By the policy's data: the one exception, and the rule that is ignored.
		if f.Rule == "read-restricted" || f.Rule == "string-restricted" {
			t.Errorf("%+v", f)
		}
	}
	var record struct{ Findings []registry.Finding }
	if err := json.Unmarshal(v.JSON, &record); err != nil || len(record.Findings) != len(v.Findings) {
		t.Errorf("the record has %d findings, the version %d: %v", len(record.Findings), len(v.Findings), err)
	}
	text := l.version("cart", "2.0.0", openAPI)
	var err error
	if text.GetPut().Spec, text.GetPut().Document, err = registry.CanonicalVersion("default", "cart", "2.0.0", []byte(`{"format":"graphql","content":"type Query { a: Int }"}`)); err != nil {
		t.Fatal(err)
	}
	if f := l.refused(t, fault.PolicyDenied, text); !strings.Contains(f.Reasons[0], "must be checked") {
		t.Errorf("what muster does not read: %q", f.Reasons)
	}
}

// When the rules do not end in time, the version says so, and no level is
// satisfied.
func TestDefinitionThatIsNotCheckedInTime(t *testing.T) {
	l := reviewed(t, 1)
	l.do(l.service("cart", `{"owner":"a","metadata":{"security_level":"internal"}}`))
	l.do(l.version("cart", "1.0.0", openAPI))
	v := l.stored("cart", "1.0.0")
	if len(v.Findings) != 1 || v.Findings[0].Rule != "not-checked" || v.Findings[0].Severity != "high" {
		t.Errorf("findings %+v", v.Findings)
	}
	l.do(levels(t))
	l.do(activate(1))
	l.refused(t, fault.PolicyDenied, l.version("cart", "2.0.0", openAPI))
}

// A policy that changes a definition on its way in has the findings of what is
// stored.
func TestFindingsAreOfWhatIsStored(t *testing.T) {
	l := reviewed(t, time.Minute)
	l.enforce(`default allow := true
filtered := object.remove(input.resource.payload, ["security"]) if input.resource.kind == "version"`)
	l.do(l.service("cart", `{}`))
	l.do(l.version("cart", "1.0.0", strings.Replace(secure, "SCHEME", "bearer", 1)), payload(strings.Replace(secure, "SCHEME", "bearer", 1)))
	if got := found(l.stored("cart", "1.0.0")); !slices.Contains(got, "read-restricted") || !slices.Contains(got, "schemes-used") {
		t.Errorf("without its security: %v", got)
	}
}
