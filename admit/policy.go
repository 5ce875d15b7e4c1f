package admit

import (
	"context"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

func (g *Gate) admitStage(ctx context.Context, st State, in *command.Intent, cmd *command.Command, p *command.PolicyStage) (*command.Command, error) {
	if err := Permit(in, policy.Manage, "policy", ""); err != nil {
		return nil, err
	}
	if err := activeMatches(st, in); err != nil {
		return nil, err
	}
	from, err := g.vouched(st, p.Origin, time.Unix(0, cmd.Time))
	if err != nil {
		return nil, err
	}
	content, err := policy.ParseContent(p.Content)
	if err != nil {
		return nil, err
	}
	report, err := g.checker.Check(ctx, content)
	if err != nil {
		return nil, err
	}
	encoded, digest := content.EncodeAndDigest()
	cmd.Op = &command.Command_PolicyStage{PolicyStage: &command.PolicyStage{
		Content: encoded, Digest: digest, Report: report.Encode(), Engine: g.checker.Version(),
		Origin: from.Encode(),
	}}
	return cmd, nil
}

// activeMatches holds a change of the policies to the number of the active
// revision that its caller expects, where one is (HasMatch).
func activeMatches(st State, in *command.Intent) error {
	if in.CreateOnly {
		return fault.New(fault.BadRequest, "If-None-Match means nothing here: a policy revision is always new, and activating one creates nothing")
	}
	active := activeNumber(st)
	if !in.HasMatch || in.Match == active {
		return nil
	}
	f := fault.New(fault.RevisionMismatch, "policy revision %d is active, not %d; look at it and decide anew", active, in.Match)
	f.Current = active
	return f
}

// activeNumber is 0 when no policy is active.
func activeNumber(st State) uint64 {
	if a := st.Policy.Active(); a != nil {
		return a.Number
	}
	return 0
}

// admitActivate fixes what is replaced: what is active now, which is what the
// caller expects where it says so. Apply compares again.
func (g *Gate) admitActivate(st State, in *command.Intent, cmd *command.Command, p *command.PolicyActivate) (*command.Command, error) {
	if err := Permit(in, policy.Manage, "policy", ""); err != nil {
		return nil, err
	}
	if err := activeMatches(st, in); err != nil {
		return nil, err
	}
	next := &command.PolicyActivate{Revision: p.Revision, Rollback: p.Rollback, ExpectActive: activeNumber(st)}
	if p.Rollback {
		to, err := st.Policy.RollbackTarget()
		if err != nil {
			return nil, err
		}
		if p.Revision != 0 && p.Revision != to.Number {
			return nil, fault.New(fault.Conflict, "a rollback would lead to policy revision %d by now, not %d: another change came first; look at it and try again", to.Number, p.Revision)
		}
		next.Revision = to.Number
	}
	if err := g.mayActivate(st, next.Revision); err != nil {
		return nil, err
	}
	cmd.Op = &command.Command_PolicyActivate{PolicyActivate: next}
	return cmd, nil
}

// admitShadow lets a revision be evaluated beside the active one, or ends that.
func (g *Gate) admitShadow(st State, in *command.Intent, cmd *command.Command, p *command.PolicyShadow) (*command.Command, error) {
	if err := Permit(in, policy.Manage, "policy", ""); err != nil {
		return nil, err
	}
	if err := activeMatches(st, in); err != nil {
		return nil, err
	}
	cmd.Op = &command.Command_PolicyShadow{PolicyShadow: p}
	return cmd, nil
}
