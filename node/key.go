package node

import (
	"bytes"
	"context"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/sign"
	"github.com/muster-registry/muster/setting"
)

// insist is how long a node waits before it asks again for a requirement that
// it could not put in force.
const insist = time.Second

// wireKeys connects what concerns signed policies.
func (n *Node) wireKeys() {
	n.signatures = sign.New(n.trustedKeys, time.Now)
	n.gate.Setting(setting.Key, admit.Setting{Resource: "key", Canonical: canonicalKey})
	n.gate.Setting(setting.Requirement, admit.Setting{Resource: "key", Canonical: canonicalRequirement, Deletable: n.requirementDeletable})
	if !n.cfg.Policy.RequireSignature {
		return
	}
	n.gate.RequireSignature()
	n.machine.OnApply(func(_ *fsm.View, ev fsm.Events) {
		if len(ev.Settings) > 0 || ev.Replaced {
			select {
			case n.ruled <- struct{}{}:
			default:
			}
		}
	})
}

// trustedKeys are the keys in the newest state of this node.
func (n *Node) trustedKeys() []*sign.Key {
	var keys []*sign.Key
	for r := range n.machine.View().Settings.All(setting.Key) {
		k, err := sign.ReadKey(r.Name, r.Spec)
		if err != nil {
			n.logger.Error("a trusted key is left out", "key", r.Name, "error", err)
			continue
		}
		keys = append(keys, k)
	}
	return keys
}

// canonicalKey is the rule for trusted keys. One key has one name, so that
// revoking the name ends the key.
func canonicalKey(_ context.Context, st admit.State, _ *command.Intent, cmd *command.Command, p *command.Put) ([]byte, error) {
	if err := policy.WellFormed(p.Spec); err != nil {
		return nil, err
	}
	var before *sign.Key
	if r, ok := st.Settings.Get(setting.Key, "", p.Name); ok {
		var err error
		if before, err = sign.ReadKey(r.Name, r.Spec); err != nil {
			return nil, err
		}
	}
	k, err := sign.Parse(p.Name, p.Spec, before, time.Unix(0, cmd.Time))
	if err != nil {
		return nil, err
	}
	for r := range st.Settings.All(setting.Key) {
		other, err := sign.ReadKey(r.Name, r.Spec)
		if err != nil {
			return nil, err
		}
		if other.Name != k.Name && other.Fingerprint == k.Fingerprint {
			return nil, fault.New(fault.Conflict, "this key is known already, by the name of %s; a key has one name", other.Name)
		}
	}
	return k.Encode(), nil
}

// canonicalRequirement is the rule for what policies must have.
func canonicalRequirement(_ context.Context, _ admit.State, _ *command.Intent, _ *command.Command, p *command.Put) ([]byte, error) {
	if p.Name != admit.SignatureRequirement {
		return nil, fault.Invalid("/name", "the only requirement is %s", admit.SignatureRequirement)
	}
	if err := policy.WellFormed(p.Spec); err != nil {
		return nil, err
	}
	spec := jsontext.Value(bytes.Clone(p.Spec))
	if err := spec.Compact(); err != nil || string(spec) != "{}" {
		return nil, fault.New(fault.BadRequest, "the body must be {}: that the requirement is there is all there is to it")
	}
	return spec, nil
}

func (n *Node) requirementDeletable(context.Context, admit.State, *command.Intent, *command.Delete) error {
	if !n.cfg.Policy.RequireSignature {
		return nil
	}
	return fault.New(fault.Conflict, "policy.require_signature is set in the configuration of %s, which leads; take it out on every node and restart them first", n.cfg.NodeID)
}

// requireSignature makes the requirement in this node's configuration the
// cluster's own, and does so again whenever a restore took it away.
func (n *Node) requireSignature(ctx context.Context) {
	intent := &command.Intent{
		Principal:  &command.Principal{Id: "node:" + n.cfg.NodeID, Kind: "node", Roles: []string{policy.Operator}},
		CreateOnly: true,
		Command: &command.Command{Op: &command.Command_Put{Put: &command.Put{
			Kind: command.Kind_SETTING, Service: string(setting.Requirement), Name: admit.SignatureRequirement, Spec: []byte("{}"),
		}}},
	}
	tick := time.NewTicker(insist)
	defer tick.Stop()
	for {
		var again <-chan time.Time
		if _, ruled := n.machine.View().Settings.Get(setting.Requirement, "", admit.SignatureRequirement); !ruled {
			again = tick.C
			if err := n.ask(ctx, intent); err != nil {
				n.logger.Debug("the requirement of signatures is not in force for the whole cluster yet", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-n.ruled:
		case <-again:
		}
	}
}

// ask submits an intent of this node's own, in bounded time.
func (n *Node) ask(ctx context.Context, in *command.Intent) error {
	ctx, cancel := context.WithTimeout(ctx, everywhere)
	defer cancel()
	_, err := backend{n}.Submit(ctx, proto.CloneOf(in))
	return err
}
