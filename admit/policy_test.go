package admit_test

import (
	"testing"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

func (l *leader) revision(t *testing.T, number uint64) *policy.Revision {
	t.Helper()
	rev, ok := l.machine.View().Policy.Get(number)
	if !ok {
		t.Fatalf("there is no policy revision %d", number)
	}
	return rev
}

const allows = "package api.registry.authz\n\ndefault allow := true\n"

func TestStage(t *testing.T) {
	l := newLeader(t)
	l.do(stage(allows))
	rev := l.revision(t, 1)
	if rev.State != policy.Staged || rev.CreatedBy != "token:op" || rev.Digest == "" {
		t.Errorf("staged as %+v", rev)
	}
	if l.active() != 0 {
		t.Error("a staged revision decides")
	}
	for name, module := range map[string]string{
		"no Rego":       "package",
		"out of reach":  "package api.registry.authz\n\nallow := http.send({\"method\":\"GET\",\"url\":\"http://127.0.0.1\"}).status_code == 200\n",
		"an open end":   "package api.registry.authz\n\nallow := missing\n",
		"with in a way": "package api.registry.authz\n\nallow if count(\"x\") == 1 with count as http.send\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := l.refused(t, fault.InvalidPolicy, stage(module))
			if len(f.Places) == 0 || f.Places[0].File != "policy.rego" {
				t.Errorf("names no place: %+v", f.Places)
			}
		})
	}
	l.refused(t, fault.BadRequest, &command.Command{Op: &command.Command_PolicyStage{PolicyStage: &command.PolicyStage{Content: []byte(`{`)}}})
	l.refused(t, fault.InvalidField, &command.Command{Op: &command.Command_PolicyStage{PolicyStage: &command.PolicyStage{Content: []byte(`{"modules":{},"x":1}`)}}})

	failing := policy.Content{Modules: map[string]string{"a.rego": allows, "a_test.rego": "package api.registry.authz_test\n\ntest_no if data.api.registry.authz.allow == false\n"}}
	f := l.refused(t, fault.InvalidPolicy, &command.Command{Op: &command.Command_PolicyStage{PolicyStage: &command.PolicyStage{Content: failing.Encode()}}})
	if len(f.Places) != 1 || f.Places[0].File != "a_test.rego" {
		t.Errorf("a test that fails: %+v", f.Places)
	}
}

// Report and digest are the leader's own, whatever the intent carries.
func TestStageBelievesNothing(t *testing.T) {
	l := newLeader(t)
	op := stage(allows)
	op.GetPolicyStage().Digest = "sha256:made-up"
	op.GetPolicyStage().Report = []byte(`{"tests":{"passed":99,"failed":0},"findings":[]}`)
	l.do(op)
	if rev := l.revision(t, 1); rev.Digest == "sha256:made-up" || rev.Tests.Passed != 0 {
		t.Errorf("believed: %s, %+v", rev.Digest, rev.Tests)
	}
}

func TestActivateAndRollBack(t *testing.T) {
	l := newLeader(t)
	l.refused(t, fault.NotFound, activate(1))
	l.refused(t, fault.NotFound, rollback())
	for range 3 {
		l.do(stage(allows))
	}
	l.do(activate(1))
	l.refused(t, fault.Conflict, rollback())
	l.do(activate(2))
	l.do(activate(3))
	for _, want := range []uint64{2, 1} {
		l.do(rollback())
		if l.active() != want {
			t.Fatalf("policy revision %d is active, want %d", l.active(), want)
		}
	}
	l.refused(t, fault.Conflict, rollback())
	if s := l.revision(t, 3).State; s != policy.Retired {
		t.Errorf("what was rolled back is %s", s)
	}
	l.do(activate(1)) // as it is already
	if l.active() != 1 {
		t.Errorf("policy revision %d is active", l.active())
	}
}

func TestCompareAndSwapOfPolicies(t *testing.T) {
	l := newLeader(t)
	for range 3 {
		l.do(stage(allows))
	}
	l.do(activate(1), ifMatch(0))
	for name, tc := range map[string]struct {
		op *command.Command
		at uint64
	}{
		"activate, as if none was": {activate(2), 0},
		"activate over another":    {activate(3), 2},
		"activate what is active":  {activate(1), 2},
		"roll back another":        {rollback(), 2},
		"stage over another":       {stage(allows), 2},
	} {
		t.Run(name, func(t *testing.T) {
			if f := l.refused(t, fault.RevisionMismatch, tc.op, ifMatch(tc.at)); f.Current != 1 {
				t.Errorf("policy revision %d is said to be active", f.Current)
			}
		})
	}
	l.refused(t, fault.BadRequest, activate(2), createOnly)
	l.do(activate(2), ifMatch(1))
	l.do(rollback(), ifMatch(2))

	// A leader that did not see the other change swaps nothing.
	l.ahead(func(*command.Command) {
		if _, err := l.apply(&command.Command{Op: &command.Command_PolicyActivate{PolicyActivate: &command.PolicyActivate{Revision: 3, ExpectActive: 1}}}); err != nil {
			t.Error(err)
		}
	})
	if _, err := l.execute(activate(2)); !fault.Is(err, fault.Conflict) {
		t.Errorf("another activation came first: %v", err)
	}
	if l.active() != 3 {
		t.Errorf("policy revision %d is active, want 3", l.active())
	}
}
