package admit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/breakglass"
	"github.com/muster-registry/muster/policy/decision"
	"github.com/muster-registry/muster/policy/rego"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/registry/definition"
	"github.com/muster-registry/muster/setting"
)

// leader is a gate over the real state machine and the real policy engine. It
// is the gate's log itself: what is proposed is the machine's next entry.
type leader struct {
	t       testing.TB
	machine *fsm.Machine
	gate    *admit.Gate

	override *breakglass.Override

	decisions decisions

	mu      sync.Mutex // guards what follows, and the order of entries
	applied []applied
	before  func(*command.Command) // called ahead of the next entry, once
	newer   func() error           // called by the next ReadIndex, once
	reads   int
	told    []string // ids of decisions by webhooks
}

// applied is a command that had its turn, and what was active at that moment.
type applied struct {
	command    *command.Command
	active     uint64
	conditions []byte
	err        error
}

func newLeader(t testing.TB) *leader {
	t.Helper()
	m, err := fsm.Open(t.TempDir(), fsm.Options{FlushEvery: time.Millisecond, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	// Time is not what these tests are about.
	engine := rego.New(rego.Options{Limit: 10 * time.Second, ValidSchema: definition.Valid, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		engine.Close()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &leader{t: t, machine: m}
	state := func() admit.State {
		v := m.View()
		return admit.State{Revision: v.Revision, Registry: v.Registry, Policy: v.Policy, Settings: v.Settings, Restore: v.Restoring, Repeat: m.Repeat}
	}
	again := func(err error) bool {
		return errors.Is(err, fsm.ErrStale) || errors.Is(err, fsm.ErrPolicyChanged) || errors.Is(err, fsm.ErrConditionsChanged) || errors.Is(err, setting.ErrStale) || errors.Is(err, policy.ErrOvertaken)
	}
	l.override = breakglass.New(func() *setting.Table { return m.View().Settings }, time.Now, slog.New(slog.DiscardHandler))
	l.gate = admit.New(state, l, decision.Observed(l.override.Decider(engine), &l.decisions), engine, again)
	return l
}

// decisions counts those of the policy.
type decisions struct{ atomic.Int64 }

// Decided implements policy.Observer.
func (d *decisions) Decided(*policy.Revision, *policy.Question, *policy.Decision, time.Duration) {
	d.Add(1)
}

// Propose implements admit.Log.
func (l *leader) Propose(_ context.Context, c *command.Command) (*command.Receipt, error) {
	l.mu.Lock()
	before := l.before
	l.before = nil
	l.mu.Unlock()
	if before != nil {
		before(c)
	}
	return l.apply(c)
}

// ReadIndex implements admit.Log.
func (l *leader) ReadIndex(context.Context) error {
	l.mu.Lock()
	newer := l.newer
	l.newer = nil
	l.reads++
	l.mu.Unlock()
	if newer != nil {
		return newer()
	}
	return nil
}

// apply makes the command the next entry of the log, whoever admitted it.
func (l *leader) apply(c *command.Command) (*command.Receipt, error) {
	data, err := proto.Marshal(&command.Batch{Format: command.Format, Commands: []*command.Command{c}})
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	active, conditions := l.active(), l.machine.View().Settings.Conditions()
	entry := &raft.Log{Index: l.machine.AppliedIndex() + 1, Term: 1, Type: raft.LogCommand, Data: data}
	r := l.machine.Apply(entry).([]command.Result)[0]
	l.applied = append(l.applied, applied{c, active, conditions, r.Err})
	return r.Receipt, r.Err
}

func (l *leader) active() uint64 {
	if a := l.machine.View().Policy.Active(); a != nil {
		return a.Number
	}
	return 0
}

// ahead has fn run between the decision on the next command and its turn.
func (l *leader) ahead(fn func(*command.Command)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.before = fn
}

// behind makes the state one that a newer leader has changed by fn, which
// only a confirmation brings here.
func (l *leader) behind(fn func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.newer = fn
}

// ask is a change on its way to the gate.
type ask func(*command.Intent)

func (l *leader) execute(op *command.Command, asks ...ask) (*command.Receipt, error) {
	in := &command.Intent{Principal: &command.Principal{Id: "token:op", Kind: "token", Roles: []string{"operator"}}, Command: op}
	for _, a := range asks {
		a(in)
	}
	return l.gate.Execute(l.t.Context(), in)
}

// do is execute for what must succeed.
func (l *leader) do(op *command.Command, asks ...ask) *command.Receipt {
	l.t.Helper()
	r, err := l.execute(op, asks...)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// refused is execute for what must be refused with the code, and change
// nothing.
func (l *leader) refused(t testing.TB, code fault.Code, op *command.Command, asks ...ask) *fault.Error {
	t.Helper()
	was := l.machine.View()
	r, err := l.execute(op, asks...)
	if !fault.Is(err, code) {
		t.Fatalf("%v, %v; want %s", r, err, code)
	}
	if now := l.machine.View(); now.Hash != was.Hash || now.Revision != was.Revision {
		t.Fatalf("%s, and yet the state went from revision %d to %d", code, was.Revision, now.Revision)
	}
	f := fault.From(err)
	if f.Outcome != fault.Definite {
		t.Errorf("%s is said to have an unknown outcome", code)
	}
	return f
}

func as(id string, roles ...string) ask {
	return func(in *command.Intent) {
		in.Principal = &command.Principal{Id: id, Kind: "token", Roles: roles}
	}
}

func within(namespaces ...string) ask {
	return func(in *command.Intent) { in.Principal.Namespaces = namespaces }
}

func ifMatch(revision uint64) ask {
	return func(in *command.Intent) { in.Match, in.HasMatch = revision, true }
}

func createOnly(in *command.Intent) { in.CreateOnly = true }

func keyed(key, request string) ask {
	return func(in *command.Intent) { in.IdempotencyKey, in.RequestDigest = key, []byte(request) }
}

func payload(p string) ask {
	return func(in *command.Intent) { in.Payload = []byte(p) }
}

// The changes below are as the REST edge makes them of a body.

func (l *leader) service(name, body string) *command.Command {
	l.t.Helper()
	spec, err := registry.CanonicalService("default", name, []byte(body))
	if err != nil {
		l.t.Fatal(err)
	}
	return put(&command.Put{Kind: command.Kind_SERVICE, Namespace: "default", Name: name, Spec: spec})
}

func (l *leader) instance(service, id string, port int, create bool) *command.Command {
	l.t.Helper()
	spec, err := registry.CanonicalInstance("default", service, id, fmt.Appendf(nil, `{"address":"10.0.0.1","port":%d}`, port))
	if err != nil {
		l.t.Fatal(err)
	}
	return put(&command.Put{Kind: command.Kind_INSTANCE, Namespace: "default", Service: service, Name: id, Spec: spec, CreateService: create})
}

func (l *leader) version(service, v, document string) *command.Command {
	l.t.Helper()
	spec, doc, err := registry.CanonicalVersion("default", service, v, []byte(`{"format":"openapi","document":`+document+`}`))
	if err != nil {
		l.t.Fatal(err)
	}
	return put(&command.Put{Kind: command.Kind_VERSION, Namespace: "default", Service: service, Name: v, Spec: spec, Document: doc})
}

const openAPI = `{"openapi":"3.1.0","info":{"title":"cart","version":"1"},"paths":{"/cart":{"get":{"responses":{"200":{"description":"ok"}}}}}}`

func put(p *command.Put) *command.Command {
	return &command.Command{Op: &command.Command_Put{Put: p}}
}

func remove(kind command.Kind, service, name string) *command.Command {
	return &command.Command{Op: &command.Command_Delete{Delete: &command.Delete{Kind: kind, Namespace: "default", Service: service, Name: name}}}
}

func status(service, id, to string) *command.Command {
	return &command.Command{Op: &command.Command_Status{Status: &command.InstanceStatus{Namespace: "default", Service: service, Name: id, Status: to}}}
}

func stage(module string) *command.Command {
	c := policy.Content{Modules: map[string]string{"policy.rego": module}}
	return &command.Command{Op: &command.Command_PolicyStage{PolicyStage: &command.PolicyStage{Content: c.Encode()}}}
}

func activate(number uint64) *command.Command {
	return &command.Command{Op: &command.Command_PolicyActivate{PolicyActivate: &command.PolicyActivate{Revision: number}}}
}

func rollback() *command.Command {
	return &command.Command{Op: &command.Command_PolicyActivate{PolicyActivate: &command.PolicyActivate{Rollback: true}}}
}

// enforce makes the rules the active policy and gives its number.
func (l *leader) enforce(rules string) uint64 {
	l.t.Helper()
	r := l.do(stage("package api.registry.authz\n\nimport rego.v1\n\n" + rules))
	rev, err := policy.DecodeRevision(r.Record)
	if err != nil {
		l.t.Fatal(err)
	}
	l.do(activate(rev.Number))
	return rev.Number
}

// lawful checks that no change was applied under another policy than the one
// that decided on it, or under other webhooks, schemas and openings.
func (l *leader) lawful() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.applied {
		if a.err == nil && a.command.Gated && a.command.PolicyRevision != a.active {
			l.t.Errorf("policy revision %d was active when a change admitted under %d was applied", a.active, a.command.PolicyRevision)
		}
		if a.err == nil && a.command.Gated && !bytes.Equal(a.command.Conditions, a.conditions) {
			l.t.Error("a change was applied that was admitted under other settings")
		}
	}
}
