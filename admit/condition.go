package admit

import (
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
)

// conditional says whether the admission of the command depends on webhooks,
// schemas, break-glass or what policies must have.
func conditional(cmd *command.Command) bool {
	return cmd.Gated || cmd.GetPolicyStage() != nil || cmd.GetPolicyActivate() != nil
}

// basis is what a refusal rests on. Where it is still the same after the state
// was confirmed, the refusal is: it is one decision, made once.
type basis struct {
	policy     uint64 // number of the active revision
	digest     string // of the active revision
	conditions string
	exists     bool
	service    bool // missing
	revision   uint64
}

// basisOf gives it for a change of a service or an instance, whose decision sees
// no other record. For all else it is the whole state.
func basisOf(st State, c *command.Command) basis {
	var t target
	switch op := c.Op.(type) {
	case *command.Command_Put:
		t = target{kind: op.Put.Kind, namespace: op.Put.Namespace, service: op.Put.Service, name: op.Put.Name}
	case *command.Command_Delete:
		t = target{kind: op.Delete.Kind, namespace: op.Delete.Namespace, service: op.Delete.Service, name: op.Delete.Name}
	case *command.Command_Status:
		t = target{kind: command.Kind_INSTANCE, namespace: op.Status.Namespace, service: op.Status.Service, name: op.Status.Name}
	}
	b := basis{conditions: string(st.Settings.Conditions())}
	if a := st.Policy.Active(); a != nil {
		b.policy, b.digest = a.Number, a.Digest
	}
	if t.kind != command.Kind_SERVICE && t.kind != command.Kind_INSTANCE {
		b.revision = st.Revision
		return b
	}
	now := t.look(st.Registry)
	b.exists, b.service, b.revision = now.exists, now.serviceMissing, now.revision
	return b
}

func precondition(in *command.Intent, now found) error {
	switch {
	case in.CreateOnly && now.exists:
		return mismatch(now, "the record exists already, at revision %d; If-None-Match: * only creates", now.revision)
	case in.HasMatch && !now.exists:
		return mismatch(now, "the record does not exist; If-Match asked for revision %d", in.Match)
	case in.HasMatch && in.Match != now.revision:
		return mismatch(now, "the record is at revision %d, not %d; read it again and decide anew", now.revision, in.Match)
	}
	return nil
}

func mismatch(now found, format string, args ...any) error {
	f := fault.New(fault.RevisionMismatch, format, args...)
	f.Current = now.revision
	return f
}
