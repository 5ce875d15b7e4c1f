package admit_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy/breakglass"
	"github.com/muster-registry/muster/setting"
)

// unset removes a setting, whoever may.
func (l *leader) unset(kind setting.Kind, namespace, name string) {
	l.t.Helper()
	r, ok := l.machine.View().Settings.Get(kind, namespace, name)
	if !ok {
		l.t.Fatalf("there is no %s %s", kind, name)
	}
	if _, err := l.apply(&command.Command{Op: &command.Command_Delete{Delete: &command.Delete{
		Kind: command.Kind_SETTING, Service: string(kind), Namespace: namespace, Name: name, Observed: r.Revision,
	}}}); err != nil {
		l.t.Fatal(err)
	}
}

// open lifts refusals about the namespace default.
func (l *leader) open(t testing.TB) {
	t.Helper()
	spec, err := breakglass.Canonical("default", []byte(`{"namespace":"default","ttl":"1h","reason":"a repair"}`), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l.set(setting.BreakGlass, "default", "default", string(spec))
}

// The law: no change is applied that was admitted without a setting which was
// there before it, or by one that was no more.
func TestSettingsChangeBeforeItsTurn(t *testing.T) {
	const tier, open = `{"metadata":{"required":["tier"]}}`, `{"metadata":{}}`
	for name, c := range map[string]struct {
		before, meanwhile func(*leader, *outside)
		change            func(*leader) *command.Command // a new service cart, where nil
		code              fault.Code                     // empty: it goes through
	}{
		"a schema comes": {
			meanwhile: func(l *leader, _ *outside) { l.set(setting.Schema, "*", "service", tier) },
			code:      fault.InvalidField,
		},
		"a schema gets stricter": {
			before:    func(l *leader, _ *outside) { l.set(setting.Schema, "*", "service", open) },
			meanwhile: func(l *leader, _ *outside) { l.set(setting.Schema, "*", "service", tier) },
			code:      fault.InvalidField,
		},
		"a schema goes": {
			before:    func(l *leader, _ *outside) { l.set(setting.Schema, "default", "service", open) },
			meanwhile: func(l *leader, _ *outside) { l.unset(setting.Schema, "default", "service") },
		},
		"a webhook comes": {
			before:    func(l *leader, o *outside) { l.unset(setting.Webhook, "", "opa"); o.says(`{"result":false}`) },
			meanwhile: func(_ *leader, o *outside) { o.set() },
			code:      fault.PolicyDenied,
		},
		"a webhook comes, and a record goes": {
			before: func(l *leader, o *outside) {
				l.do(l.service("cart", `{}`))
				l.unset(setting.Webhook, "", "opa")
				o.says(`{"result":false}`)
			},
			meanwhile: func(_ *leader, o *outside) { o.set() },
			change:    func(*leader) *command.Command { return remove(command.Kind_SERVICE, "", "cart") },
			code:      fault.PolicyDenied,
		},
		"break-glass ends": {
			before:    func(l *leader, _ *outside) { l.enforce(`default allow := false`); l.open(l.t) },
			meanwhile: func(l *leader, _ *outside) { l.unset(setting.BreakGlass, "default", "default") },
			code:      fault.PolicyDenied,
		},
		"break-glass goes on": {
			before:    func(l *leader, _ *outside) { l.enforce(`default allow := false`); l.open(l.t) },
			meanwhile: func(l *leader, _ *outside) { l.open(l.t) },
		},
		"policies must be signed from now on": {
			meanwhile: func(l *leader, _ *outside) { l.set(setting.Requirement, "", admit.SignatureRequirement, `{}`) },
			change:    func(*leader) *command.Command { return stage("package a") },
			code:      fault.InvalidPolicy,
		},
		"what is to be active must be signed from now on": {
			before:    func(l *leader, _ *outside) { l.do(stage("package a")) },
			meanwhile: func(l *leader, _ *outside) { l.set(setting.Requirement, "", admit.SignatureRequirement, `{}`) },
			change:    func(*leader) *command.Command { return activate(1) },
			code:      fault.InvalidPolicy,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLeader(t)
			o := l.outside()
			if c.before != nil {
				c.before(l, o)
			}
			change := l.service("cart", `{}`)
			if c.change != nil {
				change = c.change(l)
			}
			l.ahead(func(*command.Command) { c.meanwhile(l, o) })
			_, err := l.execute(change)
			if c.code == "" && err != nil || c.code != "" && !fault.Is(err, c.code) {
				t.Errorf("%v, want %q", err, c.code)
			}
			l.lawful()
		})
	}
}

// Writers and a schema that comes and goes: nothing is stored that the schema
// of its moment refuses.
func TestSettingsUnderConcurrency(t *testing.T) {
	l := newLeader(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 10 {
			l.set(setting.Schema, "*", "service", `{"metadata":{"required":["tier"]}}`)
			l.do(l.service("meanwhile", `{"metadata":{"tier":"gold"}}`))
			l.unset(setting.Schema, "*", "service")
		}
	})
	for w := range 4 {
		wg.Go(func() {
			for i := range 30 {
				_, err := l.execute(l.service(fmt.Sprintf("s%d", i%5), fmt.Sprintf(`{"description":"%d"}`, w)))
				if err != nil && !fault.Is(err, fault.InvalidField) && !fault.Is(err, fault.Conflict) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	l.lawful()
}
