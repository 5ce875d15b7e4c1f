package admit_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

func TestPreconditions(t *testing.T) {
	l := newLeader(t)
	at := l.do(l.service("cart", `{}`)).Revision
	l.do(l.version("cart", "v1", openAPI))
	l.do(l.instance("cart", "i1", 80, false))

	for name, tc := range map[string]struct {
		op      *command.Command
		ask     ask
		current uint64
	}{
		"another revision":            {l.service("cart", `{}`), ifMatch(at + 7), at},
		"none, by number":             {l.service("cart", `{}`), ifMatch(0), at},
		"no record":                   {l.service("none", `{}`), ifMatch(at), 0},
		"no record, by none":          {l.service("none", `{}`), ifMatch(0), 0},
		"exists":                      {l.service("cart", `{}`), createOnly, at},
		"version exists":              {l.version("cart", "v1", openAPI), createOnly, at + 1},
		"another version's revision":  {l.version("cart", "v1", openAPI), ifMatch(at), at + 1},
		"instance exists":             {l.instance("cart", "i1", 81, false), createOnly, at + 2},
		"another instance's revision": {l.instance("cart", "i1", 81, false), ifMatch(at), at + 2},
		"deletes another revision":    {remove(command.Kind_SERVICE, "", "cart"), ifMatch(at + 1), at},
		"deletes another version":     {remove(command.Kind_VERSION, "cart", "v1"), ifMatch(at), at + 1},
		"status of another revision":  {status("cart", "i1", "warning"), ifMatch(at), at + 2},
		"status creates nothing":      {status("cart", "i1", "warning"), createOnly, at + 2},
	} {
		t.Run(name, func(t *testing.T) {
			if f := l.refused(t, fault.RevisionMismatch, tc.op, tc.ask); f.Current != tc.current {
				t.Errorf("the record is said to be at revision %d, and is at %d", f.Current, tc.current)
			}
		})
	}

	if r := l.do(l.service("cart", `{"owner":"shop"}`), ifMatch(at)); r.Created || r.Revision != at+3 {
		t.Errorf("If-Match that matches: %+v", r)
	}
	if r := l.do(l.service("new", `{}`), createOnly); !r.Created {
		t.Errorf("If-None-Match of a new record: %+v", r)
	}
	if r := l.do(status("cart", "i1", "warning"), ifMatch(at+2)); !strings.Contains(string(r.Record), `"status":"warning"`) {
		t.Errorf("the status is %s", r.Record)
	}
	l.do(remove(command.Kind_VERSION, "cart", "v1"), ifMatch(at+1))
	l.do(remove(command.Kind_SERVICE, "", "cart"), ifMatch(at+3))
}

func TestUnknown(t *testing.T) {
	l := newLeader(t)
	for name, tc := range map[string]struct {
		op   *command.Command
		code fault.Code
	}{
		"instance":              {l.instance("cart", "i1", 80, false), fault.ServiceNotFound},
		"version":               {l.version("cart", "v1", openAPI), fault.ServiceNotFound},
		"delete":                {remove(command.Kind_SERVICE, "", "cart"), fault.ServiceNotFound},
		"delete of a version":   {remove(command.Kind_VERSION, "cart", "v1"), fault.ServiceNotFound},
		"delete of an instance": {remove(command.Kind_INSTANCE, "cart", "i1"), fault.ServiceNotFound},
		"status":                {status("cart", "i1", "warning"), fault.ServiceNotFound},
	} {
		t.Run(name, func(t *testing.T) { l.refused(t, tc.code, tc.op) })
	}

	if r := l.do(l.instance("cart", "i1", 80, true)); !r.Created {
		t.Errorf("with create_service: %+v", r)
	}
	if _, ok := l.machine.View().Registry.Service("default", "cart"); !ok {
		t.Error("create_service made no service")
	}
	l.refused(t, fault.VersionNotFound, remove(command.Kind_VERSION, "cart", "v1"))
	l.refused(t, fault.InstanceNotFound, remove(command.Kind_INSTANCE, "cart", "i2"))
	l.refused(t, fault.InstanceNotFound, status("cart", "i2", "warning"))
}

