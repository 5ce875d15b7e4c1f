package admit

import (
	"context"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/setting"
)

// Setting is the rule for one kind of setting: who may change it, and what may
// stand in it.
type Setting struct {
	// Resource is the kind that the built-in roles know it as.
	Resource string
	// Canonical brings what a caller sent into the form that is stored, or
	// refuses it. It runs on the leader, and again when the state moves before
	// the change has its turn. Times come from the command.
	Canonical func(ctx context.Context, st State, in *command.Intent, cmd *command.Command, p *command.Put) (spec []byte, err error)
	// Deletable refuses a removal; nil: none.
	Deletable func(ctx context.Context, st State, in *command.Intent, d *command.Delete) error
}

// Setting registers the rule for a kind of setting; a kind without one cannot
// be changed by callers. To be called before the gate is used.
func (g *Gate) Setting(kind setting.Kind, rule Setting) { g.settings[kind] = rule }

func (g *Gate) rule(in *command.Intent, kind, namespace string) (Setting, error) {
	rule, ok := g.settings[setting.Kind(kind)]
	if !ok {
		return rule, fault.New(fault.BadRequest, "a caller cannot change settings of the kind %q", kind)
	}
	return rule, Permit(in, policy.Manage, rule.Resource, namespace)
}

func (g *Gate) admitSetting(ctx context.Context, st State, in *command.Intent, cmd *command.Command, p *command.Put) (*command.Command, error) {
	rule, err := g.rule(in, p.Service, p.Namespace)
	if err != nil {
		return nil, err
	}
	now := lookSetting(st, p.Service, p.Namespace, p.Name)
	if err := precondition(in, now); err != nil {
		return nil, err
	}
	spec, err := rule.Canonical(ctx, st, in, cmd, p)
	if err != nil {
		return nil, err
	}
	cmd.Op = &command.Command_Put{Put: &command.Put{
		Kind: p.Kind, Namespace: p.Namespace, Service: p.Service, Name: p.Name, Spec: spec, Observed: now.revision,
	}}
	return cmd, nil
}

func (g *Gate) admitUnset(ctx context.Context, st State, in *command.Intent, cmd *command.Command, d *command.Delete) (*command.Command, error) {
	rule, err := g.rule(in, d.Service, d.Namespace)
	if err != nil {
		return nil, err
	}
	now := lookSetting(st, d.Service, d.Namespace, d.Name)
	if !now.exists {
		return nil, fault.New(fault.NotFound, "there is no %s %q", d.Service, d.Name)
	}
	if err := precondition(in, now); err != nil {
		return nil, err
	}
	if rule.Deletable != nil {
		if err := rule.Deletable(ctx, st, in, d); err != nil {
			return nil, err
		}
	}
	cmd.Op = &command.Command_Delete{Delete: &command.Delete{
		Kind: d.Kind, Namespace: d.Namespace, Service: d.Service, Name: d.Name, Observed: now.revision,
	}}
	return cmd, nil
}

func lookSetting(st State, kind, namespace, name string) found {
	r, ok := st.Settings.Get(setting.Kind(kind), namespace, name)
	if !ok {
		return found{}
	}
	return found{exists: true, revision: r.Revision, json: r.JSON}
}
