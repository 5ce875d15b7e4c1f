package admit_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/setting"
)

const refusesShop = `
default allow := true

deny contains "no more of shop" if input.resource.payload.owner == "shop"
`

// The law: no entry after policy revision R was admitted under an older one.
func TestPolicyChangesBeforeItsTurn(t *testing.T) {
	l := newLeader(t)
	l.ahead(func(*command.Command) { l.enforce(refusesShop) })
	_, err := l.execute(l.service("cart", `{"owner":"shop"}`))
	if f := fault.From(err); f == nil || f.Code != fault.PolicyDenied || f.PolicyRevision != 1 {
		t.Errorf("decided before the policy came, applied after: %v", err)
	}
	if _, ok := l.machine.View().Registry.Service("default", "cart"); ok {
		t.Error("the older decision took effect")
	}

	l.ahead(func(*command.Command) { l.enforce(`default allow := true`) })
	r := l.do(l.service("cart", `{"owner":"bank"}`))
	if r.PolicyRevision != 2 {
		t.Errorf("admitted under policy revision %d while 2 is active", r.PolicyRevision)
	}
	l.lawful()
}

func TestFilterOfTheNewPolicyIsApplied(t *testing.T) {
	l := newLeader(t)
	l.enforce("default allow := true\nfiltered := object.union(input.resource.payload, {\"owner\": \"first\"})")
	l.ahead(func(*command.Command) {
		l.enforce("default allow := true\nfiltered := object.union(input.resource.payload, {\"tags\": [\"second\"]})")
	})
	r := l.do(l.service("cart", `{"owner":"sent"}`))
	if member(t, r.Record, "owner") != `"sent"` || member(t, r.Record, "tags") != `["second"]` {
		t.Errorf("not what the active policy made of the payload: %s", r.Record)
	}
	l.lawful()
}

func TestRecordChangesBeforeItsTurn(t *testing.T) {
	l := newLeader(t)
	at := l.do(l.service("cart", `{"owner":"one"}`)).Revision
	other := func(observed uint64) func(*command.Command) {
		return func(*command.Command) {
			c := l.service("cart", `{"owner":"other"}`)
			c.GetPut().Observed = observed
			if _, err := l.apply(c); err != nil {
				t.Error(err)
			}
		}
	}
	l.ahead(other(at))
	if r := l.do(l.service("cart", `{"owner":"two"}`)); r.Revision != at+2 || r.Created {
		t.Errorf("overtaken by another writer: %+v", r)
	}
	l.ahead(other(at + 2))
	_, err := l.execute(l.service("cart", `{"owner":"three"}`), ifMatch(at+2))
	if f := fault.From(err); f == nil || f.Code != fault.RevisionMismatch || f.Current != at+3 {
		t.Errorf("overtaken by another writer, with If-Match: %v", err)
	}

	// What the policy refuses of the record as it is now is refused.
	l.enforce("default allow := true\ndeny contains \"sealed\" if input.resource.previous.owner == \"other\"")
	if _, err := l.execute(l.service("cart", `{"owner":"four"}`)); !fault.Is(err, fault.PolicyDenied) {
		t.Errorf("decided on a record that is no more: %v", err)
	}
}

func TestServiceGoesBeforeItsTurn(t *testing.T) {
	l := newLeader(t)
	at := l.do(l.service("cart", `{}`)).Revision
	drop := func(revision uint64) func(*command.Command) {
		return func(*command.Command) {
			c := remove(command.Kind_SERVICE, "", "cart")
			c.GetDelete().Observed = revision
			if _, err := l.apply(c); err != nil {
				t.Error(err)
			}
		}
	}
	l.ahead(drop(at))
	if _, err := l.execute(l.instance("cart", "i1", 80, false)); !fault.Is(err, fault.ServiceNotFound) {
		t.Errorf("an instance of a service that went: %v", err)
	}
	at = l.do(l.service("cart", `{}`)).Revision
	l.ahead(drop(at))
	if r := l.do(l.instance("cart", "i1", 80, true)); !r.Created {
		t.Errorf("create_service, and the service went: %+v", r)
	}
	// The policy is asked about the service that is made in its place, too.
	service, _ := l.machine.View().Registry.Service("default", "cart")
	l.enforce("default allow := true\ndeny contains \"no owner\" if input.resource.payload.owner == \"\"")
	l.ahead(drop(service.Revision))
	if _, err := l.execute(l.instance("cart", "i2", 80, true)); !fault.Is(err, fault.PolicyDenied) {
		t.Errorf("a service was made that the policy refuses: %v", err)
	}
}