func TestRepeats(t *testing.T) {
	l := newLeader(t)
	create := l.service("cart", `{}`)
	first := l.do(create, keyed("k", "request"), createOnly)
	l.do(l.service("cart", `{"owner":"changed since"}`))

	was := l.machine.View().Revision
	again := l.do(create, keyed("k", "request"), createOnly)
	if !again.Repeated || !again.Created || again.Revision != first.Revision || !bytes.Equal(again.Record, first.Record) || again.DecisionId != first.DecisionId {
		t.Errorf("a repeat got\n%+v, the first answer was\n%+v", again, first)
	}
	if now := l.machine.View().Revision; now != was {
		t.Errorf("a repeat went from revision %d to %d", was, now)
	}
	if r := l.do(l.service("cart", `{}`), keyed("m", "request"), ifMatch(was)); r.Repeated {
		t.Error("another key got the first answer of this one")
	}
	if r := l.do(l.service("cart", `{}`), keyed("m", "request"), ifMatch(was)); !r.Repeated {
		t.Error("a repeat with If-Match was decided anew")
	}

	l.refused(t, fault.Conflict, l.service("cart", `{"owner":"other"}`), keyed("k", "another request"))
	if r := l.do(l.service("cart", `{}`), keyed("k", "request"), as("token:other", "operator")); r.Repeated {
		t.Error("another caller got the answer of the first")
	}

	// A refusal is not remembered: the same request may succeed later.
	l.refused(t, fault.ServiceNotFound, l.instance("later", "i1", 80, false), keyed("n", "request"))
	l.do(l.service("later", `{}`))
	if r := l.do(l.instance("later", "i1", 80, false), keyed("n", "request")); r.Repeated || !r.Created {
		t.Errorf("after a refusal: %+v", r)
	}

	// What was done was done, whatever the policy says today.
	l.enforce(`default allow := false`)
	if r := l.do(create, keyed("k", "request"), createOnly); !r.Repeated || r.Revision != first.Revision {
		t.Errorf("a repeat under a new policy: %+v", r)
	}
}

// The parts of the path are what the mux matched, not how they were escaped.
func TestPolicySeesThePathUnescaped(t *testing.T) {
	l := newLeader(t)
	l.enforce(`
default allow := true

deny contains "prod is frozen" if input.path[2] == "prod"
`)
	at := func(path string) ask {
		return func(in *command.Intent) { in.Request = &command.Request{Method: "PUT", Path: path} }
	}
	for _, path := range []string{"/v1/namespaces/prod/services/cart", "/v1/namespaces/%70rod/services/cart?x=/"} {
		l.refused(t, fault.PolicyDenied, l.service("cart", `{}`), at(path))
	}
	l.do(l.service("cart", `{}`), at("/v1/namespaces/test/services/cart"))
}

func TestPolicyDenial(t *testing.T) {
	l := newLeader(t)
	l.do(l.service("cart", `{"owner":"shop"}`))
	l.do(l.instance("cart", "i1", 80, false))
	active := l.enforce(`
default allow := false

allow if input.action in {"register", "update", "delete"}

deny contains "the owner is missing" if {
	input.resource.kind == "service"
	input.resource.payload.owner == ""
}

deny contains "cart stays" if {
	input.action == "delete"
	input.resource.previous.owner == "shop"
}

deny contains "not in maintenance" if input.resource.payload.status == "maintenance"
`)
	for name, tc := range map[string]struct {
		op     *command.Command
		asks   []ask
		reason string
	}{
		"register":                           {op: l.service("new", `{}`), reason: "the owner is missing"},
		"update":                             {op: l.service("cart", `{}`), reason: "the owner is missing"},
		"delete":                             {op: remove(command.Kind_SERVICE, "", "cart"), reason: "cart stays"},
		"status":                             {op: status("cart", "i1", "maintenance"), asks: []ask{payload(`{"status":"maintenance"}`)}, reason: "not in maintenance"},
		"said before a precondition":         {op: l.service("cart", `{}`), asks: []ask{ifMatch(77)}, reason: "the owner is missing"},
		"a service made for an instance too": {op: l.instance("new", "i1", 80, true), reason: "the owner is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			f := l.refused(t, fault.PolicyDenied, tc.op, tc.asks...)
			if diff := cmp.Diff([]string{tc.reason}, f.Reasons); diff != "" {
				t.Errorf("reasons (-want +got):\n%s", diff)
			}
			if f.DecisionID == "" || f.PolicyRevision != active {
				t.Errorf("decision %q by policy revision %d, want one by %d", f.DecisionID, f.PolicyRevision, active)
			}
		})
	}
	r := l.do(l.service("new", `{"owner":"shop"}`))
	if r.DecisionId == "" || r.PolicyRevision != active {
		t.Errorf("what was allowed carries decision %q by policy revision %d", r.DecisionId, r.PolicyRevision)
	}
	l.do(l.instance("new", "i1", 80, true))
	l.lawful()
}

