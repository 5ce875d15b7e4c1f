package admit_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/setting"
)

func schema(namespace, kind, body string) *command.Command {
	return put(&command.Put{Kind: command.Kind_SETTING, Service: string(setting.Schema), Namespace: namespace, Name: kind, Spec: []byte(body)})
}

func newSchemaLeader(t *testing.T) *leader {
	l := newLeader(t)
	l.gate.Setting(setting.Schema, admit.Schemas())
	return l
}

func pointers(f *fault.Error) string {
	var at []string
	for _, field := range f.Fields {
		at = append(at, field.Pointer)
	}
	slices.Sort(at)
	return strings.Join(at, " ")
}

func TestWhatIsStoredMeetsItsSchemas(t *testing.T) {
	l := newSchemaLeader(t)
	l.do(l.service("old", `{}`))
	l.do(schema("*", "service", `{"metadata":{"required":["tier"]}}`), as("token:pol", "policy-admin"))
	l.do(schema("default", "service", `{"payload":{"properties":{"owner":{"minLength":1}}}}`))
	l.do(schema("elsewhere", "service", `{"payload":false}`))

	f := l.refused(t, fault.InvalidField, l.service("cart", `{"owner":"ann"}`))
	if pointers(f) != "/metadata" || !strings.Contains(f.Detail, "all namespaces") {
		t.Errorf("%+v", f)
	}
	f = l.refused(t, fault.InvalidField, l.service("cart", `{"metadata":{"tier":"gold"}}`))
	if pointers(f) != "/owner" || !strings.Contains(f.Detail, "namespace default") {
		t.Errorf("%+v", f)
	}
	r := l.do(l.service("cart", `{"owner":"ann","metadata":{"tier":"gold"}}`))
	// An update is held to them as well; what is there stays.
	l.refused(t, fault.InvalidField, l.service("cart", `{"owner":"ann"}`), ifMatch(r.Revision))
	l.refused(t, fault.InvalidField, l.service("old", `{"owner":"ann"}`))
	if _, ok := l.machine.View().Registry.Service("default", "old"); !ok {
		t.Error("a service from before the schema is gone")
	}
	// A service that is made for its first instance is one, too.
	l.refused(t, fault.InvalidField, l.instance("new", "a", 80, true))
	l.do(l.instance("cart", "a", 80, false))

	l.do(schema("default", "instance", `{"payload":{"properties":{"port":{"minimum":1024}}}}`))
	if f = l.refused(t, fault.InvalidField, l.instance("cart", "b", 80, false)); pointers(f) != "/port" {
		t.Errorf("%+v", f)
	}
	l.do(l.instance("cart", "b", 8080, false))
	// Renewals and status changes of what is there bring nothing to check.
	l.do(status("cart", "a", "warning"))

	l.do(schema("*", "version", `{"payload":{"properties":{"info":{"required":["contact"]}}}}`))
	if f = l.refused(t, fault.InvalidField, l.version("cart", "1.0.0", openAPI)); pointers(f) != "/document/info" {
		t.Errorf("%+v", f)
	}
	l.do(l.version("cart", "1.0.0", strings.Replace(openAPI, `"title"`, `"contact":{"name":"ann"},"title"`, 1)))

	l.do(&command.Command{Op: &command.Command_Delete{Delete: &command.Delete{Kind: command.Kind_SETTING, Service: string(setting.Schema), Namespace: "*", Name: "service"}}})
	l.do(l.service("old", `{"owner":"ann"}`))
}

// What a policy filtered is what is stored, so that is what is checked.
func TestSchemasSeeWhatWasFiltered(t *testing.T) {
	l := newSchemaLeader(t)
	l.enforce("default allow := true\n" +
		"filtered := object.union(input.resource.payload, {\"owner\": \"known\"}) if input.resource.name == \"mended\"\n" +
		"filtered := object.union(input.resource.payload, {\"owner\": \"\"}) if input.resource.name == \"spoiled\"\n")
	l.do(schema("*", "service", `{"payload":{"properties":{"owner":{"minLength":1}}}}`))
	l.do(l.service("mended", `{}`))
	l.refused(t, fault.InvalidField, l.service("spoiled", `{"owner":"ann"}`))
	// The policy speaks first: whom it refuses learns nothing of schemas.
	l.enforce("default allow := false\n")
	l.refused(t, fault.PolicyDenied, l.service("spoiled", `{}`))
}

func TestWhoMayRegisterSchemas(t *testing.T) {
	l := newSchemaLeader(t)
	good := schema("*", "service", `{"payload":{}}`)
	for _, role := range []string{"viewer", "publisher", "break-glass"} {
		l.refused(t, fault.Forbidden, good, as("token:x", role))
	}
	l.refused(t, fault.Forbidden, good, as("token:x", "policy-admin"), within("default"))
	l.refused(t, fault.InvalidField, schema("*", "token", `{"payload":{}}`))
	l.refused(t, fault.InvalidField, schema("No", "service", `{"payload":{}}`))
	l.refused(t, fault.InvalidField, schema("*", "service", `{"payload":{"$ref":"https://example.org/"}}`))
	r := l.do(good)
	l.refused(t, fault.RevisionMismatch, good, createOnly)
	l.do(schema("*", "service", `{"payload":{"type":"object"}}`), ifMatch(r.Revision))
}