// A record that is never at rest is given up on, not fought for for ever.
func TestNeverAtRest(t *testing.T) {
	l := newLeader(t)
	l.do(l.service("cart", `{}`))
	turns := 0
	var overtake func(*command.Command)
	overtake = func(c *command.Command) {
		turns++
		other := l.service("cart", `{}`)
		other.GetPut().Observed = c.GetPut().Observed
		if _, err := l.apply(other); err != nil {
			t.Error(err)
		}
		l.ahead(overtake)
	}
	l.ahead(overtake)
	if _, err := l.execute(l.service("cart", `{}`)); !fault.Is(err, fault.Conflict) {
		t.Errorf("never at rest: %v", err)
	}
	if turns < 2 || turns > 4 {
		t.Errorf("admitted %d times", turns)
	}
}

// A refusal may come of a state that a newer leader has left behind. It is
// given only once the state was confirmed, and taken back where it was stale.
func TestRefusalIsConfirmed(t *testing.T) {
	l := newLeader(t)
	apply := func(c *command.Command) func() error {
		return func() error { _, err := l.apply(c); return err }
	}
	l.behind(apply(l.service("cart", `{}`)))
	if r := l.do(l.instance("cart", "i1", 80, false)); !r.Created {
		t.Errorf("the service was there: %+v", r)
	}
	service, _ := l.machine.View().Registry.Service("default", "cart")

	changed := l.service("cart", `{"owner":"new"}`)
	changed.GetPut().Observed = service.Revision
	l.behind(apply(changed))
	l.do(l.service("cart", `{}`), ifMatch(l.machine.View().Revision+1))

	l.enforce(`default allow := false`)
	freed := stage("package api.registry.authz\n\ndefault allow := true\n")
	l.behind(func() error {
		if _, err := l.execute(freed); err != nil {
			return err
		}
		_, err := l.execute(activate(2))
		return err
	})
	l.do(l.service("free", `{}`))

	was := l.reads
	l.refused(t, fault.ServiceNotFound, l.instance("none", "i1", 80, false))
	if l.reads != was+1 {
		t.Errorf("a refusal was confirmed %d times", l.reads-was)
	}
	l.refused(t, fault.Forbidden, l.service("cart", `{}`), as("v", "viewer"))
	if l.reads != was+1 {
		t.Error("a refusal that rests on no state was confirmed")
	}

	// Without a confirmation there is no refusal either.
	l.behind(func() error { return fault.New(fault.NoLeader, "no leader") })
	l.refused(t, fault.NoLeader, l.instance("none", "i1", 80, false))
}

// A refusal is one decision, also where the state was confirmed before it was
// given; it is made again only where something has changed that it rests on.
func TestARefusalIsOneDecision(t *testing.T) {
	l := newLeader(t)
	l.do(l.service("cart", `{"owner":"one"}`))
	l.enforce(refusesShop)
	made := func(want int64, why string) {
		t.Helper()
		if n := l.decisions.Swap(0); n != want {
			t.Errorf("%s: %d decisions, want %d", why, n, want)
		}
	}
	l.decisions.Store(0)
	l.refused(t, fault.PolicyDenied, l.service("cart", `{"owner":"shop"}`))
	made(1, "a service")
	l.refused(t, fault.PolicyDenied, l.service("new", `{"owner":"shop"}`))
	made(1, "a new service")
	l.refused(t, fault.ServiceNotFound, l.instance("none", "i1", 80, false))
	made(1, "an instance of no service")
	l.refused(t, fault.VersionNotFound, remove(command.Kind_VERSION, "cart", "1.0.0"))
	made(1, "a version")
	l.refused(t, fault.RevisionMismatch, l.service("cart", `{}`), ifMatch(99))
	made(1, "another revision")

	// Others change other records meanwhile.
	other := l.service("other", `{}`)
	l.behind(func() error { _, err := l.apply(other); return err })
	if _, err := l.execute(l.service("cart", `{"owner":"shop"}`)); !fault.Is(err, fault.PolicyDenied) {
		t.Error(err)
	}
	made(1, "while another record changes")
	l.behind(func() error { l.set(setting.Schema, "*", "service", `{"metadata":{}}`); return nil })
	if _, err := l.execute(l.service("cart", `{"owner":"shop"}`)); !fault.Is(err, fault.PolicyDenied) {
		t.Error(err)
	}
	made(2, "while a schema comes")
}