// BAD-INPUT row 15 at the gate: whatever is not a plain yes is a no.
func TestNoPlainYes(t *testing.T) {
	for name, rules := range map[string]string{
		"undefined":  `allow if input.action == "never"`,
		"a text":     `allow := "true"`,
		"an object":  `allow := {"allow": true}`,
		"two values": "allow := true if input.action\nallow := false if input.action",
		"fails":      `allow if 1 / (count(input.path) - count(input.path)) == 1`,
		"no allow":   `other := true`,
	} {
		t.Run(name, func(t *testing.T) {
			l := newLeader(t)
			l.enforce(rules)
			if f := l.refused(t, fault.PolicyDenied, l.service("cart", `{}`)); len(f.Reasons) == 0 || f.DecisionID == "" {
				t.Errorf("refused without a reason or a decision: %+v", f)
			}
		})
	}
}

func TestRoles(t *testing.T) {
	l := newLeader(t)
	l.do(l.service("cart", `{}`))
	minted, err := identity.Mint("viewer", nil, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	token := put(&command.Put{Kind: command.Kind_TOKEN, Name: minted.ID, Spec: minted.Spec})
	begin := &command.Command{Op: &command.Command_RestoreBegin{RestoreBegin: &command.RestoreBegin{Id: "r1", Chunks: 1, Size: 1}}}
	module := stage("package x\n")

	for name, tc := range map[string]struct {
		op   *command.Command
		asks []ask
	}{
		"a viewer registers":             {l.service("new", `{}`), []ask{as("v", "viewer")}},
		"a viewer deletes":               {remove(command.Kind_SERVICE, "", "cart"), []ask{as("v", "viewer")}},
		"nobody registers":               {l.service("new", `{}`), []ask{as("n")}},
		"a policy admin registers":       {l.service("new", `{}`), []ask{as("a", "policy-admin")}},
		"another namespace":              {l.service("new", `{}`), []ask{as("p", "publisher"), within("elsewhere")}},
		"status in another namespace":    {status("cart", "i1", "warning"), []ask{as("p", "publisher"), within("elsewhere")}},
		"a publisher makes a token":      {token, []ask{as("p", "publisher")}},
		"a policy admin makes a token":   {token, []ask{as("a", "policy-admin")}},
		"an operator of one namespace":   {token, []ask{within("default")}},
		"a publisher revokes a token":    {remove(command.Kind_TOKEN, "", minted.ID), []ask{as("p", "publisher")}},
		"a publisher stages a policy":    {module, []ask{as("p", "publisher")}},
		"a publisher activates":          {activate(1), []ask{as("p", "publisher")}},
		"a publisher rolls back":         {rollback(), []ask{as("p", "publisher")}},
		"a policy admin restores":        {begin, []ask{as("a", "policy-admin")}},
		"a record of no kind":            {put(&command.Put{Namespace: "default", Name: "x"}), nil},
		"a deletion of a record of none": {&command.Command{Op: &command.Command_Delete{Delete: &command.Delete{Name: "x"}}}, nil},
	} {
		t.Run(name, func(t *testing.T) { l.refused(t, fault.Forbidden, tc.op, tc.asks...) })
	}

	l.do(l.service("new", `{}`), as("p", "publisher"), within("default"))
	l.do(module, as("a", "policy-admin"))
	l.do(token)
	if l.machine.View().Tokens.Len() != 1 {
		t.Error("the token is not stored")
	}
	l.refused(t, fault.Conflict, token)
	l.do(remove(command.Kind_TOKEN, "", minted.ID))
	l.refused(t, fault.NotFound, remove(command.Kind_TOKEN, "", minted.ID))
}

// What only the leader itself proposes, nobody can ask for.
func TestNotForCallers(t *testing.T) {
	l := newLeader(t)
	for name, op := range map[string]*command.Command{
		"the cluster's id": {Op: &command.Command_ClusterInit{ClusterInit: &command.ClusterInit{ClusterId: "mine"}}},
		"leases":           {Op: &command.Command_Leases{Leases: &command.Leases{}}},
		"nothing":          {},
	} {
		t.Run(name, func(t *testing.T) { l.refused(t, fault.BadRequest, op) })
	}
	l.refused(t, fault.BadRequest, nil)
	l.refused(t, fault.BadRequest, l.service("cart", `{}`), func(in *command.Intent) { in.Principal = nil })
}

func member(t *testing.T, record []byte, name string) string {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal(record, &members); err != nil {
		t.Fatal(err)
	}
	return string(members[name])
}

func TestFilteredReplacesWhatIsStored(t *testing.T) {
	l := newLeader(t)
	l.do(l.service("cart", `{}`))
	l.enforce(`
default allow := true

filtered := object.union(input.resource.payload, {"owner": "known"}) if {
	input.resource.kind == "service"
	input.resource.name != "wrong"
}

filtered := {"owner": 7} if input.resource.name == "wrong"

filtered := object.union(input.resource.payload, {"zone": "z1"}) if input.resource.kind == "instance"

filtered := object.union(input.resource.payload, {"info": {"title": "clean", "version": "1"}}) if input.resource.kind == "version"
`)
	if r := l.do(l.service("cart", `{"owner":"sent","tags":["a"]}`)); member(t, r.Record, "owner") != `"known"` || member(t, r.Record, "tags") != `["a"]` {
		t.Errorf("service: %s", r.Record)
	}
	if r := l.do(l.instance("cart", "i1", 80, false)); member(t, r.Record, "zone") != `"z1"` || member(t, r.Record, "port") != "80" {
		t.Errorf("instance: %s", r.Record)
	}
	r := l.do(l.version("cart", "v1", openAPI), payload(openAPI))
	document, err := l.machine.Document("default", "cart", "v1", r.Revision)
	if err != nil || !strings.Contains(string(document), `"clean"`) || !strings.Contains(string(document), `"/cart"`) {
		t.Errorf("version: %s, %v", document, err)
	}
	if routes := member(t, r.Record, "routes"); !strings.Contains(routes, "/cart") {
		t.Errorf("the record is not of the filtered definition: %s", r.Record)
	}
	l.refused(t, fault.PolicyUnavailable, l.service("wrong", `{}`))
	l.refused(t, fault.ServiceNotFound, l.instance("new", "i1", 80, true))
	l.lawful()
}

func TestRestoreInProgress(t *testing.T) {
	l := newLeader(t)
	l.do(l.service("cart", `{}`))
	restore := func(op any) *command.Command {
		c := new(command.Command)
		switch op := op.(type) {
		case *command.RestoreBegin:
			c.Op = &command.Command_RestoreBegin{RestoreBegin: op}
		case *command.RestoreChunk:
			c.Op = &command.Command_RestoreChunk{RestoreChunk: op}
		case *command.RestoreCommit:
			c.Op = &command.Command_RestoreCommit{RestoreCommit: op}
		case *command.RestoreAbort:
			c.Op = &command.Command_RestoreAbort{RestoreAbort: op}
		}
		return c
	}
	l.do(restore(&command.RestoreBegin{Id: "r1", Chunks: 1, Size: 9}))
	for name, op := range map[string]*command.Command{
		"a change":        l.service("new", `{}`),
		"a deletion":      remove(command.Kind_SERVICE, "", "cart"),
		"a policy":        stage("package x\n"),
		"another restore": restore(&command.RestoreBegin{Id: "r2", Chunks: 1, Size: 9}),
	} {
		t.Run(name, func(t *testing.T) { l.refused(t, fault.NotReady, op) })
	}
	l.refused(t, fault.Conflict, restore(&command.RestoreChunk{Id: "r2", Data: []byte("x")}))
	l.do(restore(&command.RestoreChunk{Id: "r1", Data: []byte("no snapshot")}))
	was := l.machine.View().Hash
	if _, err := l.execute(restore(&command.RestoreCommit{Id: "r1"})); !fault.Is(err, fault.InvalidSnapshot) {
		t.Errorf("garbage restored: %v", err)
	}
	if l.machine.View().Hash != was {
		t.Error("garbage changed the state")
	}
	l.do(l.service("new", `{}`))

	l.do(restore(&command.RestoreBegin{Id: "r3", Chunks: 1, Size: 9}))
	l.do(restore(&command.RestoreAbort{Id: "r3"}))
	l.do(l.service("newer", `{}`))
}