// The last admission is confirmed like the first.
func TestRefusalAfterManyTurnsIsConfirmed(t *testing.T) {
	l := newLeader(t)
	l.do(l.service("cart", `{}`))
	turns := 0
	var overtake func(*command.Command)
	overtake = func(c *command.Command) {
		if turns++; turns == 3 {
			l.enforce(`default allow := false`)
			return
		}
		other := l.service("cart", `{}`)
		other.GetPut().Observed = c.GetPut().Observed
		if _, err := l.apply(other); err != nil {
			t.Error(err)
		}
		l.ahead(overtake)
	}
	l.ahead(overtake)
	if _, err := l.execute(l.service("cart", `{}`)); !fault.Is(err, fault.PolicyDenied) {
		t.Errorf("refused by the policy on the last turn: %v", err)
	}
}

func TestWritersOfOneRecord(t *testing.T) {
	l := newLeader(t)
	const writers = 24
	var wg sync.WaitGroup
	var created atomic.Int64
	revisions := make([]uint64, writers)
	for i := range writers {
		op := l.service("cart", fmt.Sprintf(`{"owner":"w%d"}`, i))
		wg.Go(func() {
			r, err := l.execute(op)
			if err != nil {
				t.Error(err)
				return
			}
			revisions[i] = r.Revision
			if r.Created {
				created.Add(1)
			}
		})
	}
	wg.Wait()
	seen := map[uint64]bool{}
	for _, r := range revisions {
		seen[r] = true
	}
	if len(seen) != writers || created.Load() != 1 {
		t.Errorf("%d writers got %d revisions, %d of them for creating the record", writers, len(seen), created.Load())
	}

	at := l.machine.View().Revision
	for name, tc := range map[string]struct {
		record string
		only   ask
	}{"If-Match": {"cart", ifMatch(at)}, "If-None-Match": {"new", createOnly}} {
		var won, lost atomic.Int64
		for range writers {
			op := l.service(tc.record, `{}`)
			wg.Go(func() {
				switch _, err := l.execute(op, tc.only); {
				case err == nil:
					won.Add(1)
				case fault.Is(err, fault.RevisionMismatch):
					lost.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 || lost.Load() != writers-1 {
			t.Errorf("%s: %d of %d won, %d lost", name, won.Load(), writers, lost.Load())
		}
	}
}

// A writer whose time ends while it waits for its turn has changed nothing.
func TestTurnDoesNotCome(t *testing.T) {
	l := newLeader(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	l.ahead(func(*command.Command) {
		close(entered)
		<-leave
	})
	op := l.service("cart", `{"owner":"first"}`)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := l.execute(op); err != nil {
			t.Error(err)
		}
	})
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in := &command.Intent{Principal: &command.Principal{Id: "token:op", Roles: []string{"operator"}}, Command: l.service("cart", `{"owner":"second"}`)}
	_, err := l.gate.Execute(ctx, in)
	if f := fault.From(err); f == nil || f.Code != fault.NotReady || f.Outcome != fault.Definite {
		t.Errorf("a turn that did not come: %v", err)
	}
	close(leave)
	wg.Wait()
	if r := l.do(l.service("cart", `{}`)); r.Created {
		t.Error("the first writer was lost")
	}
}

// Writers and policies that change all the time: each change stands under the
// policy that allowed it.
func TestLawUnderConcurrency(t *testing.T) {
	l := newLeader(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 12 {
			rules := "default allow := true"
			if i%2 == 1 {
				rules = refusesShop
			}
			l.enforce(rules)
		}
	})
	for w := range 6 {
		wg.Go(func() {
			for i := range 30 {
				op := l.service(fmt.Sprintf("s%d", i%5), fmt.Sprintf(`{"owner":"%s","description":"%d"}`, [2]string{"shop", "bank"}[i%2], w))
				_, err := l.execute(op)
				if err != nil && !fault.Is(err, fault.PolicyDenied) && !fault.Is(err, fault.Conflict) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	l.lawful()
	// Where the policy that refuses them was active, none of shop's came.
	for _, a := range l.applied {
		if a.err == nil && a.active > 0 && a.active%2 == 0 && a.command.GetPut() != nil {
			if owner := member(t, a.command.GetPut().Spec, "owner"); owner == `"shop"` {
				t.Error("a change was applied that the active policy refuses")
			}
		}
	}
}
